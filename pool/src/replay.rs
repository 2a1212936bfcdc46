//! Doing again what the intent log says of a daemon that was killed, or whose machine lost its power.
//!
//! Its records end up in memory as if the changes had just been made: marked for the next commit, with
//! their blocks taken, partial where they were. What the log says is checked against the metadata on the
//! way, since data of others would be lost if both named the same block.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use probe::{Mark, mark};

use crate::chunks::{Chunk, chunk_of};
use crate::device::Device;
use crate::error::Error;
use crate::host::Host;
use crate::log::{Intent, Loaded, Record};
use crate::map::Place;
use crate::partial::Partial;
use crate::pool::{Pool, read_chunk};
use crate::trees::Mapping;
use crate::units::{DataBlock, ThinId, VirtualBlock};

/// What a replay has left behind.
#[derive(Default)]
pub(crate) struct Replayed {
    /// Records replayed.
    pub(crate) records: u64,
    /// Whether there may have been more that could not be used.
    pub(crate) is_cut: bool,
    /// Blocks that the log has mapped and replaced again. What replaced them may still read from them,
    /// until a commit has filled in everything.
    superseded: Mutex<Vec<DataBlock>>,
}

impl Replayed {
    pub(crate) fn new(loaded: &Loaded) -> Self {
        Replayed {
            records: loaded.records.len() as u64,
            is_cut: loaded.is_cut,
            superseded: Mutex::default(),
        }
    }

    pub(crate) fn take_superseded(&self) -> Vec<DataBlock> {
        std::mem::take(&mut self.superseded.lock())
    }
}

/// A replay under way.
struct Replay<'a, H: Host> {
    pool: &'a Pool<H>,
    devices: BTreeMap<ThinId, Arc<Device<H::Data>>>,
    /// Blocks that the log names and the metadata has free.
    taken: BTreeSet<DataBlock>,
    /// Of these, the ones that are mapped so far.
    mapped: BTreeSet<DataBlock>,
    /// Whether the changes can be committed: not to a pool that is read only.
    can_commit: bool,
}

impl<H: Host> Pool<H> {
    /// Does all records again, in order. Blocking. Nobody else uses the pool yet.
    pub(crate) fn replay(&self, records: &[Record]) -> Result<(), Error> {
        let can_commit = !self.is_read_only();
        let table = self.table.read();
        let devices = table.devices.values();
        let mut replay = Replay {
            pool: self,
            devices: devices
                .map(|device| (device.id, Arc::clone(device)))
                .collect(),
            taken: BTreeSet::new(),
            mapped: BTreeSet::new(),
            can_commit,
        };
        for record in records {
            replay.apply(record)?;
        }
        let superseded = replay.taken.difference(&replay.mapped);
        let superseded: Vec<DataBlock> = superseded.copied().collect();
        if !superseded.is_empty() {
            mark(Mark::ReplaySuperseded);
        }
        *self.replayed.superseded.lock() = superseded;
        Ok(())
    }
}

impl<H: Host> Replay<'_, H> {
    fn apply(&mut self, record: &Record) -> Result<(), Error> {
        // A device that the commit has removed.
        let Some(device) = self.devices.get(&record.device).map(Arc::clone) else {
            return Ok(());
        };
        let chunk = self.chunk(&device, chunk_of(record.at))?;
        let current = chunk.get(record.at);
        let is_same = |block| current.is_some_and(|mapping| mapping.block == block);
        match record.intent {
            Intent::Map { mapping, owned, .. } if is_same(mapping.block) => {
                self.own(&device, mapping.block, owned);
            }
            Intent::Map {
                mapping,
                owned,
                over,
            } => {
                self.take(&device, record, mapping, current)?;
                self.keep(over)?;
                self.note_partial(&device, record.at, mapping.block, owned, over);
                self.pool
                    .set(&device, &chunk, record.at, Some(mapping), self.can_commit);
            }
            Intent::Own { block, owned } if is_same(block) => self.own(&device, block, owned),
            // Of a block that the commit has left whole, or that was given up since.
            Intent::Own { .. } => {}
            Intent::Unmap => {
                if let Some(before) = current {
                    self.pool.forget_partial(&device, before.block);
                    self.mapped.remove(&before.block);
                    self.pool
                        .set(&device, &chunk, record.at, None, self.can_commit);
                }
            }
        }
        Ok(())
    }

    fn chunk(&self, device: &Arc<Device<H::Data>>, index: u64) -> Result<Arc<Chunk>, Error> {
        if let Some(chunk) = device.chunks.get(index) {
            return Ok(chunk);
        }
        let committed = self.pool.committed.read().clone();
        let chunk = read_chunk(&committed, device.id, index)?;
        self.pool.take_in(device, index, chunk)
    }

    /// Takes the block of a new mapping, which must be nobody else's.
    fn take(
        &mut self,
        device: &Device<H::Data>,
        record: &Record,
        mapping: Mapping,
        current: Option<Mapping>,
    ) -> Result<(), Error> {
        let block = mapping.block;
        let damaged = |reason: &str| {
            let Record { at, device, .. } = record;
            Error::Log {
                reason: format!(
                    "it maps block {} of thin device {device} to data block {}, {reason}",
                    at.0, block.0
                ),
            }
        };
        if !self.taken.contains(&block) && !self.pool.allocator.lock().take_this(block) {
            return Err(damaged("which the metadata does not have free"));
        }
        self.taken.insert(block);
        if let Some(before) = current {
            if device.partials.get(before.block).is_some() {
                return Err(damaged("in place of one that was never whole"));
            }
            self.mapped.remove(&before.block);
        }
        if !self.mapped.insert(block) {
            return Err(damaged("which it has mapped elsewhere, too"));
        }
        self.pool.time.fetch_max(mapping.time, Ordering::AcqRel);
        Ok(())
    }

    /// Sees to it that nobody gets the block that a partial one is over, if only the log knows of it.
    fn keep(&mut self, over: Option<DataBlock>) -> Result<(), Error> {
        let Some(block) = over else { return Ok(()) };
        let mut allocator = self.pool.allocator.lock();
        let total = allocator.total();
        if block.0 >= total {
            return Err(Error::Log {
                reason: format!("it names data block {}, but the pool has {total}", block.0),
            });
        }
        if !self.taken.contains(&block) && allocator.take_this(block) {
            self.taken.insert(block);
        }
        Ok(())
    }

    fn note_partial(
        &self,
        device: &Device<H::Data>,
        at: VirtualBlock,
        block: DataBlock,
        owned: u64,
        over: Option<DataBlock>,
    ) {
        let before = over.map_or(Place::Unmapped, Place::MaybeShared);
        let partial = Partial::new(block, at, before, self.pool.block_size);
        partial.own_these(owned);
        if !partial.is_whole() {
            self.pool.note_partial(device, Arc::new(partial));
        }
    }

    /// A block owns more sub-blocks, if it is not whole already.
    fn own(&self, device: &Device<H::Data>, block: DataBlock, owned: u64) {
        let Some(partial) = device.partials.get(block) else {
            return;
        };
        partial.own_these(owned);
        if partial.is_whole() {
            self.pool.forget_partial(device, block);
        }
    }
}
