//! Partial blocks: where their bytes are, and bringing in those that are still elsewhere.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::log::{Intent, WHOLE};
use crate::map::{Place, Source};
use crate::partial::{PARTIAL_BYTES_MAX, Partial};
use crate::pool::Pool;
use crate::serve::usize_of;
use crate::sync::yield_now;
use crate::units::DataBlock;

/// The most that is held in memory when a block is filled in: longer runs are done in pieces.
const FILL_BYTES_MAX: u64 = 1024 * 1024;

impl<H: Host> Pool<H> {
    /// Where a partial block's bytes from `begin` on are, and how many of the `len` lie together.
    pub(super) fn source_in_partial(
        &self,
        device: &Device<H::Data>,
        partial: Arc<Partial>,
        begin: u64,
        len: u64,
    ) -> (Source, u64) {
        let (mut partial, mut len) = (partial, len);
        // A block that was partial when a snapshot was taken may be what another one was before: a
        // chain of two, since the snapshot's commit fills in the first.
        loop {
            let (is_owned, alike) = partial.alike(begin, len);
            len = alike;
            if is_owned {
                let at = self.block_size.position(partial.block) + begin;
                return (Source::Data(at), len);
            }
            let old = match partial.before {
                Place::Unmapped if device.origin.is_some() => return (Source::Origin, len),
                Place::Unmapped => return (Source::Hole, len),
                Place::Exclusive(old) | Place::MaybeShared(old) => old,
            };
            match device.partials.get(old) {
                Some(before) => partial = before,
                None => return (Source::Data(self.block_size.position(old) + begin), len),
            }
        }
    }

    /// Copies the sub-blocks that `within` touches, a range inside the block, and that it does not own.
    /// The caller holds the cell of the virtual block, and notes that it owns them, once the intent log
    /// says so: from then on they are seen.
    pub(super) async fn fill(
        &self,
        device: &Device<H::Data>,
        partial: &Arc<Partial>,
        within: Range<u64>,
    ) -> Result<(), Error> {
        let mut at = within.start;
        while let Some(missing) = partial.first_missing(&(at..within.end)) {
            at = missing.start;
            while at < missing.end {
                let len = FILL_BYTES_MAX.min(missing.end - at);
                at += self.fill_run(device, partial, at, len).await?;
            }
        }
        Ok(())
    }

    /// Copies bytes of a block from where they were; returns how many.
    async fn fill_run(
        &self,
        device: &Device<H::Data>,
        partial: &Arc<Partial>,
        begin: u64,
        len: u64,
    ) -> Result<u64, Error> {
        let failed = |source| Error::Io {
            what: format!(
                "filling in the block at byte {} of {} (overwriting or discarding it whole helps)",
                self.block_size.start_of(partial.of),
                device.name()
            ),
            source,
        };
        let (source, len) = self.source_in_partial(device, Arc::clone(partial), begin, len);
        let mut bytes = vec![0; usize_of(len)];
        match source {
            Source::Hole => {}
            Source::Origin => {
                let offset = self.block_size.start_of(partial.of) + begin;
                self.read_origin(device, offset, &mut bytes).await?;
            }
            Source::Data(at) => self.data.read(at, &mut bytes).await.map_err(failed)?,
        }
        let at = self.block_size.position(partial.block) + begin;
        self.data.write(at, &bytes).await.map_err(failed)?;
        let counter = match source {
            Source::Hole => &self.counters.zeroed_bytes,
            Source::Origin | Source::Data(_) => &self.counters.copied_bytes,
        };
        counter.fetch_add(len, Ordering::Relaxed);
        Ok(len)
    }

    /// Makes all blocks of devices whole that are partial now.
    pub(crate) async fn complete_devices<'a>(
        &self,
        devices: impl Iterator<Item = &'a Device<H::Data>> + Send,
    ) -> Result<(), Error> {
        for device in devices {
            self.complete_all(device, &device.partials.all()).await?;
        }
        Ok(())
    }

    /// Makes blocks whole.
    pub(crate) async fn complete_all(
        &self,
        device: &Device<H::Data>,
        partials: &[Arc<Partial>],
    ) -> Result<(), Error> {
        for partial in partials {
            self.complete(device, partial).await?;
            yield_now().await;
        }
        Ok(())
    }

    /// Makes a block whole, unless nobody needs it any more.
    async fn complete(
        &self,
        device: &Device<H::Data>,
        partial: &Arc<Partial>,
    ) -> Result<(), Error> {
        let _epoch = self.epochs.enter();
        let _cell = device.blocks.lock(partial.of.0).await;
        if !device.partials.contains(partial) {
            mark(Mark::FillInTooLate);
        } else {
            if !is_sabotaged(Sabotage::SkipFill) {
                self.fill(device, partial, 0..self.block_size.bytes())
                    .await?;
            }
            self.note_whole(device, partial)?;
        }
        Ok(())
    }

    /// Notes what a partial block that is mapped owns now, with the bytes of `range` in it. The caller
    /// holds the cell.
    pub(super) fn note_owned(
        &self,
        device: &Device<H::Data>,
        partial: &Partial,
        range: &Range<u64>,
    ) -> Result<(), Error> {
        let owned = partial.owned_with(range);
        if owned == partial.owned() {
            return Ok(());
        }
        let block = partial.block;
        let recording = self.log.record();
        self.append(&recording, device, partial.of, Intent::Own { block, owned })?;
        partial.own_these(owned);
        Ok(())
    }

    /// Drops the note on a block that is whole now: from here on it is written without notes, so the
    /// log has to know.
    fn note_whole(&self, device: &Device<H::Data>, partial: &Partial) -> Result<(), Error> {
        let intent = Intent::Own {
            block: partial.block,
            owned: WHOLE,
        };
        let recording = self.log.record();
        self.append(&recording, device, partial.of, intent)?;
        self.forget_partial(device, partial.block);
        Ok(())
    }

    /// Whether one more block may stay partial for a while.
    pub(super) fn may_stay_partial(&self) -> bool {
        let blocks = self.counters.partial_blocks.load(Ordering::Relaxed);
        blocks.saturating_mul(self.block_size.bytes()) < PARTIAL_BYTES_MAX
    }

    pub(crate) fn note_partial(&self, device: &Device<H::Data>, partial: Arc<Partial>) {
        self.counters.partial_blocks.fetch_add(1, Ordering::Relaxed);
        device.partials.insert(partial);
    }

    pub(crate) fn forget_partial(&self, device: &Device<H::Data>, block: DataBlock) {
        if device.partials.remove(block) {
            self.counters.partial_blocks.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
