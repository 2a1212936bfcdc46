//! Which data blocks can be handed out.
//!
//! One bit a block, in memory: 2 MiB for a pool of 1 TiB. A block is taken here before its data is
//! written and long before its count is in the data space map; it comes back when it never got a
//! mapping, or after its last mapping went away durably and its epoch drained.
//!
//! Blocks are drawn in runs: the data store is asked for the space of a run at once, before any of
//! its blocks is handed out. What waits to be filled in therefore cannot fail for want of space. The store
//! also tells whether a run reads as zeros, as what was never written does.
//!
//! Each run is for one device, and the search is next fit. So what a device writes one after the other lies one
//! after the other, whoever else writes meanwhile, and what a clone changes lies close together. A device
//! for which no run is left takes over another's: the last block of a pool can be had by any.

use std::ops::Range;

use crate::units::{DataBlock, ThinId};

/// The data blocks of a pool, taken or free.
pub(crate) struct DataAllocator {
    /// A set bit is a taken block; bits beyond `total` are set.
    taken: Vec<u64>,
    total: u64,
    free: u64,
    /// The word where the next search begins.
    cursor: usize,
    /// Taken in the bitmap, but still counted free; the oldest first, at most one for a device, none empty.
    ready: Vec<Ready>,
}

/// A run of blocks that have their space.
struct Ready {
    /// The device that is to have them.
    owner: Option<ThinId>,
    blocks: Range<u64>,
    /// Whether they read as zeros.
    is_zero: bool,
}

/// How many runs are ready at most. A device that has not taken blocks for so long may as well draw again.
const READY_MAX: usize = 64;

