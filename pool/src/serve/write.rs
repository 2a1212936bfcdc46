//! Writing: in place, provisioning, breaking sharing.
//!
//! # Breaking sharing
//!
//! After a snapshot, origin and snapshot map the same data blocks. The first write to such a block
//! must not be seen by the other, so the writer moves off it:
//!
//! 1. hold the virtual block's cell, so that two writers do not move twice;
//! 2. take a free data block;
//! 3. write the request's bytes to it; of a sub-block that they cover in part, also what the old
//!    block holds around them;
//! 4. note which sub-blocks the new block owns (`partial.rs`): the others are read from where they
//!    were, until the next commit fills them in;
//! 5. record it in the intent log, so that it outlives the process (invariant 13);
//! 6. only then change the mapping in memory (invariant 3), and answer.
//!
//! Nothing has to be committed first. The new mapping becomes durable with the next flush, in the intent
//! log, or with a later commit, which makes the block whole and syncs the data store before it; a power
//! cut before either brings back the old mapping, whose block nobody has touched. The old block loses a
//! reference when the commit replaces the mapping in the tree; while any other device maps it, it stays.
//! Provisioning is the same with zeros, or the external origin, in place of the old block. A data block that is
//! known to hold zeros already is whole at once.
//!
//! A later write to a block that is still partial goes the same way from step 3 on, under the cell.
//!
//! The order with a snapshot: a write passes its device's gate before it looks the mapping up, and
//! leaves after it has changed it. Taking a snapshot closes the gate, waits for those inside, and
//! raises the time; whoever enters later sees every older mapping as shared.
//!
//! What must never happen inside the gate is waiting for a commit: the commit may be the one that
//! waits for the gate. Running out of space therefore leaves the gate, commits, and starts over.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::allocator::Fresh;
use crate::chunks::{Chunk, chunk_of};
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::log::Intent;
use crate::map::{self, BlockPart, Place};
use crate::partial::Partial;
use crate::pool::Pool;
use crate::queue::{Patience, Turn};
use crate::serve::{check_range, data_error, usize_of};
use crate::trees::Mapping;
use crate::units::{DataBlock, VirtualBlock};

/// Zeros up to this length are written; longer runs are left to the data store.
const ZERO_WRITE_BYTES_MAX: u64 = 32 * 1024;

/// What a write puts into a range.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl Payload<'_> {
    fn split(self, at: u64) -> (Self, Self) {
        match self {
            Payload::Zeros(len) => (Payload::Zeros(at), Payload::Zeros(len - at)),
            Payload::Bytes(bytes) => {
                let (first, rest) = bytes.split_at(usize_of(at));
                (Payload::Bytes(first), Payload::Bytes(rest))
            }
        }
    }
}

/// How a block can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    /// In place: it is exclusive and whole.
    Whole(DataBlock),
    /// Under its cell: it is unmapped, shared or partial.
    UnderCell,
}

/// Why a write stopped before it was done.
enum Stopped {
    /// Too much has changed since the last commit.
    NeedsCommit,
    Failed(Error),
}

impl From<Error> for Stopped {
    fn from(cause: Error) -> Self {
        Stopped::Failed(cause)
    }
}

impl<H: Host> Pool<H> {
    pub(crate) async fn write(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        offset: u64,
        buf: &[u8],
        durable: bool,
        patience: &Patience,
    ) -> Result<(), Error> {
        let range = check_range(device, offset, buf.len() as u64)?;
        self.write_payload(device, range, Payload::Bytes(buf), durable, patience)
            .await
    }

    pub(super) async fn write_payload(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        mut range: Range<u64>,
        mut payload: Payload<'_>,
        durable: bool,
        patience: &Patience,
    ) -> Result<(), Error> {
        let mut turn = Turn::New;
        while range.start < range.end {
            let mut progress = Progress { range, payload };
            let stopped = self.write_until_stopped(device, &mut progress, &turn).await;
            Progress { range, payload } = progress;
            match stopped {
                Ok(()) => {}
                Err(Stopped::NeedsCommit) => {
                    Box::pin(self.commit_through(self.commits.next())).await?
                }
                Err(Stopped::Failed(cause)) if cause.is_lack_of_space() => {
                    Box::pin(self.find_space(device, patience, &mut turn, cause)).await?;
                }
                Err(Stopped::Failed(cause)) => return Err(cause),
            }
        }
        if !matches!(turn, Turn::New) {
            self.queue.note_written();
        }
        drop(turn);
        if durable {
            Box::pin(self.flush(device)).await?;
        }
        Ok(())
    }

