//! Carrying requests out: reading, writing, unmapping.
//!
//! Every request holds the current epoch from before it looks a block up until its data I/O is
//! done; writes pass their device's gate as well. What they share is here: looking a chunk of
//! mappings up, changing a mapping.

mod fill;
mod read;
mod space;
mod take;
mod unmap;
mod write;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Sabotage, is_sabotaged};

use crate::chunks::{Chunk, Replaced, chunk_of};
use crate::device::Device;
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::info::Mode;
use crate::log::{Intent, Record, Recording, log_error};
use crate::pool::Pool;
use crate::trees::Mapping;
use crate::units::VirtualBlock;

pub use read::ReadPiece;

impl<H: Host> Pool<H> {
    /// The chunk with a block's mapping, loaded if need be.
    async fn chunk(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        block: VirtualBlock,
    ) -> Result<Arc<Chunk>, Error> {
        match device.chunks.get(chunk_of(block)) {
            Some(chunk) => Ok(chunk),
            None => Box::pin(self.load_chunk(device, chunk_of(block))).await,
        }
    }

    /// Records a change of a mapping in the intent log, then does it. The caller holds the block's cell.
    fn change(
        &self,
        device: &Device<H::Data>,
        chunk: &Chunk,
        at: VirtualBlock,
        intent: Intent,
    ) -> Result<(), Error> {
        let recording = self.log.record();
        if !is_sabotaged(Sabotage::SkipRecord) {
            self.append(&recording, device, at, intent)?;
        }
        let mapping = match intent {
            Intent::Map { mapping, .. } => Some(mapping),
            Intent::Own { .. } | Intent::Unmap => None,
        };
        let replaced = self.set(device, chunk, at, mapping, true);
        drop(recording);
        if let Some(block) = replaced.never_collected {
            self.forget_partial(device, block);
            self.supersede([block]);
        }
        Ok(())
    }

    /// Records something in the intent log. When that fails but for want of space, it is not known what is
    /// in the log, and nothing may change any more.
    fn append(
        &self,
        recording: &Recording<'_>,
        device: &Device<H::Data>,
        at: VirtualBlock,
        intent: Intent,
    ) -> Result<(), Error> {
        let record = Record {
            device: device.id,
            at,
            intent,
        };
        let appended = recording
            .append(&record, &device.last_record)
            .map_err(log_error);
        if let Err(cause) = &appended
            && !cause.is_full()
        {
            self.stop(Mode::ReadOnly, &cause.to_string());
        }
        appended
    }

    /// Changes a mapping in memory and notes that a commit has to take it, if one can.
    pub(crate) fn set(
        &self,
        device: &Device<H::Data>,
        chunk: &Chunk,
        block: VirtualBlock,
        mapping: Option<Mapping>,
        can_commit: bool,
    ) -> Replaced {
        let replaced = device.chunks.set(chunk, block, mapping, |is_first| {
            if can_commit {
                self.backlog.add(is_first);
            }
        });
        match (replaced.before.is_some(), mapping.is_some()) {
            (false, true) => device.mapped_blocks.fetch_add(1, Ordering::Relaxed),
            (true, false) => device.mapped_blocks.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        replaced
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
