//! Accepting clients, and their handshakes.
//!
//! All handshakes run on one thread, and each until its deadline. When there are too many, the oldest one is given
//! up for the next client: who means it well has finished long before, and those who say nothing keep nobody out.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use pool::ThinDevice;
use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use crate::handshake::{Agreement, Directory, Facts, Handshake, Protection, Step, greeting};
use crate::listen::{Listener, SocketFile, enlarge_buffers};
use crate::seldom::Seldom;
use crate::server::{Exports, Shared};
use crate::tls::Certificates;

/// How much one receive takes in during a handshake.
const RECEIVE_BYTES: usize = 16 * 1024;
/// How long to wait when the system has no descriptor for a new client.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A client that has finished its handshake.
pub(crate) struct Accepted<D> {
    pub(crate) socket: OwnedFd,
    pub(crate) tls: Option<ServerConnection>,
    /// What came behind the handshake.
    pub(crate) received: Vec<u8>,
    pub(crate) agreement: Agreement<D>,
}

/// The listening socket in the runtime's terms.
enum Socket {
    Unix {
        // Goes first: as long as we listen, no other server takes the place of what is being removed.
        _file: SocketFile,
        listener: tokio::net::UnixListener,
    },
    Tcp(tokio::net::TcpListener),
}

/// A new client.
enum Client {
    Unix(UnixStream),
    Tcp(TcpStream),
}

pub(crate) struct Acceptor<E> {
    socket: Socket,
    certificates: Option<Arc<Certificates>>,
    exports: Arc<E>,
    shared: Arc<Shared>,
    /// The handshakes that run, the oldest first.
    handshakes: Mutex<VecDeque<AbortHandle>>,
    turned_away: Arc<Seldom>,
    given_up: Arc<Seldom>,
    failed: Arc<Seldom>,
}

