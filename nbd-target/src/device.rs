//! A block device from its making to its end.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use nbd_server::DirectConnections;
use pool::{Host, ThinDevice};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::driver::Driver;
use crate::error::Error;
use crate::keeper::Keeper;
use crate::message::{Device, Shape};
use crate::probe::probe;
use crate::record::CONNECTIONS_MAX;
use crate::{Record, Table};

/// How many connections a device is given unless it is told: one for each processor, within these. The
/// driver sends the requests of a processor over one connection, which one thread serves here.
const CONNECTIONS_DEFAULT: RangeInclusive<u16> = CONNECTIONS_MIN..=4;

/// With a single one the driver would not repeat what was sent to a process that died.
const CONNECTIONS_MIN: u16 = 2;

/// How many devices are tried that others seem to take at the same time, or have open.
const TRIES_MAX: u32 = 64;

/// The smallest unit of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SectorSize {
    /// 512 bytes.
    S512,
    /// 4096 bytes.
    S4096,
}

impl SectorSize {
    /// In bytes.
    fn bytes(self) -> u32 {
        match self {
            SectorSize::S512 => 512,
            SectorSize::S4096 => 4096,
        }
    }
}

/// How a device is served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// How many connections it has, each served by a thread: 1 to 64, of which there are always 2; unless
    /// given one for each processor, 4 at most.
    pub connections: Option<u16>,
    /// 4096 unless given, or 512 when the device's size is no multiple of 4096.
    pub sector_size: Option<SectorSize>,
}

impl Options {
    fn connections(&self) -> Result<u16, Error> {
        let Some(asked) = self.connections else {
            let (least, most) = CONNECTIONS_DEFAULT.into_inner();
            let processors = thread::available_parallelism().map_or(1, usize::from);
            return Ok(u16::try_from(processors).unwrap_or(most).clamp(least, most));
        };
        if !(1..=CONNECTIONS_MAX).contains(&asked) {
            return Err(Error::BadConnections {
                found: asked,
                most: CONNECTIONS_MAX,
            });
        }
        Ok(asked.max(CONNECTIONS_MIN))
    }
}

/// Whose device it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// What survives renaming of the volume or snapshot.
    pub volume: String,
    /// A random number: the device with it is this one.
    pub token: u64,
    /// Where its file system is going to be mounted.
    pub mountpoint: Option<PathBuf>,
}

/// A thin device that is a block device now, served by threads of its own.
///
/// Dropping it leaves the block device to the next process, as [`NbdDevice::leave`] does. All of its
/// methods block: call them on threads for blocking work.
pub struct NbdDevice<H: Host> {
    record: Record,
    connections: Arc<DirectConnections<H>>,
    /// None once connections are not replaced any more.
    keeper: Option<Keeper>,
}

impl<H: Host> NbdDevice<H> {
    /// Makes a thin device a block device, and puts it down in the table. It is read only when the
    /// thin device is. What fails leaves nothing behind.
    ///
    /// # Errors
    /// What stopped it.
    pub fn create(
        thin: &ThinDevice<H>,
        identity: Identity,
        options: &Options,
        table: &mut Table,
    ) -> Result<Self, Error> {
        probe()?;
        let connections = Arc::new(DirectConnections::new(thin.clone()));
        let shape = Shape {
            size: thin.size(),
            sector_size: sector_size_for(thin.size(), options.sector_size)?,
            flags: connections.flags(),
        };
        let record = Record {
            volume: identity.volume,
            device: 0,
            token: identity.token,
            connections: options.connections()?,
            read_only: thin.read_only(),
            mountpoint: identity.mountpoint,
        };
        let sockets = open_all(&record, &connections)?;
        let record = connect(record, shape, &sockets, table)?;
        let mut device = NbdDevice {
            record,
            connections,
            keeper: None,
        };
        if let Err(error) = device.start_keeper() {
            if let Err(error) = device.end(table) {
                tracing::warn!("{} is left over: {error}", device.path().display());
            }
            return Err(error);
        }
        Ok(device)
    }

