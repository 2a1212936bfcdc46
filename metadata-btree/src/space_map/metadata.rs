//! The space map that counts the metadata's own blocks, its own among them.
//!
//! **Counting oneself.** The bitmaps, the index block and the overflow tree of this map are
//! metadata blocks like any other: they have counts in this map, and none of them may be changed
//! in place. So changing a count means shadowing a bitmap, which allocates a block, which changes
//! another count. Rather than queueing the inner changes while an outer one is under way, all
//! counts are kept in memory while a transaction is open: at most 255 bitmaps, and the counts of
//! three and more in a map. A change is then a few bits in memory and touches no block.
//!
//! Only the commit gives changed bitmaps new homes. That allocates and frees, and thereby changes
//! bitmaps, perhaps some that had not changed before. [`MetadataMap::rehome`] repeats until every
//! changed bitmap has a home of this transaction. It ends because a bitmap is given a home only
//! once and there are finitely many, and in practice after one or two rounds because allocation is
//! dense. Nothing is serialised before that; the overflow tree is brought up to date before it,
//! which changes counts between 0 and 1 only and so does not feed back into itself.
//!
//! **What can be allocated.** A bit for each block says so: its count is 0, and it was 0 in every
//! version that can still be read. A freed block whose count was committed goes through
//! [`MetadataMap::take_freed`] and comes back with [`MetadataMap::release`] when `version.rs` says
//! that nobody can reach it. A block allocated and freed within one transaction was never in any
//! version, and is available again at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::block::{BLOCK_SIZE, Block, BlockNr};
use crate::checksum::BlockKind;
use crate::codec::Value;
use crate::error::{BlockCheck, Error};
use crate::num::to_usize;
use crate::space_map::IndexEntry;
use crate::space_map::bitmap::{Bitmap, COUNTS_PER_BITMAP, MANY};
use crate::space_map::block_set::BlockSet;

const INDEX_HEADER_SIZE: usize = 16;
const INDEX_ENTRIES: usize = 255;
const _: () = assert!(INDEX_HEADER_SIZE + INDEX_ENTRIES * IndexEntry::SIZE == BLOCK_SIZE);

/// The most blocks that metadata can have: what one index block can account for, 255 bitmaps of 16320.
pub const METADATA_BLOCKS_MAX: u64 = (INDEX_ENTRIES * COUNTS_PER_BITMAP) as u64;

/// Reads one entry of the index block.
pub(crate) fn index_entry(index: &Block, bitmap: usize) -> IndexEntry {
    let at = INDEX_HEADER_SIZE + bitmap * IndexEntry::SIZE;
    IndexEntry::decode(&index.as_bytes()[at..at + IndexEntry::SIZE])
}

fn put_index_entry(index: &mut Block, bitmap: usize, entry: &IndexEntry) {
    let at = INDEX_HEADER_SIZE + bitmap * IndexEntry::SIZE;
    entry.encode(&mut index.as_bytes_mut()[at..at + IndexEntry::SIZE]);
}

struct HomedBitmap {
    bitmap: Bitmap,
    /// The block that holds it; none if it was added in this transaction.
    home: Option<BlockNr>,
}

pub(crate) struct MetadataMap {
    nr_blocks: u64,
    nr_allocated: u64,
    bitmaps: Vec<HomedBitmap>,
    index_home: Option<BlockNr>,
    /// Exactly the counts of three and more.
    overflow: BTreeMap<u64, u32>,
    overflow_changed: BTreeSet<u64>,
    available: BlockSet,
    /// Blocks allocated in the open transaction, freed since or not.
    born: BlockSet,
    /// Blocks of the last commit whose count became 0 in the open transaction.
    freed: Vec<BlockNr>,
    /// Where the search for the next block begins.
    cursor: u64,
    changed: bool,
}

impl MetadataMap {
    /// A map in which every count is 0 and nothing has a home.
    pub(crate) fn new(nr_blocks: u64) -> Self {
        let mut map = Self::empty();
        map.grow(nr_blocks);
        map
    }

