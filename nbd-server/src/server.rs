//! Accepting clients, and the life of the server.
//!
//! The order of a shutdown: no more clients; no more requests from those there are; running requests
//! finish and their replies are sent; each connection flushes its device; the thread ends.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use parking_lot::{Condvar, Mutex};
use pool::{Host, ThinDevice};
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::runtime::{self, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::budget::SharedBudget;
use crate::connection::{self, Parts};
use crate::error::Error;
use crate::handshake::{Agreement, Directory, Facts, Handshake, Step};
use crate::listen::{Listen, Listener, SocketFile, enlarge_buffers};

/// How much one receive takes in during a handshake.
const HANDSHAKE_RECEIVE_BYTES: usize = 16 * 1024;
/// How long to wait when the system has no descriptor for a new client.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a client may take its last replies while the server shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What a server offers. Asked anew for every client, so that exports may come and go.
pub trait Exports: Send + Sync + 'static {
    /// Where the devices run.
    type Host: Host;

    /// The names of all exports, none longer than 4096 bytes.
    fn list(&self) -> Vec<String>;

    /// Opens an export; none when no export has this name. Must not block for long: it runs on the
    /// thread that does all handshakes.
    fn open(&self, name: &str) -> Result<Option<ThinDevice<Self::Host>>, pool::Error>;
}

/// How much clients may ask of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From being accepted to the end of the handshake.
    pub handshake_timeout: Duration,
    /// Clients in their handshake at one time; more are turned away.
    pub handshakes_max: usize,
    /// Clients at one time; more are turned away.
    pub connections_max: usize,
    /// Payloads and replies of all connections together, in bytes. A connection's first 256 KiB do
    /// not count.
    pub payload_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshake_timeout: Duration::from_secs(15),
            handshakes_max: 256,
            connections_max: 1024,
            payload_bytes_max: 1024 * 1024 * 1024,
        }
    }
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// What they may ask for.
    pub limits: Limits,
}

/// A running server. Dropping it shuts it down.
pub struct Server {
    address: Listen,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// What the acceptor and the connections share.
struct Shared {
    limits: Limits,
    stopping: Arc<AtomicBool>,
    budget: Arc<SharedBudget>,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    live: Mutex<BTreeMap<u64, Arc<OwnedFd>>>,
    next_id: AtomicU64,
    ended: Condvar,
}

impl Server {
    /// Begins to listen and returns once clients can connect.
    pub fn start<E: Exports>(config: Config, exports: E) -> Result<Self, Error> {
        let (listener, address) = Listener::open(&config.listen)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::io("starting the server's runtime"))?;
        let limits = config.limits;
        let shared = Arc::new(Shared {
            stopping: Arc::default(),
            budget: Arc::new(SharedBudget::new(limits.payload_bytes_max)),
            handshakes: Arc::new(Semaphore::new(limits.handshakes_max)),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            limits,
            live: Mutex::default(),
            next_id: AtomicU64::new(0),
            ended: Condvar::new(),
        });
        let acceptor = {
            let _entered = runtime.enter();
            Acceptor::new(listener, Arc::new(exports), Arc::clone(&shared))
                .map_err(Error::io("registering the listening socket"))?
        };
        let (stop, stopped) = watch::channel(false);
        let thread = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn(move || accept_until_stopped(runtime, acceptor, stopped))
            .map_err(Error::io("starting the server's thread"))?;
        Ok(Server {
            address,
            shared,
            stop,
            acceptor: Mutex::new(Some(thread)),
        })
    }

    /// Where clients connect, with the port the system chose.
    pub fn address(&self) -> &Listen {
        &self.address
    }

    /// How many clients are past their handshake.
    pub fn connections(&self) -> usize {
        self.shared.live.lock().len()
    }

    /// Shuts down: new requests get `ESHUTDOWN`, running ones finish, devices are flushed, clients
    /// are disconnected and the socket's file is removed. Blocks until all that is done; a second
    /// call does nothing.
    pub fn shutdown(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        // The receiver is gone when the acceptor has ended already.
        let _told = self.stop.send(true);
        let Some(acceptor) = self.acceptor.lock().take() else {
            return;
        };
        if acceptor.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
        self.shared.disconnect(Shutdown::Read);
        let mut live = self.shared.live.lock();
        let ended = |live: &mut BTreeMap<u64, Arc<OwnedFd>>| !live.is_empty();
        let waited = self
            .shared
            .ended
            .wait_while_for(&mut live, ended, SHUTDOWN_GRACE);
        if waited.timed_out() {
            drop(live);
            self.shared.disconnect(Shutdown::Both);
            live = self.shared.live.lock();
        }
        self.shared.ended.wait_while(&mut live, ended);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn disconnect(&self, how: Shutdown) {
        for socket in self.live.lock().values() {
            // A client that is gone already needs no telling.
            let _told = rustix::net::shutdown(socket, how);
        }
    }

    /// Gives a connection its thread.
    fn begin<H: Host>(self: &Arc<Self>, accepted: Accepted<ThinDevice<H>>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(accepted.socket);
        self.live.lock().insert(id, Arc::clone(&socket));
        let entry = Entry {
            id,
            shared: Arc::clone(self),
            _permit: accepted.permit,
        };
        let parts = Parts {
            socket,
            received: accepted.received,
            agreement: accepted.agreement,
            budget: Arc::clone(&self.budget),
            stopping: Arc::clone(&self.stopping),
            siblings: None,
        };
        let spawned = thread::Builder::new()
            .name("nbd-client".to_owned())
            .spawn(move || {
                let _entry = entry;
                if let Err(cause) = connection::serve(parts) {
                    tracing::error!(%cause, "a connection ended");
                }
            });
        if let Err(cause) = spawned {
            tracing::error!(%cause, "no thread for a connection");
        }
    }
}

/// A connection's place in the list; leaves it when dropped.
struct Entry {
    id: u64,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.live.lock().remove(&self.id);
        self.shared.ended.notify_all();
    }
}

