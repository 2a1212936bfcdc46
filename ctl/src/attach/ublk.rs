//! Attachments that are ublk devices. They outlive the daemon: the table in the pool's runtime
//! directory tells the next one which there are.

use std::path::{Path, PathBuf};

use pool::ThinDevice;
use reactor::FileHost;
use ublk_target::{Error, Identity, Options, Record, Table, UblkDevice};

use super::blocks::NewDevice;
use crate::cli::{DeviceOptions, SectorSize};
use crate::protocol::{CallError, CallErrorKind, Queues};
use crate::transports::Lack;

/// The table's file in the runtime directory.
const TABLE_FILE: &str = "ublk.json";

/// A block device of ours.
pub struct BlockDevice {
    device: UblkDevice,
}

impl BlockDevice {
    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        self.device.path()
    }

    /// Where its file system was mounted by a daemon.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        self.device.record().mountpoint.clone()
    }

    /// Its queues, and what each takes.
    pub fn queues(&self) -> Queues {
        let record = self.device.record();
        Queues {
            count: Some(record.queues),
            depth: Some(record.depth),
            buffer_bytes: Some(record.buffer_bytes),
        }
    }

    /// Gives it another size.
    ///
    /// # Errors
    /// What stopped it.
    pub fn resize(&self, size: u64) -> Result<(), CallError> {
        self.device.resize(size).map_err(|cause| ublk_error(&cause))
    }

    /// Leaves it to the next daemon; this process must end soon.
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

    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        self.record.path()
    }

    /// Whether its driver still has it.
    pub fn is_there(&self) -> bool {
        self.record.is_there()
    }
}

/// The ublk devices of a pool.
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
        UblkDevice::create(thin, identity, &options_of(new.options), &mut self.table)
            .map(|device| BlockDevice { device })
            .map_err(|cause| ublk_error(&cause))
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
        match UblkDevice::recover(thin, &leftover.record, &mut self.table) {
            Ok(device) => Ok(Some(BlockDevice { device })),
            Err(Error::Gone(_)) => Ok(None),
            Err(cause) => Err(ublk_error(&cause)),
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
            .map_err(|cause| ublk_error(&cause))
    }
}

/// Whether there can be ublk devices here.
///
/// # Errors
/// What is missing.
pub fn probe() -> Result<(), Lack> {
    ublk_target::probe().map_err(|missing| Lack {
        missing: missing.what,
        remedy: missing.remedy,
    })
}

fn options_of(asked: DeviceOptions) -> Options {
    let default = Options::default();
    Options {
        queues: asked.queues.unwrap_or(default.queues),
        depth: asked.depth.unwrap_or(default.depth),
        buffer_bytes: asked.buffer_bytes.unwrap_or(default.buffer_bytes),
        sector_size: asked.sector_size.map(|size| match size {
            SectorSize::S512 => ublk_target::SectorSize::S512,
            SectorSize::S4096 => ublk_target::SectorSize::S4096,
        }),
    }
}

fn ublk_error(cause: &Error) -> CallError {
    let kind = match cause {
        Error::Table(cause) => return CallError::table(cause),
        Error::BadOption { .. } => CallErrorKind::Invalid,
        Error::Busy(_) | Error::NotRecoverable { .. } => CallErrorKind::Busy,
        Error::Gone(_) => CallErrorKind::NotFound,
        Error::Io { source, .. } | Error::Driver { source, .. } => CallError::io("", source).kind,
        _ => CallErrorKind::Other,
    };
    CallError::new(kind, cause.to_string())
}
