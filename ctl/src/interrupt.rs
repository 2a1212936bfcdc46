//! Ctrl-C and SIGTERM in the tool: long work stops at a good place, and soon.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit;
use crate::protocol::{CallError, CallErrorKind};

/// How long work may take to stop. A pool outlives a process that just ends.
const GRACE: Duration = Duration::from_secs(5);

/// Tells when the command is to stop.
#[derive(Clone, Debug)]
pub struct Interrupt {
    receiver: watch::Receiver<bool>,
}

impl Interrupt {
    /// Takes the signals. Must be called in a runtime that has a thread to spare.
    ///
    /// # Errors
    /// When signals cannot be taken.
    pub fn install() -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, receiver) = watch::channel(false);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            sender.send_replace(true);
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = tokio::time::sleep(GRACE) => {}
            }
            eprintln!("thinctl: interrupted");
            std::process::exit(i32::from(exit::code_of(CallErrorKind::Interrupted)));
        });
        Ok(Interrupt { receiver })
    }

    /// Whether the command is to stop.
    pub fn is_set(&self) -> bool {
        *self.receiver.borrow()
    }

    /// Waits until the command is to stop.
    pub async fn wait(&mut self) {
        if self.receiver.wait_for(|stop| *stop).await.is_err() {
            // Nobody is left to say so.
            std::future::pending::<()>().await;
        }
    }

    /// The error of what was stopped.
    pub fn error(what: &str) -> CallError {
        CallError::new(CallErrorKind::Interrupted, format!("interrupted: {what}"))
    }
}
