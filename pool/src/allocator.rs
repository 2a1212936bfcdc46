//! Which data blocks can be handed out.
//!
//! One bit a block, in memory: 2 MiB for a pool of 1 TiB. A block is taken here before its data is
//! written and long before its count is in the data space map; it comes back when it never got a
//! mapping, or after its last mapping went away durably and its epoch drained. Next fit, so that
//! blocks written one after the other lie one after the other.

use std::ops::Range;

use crate::units::DataBlock;

/// The data blocks of a pool, taken or free.
pub(crate) struct DataAllocator {
    /// A set bit is a taken block; bits beyond `total` are set.
    taken: Vec<u64>,
    total: u64,
    free: u64,
    /// The word where the next search begins.
    cursor: usize,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl DataAllocator {
    /// `total` blocks, all taken until [`DataAllocator::add_free`] says otherwise.
    pub(crate) fn new(total: u64) -> Self {
        DataAllocator {
            taken: vec![u64::MAX; words(total)],
            total,
            free: 0,
            cursor: 0,
        }
    }

    /// Marks a run of taken blocks free.
    pub(crate) fn add_free(&mut self, blocks: Range<u64>) {
        blocks.for_each(|block| self.release(DataBlock(block)));
    }

    /// Adds blocks at the end, free.
    pub(crate) fn grow(&mut self, total: u64) {
        assert!(total >= self.total, "a pool never shrinks");
        let added = self.total..total;
        self.taken.resize(words(total), u64::MAX);
        self.total = total;
        self.add_free(added);
    }

    /// Takes a free block.
    pub(crate) fn take(&mut self) -> Option<DataBlock> {
        if self.free == 0 {
            return None;
        }
        let count = self.taken.len();
        let found = (0..count).map(|step| (self.cursor + step) % count);
        for index in found {
            if self.taken[index] != u64::MAX {
                return Some(self.take_in(index));
            }
        }
        unreachable!("{} free blocks are counted but none is found", self.free)
    }

    fn take_in(&mut self, index: usize) -> DataBlock {
        let bit = self.taken[index].trailing_ones();
        self.taken[index] |= 1 << bit;
        self.free -= 1;
        self.cursor = index;
        let block = DataBlock(index as u64 * WORD_BITS + u64::from(bit));
        assert!(block.0 < self.total);
        block
    }

    /// Gives a taken block back.
    pub(crate) fn release(&mut self, block: DataBlock) {
        assert!(
            block.0 < self.total,
            "data block {} is beyond the pool",
            block.0
        );
        let (index, mask) = place(block);
        assert!(
            self.taken[index] & mask != 0,
            "data block {} was given back twice",
            block.0
        );
        self.taken[index] &= !mask;
        self.free += 1;
    }

    /// How many blocks can be taken.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// How many blocks the pool has.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

fn words(total: u64) -> usize {
    // A pool's bitmap in the metadata is larger than this, and was read.
    usize::try_from(total.div_ceil(WORD_BITS)).unwrap_or(usize::MAX)
}

fn place(block: DataBlock) -> (usize, u64) {
    let index = usize::try_from(block.0 / WORD_BITS).unwrap_or(usize::MAX);
    (index, 1 << (block.0 % WORD_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_each_block_once_and_in_order() {
        let mut allocator = DataAllocator::new(130);
        allocator.add_free(0..130);
        for block in 0..130 {
            assert_eq!(allocator.take(), Some(DataBlock(block)));
        }
        assert_eq!(allocator.take(), None);
        allocator.release(DataBlock(65));
        allocator.release(DataBlock(3));
        assert_eq!(allocator.take(), Some(DataBlock(3)), "next fit goes around");
        assert_eq!(allocator.take(), Some(DataBlock(65)));
        assert_eq!(allocator.free(), 0);
    }

    #[test]
    fn grows_by_free_blocks() {
        let mut allocator = DataAllocator::new(3);
        allocator.grow(70);
        assert_eq!((allocator.free(), allocator.total()), (67, 70));
        assert_eq!(allocator.take(), Some(DataBlock(3)));
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn giving_back_twice_is_a_bug() {
        let mut allocator = DataAllocator::new(8);
        allocator.add_free(0..8);
        allocator.release(DataBlock(1));
    }
}