pub(crate) fn accept_until_stopped<E: Exports>(
    runtime: Runtime,
    acceptor: Acceptor<E>,
    mut stopped: watch::Receiver<bool>,
) {
    runtime.block_on(async {
        tokio::select! {
            () = acceptor.accept_all() => {}
            // An error means that the server is gone, which is as good a reason to stop.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    });
    // With the runtime go the handshakes that are not finished.
    drop(runtime);
}

impl<E: Exports> Acceptor<E> {
    pub(crate) fn new(
        listener: Listener,
        certificates: Option<Certificates>,
        exports: Arc<E>,
        shared: &Arc<Shared>,
    ) -> io::Result<Self> {
        let socket = match listener {
            Listener::Unix { socket, file } => Socket::Unix {
                listener: tokio::net::UnixListener::from_std(socket)?,
                _file: file,
            },
            Listener::Tcp(socket) => Socket::Tcp(tokio::net::TcpListener::from_std(socket)?),
        };
        Ok(Acceptor {
            socket,
            certificates: certificates.map(Arc::new),
            exports,
            shared: Arc::clone(shared),
            handshakes: Mutex::default(),
            turned_away: Arc::default(),
            given_up: Arc::default(),
            failed: Arc::default(),
        })
    }

    async fn accept_all(&self) {
        loop {
            let accepted = match &self.socket {
                Socket::Unix { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, _)| (Client::Unix(stream), "a local client".to_owned())),
                Socket::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, peer)| (Client::Tcp(stream), peer.to_string())),
            };
            match accepted {
                Ok((client, peer)) => self.admit(client, peer),
                Err(cause) => {
                    tracing::warn!(%cause, "accepting a client failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Begins a client's handshake, unless there are too many clients.
    fn admit(&self, client: Client, peer: String) {
        let shared = Arc::clone(&self.shared);
        let address = &shared.address;
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            let max = shared.limits.connections_max;
            self.turned_away.warn(|| {
                format!("{address}: {peer} was turned away: {max} clients are connected, which is the limit")
            });
            return;
        };
        let directory = ExportDirectory {
            exports: Arc::clone(&self.exports),
            stopping: Arc::clone(&shared.stopping),
        };
        let certificates = self.certificates.clone();
        let failed = Arc::clone(&self.failed);
        self.make_room();
        let handshake = tokio::spawn(async move {
            let timeout = shared.limits.handshake_timeout;
            let shaken = shake_hands(client, certificates, directory);
            let cause = match tokio::time::timeout(timeout, shaken).await {
                Ok(Ok(Some(accepted))) => return shared.begin(accepted, permit),
                Ok(Ok(None)) => return,
                Ok(Err(cause)) if is_gone(&cause) => return,
                Ok(Err(cause)) => cause.to_string(),
                Err(_) => format!("it took longer than {timeout:?}"),
            };
            failed.info(|| {
                format!(
                    "{}: the handshake with {peer} failed: {cause}",
                    shared.address
                )
            });
        });
        self.handshakes.lock().push_back(handshake.abort_handle());
    }

    /// Gives up the oldest handshake if there is no room for one more.
    fn make_room(&self) {
        let mut handshakes = self.handshakes.lock();
        handshakes.retain(|handshake| !handshake.is_finished());
        if handshakes.len() < self.shared.limits.handshakes_max {
            return;
        }
        if let Some(oldest) = handshakes.pop_front() {
            oldest.abort();
            let (address, max) = (&self.shared.address, self.shared.limits.handshakes_max);
            self.given_up.warn(|| {
                format!("{address}: the oldest of {max} unfinished handshakes was given up for another client")
            });
        }
    }
}

/// Whether the client has merely left, as any may.
fn is_gone(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof
    )
}

/// The exports as the handshake sees them.
struct ExportDirectory<E> {
    exports: Arc<E>,
    stopping: Arc<AtomicBool>,
}

impl<E: Exports> Directory for ExportDirectory<E> {
    type Device = ThinDevice<E::Host>;

    fn names(&self) -> Vec<String> {
        self.exports.list()
    }

    fn open(&self, name: &str) -> Result<Option<(Facts, Self::Device)>, String> {
        let device = self.exports.open(name).map_err(|cause| cause.to_string())?;
        Ok(device.map(|device| {
            let facts = Facts {
                size: device.size(),
                read_only: device.read_only(),
                block_size: device.block_size(),
            };
            (facts, device)
        }))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// None when the client left without an export.
async fn shake_hands<D: Directory>(
    client: Client,
    certificates: Option<Arc<Certificates>>,
    directory: D,
) -> io::Result<Option<Accepted<D::Device>>> {
    let protection = match &certificates {
        Some(_) => Protection::TlsRequired,
        None => Protection::None,
    };
    let mut handshake = Handshake::new(directory, protection);
    let (socket, tls, ended) = match client {
        Client::Unix(mut stream) => {
            let ended = negotiate(&mut stream, &mut handshake, greeting()).await?;
            (OwnedFd::from(stream.into_std()?), None, ended)
        }
        Client::Tcp(mut stream) => {
            stream.set_nodelay(true)?;
            let mut ended = negotiate(&mut stream, &mut handshake, greeting()).await?;
            let mut tls = None;
            if let (Ended::BeginTls, Some(certificates)) = (&ended, certificates) {
                let acceptor = TlsAcceptor::from(certificates.config());
                let mut encrypted = acceptor.accept(stream).await?;
                ended = negotiate(&mut encrypted, &mut handshake, Vec::new()).await?;
                let (inner, connection) = encrypted.into_inner();
                (stream, tls) = (inner, Some(connection));
            }
            (OwnedFd::from(stream.into_std()?), tls, ended)
        }
    };
    let Ended::Agreed(agreement, received) = ended else {
        return Ok(None);
    };
    enlarge_buffers(&socket);
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(Some(Accepted {
        socket,
        tls,
        received,
        agreement,
    }))
}

/// How negotiating ended.
enum Ended<D> {
    /// The client left, or had to.
    Left,
    /// The client was told to begin TLS.
    BeginTls,
    /// There is an agreement; the bytes came behind it.
    Agreed(Agreement<D>, Vec<u8>),
}

/// Sends `answer`, and answers options until there is an end to it.
async fn negotiate<S, D>(
    stream: &mut S,
    handshake: &mut Handshake<D>,
    mut answer: Vec<u8>,
) -> io::Result<Ended<D::Device>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Directory,
{
    let mut received = BytesMut::new();
    loop {
        stream.write_all(&answer).await?;
        stream.flush().await?;
        answer.clear();
        let (consumed, step) = handshake.advance(&received, &mut answer);
        received.advance(consumed);
        match step {
            Step::Again => {}
            Step::NeedsMore => {
                received.reserve(RECEIVE_BYTES);
                if stream.read_buf(&mut received).await? == 0 {
                    return Ok(Ended::Left);
                }
            }
            Step::BeginTls if !received.is_empty() => {
                let reason = "bytes without TLS came behind the wish to begin it";
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            Step::BeginTls => {
                stream.write_all(&answer).await?;
                return Ok(Ended::BeginTls);
            }
            Step::Close(reason) => {
                tracing::debug!(reason, "a handshake was ended");
                stream.write_all(&answer).await?;
                stream.shutdown().await?;
                return Ok(Ended::Left);
            }
            Step::Ready(agreement) => {
                stream.write_all(&answer).await?;
                stream.flush().await?;
                return Ok(Ended::Agreed(agreement, received.to_vec()));
            }
        }
    }
}
