//! What can go wrong with a block device. Errors of requests are errnos and never come here.

use std::io;
use std::path::PathBuf;

/// An error of a device of the kernel's NBD client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine lacks something.
    #[error("{0}")]
    Missing(#[from] crate::Missing),

    /// Too few or too many connections.
    #[error("number of queues is {found}, expected 1 to {most}")]
    BadConnections {
        /// What was given.
        found: u16,
        /// The most.
        most: u16,
    },

    /// Sectors that the device does not consist of.
    #[error("its size is {size} bytes, no multiple of sectors of {sector_size}")]
    BadSectorSize {
        /// Of the device, in bytes.
        size: u64,
        /// In bytes.
        sector_size: u32,
    },

    /// Somebody uses the block device.
    #[error("{device} is busy: it is mounted, or claimed by another program", device = .0.display())]
    Busy(PathBuf),

    /// Others were faster, or have all devices open.
    #[error("no free device after {tries} tries: see `lsblk` and `lsof /dev/nbd*`")]
    NoneFree {
        /// How many were tried.
        tries: u32,
    },

    /// There is no such device (any more), or it is somebody else's.
    #[error("{device} is gone, or belongs to another program", device = .0.display())]
    Gone(PathBuf),

    /// The driver refused a command.
    #[error("{what}: {source}")]
    Driver {
        /// Which command, on which device.
        what: String,
        /// The cause.
        source: io::Error,
    },

    /// The table of devices cannot be read, understood or written.
    #[error(transparent)]
    Table(#[from] device_table::Error),

    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    /// Wraps the error of a system call that did `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// Wraps the driver's refusal of `what`.
    pub(crate) fn driver(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Driver { what, source }
    }
}
