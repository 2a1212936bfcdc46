//! Flushes: what was acknowledged becomes durable, mostly without a commit.
//!
//! A device whose records in the intent log are durable needs a sync of the data store alone. For the
//! others, and all of them at once, a flush looks how far the log goes, syncs the data store, so that what
//! was recorded is true, and marks the log. Flushes that arrive while one runs are all served by the next:
//! theirs may have completed after the one that runs has looked. Neither waits for a commit, nor a commit
//! for it.
//!
//! Those that one round has served come back soon, if their writers are busy; but the next round begins without
//! them, for those that came meanwhile, and so each serves half of the writers. Therefore a round that follows
//! others of many writers waits a moment for the rest, a quarter of what a round takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    /// How many wait for a round, or are served by one.
    present: AtomicU64,
    /// How many were when the last round ended.
    expected: AtomicU64,
    /// How long the last round took, in nanoseconds.
    round_nanos: AtomicU64,
}

/// The part of a round's time that the next one waits for flushes to come.
const GATHERING_SHARE: u32 = 4;

/// A shorter time is not worth waiting, and a longer one not right to those who do.
const GATHERING_MIN: Duration = Duration::from_micros(20);
const GATHERING_MAX: Duration = Duration::from_millis(1);

/// A flush on its way.
struct Present<'a>(&'a AtomicU64);

impl<'a> Present<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Present(count)
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Flushes {
    fn default() -> Self {
        Flushes {
            rounds: Rounds::default(),
            turn: Arc::new(Exclusive::new(())),
            present: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            round_nanos: AtomicU64::new(0),
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
        let _present = Present::new(&self.flushes.present);
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
            self.gather().await;
            self.check_changeable()?;
            let begun = self.host.now();
            self.flush_log().await?;
            self.note_round(self.host.now().saturating_sub(begun));
        }
    }

    /// Waits a moment for flushes that are likely to come, if a round takes long enough to make that worth it.
    async fn gather(&self) {
        let flushes = &self.flushes;
        let round = Duration::from_nanos(flushes.round_nanos.load(Ordering::Relaxed));
        let moment = (round / GATHERING_SHARE).min(GATHERING_MAX);
        let present = flushes.present.load(Ordering::Relaxed);
        if present < flushes.expected.load(Ordering::Relaxed) && moment >= GATHERING_MIN {
            self.host.pause(moment).await;
        }
    }

    fn note_round(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let flushes = &self.flushes;
        flushes.round_nanos.store(nanos, Ordering::Relaxed);
        let present = flushes.present.load(Ordering::Relaxed);
        flushes.expected.store(present, Ordering::Relaxed);
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
