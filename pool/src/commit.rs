//! Commits: all changes at once.
//!
//! # The order
//!
//! 1. Take the writer: one commit at a time. Whoever waited for it looks first whether the commit
//!    before already covered what he needs; so all who come while one commit runs are served by the next.
//! 2. Number the commit, begin a generation of the intent log, and collect what changed in memory.
//!    From here on new changes belong to the next commit.
//! 3. Fill in the blocks that are only partly there (`partial.rs`). A device for which that fails is
//!    left out: its changes are marked and recorded again for the next commit.
//! 4. Sync the data store, so that what the collected mappings point to is stable; and what the records of the
//!    new generation map, so far.
//! 5. Away from the caller's thread: catalog lines, changes into the trees, metadata blocks, sync; an
//!    entry in the intent log that says which of its records this superblock lacks, sync; superblock, sync.
//! 6. Publish: readers load from the new commit, its number is complete, blocks that lost their
//!    last mapping wait for their epoch.
//!
//! Flushes need no commit (`flush.rs`): commits come in time, when the log is full, and with operations on
//! devices.
//!
//! Requests on mapped, exclusive blocks that are whole notice nothing of all this: they look up in
//! memory and hold no lock that a commit takes for longer than copying a few words. A write to a block
//! that is just being filled in waits for that.
//!
//! # Freeing and reuse
//!
//! A data block that lost its last mapping in a commit may still be read by requests that looked it
//! up before. It becomes free when the commit is durable *and* the epoch in which such requests
//! could have begun has drained (`epoch.rs`); only then is its space given back to the data store
//! and the block handed out again (invariant 2). The same goes for one that no commit has ever seen:
//! the intent log names it, until the commit that ends the generation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::backlog::ChangePermit;
use crate::chunks::Collected;
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::info::Mode;
use crate::log::{self, Durable, Intent, LogPermit, Record, log_error};
use crate::metadata::{self, COUNTS_A_BITMAP, Change};
use crate::partial::Partial;
use crate::pool::Pool;
use crate::room::Space;
use crate::sync::Held;
use crate::units::{DataBlock, ThinId};
use crate::writer::{Control, Writer};

/// A commit that has collected its changes.
pub(crate) struct Begun<D> {
    number: u64,
    parts: Vec<Part<D>>,
    /// From devices that the operation ends, and whose blocks cannot be filled in: dropped if it
    /// succeeds.
    abandoned: Vec<Part<D>>,
    /// No collected mapping is younger.
    time: u32,
    /// Blocks without a mapping that records of earlier generations name.
    superseded: Vec<DataBlock>,
}

impl<D> Begun<D> {
    /// The commit ends this device: what cannot be filled in no longer matters.
    pub(crate) fn abandon(&mut self, id: ThinId) {
        let mut parts = self.parts.iter_mut();
        if let Some(part) = parts.find(|part| part.device.id == id) {
            part.ends = true;
        }
    }
}

/// What a commit takes from one device.
struct Part<D> {
    device: Arc<Device<D>>,
    collected: Collected,
    /// Data blocks that must be made whole: all those that collected mappings name, and perhaps
    /// some whose mapping is just being made.
    partial: Vec<Arc<Partial>>,
    /// Whether the device ends with this commit.
    ends: bool,
}

impl<H: Host> Pool<H> {
    /// Makes everything done so far durable. Cheap when nothing changed. After a failed commit it
    /// fails too, and while a volume's blocks cannot be filled in.
    pub async fn commit(self: &Arc<Self>) -> Result<(), Error> {
        let changed = self.backlog.has_untried()
            || self.has_superseded()
            || self.check_all_covered().is_err();
        let mut committed = Ok(());
        if changed || self.commits.has_unfinished() {
            committed = self.commit_everything().await;
        } else if self.counters.has_unsynced_writes() {
            committed = self.sync_data().await;
        }
        self.release_drained().await;
        committed
    }

