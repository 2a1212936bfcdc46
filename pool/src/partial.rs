//! Blocks that hold only part of their contents yet: sub-block copy on write.
//!
//! A small write to an unmapped or shared block takes a data block of its own, but writes only the
//! *sub-blocks* it touches: 4 KiB, or a 64th of blocks larger than 256 KiB. Which of them the new
//! block owns is noted here, in memory; what it does not own is still where it was before (the shared
//! block, the external origin, nowhere) and is read from there. Before the commit that maps the block
//! on disk the rest is filled in (`serve/fill.rs`), and the block is like any other. Blocks whose
//! sub-blocks were all written by then are never copied at all.
//!
//! What keeps this safe:
//! - a block is noted before the mapping to it is visible, and a note goes only when the block
//!   is whole or its mapping has gone ([`Device::lookup`] says why that suffices);
//! - a sub-block becomes owned only after its bytes are in the new block, and only under the cell
//!   of the virtual block, so that filling in never overwrites what was written meanwhile;
//! - what it was before stays readable: the trees refer to it until the commit that waits for the
//!   filling, and requests that found it hold their epoch.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::map::Place;
use crate::units::{BlockSize, DataBlock, VirtualBlock};

/// The smallest sub-block: what file systems and databases write at once.
const SUB_BLOCK_BYTES_MIN: u64 = 4096;

/// The most sub-blocks of a block: one bit each in a word.
const SUB_BLOCKS_MAX: u64 = u64::BITS as u64;

/// How much of a pool may be waiting to be filled in, in bytes of whole blocks. It bounds how much
/// copying a commit may have to wait for.
pub(crate) const PARTIAL_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// A data block with some of its sub-blocks.
pub(crate) struct Partial {
    /// The new data block.
    pub(crate) block: DataBlock,
    /// The virtual block it belongs to.
    pub(crate) of: VirtualBlock,
    /// Where the sub-blocks it does not own are.
    pub(crate) before: Place,
    /// One bit for each sub-block it owns.
    owned: AtomicU64,
    sub_blocks: SubBlocks,
}

impl Partial {
    /// A block that owns nothing yet.
    pub(crate) fn new(
        block: DataBlock,
        of: VirtualBlock,
        before: Place,
        block_size: BlockSize,
    ) -> Self {
        Partial {
            block,
            of,
            before,
            owned: AtomicU64::new(0),
            sub_blocks: SubBlocks::of(block_size),
        }
    }

    /// Whether nothing is left to fill in.
    pub(crate) fn is_whole(&self) -> bool {
        self.owned.load(Ordering::Acquire) == self.sub_blocks.all()
    }

    /// Whether it owns the sub-block at `begin`, and how many of the `len` bytes there are alike.
    pub(crate) fn alike(&self, begin: u64, len: u64) -> (bool, u64) {
        let owned = self.owned.load(Ordering::Acquire);
        let first = self.sub_blocks.at(begin);
        let is_owned = owned >> first & 1 == 1;
        let different = if is_owned { !owned } else { owned };
        let run = u64::from((different >> first).trailing_zeros());
        let end = (first + run).min(SUB_BLOCKS_MAX) * self.sub_blocks.bytes;
        (is_owned, len.min(end - begin))
    }

    /// The first run of sub-blocks it does not own among those that `within` touches, in bytes
    /// inside the block.
    pub(crate) fn first_missing(&self, within: &Range<u64>) -> Option<Range<u64>> {
        let touched = self.sub_blocks.touched(within);
        let missing = touched & !self.owned.load(Ordering::Acquire);
        if missing == 0 {
            return None;
        }
        let first = u64::from(missing.trailing_zeros());
        let run = u64::from((!(missing >> first)).trailing_zeros());
        Some(first * self.sub_blocks.bytes..(first + run) * self.sub_blocks.bytes)
    }

    /// The sub-block around a boundary of a write that does not begin or end with a sub-block.
    pub(crate) fn cut_by(&self, boundary: u64) -> Option<Range<u64>> {
        let begin = boundary - boundary % self.sub_blocks.bytes;
        (begin != boundary).then(|| begin..begin + self.sub_blocks.bytes)
    }

    /// What it owns, one bit for each sub-block.
    pub(crate) fn owned(&self) -> u64 {
        self.owned.load(Ordering::Acquire)
    }

    /// What it will own with the sub-blocks that `range` touches.
    pub(crate) fn owned_with(&self, range: &Range<u64>) -> u64 {
        self.owned() | self.sub_blocks.touched(range)
    }

    /// Notes that these sub-blocks are in the new block now.
    pub(crate) fn own_these(&self, owned: u64) {
        let owned = owned & self.sub_blocks.all();
        self.owned.fetch_or(owned, Ordering::AcqRel);
    }

    /// The data block that has what it does not own, if any has.
    pub(crate) fn over(&self) -> Option<DataBlock> {
        match self.before {
            Place::Unmapped => None,
            Place::Exclusive(block) | Place::MaybeShared(block) => Some(block),
        }
    }

    /// Notes that every sub-block that `range` touches is in the new block now.
    pub(crate) fn own(&self, range: &Range<u64>) {
        self.owned
            .fetch_or(self.sub_blocks.touched(range), Ordering::AcqRel);
    }
}

/// How a block is divided.
#[derive(Clone, Copy)]
struct SubBlocks {
    bytes: u64,
    count: u64,
}

