//! A device's mappings in memory: where requests look blocks up.
//!
//! Mappings are held in *chunks* of 512, loaded from the last commit when first needed and evicted
//! again when memory is short. A lookup in a loaded chunk is one atomic load; nothing is ever
//! looked up in the trees on behalf of a request.
//!
//! A change is made here first and marked; commits collect what is marked and bring it into the
//! trees. Three facts keep a loaded chunk true without any lock between loading and committing:
//! - a change is made only in a loaded chunk, so what is not loaded has no change pending;
//! - a chunk with changes that are not committed yet is *pinned* and never evicted;
//! - it is unpinned only after the commit that made them durable is the one that loading reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::backlog::Waiting;
use crate::metadata::Change;
use crate::trees::Mapping;
use crate::units::{DataBlock, VirtualBlock};

/// Mappings in a chunk: 4 KiB of them.
pub(crate) const CHUNK_BLOCKS: usize = 512;

const UNMAPPED: u64 = u64::MAX;

/// The chunk a virtual block is in, by index.
pub(crate) fn chunk_of(block: VirtualBlock) -> u64 {
    block.0 / CHUNK_BLOCKS as u64
}

/// The first virtual block of a chunk.
pub(crate) fn first_block(chunk: u64) -> VirtualBlock {
    VirtualBlock(chunk * CHUNK_BLOCKS as u64)
}

fn slot_of(block: VirtualBlock) -> usize {
    usize::try_from(block.0 % CHUNK_BLOCKS as u64).unwrap_or(0)
}

/// 512 neighbouring mappings of a device.
pub(crate) struct Chunk {
    slots: Box<[AtomicU64; CHUNK_BLOCKS]>,
    /// Slots changed since the last collection, one bit each.
    changed: Mutex<[u64; CHUNK_BLOCKS / 64]>,
    /// One for marked changes, and one for each collection whose commit is not durable yet.
    pins: AtomicU32,
    used: AtomicBool,
}

impl Chunk {
    /// A chunk with these mappings, as (slot's block, mapping).
    pub(crate) fn new(mappings: &[(VirtualBlock, Mapping)]) -> Self {
        let slots = Box::new([const { AtomicU64::new(UNMAPPED) }; CHUNK_BLOCKS]);
        for (block, mapping) in mappings {
            slots[slot_of(*block)].store(mapping.pack(), Ordering::Relaxed);
        }
        Chunk {
            slots,
            changed: Mutex::default(),
            pins: AtomicU32::new(0),
            used: AtomicBool::new(true),
        }
    }

    /// The first data block that it maps for which this is true.
    pub(crate) fn find_mapped(
        &self,
        mut is_it: impl FnMut(DataBlock) -> bool,
    ) -> Option<DataBlock> {
        let packed = self.slots.iter().map(|slot| slot.load(Ordering::Relaxed));
        let mapped = packed.filter(|packed| *packed != UNMAPPED);
        mapped
            .map(|packed| Mapping::unpack(packed).block)
            .find(|block| is_it(*block))
    }

    /// The mapping of a block of this chunk.
    pub(crate) fn get(&self, block: VirtualBlock) -> Option<Mapping> {
        let packed = self.slots[slot_of(block)].load(Ordering::Acquire);
        (packed != UNMAPPED).then(|| Mapping::unpack(packed))
    }
}

/// What a change did to the mapping before it.
pub(crate) struct Replaced {
    /// The mapping before.
    pub(crate) before: Option<Mapping>,
    /// Its block, when no commit has ever seen it: no tree will give it back.
    pub(crate) never_collected: Option<DataBlock>,
}

/// What became of changes that no commit took.
pub(crate) struct PutBack {
    /// They wait for the next.
    pub(crate) kept: Vec<Change>,
    /// Data blocks whose mapping has been changed again since: no tree will give them back.
    pub(crate) superseded: Vec<DataBlock>,
}

/// Changes of one device, taken for a commit.
pub(crate) struct Collected {
    /// Sorted by virtual block.
    pub(crate) changes: Vec<Change>,
    pinned: Vec<Arc<Chunk>>,
}

impl Collected {
    pub(crate) fn is_empty(&self) -> bool {
        self.pinned.is_empty()
    }

    pub(crate) fn waiting(&self) -> Waiting {
        Waiting {
            changes: self.changes.len() as u64,
            chunks: self.pinned.len() as u64,
        }
    }

