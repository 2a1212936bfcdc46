//! Where clients connect.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, RenameFlags, fchmod, renameat_with};
use rustix::io::Errno as OsErrno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};
use rustix::process::geteuid;

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
    /// An address and a port; port 0 lets the system choose.
    Tcp(SocketAddr),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
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
                let (socket, file) = open_unix(path)?;
                Ok((Listener::Unix { socket, file }, at.clone()))
            }
            Listen::Tcp(address) => {
                let listening = || Error::io(format!("listening on {address}"));
                let socket = TcpListener::bind(address).map_err(listening())?;
                socket.set_nonblocking(true).map_err(listening())?;
                let address = socket.local_addr().map_err(listening())?;
                Ok((Listener::Tcp(socket), Listen::Tcp(address)))
            }
        }
    }
}

/// Puts a listening socket at `path`, or in the place of one on which nobody listens any more.
///
/// The socket gets another name first, and its own in one step, in which nothing that is there gets lost: so
/// a socket there always listens, and of two servers that begin at the same time one is refused.
fn open_unix(path: &Path) -> Result<(UnixListener, SocketFile), Error> {
    let listening = || Error::io(format!("listening on {}", path.display()));
    // Clients need the address to fit; ours, by descriptor, always does.
    SocketAddrUnix::new(path).map_err(|cause| listening()(cause.into()))?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = File::open(folder).map_err(listening())?;
    let temporary = format!(
        "/proc/self/fd/{}/.nbd.{}.new",
        folder.as_raw_fd(),
        std::process::id()
    );
    let mut file = SocketFile {
        path: temporary.into(),
        identity: (0, 0),
    };
    let socket = listen_on(&file.path).map_err(listening())?;
    file.identity = identity(&file.path).map_err(listening())?;
    match rename(&file.path, path, RenameFlags::NOREPLACE) {
        Err(OsErrno::EXIST) => replace_stale(&file.path, path)?,
        other => other.map_err(|cause| listening()(cause.into()))?,
    }
    file.path = path.to_owned();
    Ok((socket, file))
}

/// Puts our socket in the place of the one at `path`, if nobody listens there and it is ours to remove.
fn replace_stale(ours: &Path, path: &Path) -> Result<(), Error> {
    let looking = || Error::io(format!("looking at {}", path.display()));
    let found = fs::symlink_metadata(path).map_err(looking())?;
    if !found.file_type().is_socket() {
        return Err(Error::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {}
        Ok(_) => return Err(Error::InUse(path.to_owned())),
        Err(cause) => return Err(looking()(cause)),
    }
    if found.uid() != geteuid().as_raw() {
        return Err(Error::NotOurs {
            path: path.to_owned(),
            uid: found.uid(),
        });
    }
    let exchange = || {
        rename(ours, path, RenameFlags::EXCHANGE)
            .map_err(|cause| Error::io(format!("replacing {}", path.display()))(cause.into()))
    };
    exchange()?;
    if identity(ours).map_err(looking())? != (found.dev(), found.ino()) {
        // Somebody else was quicker, and has the place.
        exchange()?;
        return Err(Error::InUse(path.to_owned()));
    }
    fs::remove_file(ours).map_err(Error::io(format!("removing the old {}", path.display())))
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, from, CWD, to, flags)
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
