//! The open transaction: the changes since the last commit.
//!
//! **Shadowing.** The metadata is a graph of blocks hanging from the superblock, and a commit must
//! be all or nothing. So a block that the last commit reaches is never written (invariant 1).
//! Whoever wants to change a node first calls [`Transaction::shadow`] and changes what that
//! returns:
//!
//! * The node is new in this transaction and named by one parent: it itself. Nobody else can see
//!   it, so it is changed in place, however often.
//! * The node was committed and has one parent: a copy. The parent, which was shadowed before it,
//!   top down, is made to name the copy; the original loses its one reference and is free, though
//!   not to be reused yet (`version.rs`).
//! * The node is shared, whether new or old: a copy as well, but the original lives on with the
//!   other parents. Now two nodes name the same children, so every child, or every value of a
//!   leaf, is counted once more.
//!
//! That is all it takes for snapshots: one more reference to a root makes everything below it
//! shared, at the cost of one count, and each later change pays for the path it touches. Note that
//! counts say how many *blocks* name a block: a child of a node with ten parents counts one.
//!
//! **Memory.** Counts of the metadata's blocks are all in memory (`space_map/metadata.rs`). Nodes
//! changed are kept until the commit, up to a bound; beyond it the ones longest unused are written
//! early, which harms nobody since nothing on the store reaches them yet, and are read back when
//! they are needed again.
//!
//! **Errors.** An operation on a tree first makes sure that there is room for it and for the
//! commit after it; if not, nothing happens but [`Error::OutOfMetadataSpace`]. Any other error in
//! the middle of a change poisons the transaction, because blocks and counts may disagree. It can
//! then only be dropped, and the last commit opened again.

use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Arc;

use crate::block::{Block, BlockNr, BlockStore};
use crate::btree::Btree;
use crate::cache::{BlockTable, CACHE_BLOCKS, Cache};
use crate::checksum::BlockKind;
use crate::codec::Value;
use crate::error::{BlockCheck, Error};
use crate::node::{Node, NodeMut};
use crate::open;
use crate::source::{NodeGuard, ReadNode};
use crate::space_map::{
    COUNTS_PER_BITMAP, DiskMap, METADATA_BLOCKS_MAX, MetadataMap, OverflowCount, SpaceMapRoots,
};
use crate::version::{Reader, Retired, Version, View};

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

/// A node changed in this transaction.
struct DirtyNode {
    block: Block,
    /// When it was last asked for, in operations.
    used: u64,
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
    /// view of an earlier transaction on the same store may be in use.
    ///
    /// # Errors
    /// When the roots make no sense for this store or the metadata space map cannot be read.
    pub fn open(store: Arc<dyn BlockStore>, roots: SpaceMapRoots) -> Result<Self, Error> {
        open::open(store, roots)
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
        while let Some(freed) = self.retired.pop_unreachable() {
            self.metadata.release(&freed);
        }
    }

    fn alloc(&mut self) -> Result<BlockNr, Error> {
        let nr = self.metadata.alloc()?;
        self.reader.cache.remove(nr);
        Ok(nr)
    }

    /// A block outside of any tree, with count 1, written by the commit itself.
    pub(crate) fn alloc_bitmap(&mut self) -> Result<BlockNr, Error> {
        assert!(self.committing, "bitmaps get homes at the commit");
        self.alloc()
    }

    /// A new node with count 1, to be initialised by the caller.
    pub(crate) fn new_node(&mut self, block: Block) -> Result<BlockNr, Error> {
        let nr = self.alloc()?;
        self.dirty.insert(
            nr.0,
            DirtyNode {
                block,
                used: self.operation,
            },
        );
        Ok(nr)
    }

    /// Counts one reference to a block less and returns how many are left. What it names is not
    /// touched.
    pub(crate) fn dec(&mut self, nr: BlockNr) -> Result<u32, Error> {
        let left = self.metadata.dec(nr)?;
        if left == 0 {
            self.dirty.remove(&nr.0);
        }
        Ok(left)
    }

    pub(crate) fn is_owned(&self, nr: BlockNr) -> bool {
        self.metadata.is_owned(nr)
    }

    /// Makes a node changeable on behalf of the one reference through which it was reached.
    /// Returns where it is now; the caller updates that reference.
    pub(crate) fn shadow<V: Value>(&mut self, nr: BlockNr) -> Result<BlockNr, Error> {
        if self.metadata.is_owned(nr) {
            return Ok(nr);
        }
        let copy = Block::clone(&*self.read_node(nr)?);
        let node = Node::new(&copy);
        check_value_size::<V>(nr, node)?;
        let values = if node.is_leaf() {
            node.values::<V>(0..node.len())
        } else {
            Vec::new()
        };
        let children = if node.is_leaf() {
            Vec::new()
        } else {
            node.children()
        };
        let new = self.new_node(copy)?;
        if self.dec(nr)? > 0 {
            for child in children {
                self.metadata.inc(child)?;
            }
            for value in values {
                value.inc(self)?;
            }
        }
        Ok(new)
    }