    /// Takes over the device that a process before this one served. The pool must be ready to serve:
    /// requests that waited come at once.
    ///
    /// # Errors
    /// [`Error::Gone`] when there is no such device: it is off the table then.
    pub fn recover(
        thin: &ThinDevice<H>,
        record: &Record,
        table: &mut Table,
    ) -> Result<Self, Error> {
        let driver = find(record, table)?;
        let connections = Arc::new(DirectConnections::new(thin.clone()));
        let sockets = open_all(record, &connections)?;
        driver
            .reconfigure(record, &sockets)
            .map_err(Error::driver(format!(
                "giving {} new connections",
                record.path().display()
            )))?;
        // Connections that the driver had no use for, since it has not noticed yet that the old ones are
        // dead, end at once, and the keeper tries again.
        let mut device = NbdDevice {
            record: record.clone(),
            connections,
            keeper: None,
        };
        device.start_keeper()?;
        Ok(device)
    }

    /// `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        self.record.path()
    }

    /// What the table says of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Gives the block device the size that the thin device has now.
    ///
    /// # Errors
    /// What stopped it; the device keeps the size it had.
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        let what = || format!("resizing {}", self.path().display());
        let sector_size = self.record.sector_size().map_err(Error::io(what()))?;
        // The driver would take any.
        if !size.is_multiple_of(sector_size.into()) {
            return Err(Error::BadSectorSize { size, sector_size });
        }
        Driver::open()
            .and_then(|driver| driver.resize(&self.record, size))
            .map_err(Error::driver(what()))
    }

    /// Writes out what the kernel holds for it, takes it away and off the table.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is mounted or otherwise claimed; it stays as it was then. Programs that
    /// merely have it open are not seen, and get errors.
    pub fn detach(&mut self, table: &mut Table) -> Result<(), Error> {
        if !self.record.is_there() {
            self.stop();
            return Ok(table.remove(self.record.device)?);
        }
        // Held until the device is gone: nobody can mount it meanwhile.
        let claim = self.claim()?;
        let what = format!("writing out {}", self.path().display());
        claim.sync_all().map_err(Error::io(what))?;
        let ended = self.end(table);
        drop(claim);
        ended
    }

    /// Leaves the block device to the next process: requests that have arrived are carried out, but for
    /// writes that wait for data space; these and later ones wait.
    pub fn leave(self) {
        drop(self);
    }

    fn start_keeper(&mut self) -> Result<(), Error> {
        let keeper = Keeper::start(self.record.clone(), Arc::clone(&self.connections))?;
        self.keeper = Some(keeper);
        Ok(())
    }

    /// Disconnects it, and takes it off the table.
    fn end(&mut self, table: &mut Table) -> Result<(), Error> {
        // It would bring the device back to life.
        self.stop();
        if let Err(error) = disconnect(&self.record) {
            if let Err(error) = self.start_keeper() {
                tracing::error!("{}: {error}", self.path().display());
            }
            return Err(error);
        }
        Ok(table.remove(self.record.device)?)
    }

    /// Ends all connections, for good.
    fn stop(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.stop();
            self.connections.close();
            keeper.join();
        }
        // The keeper may have opened some in the meantime.
        self.connections.close();
    }

    /// Opens the block device for nobody else to claim.
    fn claim(&self) -> Result<File, Error> {
        let path = self.path();
        let opened = File::options()
            .read(true)
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(&path);
        opened.map_err(|cause| match Errno::from_io_error(&cause) {
            Some(Errno::BUSY) => Error::Busy(path),
            _ => Error::io(path.display().to_string())(cause),
        })
    }
}

impl<H: Host> Drop for NbdDevice<H> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The driver, when it still has the device of a record.
fn find(record: &Record, table: &mut Table) -> Result<Driver, Error> {
    if !record.is_there() {
        table.remove(record.device)?;
        return Err(Error::Gone(record.path()));
    }
    Driver::open().map_err(Error::driver("finding the nbd driver"))
}

