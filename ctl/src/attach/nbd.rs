//! Attachments that are devices of the kernel's NBD client. They outlive the daemon: the table in the
//! pool's runtime directory tells the next one which there are.

use std::path::{Path, PathBuf};

use nbd_target::{Error, Identity, NbdDevice, Options, Record, Table};
use pool::ThinDevice;
use reactor::FileHost;

use super::blocks::NewDevice;
use crate::cli::SectorSize;
use crate::protocol::{CallError, CallErrorKind, Queues};
use crate::transports::Lack;

/// The table's file in the runtime directory.
const TABLE_FILE: &str = "nbd.json";

/// A block device of ours.
pub struct BlockDevice {
    device: NbdDevice<FileHost>,
}

impl BlockDevice {
    /// `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        self.device.path()
    }

    /// Whether the kernel still has it.
    pub fn is_there(&self) -> bool {
        self.device.record().is_there()
    }

    /// Where its file system was mounted by a daemon.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        self.device.record().mountpoint.clone()
    }

    /// Its connections, which the driver makes queues.
    pub fn queues(&self) -> Queues {
        Queues {
            count: Some(self.device.record().connections),
            ..Queues::default()
        }
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// What stopped it.
    pub fn resize(&self, size: u64) -> Result<(), CallError> {
        self.device.resize(size).map_err(|cause| nbd_error(&cause))
    }

    /// Leaves it to the next daemon.
    pub fn leave(self) {
        self.device.leave();
    }
}

/// One that a daemon before this one left.
#[derive(Clone)]
pub struct Leftover {
    record: Record,
}

impl Leftover {
    /// The identity of the volume or snapshot it shows.
    pub fn volume(&self) -> &str {
        &self.record.volume
    }

    /// `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        self.record.path()
    }

    /// Whether the kernel still has it.
    pub fn is_there(&self) -> bool {
        self.record.is_there()
    }
}

/// The devices of a pool.
pub struct BlockDevices {
    table: Table,
}

impl BlockDevices {
    /// Reads which there are.
    ///
    /// # Errors
    /// `Damaged` when the table cannot be understood.
    pub fn open(runtime_dir: &Path) -> Result<Self, CallError> {
        let table =
            Table::open(&runtime_dir.join(TABLE_FILE)).map_err(|cause| CallError::table(&cause))?;
        Ok(BlockDevices { table })
    }

    /// Those in the table.
    pub fn leftovers(&self) -> Vec<Leftover> {
        let leftover = |record: &Record| Leftover {
            record: record.clone(),
        };
        self.table.records().iter().map(leftover).collect()
    }

    /// Makes a thin device a block device.
    ///
    /// # Errors
    /// What stopped it, with nothing left behind.
    pub fn attach(
        &mut self,
        thin: &ThinDevice<FileHost>,
        new: NewDevice,
    ) -> Result<BlockDevice, CallError> {
        let identity = Identity {
            volume: new.volume,
            token: new.token,
            mountpoint: new.mountpoint,
        };
        let options = Options {
            connections: new.options.queues,
            sector_size: new.options.sector_size.map(|size| match size {
                SectorSize::S512 => nbd_target::SectorSize::S512,
                SectorSize::S4096 => nbd_target::SectorSize::S4096,
            }),
        };
        NbdDevice::create(thin, identity, &options, &mut self.table)
            .map(|device| BlockDevice { device })
            .map_err(|cause| nbd_error(&cause))
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
        match NbdDevice::recover(thin, &leftover.record, &mut self.table) {
            Ok(device) => Ok(Some(BlockDevice { device })),
            Err(Error::Gone(_)) => Ok(None),
            Err(cause) => Err(nbd_error(&cause)),
        }
    }

    /// Takes a block device away.
    ///
    /// # Errors
    /// `Busy` when something uses it; it stays as it was then.
    pub fn detach(&mut self, device: &mut BlockDevice) -> Result<(), CallError> {
        device
            .device
            .detach(&mut self.table)
            .map_err(|cause| nbd_error(&cause))
    }
}

/// Whether the kernel's NBD client works here.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), Lack> {
    nbd_target::probe().map_err(|missing| Lack {
        missing: missing.what,
        remedy: missing.remedy,
    })
}

fn nbd_error(cause: &Error) -> CallError {
    let kind = match cause {
        Error::Table(cause) => return CallError::table(cause),
        Error::BadSectorSize { .. } | Error::BadConnections { .. } => CallErrorKind::Invalid,
        Error::Busy(_) | Error::NoneFree { .. } => CallErrorKind::Busy,
        Error::Gone(_) => CallErrorKind::NotFound,
        Error::Io { source, .. } | Error::Driver { source, .. } => CallError::io("", source).kind,
        _ => CallErrorKind::Other,
    };
    CallError::new(kind, cause.to_string())
}