    /// One commit, of all devices.
    pub(crate) async fn commit_everything(self: &Arc<Self>) -> Result<(), Error> {
        self.commit_through(self.commits.next()).await?;
        self.check_all_covered()
    }

    pub(crate) fn check_all_covered(&self) -> Result<(), Error> {
        let table = self.table.read();
        let mut devices = table.devices.values();
        devices.try_for_each(|device| device.check_covered())
    }

    /// Waits for, or makes, the commit with this number.
    pub(crate) async fn commit_through(self: &Arc<Self>, number: u64) -> Result<(), Error> {
        loop {
            let covered = || self.commits.is_complete(number);
            let Some(writer) = self.writer.acquire_unless(covered).await else {
                mark(Mark::CommitJoined);
                return Ok(());
            };
            self.check_changeable()?;
            let begun = self.begin_commit();
            self.finish_commit(writer, begun, None, || ()).await?;
        }
    }

    /// Step 3. Makes the blocks whole that a commit's mappings name.
    async fn fill_in(&self, begun: &mut Begun<H::Data>) -> Result<(), Error> {
        for part in std::mem::take(&mut begun.parts) {
            let filled = self.complete_all(&part.device, &part.partial).await;
            // What stops the pool is no matter of one device.
            self.check_changeable()?;
            match filled {
                Ok(()) => begun.parts.push(part),
                Err(_) if part.ends => {
                    // In case the device stays after all.
                    self.carry(&mut self.log.stop(), &part.device, &part.collected.changes)?;
                    begun.abandoned.push(part);
                }
                Err(cause) => self.leave_out(part, cause.to_string())?,
            }
        }
        Ok(())
    }

    /// Leaves to the next commit what this one collected from a device.
    fn leave_out(&self, part: Part<H::Data>, reason: String) -> Result<(), Error> {
        mark(Mark::VolumeLeftOut);
        let device = part.device;
        *device.left_out.lock() = Some(reason);
        self.backlog.leave_out(part.collected.waiting());
        let mut stopped = self.log.stop();
        let put_back = device.chunks.put_back(part.collected);
        let carried = self.carry(&mut stopped, &device, &put_back.kept);
        drop(stopped);
        for block in &put_back.superseded {
            self.forget_partial(&device, *block);
        }
        self.supersede(put_back.superseded);
        carried
    }

    /// Takes over changes into the generation that the commit will not end.
    fn carry(
        &self,
        log: &mut log::Stopped<'_>,
        device: &Device<H::Data>,
        changes: &[Change],
    ) -> Result<(), Error> {
        for (at, mapping) in changes {
            let intent = match *mapping {
                None => Intent::Unmap,
                Some(mapping) => {
                    Intent::map(mapping, device.partials.get(mapping.block).as_deref())
                }
            };
            let record = Record {
                device: device.id,
                at: *at,
                intent,
            };
            log.carry(&record, &device.last_record).map_err(log_error)?;
        }
        Ok(())
    }

    /// Drops the changes of abandoned devices, or keeps them when the operation was not done.
    fn settle_abandoned(&self, abandoned: Vec<Part<H::Data>>, is_done: bool) -> Result<(), Error> {
        for mut part in abandoned {
            if !is_done {
                let reason = "blocks of it could not be filled in when it was to be removed or rolled \
                              back, and that failed; overwriting or discarding them whole helps";
                self.leave_out(part, reason.to_owned())?;
                continue;
            }
            // No tree has ever named the blocks that these changes would have put in; the log does.
            let changes = std::mem::take(&mut part.collected.changes).into_iter();
            self.supersede(changes.filter_map(|(_, mapping)| Some(mapping?.block)));
            part.collected.unpin();
        }
        Ok(())
    }