    /// To be called when the changes are durable and loading reads the commit that made them so.
    pub(crate) fn unpin(self) {
        for chunk in self.pinned {
            chunk.pins.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The loaded chunks of one device.
#[derive(Default)]
pub(crate) struct ChunkMap {
    loaded: RwLock<BTreeMap<u64, Arc<Chunk>>>,
    /// Chunks with marked changes.
    changed: Mutex<BTreeSet<u64>>,
}

impl ChunkMap {
    /// The chunk with this index, when it is loaded.
    pub(crate) fn get(&self, index: u64) -> Option<Arc<Chunk>> {
        let chunk = Arc::clone(self.loaded.read().get(&index)?);
        if !chunk.used.load(Ordering::Relaxed) {
            chunk.used.store(true, Ordering::Relaxed);
        }
        Some(chunk)
    }

    /// Adds a chunk that was just loaded. Only one task loads a chunk at a time.
    pub(crate) fn insert(&self, index: u64, chunk: Chunk, budget: &ChunkBudget) -> Arc<Chunk> {
        let chunk = Arc::new(chunk);
        let before = self.loaded.write().insert(index, Arc::clone(&chunk));
        assert!(before.is_none(), "chunk {index} was loaded twice");
        budget.loaded.fetch_add(1, Ordering::Relaxed);
        chunk
    }

    /// Marks a mapping for the next commit, has `announce` called with whether it is the first in its
    /// chunk, and changes it: in this order, so that whoever sees the new mapping finds it announced,
    /// and a commit that begins after the announcement sees the mark, and waits here for the mapping.
    pub(crate) fn set(
        &self,
        chunk: &Chunk,
        block: VirtualBlock,
        mapping: Option<Mapping>,
        announce: impl FnOnce(bool),
    ) -> Replaced {
        let slot = slot_of(block);
        let mut changed = chunk.changed.lock();
        let clean = changed.iter().all(|word| *word == 0);
        let mask = 1u64 << (slot % 64);
        let marked = changed[slot / 64] & mask != 0;
        changed[slot / 64] |= mask;
        if clean {
            chunk.pins.fetch_add(1, Ordering::Relaxed);
            self.changed.lock().insert(chunk_of(block));
        }
        announce(clean);
        let packed = mapping.map_or(UNMAPPED, Mapping::pack);
        let before = chunk.slots[slot].swap(packed, Ordering::AcqRel);
        let before = (before != UNMAPPED).then(|| Mapping::unpack(before));
        let never_collected = if marked {
            before.map(|mapping| mapping.block)
        } else {
            None
        };
        Replaced {
            before,
            never_collected,
        }
    }

    /// Takes all marked changes. Their chunks stay pinned until [`Collected::unpin`].
    pub(crate) fn collect(&self) -> Collected {
        let indices = std::mem::take(&mut *self.changed.lock());
        let mut collected = Collected {
            changes: Vec::new(),
            pinned: Vec::new(),
        };
        for index in indices {
            let Some(chunk) = self.loaded.read().get(&index).map(Arc::clone) else {
                unreachable!("chunk {index} has changes but is not loaded")
            };
            // The values are read under the lock that changes hold: what is marked again later is
            // a later change, and is not collected twice.
            let mut changed = chunk.changed.lock();
            let marked = std::mem::take(&mut *changed);
            let slots = (0..CHUNK_BLOCKS).filter(|slot| marked[slot / 64] >> (slot % 64) & 1 == 1);
            for slot in slots {
                let block = VirtualBlock(first_block(index).0 + slot as u64);
                collected.changes.push((block, chunk.get(block)));
            }
            drop(changed);
            collected.pinned.push(chunk);
        }
        collected
    }

    /// Marks what was collected for a commit that did not come about.
    pub(crate) fn put_back(&self, collected: Collected) -> PutBack {
        let mut put_back = PutBack {
            kept: Vec::new(),
            superseded: Vec::new(),
        };
        let is_neighbour =
            |(one, _): &Change, (next, _): &Change| chunk_of(*one) == chunk_of(*next);
        let by_chunk = collected.changes.chunk_by(is_neighbour);
        for (changes, chunk) in by_chunk.zip(collected.pinned) {
            let mut changed = chunk.changed.lock();
            let clean = changed.iter().all(|word| *word == 0);
            for (block, mapping) in changes {
                let slot = slot_of(*block);
                let mask = 1u64 << (slot % 64);
                if changed[slot / 64] & mask == 0 {
                    put_back.kept.push((*block, *mapping));
                } else {
                    let superseded = mapping.map(|mapping| mapping.block);
                    put_back.superseded.extend(superseded);
                }
                changed[slot / 64] |= mask;
            }
            // The collection's pin becomes that of the marks, unless they have one.
            if clean {
                self.changed.lock().insert(chunk_of(changes[0].0));
            } else {
                chunk.pins.fetch_sub(1, Ordering::Release);
            }
        }
        put_back
    }

    /// Drops up to `wanted` chunks that have not been used since the last time around.
    pub(crate) fn evict(&self, wanted: usize, budget: &ChunkBudget) -> usize {
        let mut loaded = self.loaded.write();
        let mut victims = Vec::new();
        for (index, chunk) in loaded.iter() {
            if victims.len() == wanted {
                break;
            }
            let idle = !chunk.used.swap(false, Ordering::Relaxed);
            // Under the write lock nobody can get hold of it any more, so one owner means unused.
            if idle && chunk.pins.load(Ordering::Acquire) == 0 && Arc::strong_count(chunk) == 1 {
                victims.push(*index);
            }
        }
        for index in &victims {
            loaded.remove(index);
        }
        budget.loaded.fetch_sub(victims.len(), Ordering::Relaxed);
        victims.len()
    }

    /// Drops every chunk from `first` on. Nobody may be using the device, and nothing be marked.
    pub(crate) fn drop_from(&self, first: u64, budget: &ChunkBudget) {
        let dropped = self.loaded.write().split_off(&first);
        for chunk in dropped.values() {
            assert_eq!(
                chunk.pins.load(Ordering::Acquire),
                0,
                "a dropped chunk had changes"
            );
        }
        budget.loaded.fetch_sub(dropped.len(), Ordering::Relaxed);
    }
}

/// How many chunks all devices of a pool hold together, and may hold before some are evicted.
pub(crate) struct ChunkBudget {
    loaded: AtomicUsize,
    limit: usize,
}

impl ChunkBudget {
    pub(crate) fn new(limit: usize) -> Self {
        ChunkBudget {
            loaded: AtomicUsize::new(0),
            limit,
        }
    }

    /// How many chunks are to go: none, or a few more than there are too many, so that not every load has to
    /// look for victims.
    pub(crate) fn excess(&self) -> usize {
        match self
            .loaded
            .load(Ordering::Relaxed)
            .saturating_sub(self.limit)
        {
            0 => 0,
            excess => excess + self.limit / 16,
        }
    }
}
