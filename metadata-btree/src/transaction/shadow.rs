//! Shadowing: how nodes are changed without touching the last commit.
//!
//! The metadata is a graph of blocks hanging from the superblock, and a commit must
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

use std::collections::hash_map::Entry;
use std::sync::Arc;

use crate::block::{Block, BlockNr};
use crate::btree::Btree;
use crate::checksum::BlockKind;
use crate::codec::Value;
use crate::error::{BlockCheck, Error};
use crate::node::{Node, NodeMut};
use crate::num::to_u32;
use crate::source::{NodeGuard, ReadNode};
use crate::transaction::{Transaction, write};

/// A node changed in this transaction.
pub(super) struct DirtyNode {
    block: Block,
    /// When it was last asked for, in operations.
    used: u64,
}

impl Transaction {
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
    pub(super) fn write_early(&mut self) -> Result<(), Error> {
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
    let found = to_u32(node.value_size());
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