    fn empty() -> Self {
        Self {
            nr_blocks: 0,
            nr_allocated: 0,
            bitmaps: Vec::new(),
            index_home: None,
            overflow: BTreeMap::new(),
            overflow_changed: BTreeSet::new(),
            available: BlockSet::default(),
            born: BlockSet::default(),
            freed: Vec::new(),
            cursor: 0,
            changed: false,
        }
    }

    /// The map as of a commit: its bitmaps with their homes, and its overflow tree.
    ///
    /// # Errors
    /// [`Error::NoOverflowCount`] when a bitmap and the overflow tree disagree.
    pub(crate) fn load(
        nr_blocks: u64,
        index_home: BlockNr,
        overflow_root: BlockNr,
        bitmaps: Vec<(BlockNr, Bitmap)>,
        mut overflow: BTreeMap<u64, u32>,
    ) -> Result<Self, Error> {
        assert!(nr_blocks <= METADATA_BLOCKS_MAX);
        assert_eq!(
            bitmaps.len(),
            to_usize(nr_blocks).div_ceil(COUNTS_PER_BITMAP)
        );
        let mut map = Self::empty();
        map.nr_blocks = nr_blocks;
        map.index_home = Some(index_home);
        map.available.grow(nr_blocks);
        map.born.grow(nr_blocks);
        for (home, bitmap) in bitmaps {
            map.bitmaps.push(HomedBitmap {
                bitmap,
                home: Some(home),
            });
        }
        for nr in 0..nr_blocks {
            match map.bits(nr) {
                0 => map.available.insert(nr),
                count => {
                    map.nr_allocated += 1;
                    if count == MANY && overflow.get(&nr).is_none_or(|&count| count < MANY) {
                        return Err(Error::NoOverflowCount {
                            root: overflow_root,
                            block: nr,
                        });
                    }
                }
            }
        }
        let homes = map.bitmaps.iter().filter_map(|homed| homed.home);
        for nr in homes.chain([BlockNr(0), index_home, overflow_root]) {
            map.check_in_use(nr)?;
        }
        // An entry for a block with a small count means nothing; it is replaced should the count
        // ever reach three.
        overflow.retain(|&nr, _| nr < nr_blocks && map.bits(nr) == MANY);
        map.overflow = overflow;
        Ok(map)
    }

    pub(crate) fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    pub(crate) fn nr_allocated(&self) -> u64 {
        self.nr_allocated
    }

    /// Blocks that can be allocated now.
    pub(crate) fn available(&self) -> u64 {
        self.available.len()
    }

