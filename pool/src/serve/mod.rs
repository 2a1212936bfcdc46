//! Carrying requests out: reading, writing, unmapping.
//!
//! Every request holds the current epoch from before it looks a block up until its data I/O is
//! done; writes pass their device's gate as well. What they share is here: looking a chunk of
//! mappings up, changing a mapping, flushing.

mod fill;
mod read;
mod take;
mod unmap;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::chunks::{Chunk, chunk_of};
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::pool::Pool;
use crate::room::Waiting;
use crate::trees::Mapping;
use crate::units::VirtualBlock;

pub use read::ReadPiece;

impl<H: Host> Pool<H> {
    pub(crate) async fn flush(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
    ) -> Result<(), Error> {
        self.check_readable()?;
        let number = device.durable_with.load(Ordering::SeqCst);
        // A commit that has begun may have synced the data store already, before what completed
        // since then in place; one that begins from now on will not.
        let has_started = self.commits.has_started(number);
        self.commit_through(number).await?;
        device.check_covered(number)?;
        if has_started {
            self.sync_data().await?;
        }
        Ok(())
    }

    /// The chunk with a block's mapping, loaded if need be.
    async fn chunk(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        block: VirtualBlock,
    ) -> Result<Arc<Chunk>, Error> {
        match device.chunks.get(chunk_of(block)) {
            Some(chunk) => Ok(chunk),
            None => self.load_chunk(device, chunk_of(block)).await,
        }
    }

    /// Changes a mapping in memory and notes which commit will make it durable. The caller holds
    /// the block's cell.
    fn change(
        &self,
        device: &Device<H::Data>,
        chunk: &Chunk,
        block: VirtualBlock,
        mapping: Option<Mapping>,
    ) {
        let counters = &self.counters;
        // Counted as being made before it is told that something waits, and until it is counted as
        // waiting: a commit that ends in between must not take that back.
        counters.changes_being_made.fetch_add(1, Ordering::SeqCst);
        self.watch.changed();
        let replaced = device.chunks.set(chunk, block, mapping, |is_first| {
            let next = self.commits.next();
            device.durable_with.fetch_max(next, Ordering::SeqCst);
            counters.wait(Waiting {
                changes: 1,
                chunks: u64::from(is_first),
            });
        });
        counters.changes_being_made.fetch_sub(1, Ordering::SeqCst);
        match (replaced.before.is_some(), mapping.is_some()) {
            (false, true) => device.mapped_blocks.fetch_add(1, Ordering::Relaxed),
            (true, false) => device.mapped_blocks.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        if let Some(block) = replaced.never_collected {
            self.forget_partial(device, block);
            self.epochs.retire(vec![block]);
        }
    }
}

fn check_range<D: DataIo>(device: &Device<D>, offset: u64, len: u64) -> Result<Range<u64>, Error> {
    let size = device.size();
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(offset..end),
        _ => Err(Error::OutOfRange { offset, len, size }),
    }
}

fn data_error(doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        what: format!("{doing} on the data store"),
        source,
    }
}

/// For lengths of buffers that exist, which fit memory.
fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
