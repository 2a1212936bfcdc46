//! Commits: many flushes, one commit.
//!
//! # The order
//!
//! 1. Take the writer: one commit at a time. Whoever waited for it looks first whether the commit
//!    before already covered what he needs; so all flushes that arrive while one commit runs are
//!    served by the next.
//! 2. Number the commit and collect what changed in memory. From here on new changes belong to the
//!    next commit.
//! 3. Sync the data store, so that what the collected mappings point to is stable.
//! 4. Away from the caller's thread: catalog lines, changes into the trees, metadata blocks, sync,
//!    superblock, sync.
//! 5. Publish: readers load from the new commit, its number is complete, blocks that lost their
//!    last mapping wait for their epoch.
//!
//! Requests on mapped, exclusive blocks notice nothing of all this: they look up in memory and hold
//! no lock that a commit takes for longer than copying a few words.
//!
//! # Freeing and reuse
//!
//! A data block that lost its last mapping in a commit may still be read by requests that looked it
//! up before. It becomes free when the commit is durable *and* the epoch in which such requests
//! could have begun has drained (`epoch.rs`); only then is its space given back to the data store
//! and the block handed out again (invariant 2).
//!
//! The intent log (one sync of a small log in place of step 4 for most flushes) will stand between
//! steps 3 and 4: it takes what step 2 collected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chunks::Collected;
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::info::Mode;
use crate::metadata::{self, COUNTS_A_BITMAP};
use crate::pool::Pool;
use crate::sync::Held;
use crate::units::ThinId;
use crate::writer::{Control, Writer};

/// The most changes that may wait for a commit; a write that would exceed it commits first.
const CHANGES_MAX: u64 = 65_536;

/// Metadata blocks that one change may need: a path in each of the trees, and splits.
const BLOCKS_A_CHANGE: u64 = 8;

/// Metadata blocks that a commit may need whatever changed: paths of the trees' upper levels, and
/// what the trees keep back for removals.
const BLOCKS_A_COMMIT: u64 = 64;

/// A commit that has collected its changes.
pub(crate) struct Begun<D> {
    number: u64,
    collected: Vec<(Arc<Device<D>>, Collected)>,
    changes: u64,
    /// No collected mapping is younger.
    time: u32,
}

impl<H: Host> Pool<H> {
    /// Makes everything done so far durable. Cheap when nothing changed. After a failed commit it
    /// fails too.
    pub async fn commit(self: &Arc<Self>) -> Result<(), Error> {
        let changed = self.counters.uncommitted_changes.load(Ordering::Relaxed) > 0;
        if changed || self.counters.has_unsynced_writes() || self.commits.has_unfinished() {
            self.commit_through(self.commits.next()).await?;
        }
        self.release_drained().await;
        Ok(())
    }

    /// Waits for, or makes, the commit with this number.
    pub(crate) async fn commit_through(self: &Arc<Self>, number: u64) -> Result<(), Error> {
        loop {
            let covered = || self.commits.is_complete(number);
            let Some(writer) = self.writer.acquire_unless(covered).await else {
                return Ok(());
            };
            self.check_changeable()?;
            let begun = self.begin_commit();
            self.finish_commit(writer, begun, None, || ()).await?;
        }
    }

    /// Step 2. The caller holds the writer.
    pub(crate) fn begin_commit(&self) -> Begun<H::Data> {
        let number = self.commits.start();
        let changes = self.counters.uncommitted_changes.load(Ordering::Relaxed);
        let devices: Vec<_> = self.table.read().devices.values().map(Arc::clone).collect();
        let collected = devices.into_iter().filter_map(|device| {
            let collected = device.chunks.collect();
            (!collected.is_empty()).then_some((device, collected))
        });
        let collected = collected.collect();
        Begun {
            number,
            collected,
            changes,
            time: self.time.load(Ordering::Acquire),
        }
    }

