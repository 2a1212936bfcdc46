//! The open transaction: the changes since the last commit.
//!
//! Nodes are changed by shadowing (`transaction/shadow.rs`), counts in memory
//! (`space_map/metadata.rs`), and the commit brings both to the store (`commit.rs`).
//!
//! **Errors.** An operation on a tree first makes sure that there is room for it and for the
//! commit after it; if not, nothing happens but [`Error::OutOfMetadataSpace`]. Any other error in
//! the middle of a change poisons the transaction, because blocks and counts may disagree. It can
//! then only be dropped, and the last commit opened again.

mod shadow;

use std::ops::Range;
use std::sync::Arc;

use crate::block::{Block, BlockNr, BlockStore};
use crate::btree::Btree;
use crate::cache::{BlockTable, CACHE_BLOCKS, Cache};
use crate::checksum::BlockKind;
use crate::error::Error;
use crate::open;
use crate::space_map::{
    COUNTS_PER_BITMAP, DiskMap, METADATA_BLOCKS_MAX, MetadataMap, OverflowCount, SpaceMapRoots,
};
use crate::version::{Reader, Retired, Version, View};

use shadow::DirtyNode;
pub(crate) use shadow::{check_value_size, empty_leaf, first_tree};

/// Nodes changed and not yet written, at most: 32 MiB.
const DIRTY_NODES_MAX: usize = 8192;

/// Blocks any one operation on a tree can allocate: twice the height of the tallest tree that fits
/// the metadata, a node and a sibling on each level.
const OPERATION_BLOCKS: u64 = 24;

/// Blocks that only operations which make room may take: from full metadata entries can still be
/// removed, and that be committed, which gives the blocks back.
const REMOVAL_BLOCKS: u64 = OPERATION_BLOCKS;

/// What a change of a tree does to the room there is.
#[derive(Clone, Copy)]
pub(crate) enum Growth {
    /// Adds entries.
    Adds,
    /// Removes or replaces entries, but may have to copy nodes for that.
    Keeps,
    /// Allocates nothing.
    Frees,
}

/// The open transaction of a metadata store: trees, counts and the commit.
///
/// One transaction owns the store's changes; a commit makes them durable and leaves the
/// transaction open for the next ones. Dropping it forgets what was not committed.
pub struct Transaction {
    pub(crate) reader: Reader,
    pub(crate) current: Arc<Version>,
    pub(crate) retired: Retired,
    pub(crate) metadata: MetadataMap,
    /// Counts of three and more of metadata blocks, as of the last commit.
    pub(crate) metadata_overflow: Btree<OverflowCount>,
    pub(crate) disk: DiskMap,
    dirty: BlockTable<DirtyNode>,
    dirty_max: usize,
    operation: u64,
    /// No room needs to be kept for the commit any more: this is it.
    pub(crate) committing: bool,
    pub(crate) poisoned: bool,
}

impl Transaction {
    /// Starts a new metadata of `metadata_blocks` blocks, at most 4161600, that counts
    /// `disk_blocks` disk blocks. Whatever the store held is forgotten at the first commit;
    /// nothing is durable before.
    ///
    /// # Errors
    /// [`Error::BadSize`] if the store is smaller, [`Error::OutOfMetadataSpace`] if there is no
    /// room for the maps.
    pub fn format(
        store: Arc<dyn BlockStore>,
        metadata_blocks: u64,
        disk_blocks: u64,
    ) -> Result<Self, Error> {
        open::format(store, metadata_blocks, disk_blocks)
    }

    /// Opens the metadata of the commit with these space maps.
    ///
    /// Counts of the metadata's own blocks are read now, everything else when it is needed. No
    /// view of an earlier transaction on the same store may be in use, see
    /// [`reopen`](Transaction::reopen).
    ///
    /// # Errors
    /// When the roots make no sense for this store or the metadata space map cannot be read.
    pub fn open(store: Arc<dyn BlockStore>, roots: SpaceMapRoots) -> Result<Self, Error> {
        open::open(store, roots)
    }