    /// Step 2. The caller holds the writer.
    pub(crate) fn begin_commit(&self) -> Begun<H::Data> {
        let mut log = self.log.stop();
        log.begin_generation();
        let number = self.commits.start();
        self.backlog.begin_commit();
        let devices: Vec<_> = self.table.read().devices.values().map(Arc::clone).collect();
        let mut parts = Vec::new();
        for device in devices {
            let collected = device.chunks.collect();
            if collected.is_empty() {
                continue;
            }
            // Looked at after collecting: a block is noted before its mapping is changed.
            let partial = device.partials.all();
            parts.push(Part {
                device,
                collected,
                partial,
                ends: false,
            });
        }
        Begun {
            number,
            parts,
            abandoned: Vec::new(),
            time: self.time.load(Ordering::Acquire),
            superseded: std::mem::take(&mut *self.superseded.lock()),
        }
    }

    /// Steps 3 to 6. A failure of the commit stops the pool; a control operation may fail alone.
    /// When it is done, `publish` shows it to others before the next one can begin.
    pub(crate) async fn finish_commit(
        self: &Arc<Self>,
        writer: Held<Writer>,
        begun: Begun<H::Data>,
        control: Option<Control>,
        publish: impl FnOnce() + Send,
    ) -> Result<(), Error> {
        let started = self.host.now();
        // Given up only after a failure has stopped the pool: nobody else may commit then.
        let mut writer = Some(writer);
        let outcome = self.try_commit(&mut writer, begun, control, publish).await;
        match &outcome {
            Ok(_) => self
                .commit_durations
                .record(self.host.now().saturating_sub(started)),
            Err(cause) => {
                mark(Mark::CommitFailed);
                self.stop(Mode::ReadOnly, &format!("a commit failed: {cause}"));
            }
        }
        outcome?
    }

    async fn try_commit(
        self: &Arc<Self>,
        slot: &mut Option<Held<Writer>>,
        mut begun: Begun<H::Data>,
        control: Option<Control>,
        publish: impl FnOnce() + Send,
    ) -> Result<Result<(), Error>, Error> {
        self.fill_in(&mut begun).await?;
        let durable = self.log.stop().all();
        if !is_sabotaged(Sabotage::SkipDataSync) {
            self.sync_writes().await?;
        }
        let mut changes = Vec::new();
        let mut covered = Vec::new();
        for mut part in begun.parts {
            let collected = std::mem::take(&mut part.collected.changes);
            changes.push((part.device.id, collected));
            covered.push((part.device, part.collected));
        }
        if changes.is_empty() && control.is_none() && !self.log.is_wanted() {
            mark(Mark::NothingToCommit);
            self.note_nothing_to_commit(durable).await?;
            self.end_commit(begun.number, durable, begun.superseded);
            return Ok(Ok(()));
        }
        let Some(mut writer) = slot.take() else {
            unreachable!("the caller has the writer")
        };
        let (writer, done) = self
            .host
            .offload(move || {
                let done = writer.commit(&changes, begun.time, durable, control);
                (writer, done)
            })
            .await;
        let writer = slot.insert(writer);
        let done = done?;
        *self.committed.write() = writer.metadata.committed();
        // Only now, and before the number is complete: who waits for that looks here afterwards.
        for (device, _) in &covered {
            *device.left_out.lock() = None;
        }
        self.settle_abandoned(begun.abandoned, done.control.is_ok())?;
        for (_, collected) in covered {
            collected.unpin();
        }
        self.counters.commits.fetch_add(1, Ordering::Relaxed);
        self.epochs.retire(done.freed);
        if done.control.is_ok() {
            publish();
        }
        if self.check_all_covered().is_ok() {
            self.epochs.retire(self.replayed.take_superseded());
        }
        self.note_metadata_space(writer);
        // Not before: what is admitted meanwhile must find room beside what this commit needed.
        self.end_commit(begun.number, durable, begun.superseded);
        Ok(done.control)
    }

    /// Notes in the log that the last superblock has all that was collected.
    async fn note_nothing_to_commit(&self, durable: Durable) -> Result<(), Error> {
        let superblock = self.committed.read().superblock.block();
        let log = Arc::clone(&self.log);
        let prepared = self
            .host
            .offload(move || log.prepare(&superblock, durable))
            .await;
        prepared.map_err(log_error)
    }

