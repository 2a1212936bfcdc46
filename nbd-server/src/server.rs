//! Accepting clients, and the life of the server.
//!
//! The order of a shutdown: no more clients; no more requests from those there are; running requests
//! finish and their replies are sent; each connection flushes its device; the thread ends.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use pool::{Host, ThinDevice};
use rustix::net::Shutdown;
use tokio::runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::accept::{Accepted, Acceptor, accept_until_stopped};
use crate::budget::SharedBudget;
use crate::connection::{self, Parts};
use crate::error::Error;
use crate::listen::{Listen, Listener};
use crate::stream::Stream;
use crate::tls::Certificates;

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
    /// Clients in their handshake at one time; for one more the oldest of them is turned away.
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

/// Which clients are taken from TCP. A Unix socket is protected by its mode instead.
#[derive(Clone, Debug)]
pub enum TcpClients {
    /// Those on this machine.
    Local,
    /// Those that show, through TLS, a certificate that this directory's `ca-cert.pem` has signed.
    WithCertificate(PathBuf),
    /// All, unencrypted.
    Anybody,
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Whom it takes from there, if that is a TCP address.
    pub tcp_clients: TcpClients,
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
pub(crate) struct Shared {
    pub(crate) address: Listen,
    pub(crate) limits: Limits,
    pub(crate) stopping: Arc<AtomicBool>,
    budget: Arc<SharedBudget>,
    pub(crate) connections: Arc<Semaphore>,
    live: Mutex<BTreeMap<u64, Arc<OwnedFd>>>,
    next_id: AtomicU64,
    ended: Condvar,
}

impl Server {
    /// Begins to listen and returns once clients can connect.
    pub fn start<E: Exports>(config: Config, exports: E) -> Result<Self, Error> {
        let certificates = certificates_for(&config)?;
        let (listener, address) = Listener::open(&config.listen)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::io("starting the server's runtime"))?;
        let limits = config.limits;
        let shared = Arc::new(Shared {
            address: address.clone(),
            stopping: Arc::default(),
            budget: Arc::new(SharedBudget::new(limits.payload_bytes_max)),
            connections: Arc::new(Semaphore::new(limits.connections_max)),
            limits,
            live: Mutex::default(),
            next_id: AtomicU64::new(0),
            ended: Condvar::new(),
        });
        let acceptor = {
            let _entered = runtime.enter();
            Acceptor::new(listener, certificates, Arc::new(exports), &shared)
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

    /// How many clients have got past their handshake so far.
    pub fn connections_so_far(&self) -> u64 {
        self.shared.next_id.load(Ordering::Relaxed)
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

/// The certificates if there are to be any; an error when clients may come from anywhere and nothing says
/// that this is meant.
fn certificates_for(config: &Config) -> Result<Option<Certificates>, Error> {
    match (&config.listen, &config.tcp_clients) {
        (Listen::Tcp(_), TcpClients::WithCertificate(directory)) => {
            Certificates::read(directory).map(Some)
        }
        (Listen::Tcp(address), TcpClients::Local) if !address.ip().is_loopback() => {
            Err(Error::NotLoopback(*address))
        }
        _ => Ok(None),
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
    pub(crate) fn begin<H: Host>(
        self: &Arc<Self>,
        accepted: Accepted<ThinDevice<H>>,
        permit: OwnedSemaphorePermit,
    ) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(accepted.socket);
        self.live.lock().insert(id, Arc::clone(&socket));
        let entry = Entry {
            id,
            shared: Arc::clone(self),
            _permit: permit,
        };
        let parts = Parts {
            stream: Stream::new(socket, accepted.tls),
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