    /// Writes block by block, inside the gate, until done or something has to happen outside.
    async fn write_until_stopped(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        progress: &mut Progress<'_>,
        turn: &Turn<'_>,
    ) -> Result<(), Stopped> {
        let _pass = device.writes.enter().await;
        // Asked again: it may have been frozen while this waited at the gate.
        self.check_writable(device)?;
        let _epoch = self.epochs.enter();
        while progress.range.start < progress.range.end {
            let (target, len) = self.next_target(device, &progress.range).await?;
            let (payload, rest) = progress.payload.split(len);
            let part = BlockPart::first(&progress.range, self.block_size);
            match target {
                Target::Whole(block) => {
                    let at = self.block_size.position(block) + part.begin;
                    self.write_in_place(at, payload).await?;
                }
                Target::UnderCell => {
                    Box::pin(self.write_under_cell(device, &part, payload, turn)).await?;
                }
            }
            progress.payload = rest;
            progress.range.start += len;
        }
        Ok(())
    }

    /// What the first block of the range needs. For whole blocks that lie behind one another the
    /// length covers all of them; otherwise just the part in the first block.
    async fn next_target(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        range: &Range<u64>,
    ) -> Result<(Target, u64), Error> {
        let snapshotted = device.snapshotted_time.load(Ordering::Acquire);
        let mut parts = map::parts(range.clone(), self.block_size);
        let Some(first) = parts.next() else {
            unreachable!("the range is not empty")
        };
        let mut chunk = self.chunk(device, first.block).await?;
        let target = target(device, &chunk, first.block, snapshotted);
        let mut len = first.len;
        let Target::Whole(DataBlock(start)) = target else {
            return Ok((target, len));
        };
        for (next, part) in (start + 1..).zip(parts) {
            if chunk_of(part.block) != chunk_of(first.block) {
                chunk = self.chunk(device, part.block).await?;
            }
            let expected = Target::Whole(DataBlock(next));
            if self::target(device, &chunk, part.block, snapshotted) != expected {
                break;
            }
            len += part.len;
        }
        Ok((target, len))
    }