    /// A commit is durable.
    fn end_commit(&self, number: u64, durable: Durable, superseded: Vec<DataBlock>) {
        self.log.note_committed(durable);
        self.epochs.retire(superseded);
        self.backlog.end_commit();
        self.commits.complete(number);
    }

    pub(crate) fn has_superseded(&self) -> bool {
        !self.superseded.lock().is_empty()
    }

    /// Takes blocks that have lost their mapping before any commit saw it.
    pub(crate) fn supersede(&self, blocks: impl IntoIterator<Item = DataBlock>) {
        if is_sabotaged(Sabotage::ReuseFreed) {
            let mut allocator = self.allocator.lock();
            return blocks
                .into_iter()
                .for_each(|block| allocator.release(block));
        }
        self.superseded.lock().extend(blocks);
    }

    /// Sees how much metadata is left.
    pub(crate) fn note_metadata_space(&self, writer: &mut Writer) {
        let tx = writer.metadata.transaction();
        let total = tx.metadata_blocks();
        let free = tx.free_metadata_blocks();
        // A commit may touch every bitmap of the data store.
        let bitmaps = tx.disk_blocks() / COUNTS_A_BITMAP;
        self.metadata_room.note(Space {
            total,
            free,
            kept: metadata::reserve(total) + bitmaps,
            data_used: tx.disk_allocated(),
        });
    }

    /// Refuses what needs new metadata blocks when only the reserve is left.
    pub(crate) fn check_metadata_space(&self) -> Result<(), Error> {
        if self.metadata_room.is_exhausted() {
            mark(Mark::OutOfMetadataSpace);
            return Err(Error::OutOfMetadataSpace);
        }
        Ok(())
    }

    /// Permission to map one more block in the open transaction, whose commit must find room for
    /// it; none when a commit has to come first.
    pub(crate) fn permit_change(&self) -> Option<(LogPermit<'_>, ChangePermit<'_>)> {
        let recording = self.log.permit()?;
        let room = &self.metadata_room;
        let change = self
            .backlog
            .permit(|waiting, more| room.admits(waiting, more))?;
        Some((recording, change))
    }

    /// Refuses to wait for commits that make no room, since what they leave out takes it.
    pub(crate) fn check_commits_help(&self) -> Result<(), Error> {
        if self.metadata_room.admits(self.backlog.left_out(), 1) {
            return Ok(());
        }
        self.check_all_covered()
    }

    /// Bounds the open transaction after unmapping: with too many changes waiting, commits.
    pub(crate) async fn throttle_changes(self: &Arc<Self>) -> Result<(), Error> {
        if !self.metadata_room.admits(self.backlog.waiting(), 0) {
            self.commit_through(self.commits.next()).await?;
        }
        Ok(())
    }

    /// Syncs the data store alone.
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
        if let Err(cause) = self.data.sync().await {
            // What the log maps may be lost now. If this fails as well, there is nothing left to do.
            let _ = self.log.make_void();
            return Err(sync_error(cause));
        }
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
        if !blocks.is_empty() {
            self.queue.note_space();
        }
    }

    /// Gives back the blocks of deleted devices, in bounded pieces with a commit each, until none
    /// is left.
    pub async fn reclaim(self: &Arc<Self>) -> Result<(), Error> {
        while self.reclaim_piece().await? {}
        Ok(())
    }

    /// One piece of a deletion in progress. Whether there was one.
    pub(crate) async fn reclaim_piece(self: &Arc<Self>) -> Result<bool, Error> {
        let writer = self.writer.acquire().await;
        let Some(id) = writer.catalog.deleting().first().copied() else {
            return Ok(false);
        };
        self.check_changeable()?;
        mark(Mark::DeletionPiece);
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

pub(crate) fn sync_error(source: std::io::Error) -> Error {
    Error::Io {
        what: "syncing the data store".into(),
        source,
    }
}