    /// Gives up everything since the last commit and opens the metadata again, with the space maps
    /// that its superblock names now.
    ///
    /// Unlike after a drop and [`open`](Transaction::open), views of this transaction stay good.
    ///
    /// # Errors
    /// Like [`open`](Transaction::open).
    pub fn reopen(self, roots: SpaceMapRoots) -> Result<Self, Error> {
        let mut next = open::open(Arc::clone(&self.reader.store), roots)?;
        let mut retired = self.retired;
        let mut metadata = self.metadata;
        // After a commit that failed at the very end, either version may be the last one.
        let is_same = self.current.roots == roots;
        let freed = if is_same {
            Vec::new()
        } else {
            metadata.take_freed()
        };
        retired.push(self.current, freed, Vec::new());
        retired.retain_blocks(|nr| next.metadata.withhold(nr));
        next.retired = retired;
        Ok(next)
    }

    pub(crate) fn new(
        store: Arc<dyn BlockStore>,
        roots: SpaceMapRoots,
        metadata: MetadataMap,
    ) -> Self {
        let reader = Reader {
            store,
            cache: Arc::new(Cache::new(CACHE_BLOCKS)),
        };
        Self {
            current: Arc::new(Version {
                reader: reader.clone(),
                roots,
            }),
            reader,
            retired: Retired::default(),
            metadata,
            metadata_overflow: Btree::from_root(roots.metadata.ref_count_root),
            disk: DiskMap::new(&roots.disk),
            dirty: BlockTable::default(),
            dirty_max: DIRTY_NODES_MAX,
            operation: 0,
            committing: false,
            poisoned: false,
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn BlockStore> {
        &self.reader.store
    }

    /// The last commit. Of metadata never committed the view is empty: nothing can be read.
    pub fn view(&self) -> View {
        View {
            version: Arc::clone(&self.current),
        }
    }

    /// Whether a commit would write anything but the superblock.
    pub fn has_changes(&self) -> bool {
        self.metadata.is_changed() || self.disk.is_changed()
    }

    /// The reference count of a metadata block.
    ///
    /// # Errors
    /// When the block is out of range.
    pub fn count(&self, nr: BlockNr) -> Result<u32, Error> {
        self.metadata.count(nr)
    }

    /// Counts a further reference to a metadata block in use, such as a second name for a tree.
    ///
    /// # Errors
    /// When the block is out of range or not in use; nothing is changed then.
    pub fn inc(&mut self, nr: BlockNr) -> Result<(), Error> {
        self.check_alive()?;
        self.metadata.inc(nr)
    }

    /// Corrects the count of a metadata block that is higher than there are references to it. What the block
    /// itself names is not touched. Who calls this has counted all references.
    ///
    /// # Errors
    /// When the count is not `found`, or not higher, or the block is out of range; nothing is changed then.
    pub fn correct_count(&mut self, nr: BlockNr, found: u32, references: u32) -> Result<(), Error> {
        self.check_alive()?;
        let count = self.metadata.count(nr)?;
        if count != found || references >= found {
            let expected = "that which was found too high";
            return Err(Error::BadCount {
                nr,
                expected,
                found: count,
            });
        }
        self.metadata.lower(nr, references);
        Ok(())
    }

    /// Blocks of the metadata.
    pub fn metadata_blocks(&self) -> u64 {
        self.metadata.nr_blocks()
    }

    /// Metadata blocks with count 0. Some may be allocatable only after a commit, or when views
    /// of earlier commits are gone.
    pub fn free_metadata_blocks(&self) -> u64 {
        self.metadata.nr_blocks() - self.metadata.nr_allocated()
    }

    /// Makes the metadata `new_block_count` blocks long.
    ///
    /// # Errors
    /// [`Error::BadSize`] for a shrink, for more than 4161600 blocks or more than the store has.
    pub fn grow_metadata(&mut self, new_block_count: u64) -> Result<(), Error> {
        self.check_alive()?;
        let max = open::store_blocks(&self.reader.store)?.min(METADATA_BLOCKS_MAX);
        let min = self.metadata.nr_blocks();
        if new_block_count < min || new_block_count > max {
            return Err(Error::BadSize {
                what: "metadata",
                found: new_block_count,
                min,
                max,
            });
        }
        self.metadata.grow(new_block_count);
        Ok(())
    }

    /// Counts `new_block_count` disk blocks from now on.
    ///
    /// # Errors
    /// [`Error::BadSize`] for a shrink, [`Error::OutOfMetadataSpace`] without room for the
    /// bitmaps.
    pub fn grow_disk(&mut self, new_block_count: u64) -> Result<(), Error> {
        self.check_alive()?;
        let min = self.disk.nr_blocks();
        if new_block_count < min {
            let max = u64::MAX;
            return Err(Error::BadSize {
                what: "disk",
                found: new_block_count,
                min,
                max,
            });
        }
        let bitmaps = new_block_count.div_ceil(COUNTS_PER_BITMAP as u64);
        let added = bitmaps - self.disk.bitmap_count() as u64;
        // Index entries go into leaves that are at least a third full.
        self.check_room(added + added / 56 + REMOVAL_BLOCKS)?;
        self.disk.grow(new_block_count);
        Ok(())
    }

    /// Number of disk blocks.
    pub fn disk_blocks(&self) -> u64 {
        self.disk.nr_blocks()
    }

    /// Disk blocks whose count is not 0.
    pub fn disk_allocated(&self) -> u64 {
        self.disk.nr_allocated()
    }

    /// The reference count of a disk block.
    ///
    /// # Errors
    /// When the block is out of range, or the space map cannot be read.
    pub fn disk_count(&mut self, block: u64) -> Result<u32, Error> {
        if let Some(bitmap) = self.disk.missing_bitmap(block)? {
            self.load_disk_bitmap(bitmap)?;
        }
        if let Some(count) = self.disk.count_in_memory(block)? {
            return Ok(count);
        }
        let overflow = self.disk.overflow;
        OverflowCount::check(overflow.lookup(&*self, block)?, overflow.root(), block)
    }

    /// Counts a further reference to a disk block; from 0 this puts it to use.
    ///
    /// # Errors
    /// When the block is out of range, or the space map cannot be read; nothing is changed then.
    pub fn disk_inc(&mut self, block: u64) -> Result<(), Error> {
        self.check_alive()?;
        let found = self.disk_count(block)?;
        let Some(raised) = found.checked_add(1) else {
            let expected = "at most 4294967294, to be raised";
            return Err(Error::BadDiskCount {
                block,
                expected,
                found,
            });
        };
        self.disk.set(block, found, raised)
    }

    /// Counts one reference to a disk block less. Reaching 0 is remembered for
    /// [`take_freed`](Transaction::take_freed).
    ///
    /// # Errors
    /// When the count is 0 already, the block is out of range, or the space map cannot be read;
    /// nothing is changed then.
    pub fn disk_dec(&mut self, block: u64) -> Result<(), Error> {
        self.check_alive()?;
        let found = self.disk_count(block)?;
        let Some(lowered) = found.checked_sub(1) else {
            return Err(Error::BadDiskCount {
                block,
                expected: "at least 1, to be lowered",
                found,
            });
        };
        self.disk.set(block, found, lowered)
    }

    /// As [`correct_count`](Transaction::correct_count), for a disk block.
    ///
    /// # Errors
    /// As there, and when the space map cannot be read.
    pub fn correct_disk_count(
        &mut self,
        block: u64,
        found: u32,
        references: u32,
    ) -> Result<(), Error> {
        self.check_alive()?;
        let count = self.disk_count(block)?;
        if count != found || references >= found {
            let expected = "that which was found too high";
            return Err(Error::BadDiskCount {
                block,
                expected,
                found: count,
            });
        }
        self.disk.set(block, found, references)
    }

    /// The disk blocks whose count reached 0 since the last call and still is 0, ascending.
    pub fn take_freed(&mut self) -> Vec<u64> {
        self.disk.take_freed()
    }

    /// Calls `f` with every maximal run of disk blocks of count 0, ascending.
    ///
    /// # Errors
    /// When the space map cannot be read.
    pub fn for_each_free_disk_run(&mut self, f: &mut dyn FnMut(Range<u64>)) -> Result<(), Error> {
        for bitmap in 0..self.disk.bitmap_count() {
            if !self.disk.is_loaded(bitmap) {
                self.load_disk_bitmap(bitmap)?;
            }
        }
        self.disk.for_each_free_run(f);
        Ok(())
    }

    fn load_disk_bitmap(&mut self, number: usize) -> Result<(), Error> {
        let (index, bitmap) = (self.disk.index, number as u64);
        let Some(entry) = index.lookup(&*self, bitmap)? else {
            return Err(Error::NoBitmap {
                root: index.root(),
                bitmap,
            });
        };
        let blocks = self.metadata.nr_blocks();
        let block = self
            .reader
            .read_uncached(entry.bitmap, BlockKind::Bitmap, blocks)?;
        self.disk.load(number, &block);
        Ok(())
    }

    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        if self.poisoned {
            Err(Error::Poisoned)
        } else {
            Ok(())
        }
    }

    /// Runs one change of a tree: makes sure that it and the commit can be completed, and poisons
    /// the transaction if it fails half-way.
    pub(crate) fn change<T>(
        &mut self,
        growth: Growth,
        change: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.check_alive()?;
        if !self.committing {
            match growth {
                Growth::Adds => self.check_room(OPERATION_BLOCKS + REMOVAL_BLOCKS)?,
                Growth::Keeps => self.check_room(OPERATION_BLOCKS)?,
                Growth::Frees => {}
            }
        }
        self.operation += 1;
        let mut result = Ok(());
        if self.dirty.len() > self.dirty_max {
            result = self.write_early();
        }
        let result = result.and_then(|()| change(self));
        self.poisoned |= result.is_err();
        result
    }

    /// Makes sure of room for so many blocks beside those that any change takes.
    pub(crate) fn check_room_for_adding(&mut self, blocks: usize) -> Result<(), Error> {
        self.check_alive()?;
        self.check_room(blocks as u64 + OPERATION_BLOCKS + REMOVAL_BLOCKS)
    }

    /// Bitmaps of the disk map that the commit need not write so far.
    pub(crate) fn unchanged_disk_bitmaps(&self) -> usize {
        self.disk.bitmap_count() - self.disk.changed_count()
    }

    fn check_room(&mut self, for_operation: u64) -> Result<(), Error> {
        let needed = for_operation + self.blocks_for_commit();
        if self.metadata.available() < needed {
            self.release_unreachable();
        }
        let available = self.metadata.available();
        if available < needed {
            return Err(Error::OutOfMetadataSpace { available, needed });
        }
        Ok(())
    }

    /// An upper bound for what the commit allocates, unless a single operation changes very many
    /// counts at once.
    fn blocks_for_commit(&self) -> u64 {
        let bitmaps = self.metadata.bitmap_count() + self.disk.changed_count();
        let index_nodes = (3 * self.disk.changed_count()).min(self.disk.bitmap_count() / 56 + 6);
        let overflow_nodes = self.disk.overflow_nodes_touched();
        (1 + bitmaps + index_nodes + overflow_nodes + 6) as u64
    }

    /// Makes blocks allocatable that were freed by earlier commits and are out of everyone's reach.
    pub(crate) fn release_unreachable(&mut self) {
        let unreachable = self.retired.take_unreachable();
        self.metadata.release(&unreachable);
    }

    /// Sets how many changed nodes are kept in memory before the first are written early.
    ///
    /// The default, 8192, suits a pool; tests and small machines may want less.
    pub fn set_dirty_nodes_max(&mut self, nodes: usize) {
        self.dirty_max = nodes;
    }
}

pub(crate) fn write(store: &Arc<dyn BlockStore>, nr: BlockNr, block: &Block) -> Result<(), Error> {
    store.write(nr, block).map_err(|source| Error::Io {
        nr: Some(nr),
        op: "write",
        source,
    })
}
