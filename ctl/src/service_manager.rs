//! The service manager that started the daemon, systemd or one that speaks like it. It is told what the
//! daemon does and that it is alive, and may hand over control sockets on which it has listened so far.
//! Without one, all of this does nothing.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

use crate::client::Client;
use crate::pool_dir::{CONTROL_SOCKET, PoolDir};
use crate::protocol::CallError;

/// Says what the daemon does.
pub fn tell_status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Says that the daemon is ready, and what it does.
pub fn tell_ready(text: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(text)]);
}

/// Says that the daemon ends.
pub fn tell_stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("closing")]);
}

fn tell(states: &[NotifyState]) {
    if let Err(cause) = sd_notify::notify(states) {
        tracing::warn!("the service manager: {cause}");
    }
}

/// Says, twice in the time it allows, that the daemon is alive. It is when every pool answers on its
/// control socket, as it would to a client. A daemon that does not is ended by the service manager.
/// Never returns; to be run on a thread that does not serve those sockets.
pub async fn keep_watch(pools: &[PoolDir]) -> Infallible {
    let Some(allowed) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut interval = tokio::time::interval(allowed / 2);
    loop {
        interval.tick().await;
        match all_answer(pools, allowed / 4).await {
            Ok(()) => tell(&[NotifyState::Watchdog]),
            Err(error) => tracing::error!("not alive: {error}"),
        }
    }
}

async fn all_answer(pools: &[PoolDir], patience: Duration) -> Result<(), CallError> {
    let ask = async {
        for dir in pools {
            if let Some(mut client) = Client::connect(dir).await? {
                client.status().await?;
            } else {
                let message = format!("{}: nobody listens", place_in(dir).display());
                return Err(CallError::invalid(message));
            }
        }
        Ok(())
    };
    tokio::time::timeout(patience, ask)
        .await
        .unwrap_or_else(|_| {
            let message = format!("no answer on {CONTROL_SOCKET} for {patience:?}");
            Err(CallError::invalid(message))
        })
}

/// Control sockets that were handed over, and not taken yet.
pub struct HandedSockets {
    sockets: Vec<(PathBuf, UnixListener)>,
}

impl HandedSockets {
    /// Those in the environment, which is cleared of them. To be called before there are threads.
    ///
    /// # Errors
    /// When one is something else.
    pub fn take() -> Result<Self, CallError> {
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..handed.len() {
            let failed = |cause| CallError::io("a socket of the service manager", &cause);
            let Some(socket) = handed.take_unix_listener(index).map_err(failed)? else {
                continue;
            };
            socket.set_nonblocking(true).map_err(failed)?;
            let address = socket.local_addr().map_err(failed)?;
            let path = address
                .as_pathname()
                .map_or_else(PathBuf::new, Path::to_owned);
            sockets.push((path, socket));
        }
        Ok(HandedSockets { sockets })
    }

    /// Whether the pool's is among them.
    pub fn has(&self, dir: &PoolDir) -> bool {
        self.index_of(dir).is_some()
    }

    /// The pool's, if it is among them.
    pub fn take_of(&mut self, dir: &PoolDir) -> Option<UnixListener> {
        let index = self.index_of(dir)?;
        Some(self.sockets.swap_remove(index).1)
    }

    /// All must have been taken.
    ///
    /// # Errors
    /// `Invalid` when one is of no pool that is served: nobody would ever answer there.
    pub fn expect_none(&self) -> Result<(), CallError> {
        let Some((path, _)) = self.sockets.first() else {
            return Ok(());
        };
        Err(CallError::invalid(format!(
            "the service manager listens on {}, which is not the {CONTROL_SOCKET} of a pool that is served: \
             correct ListenStream= of its socket unit",
            path.display()
        )))
    }

    fn index_of(&self, dir: &PoolDir) -> Option<usize> {
        let is_of = |path: &Path| {
            let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
            path.ends_with(CONTROL_SOCKET) && directory.as_ref() == Some(&dir.path)
        };
        self.sockets.iter().position(|(path, _)| is_of(path))
    }
}

fn place_in(dir: &PoolDir) -> PathBuf {
    dir.path.join(CONTROL_SOCKET)
}
