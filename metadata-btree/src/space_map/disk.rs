//! The space map that counts another device's blocks.
//!
//! Its bitmaps are loaded when first needed and kept, four counts a byte. Counts of three and more
//! that change are kept aside until the commit, which brings bitmaps, bitmap index and overflow
//! tree up to date by ordinary operations on trees (`commit.rs`). Who may use a free disk block,
//! and when, is the caller's business; the map says which counts are 0 and which just became so.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use probe::{Mark, mark};

use crate::block::{Block, BlockNr};
use crate::btree::Btree;
use crate::codec::Value;
use crate::error::Error;
use crate::node::max_entries;
use crate::num::to_usize;
use crate::space_map::bitmap::{Bitmap, COUNTS_PER_BITMAP, MANY};
use crate::space_map::{IndexEntry, OverflowCount, SpaceMapRoot};

/// Entries in a leaf of the overflow tree, at least, unless it is the root.
const OVERFLOW_LEAF_MIN: usize = max_entries(OverflowCount::SIZE) / 3;

pub(crate) struct DiskMap {
    pub(crate) index: Btree<IndexEntry>,
    pub(crate) overflow: Btree<OverflowCount>,
    nr_blocks: u64,
    nr_allocated: u64,
    bitmaps: Vec<Option<Bitmap>>,
    /// Numbers of the bitmaps that changed.
    changed: Vec<usize>,
    /// Counts that are, or were, three or more and changed since the last commit.
    pending: BTreeMap<u64, u32>,
    /// Which stretches of [`OVERFLOW_LEAF_MIN`] blocks the pending counts are in.
    pending_stretches: BTreeSet<u64>,
    freed: Vec<u64>,
    grown: bool,
}

/// A block and where its two bits are.
#[derive(Clone, Copy)]
struct Place {
    bitmap: usize,
    position: usize,
}

impl DiskMap {
    pub(crate) fn new(root: &SpaceMapRoot) -> Self {
        let bitmaps = to_usize(root.nr_blocks).div_ceil(COUNTS_PER_BITMAP);
        Self {
            index: Btree::from_root(root.bitmap_root),
            overflow: Btree::from_root(root.ref_count_root),
            nr_blocks: root.nr_blocks,
            nr_allocated: root.nr_allocated,
            bitmaps: vec![None; bitmaps],
            changed: Vec::new(),
            pending: BTreeMap::new(),
            pending_stretches: BTreeSet::new(),
            freed: Vec::new(),
            grown: false,
        }
    }

    pub(crate) fn root(&self) -> SpaceMapRoot {
        SpaceMapRoot {
            nr_blocks: self.nr_blocks,
            nr_allocated: self.nr_allocated,
            bitmap_root: self.index.root(),
            ref_count_root: self.overflow.root(),
        }
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.grown || !self.changed.is_empty()
    }

    pub(crate) fn changed_count(&self) -> usize {
        self.changed.len()
    }

    /// An upper bound for the nodes of the overflow tree that bringing it up to date takes.
    ///
    /// A leaf holds at least a third of its capacity, so as many consecutive blocks as that have
    /// their entries in two leaves at most.
    pub(crate) fn overflow_nodes_touched(&self) -> usize {
        let added_leaves = self.pending.len() / OVERFLOW_LEAF_MIN;
        let all_leaves = to_usize(self.nr_allocated.min(self.nr_blocks)) / OVERFLOW_LEAF_MIN;
        let leaves = (2 * self.pending_stretches.len()).min(all_leaves + 2) + added_leaves;
        // Internal nodes have many more children than 28, but the touched ones may be scattered.
        if leaves == 0 {
            0
        } else {
            leaves + leaves / 28 + 6
        }
    }

    pub(crate) fn bitmap_count(&self) -> usize {
        self.bitmaps.len()
    }

    fn place(&self, block: u64) -> Result<Place, Error> {
        if block >= self.nr_blocks {
            return Err(Error::DiskBlockOutOfRange {
                block,
                blocks: self.nr_blocks,
            });
        }
        let at = to_usize(block);
        Ok(Place {
            bitmap: at / COUNTS_PER_BITMAP,
            position: at % COUNTS_PER_BITMAP,
        })
    }

    /// The bitmap that must be loaded before the block's count can be read or changed.
    pub(crate) fn missing_bitmap(&self, block: u64) -> Result<Option<usize>, Error> {
        let place = self.place(block)?;
        Ok(self.bitmaps[place.bitmap].is_none().then_some(place.bitmap))
    }

    pub(crate) fn is_loaded(&self, bitmap: usize) -> bool {
        self.bitmaps[bitmap].is_some()
    }

    pub(crate) fn load(&mut self, bitmap: usize, block: &Block) {
        assert!(
            self.bitmaps[bitmap].is_none(),
            "bitmap {bitmap} loaded twice"
        );
        self.bitmaps[bitmap] = Some(Bitmap::decode(block));
    }