    async fn write_in_place(&self, at: u64, payload: Payload<'_>) -> Result<(), Error> {
        match payload {
            Payload::Bytes(bytes) => self.data.write(at, bytes).await,
            Payload::Zeros(len) if len > ZERO_WRITE_BYTES_MAX => {
                Box::pin(self.data.zero(at, len)).await
            }
            Payload::Zeros(len) => Box::pin(self.data.write(at, &vec![0; usize_of(len)])).await,
        }
        .map_err(data_error("writing"))?;
        let written = &self.counters.written_in_place;
        written.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Writes a block that is unmapped, shared or partial; or whole by now, if another writer or a
    /// commit was first.
    async fn write_under_cell(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        part: &BlockPart,
        payload: Payload<'_>,
        turn: &Turn<'_>,
    ) -> Result<(), Stopped> {
        let _cell = device.blocks.lock(part.block.0).await;
        let chunk = self.chunk(device, part.block).await?;
        let place = map::place(
            chunk.get(part.block),
            device.snapshotted_time.load(Ordering::Acquire),
        );
        let Place::Exclusive(block) = place else {
            if !self.queue.admits(turn) {
                return Err(Error::OutOfDataSpace.into());
            }
            return self.write_new(device, &chunk, part, place, payload).await;
        };
        // Under the cell the answer stays true.
        let Some(partial) = device.partials.get(block) else {
            mark(Mark::WholeMeanwhile);
            let at = self.block_size.position(block) + part.begin;
            return Ok(self.write_in_place(at, payload).await?);
        };
        let Some(_permit) = self.log.permit() else {
            return Err(Stopped::NeedsCommit);
        };
        let range = self
            .write_sub_blocks(device, &partial, part, payload)
            .await?;
        self.note_owned(device, &partial, &range)?;
        if partial.is_whole() {
            self.forget_partial(device, block);
        }
        Ok(())
    }

    /// Gives a block that is unmapped or shared a data block of its own, with the payload in it.
    /// The caller holds the cell.
    async fn write_new(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        chunk: &Chunk,
        part: &BlockPart,
        place: Place,
        payload: Payload<'_>,
    ) -> Result<(), Stopped> {
        // What cannot be committed must not pile up.
        device.check_covered()?;
        self.check_metadata_space()?;
        let Some(_permit) = self.permit_change() else {
            self.log.check_space()?;
            self.check_commits_help()?;
            return Err(Stopped::NeedsCommit);
        };
        let Fresh { block, is_zero } = self.take_block(device.id).await?;
        let reserved = Reserved {
            pool: self,
            block: Some(block),
        };
        if place == Place::MaybeShared(block) {
            // It came free while this device maps it: filled in from itself it would never be whole.
            reserved.keep();
            return Err(Stopped::Failed(Error::DeviceDamaged {
                id: device.id.get(),
                reason: format!("it maps data block {}, which came free meanwhile", block.0),
            }));
        }
        let partial = Arc::new(Partial::new(block, part.block, place, self.block_size));
        let was_hole = place == Place::Unmapped && device.origin.is_none();
        let is_left = !self.zero_new_blocks || is_sabotaged(Sabotage::SkipZeroing);
        if was_hole && (is_zero || is_left) {
            // The rest of it is right as it is.
            partial.own(&(0..self.block_size.bytes()));
        }
        let range = self
            .write_sub_blocks(device, &partial, part, payload)
            .await?;
        partial.own(&range);
        if !self.may_stay_partial() {
            let whole = 0..self.block_size.bytes();
            self.fill(device, &partial, whole.clone()).await?;
            partial.own(&whole);
        }
        let time = self.time.load(Ordering::Acquire);
        let mapping = Mapping { block, time };
        let intent = Intent::map(mapping, Some(&*partial));
        if !partial.is_whole() {
            self.note_partial(device, partial);
        }
        let changed = self.change(device, chunk, part.block, intent);
        if changed.as_ref().is_err_and(Error::is_full) {
            // The log has not taken it, so the block is free.
            self.forget_partial(device, block);
        } else {
            reserved.keep();
        }
        changed?;
        let counter = match place {
            Place::Unmapped => &self.counters.provisioned_blocks,
            Place::Exclusive(_) | Place::MaybeShared(_) => &self.counters.copied_blocks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.queue.note_written();
        Ok(())
    }

    /// Writes a part of a partial block; returns the range it is to own now. The caller holds the cell.
    async fn write_sub_blocks(
        &self,
        device: &Device<H::Data>,
        partial: &Arc<Partial>,
        part: &BlockPart,
        payload: Payload<'_>,
    ) -> Result<Range<u64>, Error> {
        let range = part.begin..part.begin + part.len;
        let first = partial.cut_by(range.start);
        let last = partial
            .cut_by(range.end)
            .filter(|last| Some(last) != first.as_ref());
        for sub_block in [first, last].into_iter().flatten() {
            self.fill(device, partial, sub_block).await?;
        }
        let at = self.block_size.position(partial.block) + part.begin;
        self.write_in_place(at, payload).await?;
        Ok(range)
    }
}

fn target<D: DataIo>(
    device: &Device<D>,
    chunk: &Chunk,
    block: VirtualBlock,
    snapshotted_time: u32,
) -> Target {
    let found = device.lookup(chunk, block);
    let is_whole = matches!(found, Some((_, None)));
    match map::place(found.map(|(mapping, _)| mapping), snapshotted_time) {
        Place::Exclusive(block) if is_whole => Target::Whole(block),
        _ => Target::UnderCell,
    }
}

/// How far a write has come.
struct Progress<'a> {
    range: Range<u64>,
    payload: Payload<'a>,
}

/// A data block that goes back to the allocator unless it gets a mapping.
struct Reserved<'a, H: Host> {
    pool: &'a Pool<H>,
    block: Option<DataBlock>,
}

impl<H: Host> Reserved<'_, H> {
    fn keep(mut self) {
        self.block = None;
    }
}

impl<H: Host> Drop for Reserved<'_, H> {
    fn drop(&mut self) {
        if let Some(block) = self.block {
            self.pool.allocator.lock().release(block);
        }
    }
}