/// A block that was free, and has its space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fresh {
    pub(crate) block: DataBlock,
    /// Whether it is known to read as zeros.
    pub(crate) is_zero: bool,
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
            ready: Vec::new(),
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

    /// Takes this block, if it is free. To be called before any run is drawn.
    pub(crate) fn take_this(&mut self, block: DataBlock) -> bool {
        if block.0 >= self.total {
            return false;
        }
        let (index, mask) = place(block);
        let is_free = self.taken[index] & mask == 0;
        self.taken[index] |= mask;
        self.free -= u64::from(is_free);
        is_free
    }

    /// Whether a block of the pool is taken, and not merely about to be handed out.
    pub(crate) fn is_in_use(&self, block: DataBlock) -> bool {
        let (index, mask) = place(block);
        let is_ready = |ready: &Ready| ready.blocks.contains(&block.0);
        block.0 < self.total && self.taken[index] & mask != 0 && !self.ready.iter().any(is_ready)
    }

    /// Takes a block that is ready for this device.
    pub(crate) fn take(&mut self, owner: ThinId) -> Option<Fresh> {
        let is_own = |ready: &Ready| ready.owner == Some(owner);
        let index = self.ready.iter().position(is_own)?;
        let ready = &mut self.ready[index];
        let block = ready.blocks.next()?;
        let is_zero = ready.is_zero;
        if ready.blocks.is_empty() {
            self.ready.remove(index);
        }
        self.free -= 1;
        Some(Fresh {
            block: DataBlock(block),
            is_zero,
        })
    }

    /// Whether a block is ready for this device; without one, for any.
    pub(crate) fn has_ready(&self, owner: Option<ThinId>) -> bool {
        let mut ready = self.ready.iter();
        ready.any(|ready| owner.is_none() || ready.owner == owner)
    }

    /// Gives what has been ready for longest to this device. Whether there is anything.
    pub(crate) fn take_over(&mut self, owner: Option<ThinId>) -> bool {
        if self.ready.is_empty() {
            return false;
        }
        let ready = self.ready.remove(0);
        self.ready.push(Ready { owner, ..ready });
        true
    }

    /// Draws a run of at most `max` free blocks, to be made ready or put back. They count as free.
    pub(crate) fn draw(&mut self, max: u64) -> Option<Range<u64>> {
        let count = self.taken.len();
        let mut found = (0..count).map(|step| (self.cursor + step) % count);
        let index = found.find(|index| self.taken[*index] != u64::MAX)?;
        self.cursor = index;
        let bits = self.taken[index];
        let first = bits.trailing_ones();
        let run = u64::from((bits >> first).trailing_zeros()).clamp(1, max.max(1));
        let begin = index as u64 * WORD_BITS + u64::from(first);
        // Bits beyond `total` are set, so a run ends before them.
        let drawn = begin..(begin + run).min((index as u64 + 1) * WORD_BITS);
        drawn.clone().for_each(|block| self.mark(block));
        Some(drawn)
    }

    fn mark(&mut self, block: u64) {
        let (index, mask) = place(DataBlock(block));
        self.taken[index] |= mask;
    }

    /// Says that the blocks of a drawn run have their space, and whether they read as zeros. They are for
    /// this device, or for whoever comes first.
    pub(crate) fn make_ready(&mut self, owner: Option<ThinId>, drawn: Range<u64>, is_zero: bool) {
        assert!(!self.has_ready(owner), "a device has one run at a time");
        if self.ready.len() == READY_MAX {
            let oldest = self.ready.remove(0);
            self.put_back(oldest.blocks);
        }
        self.ready.push(Ready {
            owner,
            blocks: drawn,
            is_zero,
        });
    }

    /// Has the next search begin behind where the last one has found something.
    pub(crate) fn look_elsewhere(&mut self) {
        self.cursor = (self.cursor + 1) % self.taken.len().max(1);
    }

    /// Puts a drawn run back.
    pub(crate) fn put_back(&mut self, drawn: Range<u64>) {
        for block in drawn {
            self.clear(DataBlock(block));
        }
    }

    /// Gives a taken block back.
    pub(crate) fn release(&mut self, block: DataBlock) {
        self.clear(block);
        self.free += 1;
    }

    fn clear(&mut self, block: DataBlock) {
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

    fn id(number: u32) -> ThinId {
        ThinId::new(number).unwrap()
    }

    fn take_for(allocator: &mut DataAllocator, owner: ThinId) -> Option<DataBlock> {
        if !allocator.has_ready(Some(owner)) {
            match allocator.draw(7) {
                Some(drawn) => allocator.make_ready(Some(owner), drawn, false),
                None => {
                    allocator.take_over(Some(owner));
                }
            }
        }
        allocator.take(owner).map(|fresh| fresh.block)
    }

    fn take(allocator: &mut DataAllocator) -> Option<DataBlock> {
        take_for(allocator, id(0))
    }

    #[test]
    fn devices_that_write_by_turns_get_runs_of_their_own() {
        let mut allocator = DataAllocator::new(28);
        allocator.add_free(0..28);
        let mut blocks = [Vec::new(), Vec::new()];
        for turn in 0..14 {
            for (number, blocks) in (0..).zip(&mut blocks) {
                let DataBlock(block) = take_for(&mut allocator, id(number)).unwrap();
                blocks.push(block);
                assert!(allocator.is_in_use(DataBlock(block)), "{turn}");
            }
        }
        let [first, second] = blocks;
        assert_eq!(first, (0..7).chain(14..21).collect::<Vec<_>>());
        assert_eq!(second, (7..14).chain(21..28).collect::<Vec<_>>());
    }

    #[test]
    fn the_last_blocks_are_anybodys() {
        let mut allocator = DataAllocator::new(10);
        allocator.add_free(0..10);
        take_for(&mut allocator, id(1)).unwrap();
        take_for(&mut allocator, id(2)).unwrap();
        let taken = (0..8).map(|_| take_for(&mut allocator, id(3)).unwrap().0);
        assert_eq!(taken.collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 8, 9]);
        assert_eq!(take_for(&mut allocator, id(1)), None);
        assert_eq!(allocator.free(), 0);
    }

    #[test]
    fn what_nobody_takes_for_long_is_put_back() {
        let mut allocator = DataAllocator::new(64 * 100);
        allocator.add_free(0..64 * 100);
        for number in 0..100 {
            take_for(&mut allocator, id(number)).unwrap();
        }
        assert!(allocator.ready.len() <= READY_MAX);
        assert!(!allocator.has_ready(Some(id(0))) && allocator.has_ready(Some(id(98))));
        assert_eq!(allocator.free(), 64 * 100 - 100);
        assert!(!allocator.is_in_use(DataBlock(1)));
    }

    #[test]
    fn takes_each_block_once_and_in_order() {
        let mut allocator = DataAllocator::new(130);
        allocator.add_free(0..130);
        for block in 0..130 {
            assert_eq!(take(&mut allocator), Some(DataBlock(block)));
        }
        assert_eq!(take(&mut allocator), None);
        allocator.release(DataBlock(65));
        allocator.release(DataBlock(3));
        assert_eq!(
            take(&mut allocator),
            Some(DataBlock(3)),
            "next fit goes around"
        );
        assert_eq!(take(&mut allocator), Some(DataBlock(65)));
        assert_eq!(allocator.free(), 0);
    }

    #[test]
    fn grows_by_free_blocks() {
        let mut allocator = DataAllocator::new(3);
        allocator.grow(70);
        assert_eq!((allocator.free(), allocator.total()), (67, 70));
        assert_eq!(take(&mut allocator), Some(DataBlock(3)));
    }

    #[test]
    fn a_drawn_run_counts_as_free_until_it_is_taken() {
        let mut allocator = DataAllocator::new(70);
        allocator.add_free(0..70);
        let drawn = allocator.draw(100);
        assert_eq!(drawn, Some(0..64), "a run stays within a word");
        assert_eq!(allocator.draw(100), Some(64..70));
        assert_eq!((allocator.draw(1), allocator.free()), (None, 70));
        allocator.put_back(64..70);
        assert_eq!(allocator.draw(2), Some(64..66));
        allocator.make_ready(Some(id(0)), 0..64, false);
        assert_eq!(take(&mut allocator), Some(DataBlock(0)));
        assert_eq!(allocator.free(), 69);
    }

    #[test]
    fn one_can_look_elsewhere() {
        let mut allocator = DataAllocator::new(3 * 64);
        allocator.add_free(0..3 * 64);
        for first in [0, 64, 128, 0] {
            let drawn = allocator.draw(2).unwrap();
            assert_eq!(drawn, first..first + 2);
            allocator.put_back(drawn);
            allocator.look_elsewhere();
        }
    }

    #[test]
    fn what_is_free_or_beyond_the_pool_is_not_in_use() {
        let mut allocator = DataAllocator::new(70);
        allocator.add_free(60..70);
        let in_use = |allocator: &DataAllocator, block| allocator.is_in_use(DataBlock(block));
        assert!(in_use(&allocator, 59));
        assert!(!in_use(&allocator, 60));
        assert!(!in_use(&allocator, 70) && !in_use(&allocator, u64::MAX));
        assert_eq!(allocator.draw(4), Some(60..64));
        allocator.make_ready(Some(id(0)), 60..64, false);
        assert!(!in_use(&allocator, 60), "it is not handed out yet");
        assert_eq!(take(&mut allocator), Some(DataBlock(60)));
        assert!(in_use(&allocator, 60));
    }

    #[test]
    fn each_run_says_whether_it_is_zero() {
        let mut allocator = DataAllocator::new(2);
        allocator.add_free(0..2);
        for (block, is_zero) in [(0, true), (1, false)] {
            let drawn = allocator.draw(1).unwrap();
            allocator.make_ready(Some(id(0)), drawn, is_zero);
            let block = DataBlock(block);
            assert_eq!(allocator.take(id(0)), Some(Fresh { block, is_zero }));
        }
    }

    #[test]
    #[should_panic(expected = "twice")]
    fn giving_back_twice_is_a_bug() {
        let mut allocator = DataAllocator::new(8);
        allocator.add_free(0..8);
        allocator.release(DataBlock(1));
    }
}