    /// A node that [`shadow`](Transaction::shadow) returned, to be changed.
    pub(crate) fn node_mut(&mut self, nr: BlockNr) -> Result<&mut Block, Error> {
        debug_assert!(
            self.metadata.is_born(nr),
            "node {nr} is changed without being shadowed"
        );
        let node = match self.dirty.entry(nr.0) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let blocks = self.metadata.nr_blocks();
                let block = self.reader.read_uncached(nr, BlockKind::Node, blocks)?;
                self.reader.cache.remove(nr);
                entry.insert(DirtyNode { block, used: 0 })
            }
        };
        node.used = self.operation;
        Ok(&mut node.block)
    }

    /// Two different nodes to be changed together.
    pub(crate) fn node_pair(
        &mut self,
        first: BlockNr,
        second: BlockNr,
    ) -> Result<(&mut Block, &mut Block), Error> {
        if first == second {
            let check = BlockCheck::NamedTwice;
            return Err(Error::BadBlock {
                nr: first,
                kind: BlockKind::Node,
                check,
            });
        }
        self.node_mut(first)?;
        self.node_mut(second)?;
        let [Some(first), Some(second)] = self.dirty.get_disjoint_mut([&first.0, &second.0]) else {
            unreachable!("both nodes were just made dirty");
        };
        Ok((&mut first.block, &mut second.block))
    }

    /// Numbers of the nodes to be written, ascending.
    pub(crate) fn dirty_nodes(&self) -> Vec<BlockNr> {
        let mut nodes: Vec<_> = self.dirty.keys().map(|&nr| BlockNr(nr)).collect();
        nodes.sort_unstable();
        nodes
    }

    pub(crate) fn write_node(&mut self, nr: BlockNr) -> Result<(), Error> {
        let Some(node) = self.dirty.get_mut(&nr.0) else {
            unreachable!("node {nr} is to be written and not dirty");
        };
        BlockKind::Node.seal(&mut node.block, nr);
        write(&self.reader.store, nr, &node.block)
    }

    /// Hands the nodes just written to the cache.
    pub(crate) fn cache_dirty_nodes(&mut self) {
        for nr in self.dirty_nodes() {
            if let Some(node) = self.dirty.remove(&nr.0) {
                self.reader
                    .cache
                    .insert(nr, BlockKind::Node, Arc::new(node.block));
            }
        }
    }

    /// Writes the half of the dirty nodes that was not used for longest, and forgets them.
    fn write_early(&mut self) -> Result<(), Error> {
        let mut nodes: Vec<_> = self
            .dirty
            .iter()
            .map(|(&nr, node)| (node.used, nr))
            .collect();
        let half = nodes.len() / 2;
        nodes.select_nth_unstable(half);
        nodes.truncate(half);
        nodes.sort_unstable_by_key(|&(_, nr)| nr);
        for (_, nr) in nodes {
            self.write_node(BlockNr(nr))?;
            self.dirty.remove(&nr);
        }
        Ok(())
    }

    /// Sets how many changed nodes are kept in memory before the first are written early.
    ///
    /// The default, 8192, suits a pool; tests and small machines may want less.
    pub fn set_dirty_nodes_max(&mut self, nodes: usize) {
        self.dirty_max = nodes;
    }
}

impl ReadNode for Transaction {
    fn read_node(&self, nr: BlockNr) -> Result<NodeGuard<'_>, Error> {
        if let Some(node) = self.dirty.get(&nr.0) {
            return Ok(NodeGuard::Dirty(&node.block));
        }
        let blocks = self.metadata.nr_blocks();
        self.reader
            .read(nr, BlockKind::Node, blocks)
            .map(NodeGuard::Clean)
    }
}

pub(crate) fn write(store: &Arc<dyn BlockStore>, nr: BlockNr, block: &Block) -> Result<(), Error> {
    store.write(nr, block).map_err(|source| Error::Io {
        nr: Some(nr),
        op: "write",
        source,
    })
}

/// Checks that a leaf belongs to a tree with such values.
pub(crate) fn check_value_size<V: Value>(nr: BlockNr, node: Node<'_>) -> Result<(), Error> {
    if !node.is_leaf() || node.value_size() == V::SIZE {
        return Ok(());
    }
    let expected = match V::SIZE {
        4 => "4",
        8 => "8",
        16 => "16",
        24 => "24",
        size => unreachable!("no tree has values of {size} bytes"),
    };
    let found = crate::num::to_u32(node.value_size());
    let check = BlockCheck::ValueSize { expected, found };
    Err(Error::BadBlock {
        nr,
        kind: BlockKind::Node,
        check,
    })
}

/// An empty leaf for values of this size.
pub(crate) fn empty_leaf(value_size: usize) -> Block {
    let mut block = Block::zeroed();
    NodeMut::new(&mut block).init_leaf(value_size);
    block
}

/// An empty tree, made while the maps cannot say yet how much room the commit needs.
pub(crate) fn first_tree<V: Value>(tx: &mut Transaction) -> Result<Btree<V>, Error> {
    tx.new_node(empty_leaf(V::SIZE)).map(Btree::from_root)
}