impl SubBlocks {
    fn of(block_size: BlockSize) -> Self {
        // Data blocks are multiples of 64 KiB, so either divides them.
        let bytes = SUB_BLOCK_BYTES_MIN.max(block_size.bytes() / SUB_BLOCKS_MAX);
        SubBlocks {
            bytes,
            count: block_size.bytes() / bytes,
        }
    }

    fn all(self) -> u64 {
        u64::MAX >> (SUB_BLOCKS_MAX - self.count)
    }

    fn at(self, begin: u64) -> u64 {
        begin / self.bytes
    }

    fn touched(self, range: &Range<u64>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let (first, last) = (self.at(range.start), self.at(range.end - 1));
        (u64::MAX << first) & (u64::MAX >> (SUB_BLOCKS_MAX - 1 - last))
    }
}

/// The partial blocks of one device.
#[derive(Default)]
pub(crate) struct Partials {
    blocks: RwLock<HashMap<DataBlock, Arc<Partial>>>,
    /// How many there are, to be asked without the lock.
    count: AtomicUsize,
}

impl Partials {
    /// The note on a data block, if it is partial.
    pub(crate) fn get(&self, block: DataBlock) -> Option<Arc<Partial>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.blocks.read().get(&block).map(Arc::clone)
    }

    /// Whether this note still stands.
    pub(crate) fn contains(&self, partial: &Arc<Partial>) -> bool {
        let blocks = self.blocks.read();
        blocks
            .get(&partial.block)
            .is_some_and(|found| Arc::ptr_eq(found, partial))
    }

    /// Notes a block. To be called before any mapping to it is visible.
    pub(crate) fn insert(&self, partial: Arc<Partial>) {
        let mut blocks = self.blocks.write();
        let before = blocks.insert(partial.block, partial);
        assert!(before.is_none(), "a data block was noted as partial twice");
        self.count.store(blocks.len(), Ordering::Release);
    }

    /// Drops the note on a block that is whole, or whose mapping has gone. Whether there was one.
    pub(crate) fn remove(&self, block: DataBlock) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let mut blocks = self.blocks.write();
        let found = blocks.remove(&block).is_some();
        self.count.store(blocks.len(), Ordering::Release);
        found
    }

    /// All there are now, in the order of their data blocks.
    pub(crate) fn all(&self) -> Vec<Arc<Partial>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut all: Vec<_> = self.blocks.read().values().map(Arc::clone).collect();
        all.sort_unstable_by_key(|partial| partial.block);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn block_size(bytes: u64) -> BlockSize {
        BlockSize::new(bytes).unwrap()
    }

    fn partial(block_bytes: u64) -> Partial {
        let size = block_size(block_bytes);
        Partial::new(DataBlock(7), VirtualBlock(3), Place::Unmapped, size)
    }

    #[test]
    fn sub_blocks_divide_every_block_size() {
        for units in [1, 2, 3, 4, 5, 16, 31, 16_384] {
            let sub_blocks = SubBlocks::of(block_size(units * 64 * K));
            assert_eq!(
                sub_blocks.bytes * sub_blocks.count,
                units * 64 * K,
                "{units}"
            );
            assert!(sub_blocks.count <= SUB_BLOCKS_MAX);
        }
        assert_eq!(SubBlocks::of(BlockSize::DEFAULT).count, 16);
    }

    #[test]
    fn what_is_missing_comes_in_runs() {
        let block = partial(64 * K);
        block.own(&(4 * K..8 * K));
        block.own(&(60 * K..64 * K));
        assert_eq!(block.first_missing(&(0..64 * K)), Some(0..4 * K));
        assert_eq!(block.first_missing(&(4 * K..64 * K)), Some(8 * K..60 * K));
        assert_eq!(block.first_missing(&(5 * K..7 * K)), None);
        assert_eq!(block.first_missing(&(9 * K..9 * K)), None);
        assert_eq!(block.alike(4 * K, 60 * K), (true, 4 * K));
        assert_eq!(block.alike(9 * K, K), (false, K));
        assert_eq!(block.alike(9 * K, 55 * K), (false, 51 * K));
        assert_eq!(block.alike(62 * K, 2 * K), (true, 2 * K));
        assert!(!block.is_whole());
        block.own(&(0..64 * K));
        assert!(block.is_whole());
        assert_eq!(block.first_missing(&(0..64 * K)), None);
    }

    #[test]
    fn a_word_full_of_sub_blocks_is_counted_to_its_end() {
        let block = partial(16 * 64 * K);
        assert_eq!(
            block.first_missing(&(0..1024 * K)),
            Some(0..1024 * K),
            "64 sub-blocks of 16 KiB"
        );
        assert_eq!(block.alike(0, 1024 * K), (false, 1024 * K));
        block.own(&(0..1024 * K));
        assert!(block.is_whole());
        assert_eq!(block.alike(1000 * K, 24 * K), (true, 24 * K));
    }

    #[test]
    fn a_write_cuts_the_sub_blocks_at_its_ends() {
        let block = partial(64 * K);
        assert_eq!(block.cut_by(0), None);
        assert_eq!(block.cut_by(8 * K), None);
        assert_eq!(block.cut_by(9 * K), Some(8 * K..12 * K));
        assert_eq!(block.cut_by(64 * K - 1), Some(60 * K..64 * K));
    }
}
