//! Unmapping and zeroing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::chunks::{chunk_of, first_block};
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::log::Intent;
use crate::map::{self, Place, Zeroing};
use crate::pool::Pool;
use crate::queue::{NO_PATIENCE, Patience};
use crate::serve::check_range;
use crate::serve::write::Payload;
use crate::sync::yield_now;
use crate::units::VirtualBlock;

impl<H: Host> Pool<H> {
    pub(crate) async fn discard(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        offset: u64,
        len: u64,
        durable: bool,
    ) -> Result<(), Error> {
        let range = check_range(device, offset, len)?;
        self.check_writable(device)?;
        let blocks = map::whole_blocks(&range, self.block_size, device.size());
        self.unmap(device, blocks).await?;
        if durable {
            self.flush(device).await?;
        }
        Ok(())
    }

    /// Unmaps virtual blocks, a chunk at a time, so that others go on.
    async fn unmap(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        blocks: Range<u64>,
    ) -> Result<(), Error> {
        let mut next = blocks.start;
        while next < blocks.end {
            if self.backlog.left_out().changes >= self.log.records_max() {
                // What cannot be committed must not pile up.
                device.check_covered()?;
            }
            let end = blocks
                .end
                .min(first_block(chunk_of(VirtualBlock(next)) + 1).0);
            next = self.unmap_in_chunk(device, next..end).await?;
            if next < end {
                self.commit_through(self.commits.next()).await?;
            }
            self.throttle_changes().await?;
            yield_now().await;
        }
        Ok(())
    }

    /// Unmaps blocks of one chunk. Returns how far it came: the log may be full until the next commit.
    async fn unmap_in_chunk(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        blocks: Range<u64>,
    ) -> Result<u64, Error> {
        let _pass = device.writes.enter().await;
        self.check_writable(device)?;
        let _epoch = self.epochs.enter();
        let chunk = self.chunk(device, VirtualBlock(blocks.start)).await?;
        for block in blocks.clone().map(VirtualBlock) {
            if chunk.get(block).is_none() {
                continue;
            }
            let Some(_permit) = self.log.permit() else {
                self.log.check_space()?;
                return Ok(block.0);
            };
            let _cell = device.blocks.lock(block.0).await;
            if let Some(before) = chunk.get(block) {
                self.change(device, &chunk, block, Intent::Unmap)?;
                let snapshotted = device.snapshotted_time.load(Ordering::Acquire);
                if is_sabotaged(Sabotage::EarlyDiscard) && before.time >= snapshotted {
                    let at = self.block_size.position(before.block);
                    let _ = self.data.punch(at, self.block_size.bytes()).await;
                }
            }
        }
        Ok(blocks.end)
    }

    pub(crate) async fn write_zeroes(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        offset: u64,
        len: u64,
        zeroing: Zeroing,
        durable: bool,
        patience: &Patience,
    ) -> Result<(), Error> {
        let range = check_range(device, offset, len)?;
        self.check_writable(device)?;
        let whole = map::whole_blocks(&range, self.block_size, device.size());
        if matches!(zeroing, Zeroing::Fast | Zeroing::FastKeepMapped) {
            self.check_fast(device, &range, &whole, zeroing).await?;
        }
        let keep = matches!(zeroing, Zeroing::KeepMapped | Zeroing::FastKeepMapped);
        if keep || device.origin.is_some() || whole.is_empty() {
            self.zero_mapped(device, range, keep, patience).await?;
        } else {
            let bytes = self.block_size.bytes();
            self.zero_mapped(device, range.start..whole.start * bytes, keep, patience)
                .await?;
            self.unmap(device, whole.clone()).await?;
            let tail = range.end.min(whole.end * bytes)..range.end;
            self.zero_mapped(device, tail, keep, patience).await?;
        }
        if durable {
            self.flush(device).await?;
        }
        Ok(())
    }

    /// Zeroes by writing, block by block. What is a hole stays one unless `keep` is set.
    async fn zero_mapped(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        range: Range<u64>,
        keep: bool,
        patience: &Patience,
    ) -> Result<(), Error> {
        for part in map::parts(range, self.block_size) {
            let unmapped = {
                let _epoch = self.epochs.enter();
                self.chunk(device, part.block)
                    .await?
                    .get(part.block)
                    .is_none()
            };
            if keep || !unmapped || device.origin.is_some() {
                let start = self.block_size.start_of(part.block) + part.begin;
                let payload = Payload::Zeros(part.len);
                self.write_payload(device, start..start + part.len, payload, false, patience)
                    .await?;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Zeroes what the last block holds between the device's size and its coming one, where nobody
    /// sees it yet: what was there before the device was made shorter.
    pub(crate) async fn zero_hidden_tail(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        before: u64,
        size: u64,
    ) -> Result<(), Error> {
        let boundary = self.block_size.blocks_covering(before) * self.block_size.bytes();
        let tail = before..boundary.min(size);
        if tail.is_empty() {
            return Ok(());
        }
        let block = self.block_size.block_of(before);
        let is_mapped = {
            let _epoch = self.epochs.enter();
            self.chunk(device, block).await?.get(block).is_some()
        };
        if is_mapped {
            mark(Mark::HiddenTailZeroed);
            self.zero_mapped(device, tail, false, &NO_PATIENCE).await?;
        }
        Ok(())
    }

    /// Refuses a fast zeroing that would have to write data.
    async fn check_fast(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        range: &Range<u64>,
        whole: &Range<u64>,
        zeroing: Zeroing,
    ) -> Result<(), Error> {
        let snapshotted = device.snapshotted_time.load(Ordering::Acquire);
        for part in map::parts(range.clone(), self.block_size) {
            let chunk = self.chunk(device, part.block).await?;
            let place = map::place(chunk.get(part.block), snapshotted);
            let is_whole = whole.contains(&part.block.0);
            let fast = match zeroing {
                Zeroing::FastKeepMapped => is_whole && matches!(place, Place::Exclusive(_)),
                _ if device.origin.is_some() => false,
                _ => is_whole || place == Place::Unmapped,
            };
            if !fast {
                return Err(Error::NotFast);
            }
        }
        Ok(())
    }
}
