//! One pool for one command: through the daemon that serves it, or opened here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pool::MemoryBudget;

use crate::client::Client;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{Call, CallError, CallErrorKind, Progress, Reply};
use crate::service::{PoolService, ProgressSink, execute};

/// How long a pool that another process has is waited for, and how often it is looked at.
const HELD_TIMEOUT: Duration = Duration::from_secs(3);
const HELD_POLL_INTERVAL: Duration = Duration::from_millis(50);

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
    /// `PoolHeld` when another process has it, and what makes it impossible to open.
    pub async fn open(dir: PoolDir, access: Access) -> Result<Session, CallError> {
        if let Some(client) = Client::connect(&dir).await? {
            return Ok(Session::Remote(client));
        }
        let service = match access {
            Access::Read => PoolService::open_read_only(dir)?,
            Access::Write => PoolService::open(dir, MemoryBudget::default())?,
        };
        Ok(Session::Local(Arc::new(service)))
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

/// Does something with a pool, again and again for a while as long as another process has it: most
/// hold it for a moment only, and a daemon that ends does so soon.
///
/// # Errors
/// As `job`; `PoolHeld` only when that lasts.
pub async fn patiently<T>(
    mut job: impl AsyncFnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let deadline = Instant::now() + HELD_TIMEOUT;
    loop {
        match job().await {
            Err(error) if error.kind == CallErrorKind::PoolHeld && Instant::now() < deadline => {
                tokio::time::sleep(HELD_POLL_INTERVAL).await;
            }
            done => return done,
        }
    }
}