    pub(crate) fn bitmap_count(&self) -> usize {
        self.bitmaps.len()
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    fn bits(&self, nr: u64) -> u32 {
        let at = to_usize(nr);
        self.bitmaps[at / COUNTS_PER_BITMAP]
            .bitmap
            .get(at % COUNTS_PER_BITMAP)
    }

    /// A block that must not be allocated, whatever damaged bitmaps say.
    fn check_in_use(&self, nr: BlockNr) -> Result<(), Error> {
        self.check_range(nr)?;
        if self.bits(nr.0) == 0 {
            return Err(Error::BadCount {
                nr,
                expected: "at least 1",
                found: 0,
            });
        }
        Ok(())
    }

    fn check_range(&self, nr: BlockNr) -> Result<(), Error> {
        if nr.0 < self.nr_blocks {
            return Ok(());
        }
        let check = BlockCheck::OutOfRange {
            blocks: self.nr_blocks,
        };
        Err(Error::BadBlock {
            nr,
            kind: BlockKind::Node,
            check,
        })
    }

    pub(crate) fn count(&self, nr: BlockNr) -> Result<u32, Error> {
        self.check_range(nr)?;
        Ok(match self.bits(nr.0) {
            MANY => self.overflow[&nr.0],
            count => count,
        })
    }

    /// Whether the block was allocated in this transaction, so that no commit reaches it.
    pub(crate) fn is_born(&self, nr: BlockNr) -> bool {
        nr.0 < self.nr_blocks && self.born.contains(nr.0)
    }

    /// Whether the block may be changed in place: new in this transaction and named once.
    pub(crate) fn is_owned(&self, nr: BlockNr) -> bool {
        self.is_born(nr) && self.bits(nr.0) == 1
    }

    fn set(&mut self, nr: u64, count: u32) {
        let at = to_usize(nr);
        self.bitmaps[at / COUNTS_PER_BITMAP]
            .bitmap
            .set(at % COUNTS_PER_BITMAP, count);
        self.changed = true;
        let replaced = if count >= MANY {
            self.overflow.insert(nr, count)
        } else {
            self.overflow.remove(&nr)
        };
        if count >= MANY || replaced.is_some() {
            self.overflow_changed.insert(nr);
        }
    }

    /// A block for new use, with count 1.
    pub(crate) fn alloc(&mut self) -> Result<BlockNr, Error> {
        let found = self.available.first_from(self.cursor);
        let Some(nr) = found.or_else(|| self.available.first_from(0)) else {
            return Err(Error::OutOfMetadataSpace {
                available: 0,
                needed: 1,
            });
        };
        assert_eq!(
            self.bits(nr),
            0,
            "metadata block {nr} is in use and was to be allocated"
        );
        self.available.remove(nr);
        self.born.insert(nr);
        self.nr_allocated += 1;
        self.set(nr, 1);
        self.cursor = nr + 1;
        Ok(BlockNr(nr))
    }

    /// Counts a further reference to a block in use.
    pub(crate) fn inc(&mut self, nr: BlockNr) -> Result<(), Error> {
        match self.count(nr)? {
            found @ (0 | u32::MAX) => Err(Error::BadCount {
                nr,
                expected: "1 to 4294967294, to be raised",
                found,
            }),
            count => {
                self.set(nr.0, count + 1);
                Ok(())
            }
        }
    }

    /// Counts one reference less, and returns how many are left.
    pub(crate) fn dec(&mut self, nr: BlockNr) -> Result<u32, Error> {
        let found = self.count(nr)?;
        let Some(left) = found.checked_sub(1) else {
            return Err(Error::BadCount {
                nr,
                expected: "at least 1, to be lowered",
                found,
            });
        };
        self.lower(nr, left);
        Ok(left)
    }

    /// Replaces a count by a lower one.
    pub(crate) fn lower(&mut self, nr: BlockNr, left: u32) {
        self.set(nr.0, left);
        if left == 0 {
            self.nr_allocated -= 1;
            if self.born.contains(nr.0) {
                self.available.insert(nr.0);
            } else {
                self.freed.push(nr);
            }
        }
    }

    /// Gives up a block of the map itself, whose count is 1 unless the metadata is damaged.
    fn dec_unshared(&mut self, nr: BlockNr) -> Result<(), Error> {
        match self.dec(nr)? {
            0 => Ok(()),
            left => Err(Error::BadCount {
                nr,
                expected: "1 for a space map",
                found: left + 1,
            }),
        }
    }

    /// Adds blocks with count 0 at the end, available at once.
    pub(crate) fn grow(&mut self, nr_blocks: u64) {
        assert!(self.nr_blocks <= nr_blocks && nr_blocks <= METADATA_BLOCKS_MAX);
        let old_nr_blocks = std::mem::replace(&mut self.nr_blocks, nr_blocks);
        while self.bitmaps.len() < to_usize(nr_blocks).div_ceil(COUNTS_PER_BITMAP) {
            self.bitmaps.push(HomedBitmap {
                bitmap: Bitmap::new(),
                home: None,
            });
        }
        self.available.grow(nr_blocks);
        self.born.grow(nr_blocks);
        for nr in old_nr_blocks..nr_blocks {
            // A count left behind beyond the old end would be taken for a leak, so it goes.
            if self.bits(nr) != 0 {
                self.set(nr, 0);
            }
            self.available.insert(nr);
        }
        self.changed |= old_nr_blocks != nr_blocks;
    }

    /// Overflow entries to bring up to date, with the count or none if it is below three.
    pub(crate) fn take_overflow_changes(&mut self) -> Vec<(u64, Option<u32>)> {
        let changed = std::mem::take(&mut self.overflow_changed);
        changed
            .into_iter()
            .map(|nr| (nr, self.overflow.get(&nr).copied()))
            .collect()
    }

    /// Gives every changed bitmap and the index block a home of this transaction, and counts that.
    pub(crate) fn rehome(&mut self) -> Result<(), Error> {
        let index_home = self.alloc()?;
        if let Some(old) = self.index_home.replace(index_home) {
            self.dec_unshared(old)?;
        }
        loop {
            let is_due = |homed: &HomedBitmap| {
                homed.bitmap.is_changed() && homed.home.is_none_or(|nr| !self.is_owned(nr))
            };
            let Some(due) = self.bitmaps.iter().position(is_due) else {
                return Ok(());
            };
            let home = self.alloc()?;
            if let Some(old) = self.bitmaps[due].home.replace(home) {
                self.dec_unshared(old)?;
            }
        }
    }

    pub(crate) fn index_home(&self) -> BlockNr {
        let Some(home) = self.index_home else {
            unreachable!("the commit gave the index a home")
        };
        home
    }

    /// Homes of the bitmaps to be written, by bitmap number.
    pub(crate) fn changed_bitmaps(&self) -> Vec<(BlockNr, usize)> {
        let changed = self
            .bitmaps
            .iter()
            .enumerate()
            .filter(|(_, b)| b.bitmap.is_changed());
        changed
            .filter_map(|(number, b)| b.home.map(|home| (home, number)))
            .collect()
    }

    pub(crate) fn encode_bitmap(&self, number: usize, block: &mut Block) {
        self.bitmaps[number].bitmap.encode(block);
    }

    pub(crate) fn encode_index(&self, block: &mut Block) {
        block.as_bytes_mut().fill(0);
        for (number, homed) in self.bitmaps.iter().enumerate() {
            let Some(home) = homed.home else {
                unreachable!("bitmap {number} has no home")
            };
            put_index_entry(block, number, &homed.bitmap.index_entry(home));
        }
    }

    /// The blocks in use that the open transaction has allocated.
    pub(crate) fn blocks_made(&self) -> Vec<BlockNr> {
        let next = |nr: &u64| self.born.first_from(nr + 1);
        let born = std::iter::successors(self.born.first_from(0), next);
        born.filter(|nr| self.bits(*nr) > 0).map(BlockNr).collect()
    }

    /// The open transaction became the last commit: returns the blocks it freed.
    pub(crate) fn take_freed(&mut self) -> Vec<BlockNr> {
        assert!(
            self.overflow_changed.is_empty(),
            "committed without the overflow tree"
        );
        self.born.clear();
        self.changed = false;
        for homed in &mut self.bitmaps {
            homed.bitmap.mark_saved();
        }
        std::mem::take(&mut self.freed)
    }

    /// Keeps a free block from being allocated until it is released. Returns whether it is free.
    pub(crate) fn withhold(&mut self, nr: BlockNr) -> bool {
        let is_free = nr.0 < self.nr_blocks && self.available.contains(nr.0);
        if is_free {
            self.available.remove(nr.0);
        }
        is_free
    }

    /// Blocks freed earlier that no readable version reaches any more.
    pub(crate) fn release(&mut self, blocks: &[BlockNr]) {
        for nr in blocks {
            assert_eq!(
                self.bits(nr.0),
                0,
                "freed metadata block {nr} came into use by itself"
            );
            self.available.insert(nr.0);
        }
    }
}