    /// Steps 3 to 5. A failure of the commit stops the pool; a control operation may fail alone.
    /// When it is done, `publish` shows it to others before the next one can begin.
    pub(crate) async fn finish_commit(
        self: &Arc<Self>,
        writer: Held<Writer>,
        begun: Begun<H::Data>,
        control: Option<Control>,
        publish: impl FnOnce() + Send,
    ) -> Result<(), Error> {
        let started = self.host.now();
        let outcome = self.try_commit(writer, begun, control, publish).await;
        match &outcome {
            Ok(_) => self
                .commit_durations
                .record(self.host.now().saturating_sub(started)),
            Err(cause) => self.stop(Mode::ReadOnly, &format!("a commit failed: {cause}")),
        }
        outcome?
    }

    async fn try_commit(
        self: &Arc<Self>,
        mut writer: Held<Writer>,
        begun: Begun<H::Data>,
        control: Option<Control>,
        publish: impl FnOnce() + Send,
    ) -> Result<Result<(), Error>, Error> {
        self.sync_writes().await?;
        self.counters
            .uncommitted_changes
            .fetch_sub(begun.changes, Ordering::Relaxed);
        let mut changes = Vec::new();
        let mut pinned = Vec::new();
        for (device, mut collected) in begun.collected {
            changes.push((device.id, std::mem::take(&mut collected.changes)));
            pinned.push(collected);
        }
        if changes.is_empty() && control.is_none() {
            self.commits.complete(begun.number);
            return Ok(Ok(()));
        }
        let (writer, done) = self
            .host
            .offload(move || {
                let done = writer.commit(&changes, begun.time, control);
                (writer, done)
            })
            .await;
        let done = done?;
        *self.committed.write() = writer.metadata.committed();
        self.commits.complete(begun.number);
        pinned.into_iter().for_each(Collected::unpin);
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.epochs.retire(done.freed);
        if done.control.is_ok() {
            publish();
        }
        self.note_metadata_space(writer);
        Ok(done.control)
    }

    /// Sees how much metadata is left, and lets the writer go.
    pub(crate) fn note_metadata_space(&self, mut writer: Held<Writer>) {
        let tx = writer.metadata.transaction();
        let total = tx.metadata_blocks();
        let free = tx.free_metadata_blocks();
        // A commit may touch every bitmap of the data store.
        let bitmaps = tx.disk_blocks() / COUNTS_A_BITMAP;
        let kept = metadata::reserve(total) + bitmaps + BLOCKS_A_COMMIT;
        let changes = free.saturating_sub(kept) / BLOCKS_A_CHANGE;
        let space = &self.metadata_space;
        space.total.store(total, Ordering::Relaxed);
        space.free.store(free, Ordering::Relaxed);
        space
            .changes_max
            .store(changes.min(CHANGES_MAX), Ordering::Relaxed);
    }

    /// Refuses what needs new metadata blocks when only the reserve is left.
    pub(crate) fn check_metadata_space(&self) -> Result<(), Error> {
        if self.metadata_space.is_exhausted() {
            return Err(Error::OutOfMetadataSpace);
        }
        Ok(())
    }

