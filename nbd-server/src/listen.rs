//! Where clients connect.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};

use crate::error::Error;

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;
const BACKLOG: i32 = 128;
/// Room for large replies in a Unix socket.
const SOCKET_BUFFER_BYTES: usize = 1024 * 1024;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// A Unix socket at this path, which owner and group may use.
    Unix(PathBuf),
    /// A loopback address; port 0 lets the system choose.
    Tcp(SocketAddr),
}

/// A listening socket. Dropping it removes the file of a Unix socket.
pub(crate) enum Listener {
    Unix {
        socket: UnixListener,
        file: SocketFile,
    },
    Tcp(TcpListener),
}

/// The file of a Unix socket we listen on.
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: who starts later may have replaced it.
    identity: (u64, u64),
}

impl Listener {
    /// Begins to listen; says where, with the port the system chose.
    pub(crate) fn open(at: &Listen) -> Result<(Self, Listen), Error> {
        match at {
            Listen::Unix(path) => {
                remove_stale(path)?;
                let listening = || Error::io(format!("listening on {}", path.display()));
                let socket = listen_on(path).map_err(listening())?;
                let identity = identity(path).map_err(listening())?;
                let file = SocketFile {
                    path: path.clone(),
                    identity,
                };
                Ok((Listener::Unix { socket, file }, at.clone()))
            }
            Listen::Tcp(address) if address.ip().is_loopback() => {
                let listening = || Error::io(format!("listening on {address}"));
                let socket = TcpListener::bind(address).map_err(listening())?;
                socket.set_nonblocking(true).map_err(listening())?;
                let address = socket.local_addr().map_err(listening())?;
                Ok((Listener::Tcp(socket), Listen::Tcp(address)))
            }
            Listen::Tcp(address) => Err(Error::NotLoopback(*address)),
        }
    }
}

/// Removes what an earlier server left, if nobody answers there.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let looking = || Error::io(format!("looking at {}", path.display()));
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(looking()(cause)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(Error::io(format!("removing {}", path.display())))
        }
        Ok(_) => Err(Error::InUse(path.to_owned())),
        Err(cause) => Err(looking()(cause)),
    }
}

fn listen_on(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the socket's own mode less the umask: never more than it ends with.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = identity(&self.path).is_ok_and(|now| now == self.identity);
        if ours && let Err(cause) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %cause, "the socket was not removed");
        }
    }
}

/// Makes a Unix connection take large replies. Best effort: it works without.
pub(crate) fn enlarge_buffers(socket: &OwnedFd) {
    let _send = sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER_BYTES);
    let _receive = sockopt::set_socket_recv_buffer_size(socket, SOCKET_BUFFER_BYTES);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_listened_on() {
        for address in ["0.0.0.0:0", "192.0.2.1:10809", "[::]:0"] {
            let at = Listen::Tcp(address.parse().unwrap());
            assert!(
                matches!(Listener::open(&at), Err(Error::NotLoopback(_))),
                "{address}"
            );
        }
        let (_listener, at) = Listener::open(&Listen::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
        assert!(matches!(at, Listen::Tcp(address) if address.port() != 0));
    }

    #[test]
    fn stale_sockets_are_replaced_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let at = Listen::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let (listener, _) = Listener::open(&at).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, SOCKET_MODE);
        assert!(matches!(Listener::open(&at), Err(Error::InUse(_))));
        drop(listener);
        assert!(!path.exists(), "the file is removed");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::open(&at), Err(Error::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (listener, _) = Listener::open(&Listen::Unix(path.clone())).unwrap();
        fs::rename(&path, folder.path().join("aside")).unwrap();
        fs::write(&path, "another").unwrap();
        drop(listener);
        assert!(path.exists());
    }
}
