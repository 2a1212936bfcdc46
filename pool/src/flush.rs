//! Flushes: what was acknowledged becomes durable, mostly without a commit.
//!
//! A device whose records in the intent log are durable needs a sync of the data store alone. For the
//! others, and all of them at once, a flush looks how far the log goes, syncs the data store, so that what
//! was recorded is true, and marks the log. Flushes that arrive while one runs are all served by the next:
//! theirs may have completed after the one that runs has looked. Neither waits for a commit, nor a commit
//! for it.

use std::sync::Arc;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::device::Device;
use crate::error::Error;
use crate::host::Host;
use crate::info::Mode;
use crate::log::log_error;
use crate::pool::Pool;
use crate::sync::{Exclusive, Rounds};

/// Flushes that make records durable, one at a time.
pub(crate) struct Flushes {
    pub(crate) rounds: Rounds,
    turn: Arc<Exclusive<()>>,
}

impl Default for Flushes {
    fn default() -> Self {
        Flushes {
            rounds: Rounds::default(),
            turn: Arc::new(Exclusive::new(())),
        }
    }
}

impl<H: Host> Pool<H> {
    /// Makes everything durable that completed on a device before the call.
    pub(crate) async fn flush(self: &Arc<Self>, device: &Device<H::Data>) -> Result<(), Error> {
        self.check_readable()?;
        if self.log.covers(&device.last_record) {
            return self.sync_data().await;
        }
        let mut number = self.flushes.rounds.next();
        if is_sabotaged(Sabotage::EarlyFlush) && self.flushes.rounds.has_unfinished() {
            number -= 1;
        }
        loop {
            let is_done = || self.flushes.rounds.is_complete(number);
            let Some(_turn) = self.flushes.turn.acquire_unless(is_done).await else {
                mark(Mark::FlushJoined);
                return Ok(());
            };
            self.check_changeable()?;
            self.flush_log().await?;
        }
    }

    /// Makes all records durable. One at a time. A failure stops the pool.
    async fn flush_log(&self) -> Result<(), Error> {
        let number = self.flushes.rounds.start();
        let durable = self.log.stop().all();
        if is_sabotaged(Sabotage::EarlyMarker) {
            self.log.mark(durable).map_err(log_error)?;
        }
        self.sync_data().await?;
        let log = Arc::clone(&self.log);
        let marked = self.host.offload(move || log.mark(durable)).await;
        let marked = marked.map_err(log_error);
        if let Err(cause) = &marked {
            self.stop(Mode::ReadOnly, &cause.to_string());
        }
        marked?;
        self.flushes.rounds.complete(number);
        Ok(())
    }
}