    /// Permission to map one more block in the open transaction, whose commit must find room for
    /// it; none when a commit has to come first.
    pub(crate) fn permit_change(&self) -> Option<ChangePermit<'_>> {
        let permit = ChangePermit(&self.counters.permitted_changes);
        let permitted = self
            .counters
            .permitted_changes
            .fetch_add(1, Ordering::Relaxed);
        let waiting = self.counters.uncommitted_changes.load(Ordering::Relaxed);
        let limit = self.metadata_space.changes_max.load(Ordering::Relaxed);
        (permitted + waiting < limit).then_some(permit)
    }

    /// Bounds the open transaction after unmapping: with too many changes waiting, commits.
    pub(crate) async fn throttle_changes(self: &Arc<Self>) -> Result<(), Error> {
        let waiting = self.counters.uncommitted_changes.load(Ordering::Relaxed);
        if waiting > self.metadata_space.changes_max.load(Ordering::Relaxed) {
            self.commit_through(self.commits.next()).await?;
        }
        Ok(())
    }

    /// Syncs the data store alone: nothing was mapped or unmapped.
    pub(crate) async fn sync_data(&self) -> Result<(), Error> {
        let outcome = self.sync_writes().await;
        if let Err(cause) = &outcome {
            self.stop(Mode::ReadOnly, &cause.to_string());
        }
        outcome
    }

    /// Syncs the data store and notes which writes in place that has covered.
    async fn sync_writes(&self) -> Result<(), Error> {
        let covered = self.counters.written_in_place.load(Ordering::SeqCst);
        self.data.sync().await.map_err(sync_error)?;
        self.counters
            .synced_in_place
            .fetch_max(covered, Ordering::SeqCst);
        Ok(())
    }

    /// Gives blocks whose last reader is gone back to the data store, then to the allocator. No
    /// flush waits for it: it is done on the timer, by deletions, and by whoever needs the space.
    pub(crate) async fn release_drained(&self) {
        let mut blocks = self.epochs.take_drained();
        blocks.sort_unstable();
        if self.discard_passdown {
            for run in blocks.chunk_by(|block, next| block.0 + 1 == next.0) {
                let at = self.block_size.position(run[0]);
                let len = self.block_size.bytes() * run.len() as u64;
                // A store that keeps the space merely stays larger than it need be.
                let _ = self.data.punch(at, len).await;
            }
        }
        {
            let mut allocator = self.allocator.lock();
            blocks.iter().for_each(|block| allocator.release(*block));
        }
        self.epochs.released(blocks.len() as u64);
    }

    /// Finds a free data block for a write that got none: frees what a commit, a deletion in
    /// progress, or a drained epoch can free.
    pub(crate) async fn make_space(self: &Arc<Self>) -> Result<(), Error> {
        loop {
            let uncommitted = self.counters.uncommitted_changes.load(Ordering::Relaxed) > 0;
            if uncommitted {
                self.commit_through(self.commits.next()).await?;
            }
            let waiting = self.epochs.waiting_blocks() > 0;
            if waiting {
                let has_free = || self.allocator.lock().free() > 0;
                self.epochs.some_drained(has_free).await;
                self.release_drained().await;
            }
            if self.allocator.lock().free() > 0 {
                return Ok(());
            }
            // Without a deletion the writer was ours for a moment, and no commit under way: what
            // others were about to free is to be seen now, or there is nothing.
            if !uncommitted && !waiting && !self.reclaim_piece().await? && !self.may_free() {
                return Err(Error::OutOfDataSpace);
            }
        }
    }

    fn may_free(&self) -> bool {
        self.counters.uncommitted_changes.load(Ordering::Relaxed) > 0
            || self.epochs.waiting_blocks() > 0
            || self.allocator.lock().free() > 0
    }

    /// Gives back the blocks of deleted devices, in bounded pieces with a commit each, until none
    /// is left.
    pub async fn reclaim(self: &Arc<Self>) -> Result<(), Error> {
        while self.reclaim_piece().await? {}
        Ok(())
    }

    /// One piece of a deletion in progress. Whether there was one.
    async fn reclaim_piece(self: &Arc<Self>) -> Result<bool, Error> {
        let writer = self.writer.acquire().await;
        let Some(id) = writer.catalog.deleting().first().copied() else {
            return Ok(false);
        };
        self.check_changeable()?;
        let begun = self.begin_commit();
        self.finish_piece(writer, begun, id).await?;
        self.release_drained().await;
        Ok(true)
    }

    async fn finish_piece(
        self: &Arc<Self>,
        mut writer: Held<Writer>,
        begun: Begun<H::Data>,
        id: ThinId,
    ) -> Result<(), Error> {
        let (writer, gone) = self
            .host
            .offload(move || {
                let gone = writer.metadata.remove_piece(id);
                (writer, gone)
            })
            .await;
        let gone = match gone {
            Ok(gone) => gone,
            Err(cause) => {
                self.stop(
                    Mode::ReadOnly,
                    &format!("deleting thin device {id} failed: {cause}"),
                );
                return Err(cause);
            }
        };
        let control = Control::reclaimed(id, gone);
        let publish = || {
            self.counters
                .deleting
                .fetch_sub(u64::from(gone), Ordering::Relaxed);
        };
        self.finish_commit(writer, begun, Some(control), publish)
            .await
    }
}

/// One change that will be made.
pub(crate) struct ChangePermit<'a>(&'a AtomicU64);

impl Drop for ChangePermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn sync_error(source: std::io::Error) -> Error {
    Error::Io {
        what: "syncing the data store".into(),
        source,
    }
}
