//! What can go wrong outside the pool: mounts, programs, loop devices.

use std::io;
use std::path::PathBuf;

/// An error of a mount or a loop device. Errors of requests are errnos and never come here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A path that cannot be used for this.
    #[error("{path}: {reason}", path = .path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Something still uses it.
    #[error("{what} is busy: {holder}", what = .what.display())]
    Busy {
        /// The device, file or directory.
        what: PathBuf,
        /// Who uses it, as far as can be seen.
        holder: String,
    },

    /// The file is a loop device already.
    #[error("{file} is already attached as {device}", file = .file.display(), device = .device.display())]
    Attached {
        /// The file.
        file: PathBuf,
        /// The loop device.
        device: PathBuf,
    },

    /// The loop device does not belong to the file (any more).
    #[error("{device} is not attached to {file}", device = .device.display(), file = .file.display())]
    NotAttached {
        /// The loop device.
        device: PathBuf,
        /// The file it should be attached to.
        file: PathBuf,
    },

    /// A program is not installed.
    #[error("program {program} was not found: install {package}")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// The package that usually holds it.
        package: &'static str,
    },

    /// A program failed.
    #[error("{command}: {reason}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// The last line it wrote to its standard error, or its exit status.
        reason: String,
    },

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

    /// Whether trying again once its holder has let go may succeed.
    pub fn is_busy(&self) -> bool {
        matches!(self, Error::Busy { .. } | Error::Attached { .. })
    }
}