    fn bitmap(&self, number: usize) -> &Bitmap {
        let Some(bitmap) = &self.bitmaps[number] else {
            unreachable!("bitmap {number} is used before it is loaded");
        };
        bitmap
    }

    /// The count if it is known without the overflow tree. The bitmap must be loaded.
    pub(crate) fn count_in_memory(&self, block: u64) -> Result<Option<u32>, Error> {
        let place = self.place(block)?;
        Ok(match self.bitmap(place.bitmap).get(place.position) {
            MANY => self.pending.get(&block).copied(),
            count => Some(count),
        })
    }

    /// Replaces a count by another. The bitmap must be loaded.
    pub(crate) fn set(&mut self, block: u64, old: u32, new: u32) -> Result<(), Error> {
        let place = self.place(block)?;
        let Some(bitmap) = &mut self.bitmaps[place.bitmap] else {
            unreachable!("bitmap {} is used before it is loaded", place.bitmap);
        };
        debug_assert_eq!(bitmap.get(place.position), old.min(MANY));
        if bitmap.set(place.position, new) {
            self.changed.push(place.bitmap);
        }
        match (old >= MANY, new >= MANY) {
            (false, true) => mark(Mark::OverflowCount),
            (true, false) => mark(Mark::OverflowCountGone),
            _ => {}
        }
        if old >= MANY || new >= MANY {
            self.pending.insert(block, new);
            self.pending_stretches
                .insert(block / OVERFLOW_LEAF_MIN as u64);
        }
        match (old, new) {
            (0, 1..) => self.nr_allocated = self.nr_allocated.saturating_add(1),
            (1.., 0) => {
                // Saturating because the total is taken from disk and never recounted.
                self.nr_allocated = self.nr_allocated.saturating_sub(1);
                self.freed.push(block);
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    pub(crate) fn nr_allocated(&self) -> u64 {
        self.nr_allocated
    }

    pub(crate) fn grow(&mut self, nr_blocks: u64) {
        assert!(self.nr_blocks <= nr_blocks);
        self.grown |= self.nr_blocks != nr_blocks;
        self.nr_blocks = nr_blocks;
        while self.bitmaps.len() < to_usize(nr_blocks).div_ceil(COUNTS_PER_BITMAP) {
            self.changed.push(self.bitmaps.len());
            self.bitmaps.push(Some(Bitmap::new()));
        }
    }

    /// Blocks whose count became 0 since the last call and still is.
    pub(crate) fn take_freed(&mut self) -> Vec<u64> {
        let mut freed = std::mem::take(&mut self.freed);
        freed.sort_unstable();
        freed.dedup();
        freed.retain(|&block| matches!(self.count_in_memory(block), Ok(Some(0))));
        freed
    }

    /// Calls `f` with each maximal run of blocks of count 0. All bitmaps must be loaded.
    pub(crate) fn for_each_free_run(&self, f: &mut dyn FnMut(Range<u64>)) {
        let mut run: Option<Range<u64>> = None;
        for number in 0..self.bitmaps.len() {
            let start = (number * COUNTS_PER_BITMAP) as u64;
            let end = COUNTS_PER_BITMAP.min(to_usize(self.nr_blocks - start));
            self.bitmap(number)
                .for_each_free_run(end, &mut |low, high| {
                    let found = start + low as u64..start + high as u64;
                    match &mut run {
                        Some(run) if run.end == found.start => run.end = found.end,
                        _ => {
                            if let Some(run) = run.replace(found) {
                                f(run);
                            }
                        }
                    }
                });
        }
        if let Some(run) = run {
            f(run);
        }
    }

    /// The changed bitmaps in ascending order, for the commit to give them homes.
    pub(crate) fn changed_bitmaps(&mut self) -> Vec<usize> {
        self.changed.sort_unstable();
        self.changed.clone()
    }

    pub(crate) fn index_entry(&self, number: usize, home: BlockNr) -> IndexEntry {
        self.bitmap(number).index_entry(home)
    }

    pub(crate) fn encode_bitmap(&self, number: usize, block: &mut Block) {
        self.bitmap(number).encode(block);
    }

    /// Overflow entries to bring up to date, with the count or none if it is below three.
    pub(crate) fn overflow_changes(&self) -> Vec<(u64, Option<u32>)> {
        let pending = self.pending.iter();
        pending
            .map(|(&block, &count)| (block, (count >= MANY).then_some(count)))
            .collect()
    }

    /// Everything is in the trees of what is now the last commit.
    pub(crate) fn mark_saved(&mut self) {
        for number in std::mem::take(&mut self.changed) {
            if let Some(bitmap) = &mut self.bitmaps[number] {
                bitmap.mark_saved();
            }
        }
        self.pending.clear();
        self.pending_stretches.clear();
        self.grown = false;
    }
}