fn disconnect(record: &Record) -> Result<(), Error> {
    Driver::open()
        .and_then(|driver| driver.disconnect(record.device))
        .map_err(Error::driver(format!(
            "disconnecting {}",
            record.path().display()
        )))
}

fn open_all<H: Host>(
    record: &Record,
    connections: &DirectConnections<H>,
) -> Result<Vec<OwnedFd>, Error> {
    (0..record.connections)
        .map(|_| connections.open())
        .collect::<Result<_, _>>()
        .map_err(Error::io("making connections"))
}

/// Makes a device of the first number that is free, and puts it down in the table.
fn connect(
    mut record: Record,
    shape: Shape,
    sockets: &[OwnedFd],
    table: &mut Table,
) -> Result<Record, Error> {
    let driver = Driver::open().map_err(Error::driver("finding the nbd driver"))?;
    let mut from = 0;
    for _ in 0..TRIES_MAX {
        let devices = driver
            .devices()
            .map_err(Error::driver("asking for devices"))?;
        record.device = free_index(&devices, from);
        // A device that nobody remembers could not be taken over.
        table.insert(record.clone())?;
        match driver.connect(&record, shape, sockets) {
            Ok(()) => return Ok(record),
            Err(cause) => {
                table.remove(record.device)?;
                if cause.kind() != io::ErrorKind::ResourceBusy {
                    let what = format!("making {}", record.path().display());
                    return Err(Error::driver(what)(cause));
                }
            }
        }
        from = record.device + 1;
    }
    Err(Error::NoneFree { tries: TRIES_MAX })
}

/// The first number from here on that no connected device has.
fn free_index(devices: &[Device], from: u32) -> u32 {
    let is_taken = |index: u32| {
        let same = |device: &Device| device.index == index && device.connected;
        devices.iter().any(same)
    };
    (from..).find(|index| !is_taken(*index)).unwrap_or(from)
}

fn sector_size_for(size: u64, asked: Option<SectorSize>) -> Result<u32, Error> {
    let fits = |sector_size: SectorSize| size.is_multiple_of(sector_size.bytes().into());
    let sector_size = asked.unwrap_or(if fits(SectorSize::S4096) {
        SectorSize::S4096
    } else {
        SectorSize::S512
    });
    if fits(sector_size) {
        return Ok(sector_size.bytes());
    }
    let sector_size = sector_size.bytes();
    Err(Error::BadSectorSize { size, sector_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_number_is_taken() {
        let device = |index, connected| Device { index, connected };
        let devices = [device(0, true), device(1, false), device(2, true)];
        assert_eq!(free_index(&devices, 0), 1);
        // The next try passes by one that is open, or was taken meanwhile.
        assert_eq!(free_index(&devices, 2), 3);
        assert_eq!(free_index(&[], 0), 0);
    }

    #[test]
    fn connections_are_within_limits() {
        let connections = |asked| {
            let options = Options {
                connections: asked,
                ..Options::default()
            };
            options.connections()
        };
        assert!(CONNECTIONS_DEFAULT.contains(&connections(None).unwrap()));
        for (asked, given) in [(1, 2), (2, 2), (5, 5), (64, 64)] {
            assert_eq!(connections(Some(asked)).unwrap(), given);
        }
        for bad in [0, 65] {
            let error = connections(Some(bad)).unwrap_err().to_string();
            assert!(error.contains("1 to 64"), "{error}");
        }
    }

    #[test]
    fn sectors_divide_the_size() {
        let size_of = |size, asked| sector_size_for(size, asked);
        assert_eq!(size_of(8192, None).unwrap(), 4096);
        assert_eq!(size_of(8192 + 512, None).unwrap(), 512);
        assert_eq!(size_of(8192, Some(SectorSize::S512)).unwrap(), 512);
        assert!(size_of(8192 + 512, Some(SectorSize::S4096)).is_err());
    }
}
