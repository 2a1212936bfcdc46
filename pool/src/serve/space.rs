//! Data space for writes that lack it: freeing some, or waiting for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Mark, mark};

use crate::device::Device;
use crate::error::Error;
use crate::host::Host;
use crate::pool::Pool;
use crate::queue::{Patience, Turn};

/// How many commits a write without space makes, or waits for, before it takes it that they free nothing: the first
/// covers what had been done before, and others may go on changing what frees nothing.
const COMMITS_FOR_SPACE_MAX: u32 = 3;

impl<H: Host> Pool<H> {
    /// Sees to it that a write which has lacked space is worth another try: frees some, or waits until
    /// there may be some. The caller is outside of gates and cells.
    ///
    /// # Errors
    /// What is lacking, when the write is not to wait for it, or has waited for long enough.
    pub(super) async fn find_space<'a>(
        self: &'a Arc<Self>,
        device: &Device<H::Data>,
        patience: &Patience,
        turn: &mut Turn<'a>,
        mut lack: Error,
    ) -> Result<(), Error> {
        loop {
            if self.may_wait(device, patience) {
                self.queue.join(turn);
            } else if matches!(turn, Turn::New) {
                *turn = Turn::AtOnce;
            }
            let seen = self.queue.chances();
            if self.queue.admits(turn) {
                match self.make_space().await {
                    Ok(()) if !lack.is_full() => {
                        self.queue.note_space();
                        return Ok(());
                    }
                    // A block is to be had; but what the write has met is a store that took no more.
                    Ok(()) => {}
                    Err(cause) if cause.is_lack_of_space() => lack = cause,
                    Err(cause) => return Err(cause),
                }
                self.queue.note_lack(self.host.now(), &lack);
            }
            if !self.may_wait(device, patience) {
                return Err(lack);
            }
            mark(Mark::WriteQueued);
            device.queued_writes.fetch_add(1, Ordering::Relaxed);
            self.queue.another_chance(seen).await;
            device.queued_writes.fetch_sub(1, Ordering::Relaxed);
            self.check_writable(device)?;
            if lack.is_full() && self.queue.admits(turn) {
                return Ok(());
            }
        }
    }

    fn may_wait(&self, device: &Device<H::Data>, patience: &Patience) -> bool {
        let volume = device.entry.read().no_space;
        self.queue.waits(volume, patience, self.host.now())
    }

    /// Sees to it that a data block can be taken: frees what a commit, a deletion in progress, or a drained
    /// epoch can free.
    ///
    /// # Errors
    /// [`Error::OutOfDataSpace`] or [`Error::DataStoreFull`] when there is none; what else has failed.
    async fn make_space(self: &Arc<Self>) -> Result<(), Error> {
        // What was left out is worth one more try.
        let mut left_out = self.check_all_covered().is_err();
        let mut commits_left = COMMITS_FOR_SPACE_MAX;
        let mut is_store_full = false;
        loop {
            let may_commit = commits_left > 0 && self.has_unfreed();
            let uncommitted = may_commit || std::mem::take(&mut left_out);
            if uncommitted {
                mark(Mark::CommitForSpace);
                commits_left = commits_left.saturating_sub(1);
                self.commit_through(self.commits.next()).await?;
            }
            let waiting = self.epochs.waiting_blocks() > 0;
            if waiting {
                mark(Mark::BlockAwaitedReaders);
                // A store that is full needs what is given back to it, however many blocks are free.
                let has_free = || !is_store_full && self.allocator.lock().free() > 0;
                self.epochs.some_drained(has_free).await;
                self.release_drained().await;
            }
            // Without a deletion the writer was ours for a moment, and no commit under way: what others
            // were about to free is to be seen now, or there is nothing.
            let reclaimed = !uncommitted && !waiting && self.reclaim_piece().await?;
            let may_commit = commits_left > 0 && self.has_unfreed();
            let may_free = may_commit || self.epochs.waiting_blocks() > 0;
            match self.ready_block(None).await {
                Err(lack) if lack.is_lack_of_space() => {
                    is_store_full = matches!(lack, Error::DataStoreFull { .. });
                    if !(uncommitted || waiting || reclaimed || may_free) {
                        mark(Mark::OutOfDataSpace);
                        return Err(lack);
                    }
                }
                ready => return ready,
            }
        }
    }

    /// Whether a commit may free blocks.
    fn has_unfreed(&self) -> bool {
        self.backlog.has_untried() || self.has_superseded()
    }

    /// Waits until lack of data space has begun or ended since that was so `seen` times; returns how often
    /// it was.
    pub async fn space_turns(&self, seen: u64) -> u64 {
        self.queue.next_turn(seen).await
    }

    /// To be called about once a second: gives writes that wait for space another chance, and notices space
    /// that has come below the pool.
    pub async fn look_for_space(self: &Arc<Self>) {
        if self.queue.lack().is_none() || self.is_read_only() {
            return;
        }
        if self.queue.len() > 0 {
            self.queue.look_again();
        } else if self.make_space().await.is_ok() {
            self.queue.note_space();
        }
    }
}
