//! Writing: in place, provisioning, breaking sharing.
//!
//! # Breaking sharing
//!
//! After a snapshot, origin and snapshot map the same data blocks. The first write to such a block
//! must not be seen by the other, so the writer moves off it:
//!
//! 1. hold the virtual block's cell, so that two writers do not move twice;
//! 2. take a free data block;
//! 3. write it whole: the request's bytes, and around them what the old block holds;
//! 4. only then change the mapping in memory (invariant 3), and answer.
//!
//! Nothing has to be committed first. The new mapping becomes durable with a later commit, which
//! syncs the data store before it; a power cut before that brings back the old mapping, whose block
//! nobody has touched. The old block loses a reference when the commit replaces the mapping in the
//! tree; while any other device maps it, it stays. Provisioning is the same with zeros, or the
//! external origin, in place of the old block.
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

use crate::chunks::chunk_of;
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::map::{self, BlockPart, Place};
use crate::pool::Pool;
use crate::serve::{check_range, data_error, usize_of};
use crate::trees::Mapping;
use crate::units::{DataBlock, VirtualBlock};

/// The most that is composed in memory when a block is filled: larger blocks are filled in pieces.
const FILL_BYTES_MAX: u64 = 1024 * 1024;

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

/// Why a write stopped before it was done.
enum Stopped {
    /// A commit may bring free blocks.
    NeedsSpace,
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
    ) -> Result<(), Error> {
        let range = check_range(device, offset, buf.len() as u64)?;
        self.write_payload(device, range, Payload::Bytes(buf), durable)
            .await
    }

    pub(super) async fn write_payload(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        mut range: Range<u64>,
        mut payload: Payload<'_>,
        durable: bool,
    ) -> Result<(), Error> {
        // With nothing uncommitted, writes in place can become durable by themselves.
        let settled = || {
            self.commits
                .is_complete(device.durable_with.load(Ordering::SeqCst))
        };
        let alone = durable && settled();
        let mut in_place = true;
        while range.start < range.end {
            let mut progress = Progress {
                range,
                payload,
                in_place,
            };
            let stopped = self.write_until_stopped(device, &mut progress, alone).await;
            Progress {
                range,
                payload,
                in_place,
            } = progress;
            match stopped {
                Ok(()) => {}
                Err(Stopped::NeedsSpace) => self.make_space().await?,
                Err(Stopped::NeedsCommit) => self.commit_through(self.commits.next()).await?,
                Err(Stopped::Failed(cause)) => return Err(cause),
            }
        }
        // Asked again: the mapping of what was written in place may be new, and not ours.
        if durable && !(alone && in_place && settled()) {
            self.flush(device).await?;
        }
        Ok(())
    }

    /// Writes block by block, inside the gate, until done or something has to happen outside.
    async fn write_until_stopped(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        progress: &mut Progress<'_>,
        durable: bool,
    ) -> Result<(), Stopped> {
        let _pass = device.writes.enter().await;
        // Asked again: it may have been frozen while this waited at the gate.
        self.check_writable(device)?;
        let _epoch = self.epochs.enter();
        while progress.range.start < progress.range.end {
            let (place, len) = self.next_place(device, &progress.range).await?;
            let (payload, rest) = progress.payload.split(len);
            if let Place::Exclusive(block) = place {
                let begin = BlockPart::first(&progress.range, self.block_size).begin;
                let at = self.block_size.position(block) + begin;
                self.write_in_place(at, payload, durable).await?;
            } else {
                let part = BlockPart::first(&progress.range, self.block_size);
                progress.in_place = false;
                self.write_new(device, &part, payload).await?;
            }
            progress.payload = rest;
            progress.range.start += len;
        }
        Ok(())
    }

    /// What the first block of the range needs. For exclusive blocks that lie behind one another
    /// the length covers all of them; otherwise just the part in the first block.
    async fn next_place(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        range: &Range<u64>,
    ) -> Result<(Place, u64), Error> {
        let snapshotted = device.snapshotted_time.load(Ordering::Acquire);
        let mut parts = map::parts(range.clone(), self.block_size);
        let Some(first) = parts.next() else {
            unreachable!("the range is not empty")
        };
        let mut chunk = self.chunk(device, first.block).await?;
        let place = map::place(chunk.get(first.block), snapshotted);
        let mut len = first.len;
        let Place::Exclusive(DataBlock(start)) = place else {
            return Ok((place, len));
        };
        for (next, part) in (start + 1..).zip(parts) {
            if chunk_of(part.block) != chunk_of(first.block) {
                chunk = self.chunk(device, part.block).await?;
            }
            if map::place(chunk.get(part.block), snapshotted) != Place::Exclusive(DataBlock(next)) {
                break;
            }
            len += part.len;
        }
        Ok((place, len))
    }

    async fn write_in_place(
        &self,
        at: u64,
        payload: Payload<'_>,
        durable: bool,
    ) -> Result<(), Error> {
        let is_long = matches!(payload, Payload::Zeros(len) if len > ZERO_WRITE_BYTES_MAX);
        match payload {
            Payload::Bytes(bytes) => self.data.write(at, bytes, durable).await,
            Payload::Zeros(len) if is_long => self.data.zero(at, len).await,
            Payload::Zeros(len) => self.data.write(at, &vec![0; usize_of(len)], durable).await,
        }
        .map_err(data_error("writing"))?;
        if durable && is_long {
            return self.sync_data().await;
        }
        if !durable {
            let written = &self.counters.written_in_place;
            written.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Gives a block that is unmapped or shared a data block of its own, with the payload in it;
    /// unless another writer was first.
    async fn write_new(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        part: &BlockPart,
        payload: Payload<'_>,
    ) -> Result<(), Stopped> {
        let _cell = device.blocks.lock(part.block.0).await;
        let chunk = self.chunk(device, part.block).await?;
        let place = map::place(
            chunk.get(part.block),
            device.snapshotted_time.load(Ordering::Acquire),
        );
        if let Place::Exclusive(block) = place {
            let at = self.block_size.position(block) + part.begin;
            return Ok(self.write_in_place(at, payload, false).await?);
        }
        self.check_metadata_space()?;
        let Some(_permit) = self.permit_change() else {
            return Err(Stopped::NeedsCommit);
        };
        let taken = self.allocator.lock().take();
        let Some(block) = taken else {
            return Err(Stopped::NeedsSpace);
        };
        let reserved = Reserved {
            pool: self,
            block: Some(block),
        };
        self.fill_block(device, part, place, block, payload).await?;
        let time = self.time.load(Ordering::Acquire);
        let mapping = Mapping {
            block: reserved.keep(),
            time,
        };
        self.change(device, &chunk, part.block, Some(mapping));
        let counter = match place {
            Place::Unmapped => &self.counters.provisioned_blocks,
            Place::Exclusive(_) | Place::MaybeShared(_) => &self.counters.copied_blocks,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Writes a new data block: the payload in its place, around it what was there before.
    async fn fill_block(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        part: &BlockPart,
        before: Place,
        block: DataBlock,
        payload: Payload<'_>,
    ) -> Result<(), Error> {
        let position = self.block_size.position(block);
        let covers = part.begin == 0 && part.len == self.block_size.bytes();
        let empty = before == Place::Unmapped && device.origin.is_none() && !self.zero_new_blocks;
        if covers || empty {
            return self
                .write_in_place(position + part.begin, payload, false)
                .await;
        }
        let mut done = 0;
        while done < self.block_size.bytes() {
            let piece = done..(done + FILL_BYTES_MAX).min(self.block_size.bytes());
            let mut bytes = vec![0; usize_of(piece.end - piece.start)];
            self.old_contents(device, part.block, before, piece.start, &mut bytes)
                .await?;
            overlay(&mut bytes, &piece, part, payload);
            let write = self.data.write(position + piece.start, &bytes, false);
            write.await.map_err(data_error("writing"))?;
            done = piece.end;
        }
        Ok(())
    }

    /// What a virtual block holds from `begin` on, given its mapping.
    async fn old_contents(
        &self,
        device: &Device<H::Data>,
        block: VirtualBlock,
        place: Place,
        begin: u64,
        bytes: &mut [u8],
    ) -> Result<(), Error> {
        match place {
            Place::Unmapped => {
                self.read_origin(device, self.block_size.start_of(block) + begin, bytes)
                    .await?;
                Ok(())
            }
            Place::Exclusive(old) | Place::MaybeShared(old) => {
                let at = self.block_size.position(old) + begin;
                self.data
                    .read(at, bytes)
                    .await
                    .map_err(data_error("copying a shared block"))
            }
        }
    }
}

/// How far a write has come.
struct Progress<'a> {
    range: Range<u64>,
    payload: Payload<'a>,
    /// Whether everything so far went to blocks that were exclusive already.
    in_place: bool,
}

/// A data block that goes back to the allocator unless it gets a mapping.
struct Reserved<'a, H: Host> {
    pool: &'a Pool<H>,
    block: Option<DataBlock>,
}

impl<H: Host> Reserved<'_, H> {
    fn keep(mut self) -> DataBlock {
        let Some(block) = self.block.take() else {
            unreachable!("a block is kept once")
        };
        block
    }
}

impl<H: Host> Drop for Reserved<'_, H> {
    fn drop(&mut self) {
        if let Some(block) = self.block {
            self.pool.allocator.lock().release(block);
        }
    }
}

/// Puts the payload of `part` over `bytes`, which are the piece `piece` of the part's block.
fn overlay(bytes: &mut [u8], piece: &Range<u64>, part: &BlockPart, payload: Payload<'_>) {
    let begin = part.begin.max(piece.start);
    let end = (part.begin + part.len).min(piece.end);
    if begin >= end {
        return;
    }
    let target = &mut bytes[usize_of(begin - piece.start)..usize_of(end - piece.start)];
    match payload {
        Payload::Zeros(_) => target.fill(0),
        Payload::Bytes(source) => target
            .copy_from_slice(&source[usize_of(begin - part.begin)..usize_of(end - part.begin)]),
    }
}