/// A client that has finished its handshake.
struct Accepted<D> {
    socket: OwnedFd,
    received: Vec<u8>,
    agreement: Agreement<D>,
    permit: OwnedSemaphorePermit,
}

/// The listening socket in the runtime's terms.
enum Socket {
    Unix {
        listener: tokio::net::UnixListener,
        _file: SocketFile,
    },
    Tcp(tokio::net::TcpListener),
}

/// A new client.
enum Client {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

struct Acceptor<E> {
    socket: Socket,
    exports: Arc<E>,
    shared: Arc<Shared>,
}

fn accept_until_stopped<E: Exports>(
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
    fn new(listener: Listener, exports: Arc<E>, shared: Arc<Shared>) -> io::Result<Self> {
        let socket = match listener {
            Listener::Unix { socket, file } => Socket::Unix {
                listener: tokio::net::UnixListener::from_std(socket)?,
                _file: file,
            },
            Listener::Tcp(socket) => Socket::Tcp(tokio::net::TcpListener::from_std(socket)?),
        };
        Ok(Acceptor {
            socket,
            exports,
            shared,
        })
    }

    async fn accept_all(&self) {
        loop {
            let accepted = match &self.socket {
                Socket::Unix { listener, .. } => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Client::Unix(stream)),
                Socket::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Client::Tcp(stream)),
            };
            match accepted {
                Ok(client) => self.admit(client),
                Err(cause) => {
                    tracing::warn!(%cause, "accepting a client failed");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    /// Begins a client's handshake, unless there are too many.
    fn admit(&self, client: Client) {
        let handshake = Arc::clone(&self.shared.handshakes).try_acquire_owned();
        let connection = Arc::clone(&self.shared.connections).try_acquire_owned();
        let (Ok(handshake), Ok(permit)) = (handshake, connection) else {
            tracing::warn!("a client was turned away: there are too many");
            return;
        };
        let directory = ExportDirectory {
            exports: Arc::clone(&self.exports),
            stopping: Arc::clone(&self.shared.stopping),
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let timeout = shared.limits.handshake_timeout;
            let shaken = tokio::time::timeout(timeout, shake_hands(client, directory)).await;
            drop(handshake);
            match shaken {
                Ok(Ok(Some((socket, received, agreement)))) => {
                    shared.begin(Accepted {
                        socket,
                        received,
                        agreement,
                        permit,
                    });
                }
                Ok(Ok(None)) => {}
                Ok(Err(cause)) => tracing::debug!(%cause, "a handshake failed"),
                Err(_) => tracing::debug!("a client was too slow in its handshake"),
            }
        });
    }
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

/// What a finished handshake leaves: bytes behind it, and what was agreed on.
type Shaken<D> = (Vec<u8>, Agreement<D>);

/// None when the client left without an export.
async fn shake_hands<D: Directory>(
    client: Client,
    directory: D,
) -> io::Result<Option<(OwnedFd, Vec<u8>, Agreement<D::Device>)>> {
    let (shaken, socket) = match client {
        Client::Unix(mut stream) => (
            negotiate(&mut stream, directory).await?,
            OwnedFd::from(stream.into_std()?),
        ),
        Client::Tcp(mut stream) => {
            stream.set_nodelay(true)?;
            (
                negotiate(&mut stream, directory).await?,
                OwnedFd::from(stream.into_std()?),
            )
        }
    };
    let Some((received, agreement)) = shaken else {
        return Ok(None);
    };
    enlarge_buffers(&socket);
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(Some((socket, received, agreement)))
}

async fn negotiate<S, D>(stream: &mut S, directory: D) -> io::Result<Option<Shaken<D::Device>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: Directory,
{
    let mut handshake = Handshake::new(directory);
    let mut received = BytesMut::new();
    let mut answer = Handshake::<D>::greeting();
    loop {
        stream.write_all(&answer).await?;
        answer.clear();
        let (consumed, step) = handshake.advance(&received, &mut answer);
        received.advance(consumed);
        match step {
            Step::Again => {}
            Step::NeedsMore => {
                received.reserve(HANDSHAKE_RECEIVE_BYTES);
                if stream.read_buf(&mut received).await? == 0 {
                    return Ok(None);
                }
            }
            Step::Close(reason) => {
                tracing::debug!(reason, "a handshake was ended");
                stream.write_all(&answer).await?;
                return Ok(None);
            }
            Step::Ready(agreement) => {
                stream.write_all(&answer).await?;
                return Ok(Some((received.to_vec(), agreement)));
            }
        }
    }
}
