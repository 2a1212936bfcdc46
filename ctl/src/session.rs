//! One pool for one command: through the daemon that serves it, or opened here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{Call, CallError, CallErrorKind, Progress, Reply};
use crate::service::{PoolService, ProgressSink, execute};

/// How long a pool that another process has is waited for: most hold it for a moment only.
const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
const BUSY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A pool to make calls on.
pub enum Session {
    /// Opened in this process.
    Local(Arc<PoolService>),
    /// Served by a daemon.
    Remote(Client),
}

impl Session {
    /// Connects to the pool's daemon; without one, opens the pool here, for reading together with
    /// others or for everything alone.
    ///
    /// # Errors
    /// `NotFound`, `Busy` when another process keeps it, and what makes it impossible to open.
    pub async fn open(dir: PoolDir, access: Access) -> Result<Session, CallError> {
        let open_local = || match access {
            Access::Read => PoolService::open_read_only(dir.clone()),
            Access::Write => PoolService::open(dir.clone()),
        };
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            if let Some(client) = Client::connect(&dir).await? {
                return Ok(Session::Remote(client));
            }
            match open_local() {
                Err(error) if error.kind == CallErrorKind::Busy && Instant::now() < deadline => {
                    tokio::time::sleep(BUSY_POLL_INTERVAL).await;
                }
                opened => return Ok(Session::Local(Arc::new(opened?))),
            }
        }
    }

    /// Makes a call.
    ///
    /// # Errors
    /// That of the call.
    pub async fn call(&mut self, call: Call, progress: &ProgressSink) -> Result<Reply, CallError> {
        match self {
            Session::Local(service) => execute(service, call, progress).await,
            Session::Remote(client) => client.call(&call, &|at: Progress| progress(at)).await,
        }
    }

    /// Closes a pool that was opened here.
    ///
    /// # Errors
    /// What stopped the last commit.
    pub async fn close(self) -> Result<(), CallError> {
        match self {
            Session::Local(service) => service.close().await,
            Session::Remote(_) => Ok(()),
        }
    }
}

/// Does something on a pool that no daemon serves and for which it need not be open, waiting for
/// processes that hold it for a moment.
///
/// # Errors
/// As `job`, and `Busy` as [`Session::open`].
pub async fn patiently<T>(mut job: impl FnMut() -> Result<T, CallError>) -> Result<T, CallError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match job() {
            Err(error) if error.kind == CallErrorKind::Busy && Instant::now() < deadline => {
                tokio::time::sleep(BUSY_POLL_INTERVAL).await;
            }
            done => return done,
        }
    }
}
