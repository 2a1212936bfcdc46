//! What can go wrong with a block device. Errors of requests are errnos and never come here.

use std::io;
use std::path::PathBuf;

/// An error of a ublk device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine lacks something.
    #[error("{0}")]
    Missing(#[from] crate::Missing),

    /// An option outside what is allowed.
    #[error("{what} is {found}, expected {expected}")]
    BadOption {
        /// Which.
        what: &'static str,
        /// What was given.
        found: u64,
        /// What is allowed.
        expected: String,
    },

    /// The driver cannot give a device another size.
    #[error("the ublk driver cannot change it (it lacks UPDATE_SIZE, of Linux 6.16 and newer)")]
    FixedSize,

    /// Somebody uses the block device.
    #[error("{device} is busy: it is mounted, or claimed by another program", device = .0.display())]
    Busy(PathBuf),

    /// The driver will make no more devices.
    #[error(
        "the ublk driver refused a new device: {limit} are allowed (raise {parameter}), or the process lacks CAP_SYS_ADMIN"
    )]
    TooMany {
        /// How many there may be, as far as the driver tells.
        limit: String,
        /// The file with the limit.
        parameter: &'static str,
    },

    /// There is no such device (any more), or it is somebody else's.
    #[error("{device} is gone, or belongs to another program", device = .0.display())]
    Gone(PathBuf),

    /// The device is served by a process, or cannot be taken over in its state.
    #[error("{device} cannot be taken over: {reason}", device = .device.display())]
    NotRecoverable {
        /// The block device.
        device: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },

    /// A control command did not come back. Its thread is lost until the driver answers.
    #[error(
        "the ublk driver has not answered for {seconds} s ({what}): see the kernel's log (dmesg); until it does, other commands on ublk devices may hang too"
    )]
    Hung {
        /// Which command.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },

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
    /// What the system said.
    pub(crate) fn cause(&self) -> Option<&io::Error> {
        match self {
            Error::Driver { source, .. } | Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Wraps the error of a system call that did `what`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
