//! Attachments that are block devices of a driver whose server we are, and which outlive the daemon:
//! those of ublk and of the kernel's NBD client, as one kind of thing.

use std::fs;
use std::path::{Path, PathBuf};

use pool::ThinDevice;
use reactor::FileHost;

use super::{nbd, ublk};
use crate::cli::DeviceOptions;
use crate::protocol::{CallError, Queues};
use crate::transports::Transport;

/// What makes a block device.
pub struct NewDevice {
    /// The identity of the volume or snapshot that it is to show.
    pub volume: String,
    /// A random number that tells it from all others.
    pub token: u64,
    /// Where its file system is going to be mounted.
    pub mountpoint: Option<PathBuf>,
    /// How it is to be made.
    pub options: DeviceOptions,
}

/// The drivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// ublk.
    Ublk,
    /// The kernel's NBD client.
    Nbd,
}

/// A block device of ours.
pub enum BlockDevice {
    /// Of ublk.
    Ublk(ublk::BlockDevice),
    /// Of the kernel's NBD client.
    Nbd(nbd::BlockDevice),
}

impl BlockDevice {
    /// `/dev/ublkbN` or `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        match self {
            BlockDevice::Ublk(device) => device.path(),
            BlockDevice::Nbd(device) => device.path(),
        }
    }

    /// Whether its driver still has it.
    pub fn is_there(&self) -> bool {
        match self {
            BlockDevice::Ublk(device) => device.path().exists(),
            BlockDevice::Nbd(device) => device.is_there(),
        }
    }

    /// Where its file system was mounted by a daemon.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        match self {
            BlockDevice::Ublk(device) => device.mountpoint(),
            BlockDevice::Nbd(device) => device.mountpoint(),
        }
    }

    /// Its queues.
    pub fn queues(&self) -> Queues {
        match self {
            BlockDevice::Ublk(device) => device.queues(),
            BlockDevice::Nbd(device) => device.queues(),
        }
    }

    /// Gives it the size that its volume has now.
    ///
    /// # Errors
    /// What stopped it; it keeps the size it had.
    pub fn resize(&self, size: u64) -> Result<(), CallError> {
        if size_of(&self.path()) == Some(size) {
            return Ok(());
        }
        match self {
            BlockDevice::Ublk(device) => device.resize(size),
            BlockDevice::Nbd(device) => device.resize(size),
        }
    }

    /// Leaves it to the next daemon; this process must end soon.
    pub fn leave(self) {
        match self {
            BlockDevice::Ublk(device) => device.leave(),
            BlockDevice::Nbd(device) => device.leave(),
        }
    }
}

/// The size of a block device as the kernel tells it, which asks nobody.
fn size_of(device: &Path) -> Option<u64> {
    let place = Path::new("/sys/block")
        .join(device.file_name()?)
        .join("size");
    let sectors: u64 = fs::read_to_string(place).ok()?.trim_end().parse().ok()?;
    sectors.checked_mul(512)
}

/// One that a daemon before this one left.
#[derive(Clone)]
pub enum Leftover {
    /// Of ublk.
    Ublk(ublk::Leftover),
    /// Of the kernel's NBD client.
    Nbd(nbd::Leftover),
}

impl Leftover {
    /// The identity of the volume or snapshot it shows.
    pub fn volume(&self) -> &str {
        match self {
            Leftover::Ublk(leftover) => leftover.volume(),
            Leftover::Nbd(leftover) => leftover.volume(),
        }
    }

    /// `/dev/ublkbN` or `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        match self {
            Leftover::Ublk(leftover) => leftover.path(),
            Leftover::Nbd(leftover) => leftover.path(),
        }
    }

    /// Whether its driver still has it.
    pub fn is_there(&self) -> bool {
        match self {
            Leftover::Ublk(leftover) => leftover.is_there(),
            Leftover::Nbd(leftover) => leftover.is_there(),
        }
    }

    /// How it is served.
    pub fn transport(&self) -> Transport {
        match self {
            Leftover::Ublk(_) => Transport::Ublk,
            Leftover::Nbd(_) => Transport::Nbd,
        }
    }
}

/// The block devices of a pool.
pub struct BlockDevices {
    ublk: ublk::BlockDevices,
    nbd: nbd::BlockDevices,
}

impl BlockDevices {
    /// Reads which there are.
    ///
    /// # Errors
    /// `Damaged` when a table cannot be understood.
    pub fn open(runtime_dir: &Path) -> Result<Self, CallError> {
        Ok(BlockDevices {
            ublk: ublk::BlockDevices::open(runtime_dir)?,
            nbd: nbd::BlockDevices::open(runtime_dir)?,
        })
    }

    /// Those in the tables.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let ublk = self.ublk.leftovers().into_iter().map(Leftover::Ublk);
        let nbd = self.nbd.leftovers().into_iter().map(Leftover::Nbd);
        ublk.chain(nbd).collect()
    }

    /// Makes a thin device a block device.
    ///
    /// # Errors
    /// What stopped it, with nothing left behind.
    pub fn attach(
        &mut self,
        driver: Driver,
        thin: &ThinDevice<FileHost>,
        new: NewDevice,
    ) -> Result<BlockDevice, CallError> {
        match driver {
            Driver::Ublk => self.ublk.attach(thin, new).map(BlockDevice::Ublk),
            Driver::Nbd => self.nbd.attach(thin, new).map(BlockDevice::Nbd),
        }
    }

    /// Takes over what a daemon left; none when that is no more.
    ///
    /// # Errors
    /// What stopped it. The device stays as it is.
    pub fn recover(
        &mut self,
        thin: &ThinDevice<FileHost>,
        leftover: &Leftover,
    ) -> Result<Option<BlockDevice>, CallError> {
        Ok(match leftover {
            Leftover::Ublk(leftover) => self.ublk.recover(thin, leftover)?.map(BlockDevice::Ublk),
            Leftover::Nbd(leftover) => self.nbd.recover(thin, leftover)?.map(BlockDevice::Nbd),
        })
    }

    /// Takes a block device away.
    ///
    /// # Errors
    /// `Busy` when something uses it; it stays as it was then.
    pub fn detach(&mut self, device: &mut BlockDevice) -> Result<(), CallError> {
        match device {
            BlockDevice::Ublk(device) => self.ublk.detach(device),
            BlockDevice::Nbd(device) => self.nbd.detach(device),
        }
    }
}
