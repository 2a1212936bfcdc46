//! A bounded cache of verified blocks, shared by the open transaction and all views.
//!
//! Only blocks that passed [`BlockKind::verify`] get in, so a hit needs no check. The lock is
//! held for a table lookup and never across I/O: two threads that miss at once both read the
//! block. What a block number stands for changes only when the transaction allocates the block
//! anew, and then the transaction calls [`Cache::remove`] first. A view cannot put the old
//! contents back, because a block that a living view can reach is not allocated (see
//! `version.rs`).
//!
//! Eviction is second-chance: a hand goes round the slots, takes the first that was not used since
//! it last came by, and so needs no write on a hit beyond one flag.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::block::{BLOCK_SIZE, Block, BlockNr};
use crate::checksum::BlockKind;

/// Blocks the cache holds at most.
pub(crate) const CACHE_BLOCKS: usize = 4096;

/// What verified blocks that are kept take in memory at most, in bytes: 16 MiB.
pub const CACHE_BYTES: u64 = (CACHE_BLOCKS * BLOCK_SIZE) as u64;

/// A table keyed by block number, with a hash made for it.
pub(crate) type BlockTable<T> = HashMap<u64, T, BuildHasherDefault<BlockHasher>>;

/// Spreads block numbers, which are dense and chosen by ourselves, with one multiplication.
#[derive(Default)]
pub(crate) struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The table takes both ends of the hash, so the well-mixed high half is folded down.
        let mixed = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

struct Slot {
    nr: u64,
    kind: BlockKind,
    block: Arc<Block>,
    used: AtomicBool,
}

#[derive(Default)]
struct Slots {
    places: BlockTable<usize>,
    slots: Vec<Slot>,
    hand: usize,
}

pub(crate) struct Cache {
    capacity: usize,
    slots: RwLock<Slots>,
}

impl Cache {
    pub(crate) fn new(capacity: usize) -> Self {
        assert!(capacity > 0);
        Self {
            capacity,
            slots: RwLock::default(),
        }
    }

    pub(crate) fn get(&self, nr: BlockNr, kind: BlockKind) -> Option<Arc<Block>> {
        let slots = self.slots.read();
        let slot = &slots.slots[*slots.places.get(&nr.0)?];
        slot.used.store(true, Ordering::Relaxed);
        (slot.kind == kind).then(|| Arc::clone(&slot.block))
    }

    /// Puts in a verified block, replacing what was known of that block number.
    pub(crate) fn insert(&self, nr: BlockNr, kind: BlockKind, block: Arc<Block>) {
        let mut slots = self.slots.write();
        let slot = Slot {
            nr: nr.0,
            kind,
            block,
            used: AtomicBool::new(false),
        };
        let place = match slots.places.get(&nr.0) {
            Some(&place) => place,
            None if slots.slots.len() < self.capacity => {
                let place = slots.slots.len();
                slots.places.insert(nr.0, place);
                slots.slots.push(slot);
                return;
            }
            None => {
                let place = slots.evict();
                slots.places.insert(nr.0, place);
                place
            }
        };
        slots.slots[place] = slot;
    }

    /// Forgets a block, because its number is about to mean something else.
    pub(crate) fn remove(&self, nr: BlockNr) {
        let mut slots = self.slots.write();
        let Some(place) = slots.places.remove(&nr.0) else {
            return;
        };
        slots.slots.swap_remove(place);
        if let Some(moved) = slots.slots.get(place).map(|slot| slot.nr) {
            slots.places.insert(moved, place);
        }
        if slots.hand >= slots.slots.len() {
            slots.hand = 0;
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let slots = self.slots.read();
        assert_eq!(slots.places.len(), slots.slots.len());
        assert!(
            slots
                .places
                .iter()
                .all(|(&nr, &place)| slots.slots[place].nr == nr)
        );
        slots.slots.len()
    }
}

impl Slots {
    /// Frees a place and returns it. The second round at the latest finds one.
    fn evict(&mut self) -> usize {
        loop {
            let place = self.hand;
            self.hand = (place + 1) % self.slots.len();
            let slot = &self.slots[place];
            if !slot.used.swap(false, Ordering::Relaxed) {
                self.places.remove(&slot.nr);
                return place;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_bounded_and_prefers_used_blocks() {
        let cache = Cache::new(4);
        for nr in 0..4 {
            cache.insert(BlockNr(nr), BlockKind::Node, Arc::new(Block::zeroed()));
        }
        assert!(cache.get(BlockNr(0), BlockKind::Node).is_some());
        for nr in 10..13 {
            cache.insert(BlockNr(nr), BlockKind::Node, Arc::new(Block::zeroed()));
            assert_eq!(cache.len(), 4);
        }
        assert!(
            cache.get(BlockNr(0), BlockKind::Node).is_some(),
            "used, so spared once"
        );
        assert!(cache.get(BlockNr(1), BlockKind::Node).is_none());
        assert!(
            cache.get(BlockNr(0), BlockKind::Bitmap).is_none(),
            "another kind is a miss"
        );
        cache.remove(BlockNr(0));
        assert_eq!(cache.len(), 3);
        assert!(cache.get(BlockNr(0), BlockKind::Node).is_none());
    }
}
