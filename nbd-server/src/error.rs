//! Why a server could not be started.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// An error of a server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Without TLS only this machine may connect.
    #[error("{0} is not a loopback address, and connections from elsewhere would not be encrypted")]
    NotLoopback(SocketAddr),

    /// A certificate, a key or a list of revoked ones that cannot be used.
    #[error("{path}: {reason}")]
    Certificates {
        /// The file, or its directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Another server listens there.
    #[error("{0}: a server is listening on this socket already")]
    InUse(PathBuf),

    /// The socket of another user is in the way.
    #[error(
        "{path}: a socket of user {uid}, on which nobody listens: remove it if it is of no use"
    )]
    NotOurs {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },

    /// Something else than a socket is in the way.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),

    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}
