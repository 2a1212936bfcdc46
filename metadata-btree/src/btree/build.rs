//! Building a tree of entries that come in ascending order.
//!
//! Leaves are written one after the other, each full, and named by internal nodes when all have come. So that
//! no leaf but an only one is less than a third full (invariant 6), as many entries as a leaf must have are
//! kept back behind each leaf. A whole leaf of another tree can be taken over, and is shared by both then.

use crate::block::{Block, BlockNr};
use crate::btree::Btree;
use crate::codec::Value;
use crate::error::Error;
use crate::node::{CHILD_SIZE, Node, NodeMut, max_entries};
use crate::source::ReadNode;
use crate::transaction::{Growth, Transaction, empty_leaf};

/// A tree in the making. References of its values are the caller's to count, as for [`Btree::insert`].
///
/// Every method that fails with [`Error::OutOfMetadataSpace`] has changed nothing, and can be called again.
pub struct TreeBuilder<V: Value> {
    /// The leaves that are written, with their first keys.
    leaves: Vec<(u64, BlockNr)>,
    /// The entries behind them.
    open: Vec<(u64, V)>,
}

impl<V: Value> Default for TreeBuilder<V> {
    fn default() -> Self {
        Self {
            leaves: Vec::new(),
            open: Vec::new(),
        }
    }
}

impl<V: Value> TreeBuilder<V> {
    /// The most entries of a leaf.
    pub const LEAF_MAX: usize = max_entries(V::SIZE);
    /// The least entries of a leaf that is not the only one.
    pub const LEAF_MIN: usize = Self::LEAF_MAX / 3;

    /// Adds an entry above all others.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`]; any other error poisons the transaction.
    pub fn push(&mut self, tx: &mut Transaction, key: u64, value: V) -> Result<(), Error> {
        debug_assert!(self.open.last().is_none_or(|(last, _)| *last < key));
        tx.change(Growth::Adds, |tx| {
            if self.open.len() < Self::LEAF_MAX + Self::LEAF_MIN {
                return Ok(());
            }
            self.write_leaf(tx, Self::LEAF_MAX)
        })?;
        self.open.push((key, value));
        Ok(())
    }

    /// Whether a leaf of so many entries can follow as it is.
    pub fn can_share(&self, entries: usize) -> bool {
        let is_enough = |entries| (Self::LEAF_MIN..=Self::LEAF_MAX).contains(&entries);
        is_enough(entries) && (self.open.is_empty() || self.open.len() >= Self::LEAF_MIN)
    }

    /// Adds a leaf of these entries, which can be shared, and returns it.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`]; any other error poisons the transaction.
    pub fn add_leaf(
        &mut self,
        tx: &mut Transaction,
        entries: &[(u64, V)],
    ) -> Result<BlockNr, Error> {
        assert!(self.can_share(entries.len()), "a leaf that is full enough");
        // Each value may be counted by a bitmap of its own, which the commit then writes.
        tx.check_room_for_adding(2 * entries.len().min(tx.unchanged_disk_bitmaps()))?;
        tx.change(Growth::Adds, |tx| {
            self.write_open(tx)?;
            self.open.extend_from_slice(entries);
            self.write_leaf(tx, entries.len())
        })?;
        let Some((_, leaf)) = self.leaves.last() else {
            unreachable!("one was just written")
        };
        Ok(*leaf)
    }

    /// Adds a leaf with this first key that [`TreeBuilder::add_leaf`] has added to another tree. It must be one
    /// that can follow here.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`]; any other error poisons the transaction.
    pub fn share_leaf(
        &mut self,
        tx: &mut Transaction,
        first_key: u64,
        leaf: BlockNr,
    ) -> Result<(), Error> {
        tx.change(Growth::Adds, |tx| {
            self.write_open(tx)?;
            tx.inc(leaf)
        })?;
        self.leaves.push((first_key, leaf));
        Ok(())
    }

    /// Ends the tree, which is not to be added to any more.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`]; any other error poisons the transaction.
    pub fn finish(&mut self, tx: &mut Transaction) -> Result<Btree<V>, Error> {
        let inner = self.leaves.len() / (max_entries(CHILD_SIZE) / 2);
        tx.check_room_for_adding(inner)?;
        let root = tx.change(Growth::Adds, |tx| {
            if self.open.len() < Self::LEAF_MIN {
                self.reopen_last(tx)?;
            }
            self.write_open(tx)?;
            let mut nodes = std::mem::take(&mut self.leaves);
            while nodes.len() > 1 {
                nodes = write_parents(tx, &nodes)?;
            }
            match nodes.first() {
                Some((_, root)) => Ok(*root),
                None => tx.new_node(empty_leaf(V::SIZE)),
            }
        })?;
        Ok(Btree::from_root(root))
    }

    /// Makes entries of the last leaf again, if there is one.
    fn reopen_last(&mut self, tx: &mut Transaction) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        let Some((_, leaf)) = self.leaves.pop() else {
            return Ok(());
        };
        let mut entries: Vec<(u64, V)> = {
            let block = tx.read_node(leaf)?;
            let node = Node::new(&block);
            (0..node.len())
                .map(|index| (node.key(index), node.value(index)))
                .collect()
        };
        if tx.dec(leaf)? > 0 {
            // The other tree keeps it, and this one gets a copy.
            for (_, value) in &entries {
                value.inc(tx)?;
            }
        }
        entries.append(&mut self.open);
        self.open = entries;
        Ok(())
    }

    /// Writes all that is open, in leaves that are full enough.
    fn write_open(&mut self, tx: &mut Transaction) -> Result<(), Error> {
        if self.open.len() > Self::LEAF_MAX {
            self.write_leaf(tx, self.open.len() / 2)?;
        }
        match self.open.len() {
            0 => Ok(()),
            left => self.write_leaf(tx, left),
        }
    }

    /// Writes the first of the open entries.
    fn write_leaf(&mut self, tx: &mut Transaction, entries: usize) -> Result<(), Error> {
        let mut block = empty_leaf(V::SIZE);
        let mut node = NodeMut::new(&mut block);
        for (index, (key, value)) in self.open.drain(..entries).enumerate() {
            node.insert_value(index, key, &value);
        }
        let Some(first_key) = node.as_ref().first_key() else {
            unreachable!("a leaf is written of entries")
        };
        self.leaves.push((first_key, tx.new_node(block)?));
        Ok(())
    }
}

/// Writes the level above these nodes, each of its nodes at least half full, or alone.
fn write_parents(
    tx: &mut Transaction,
    children: &[(u64, BlockNr)],
) -> Result<Vec<(u64, BlockNr)>, Error> {
    let count = children.len().div_ceil(max_entries(CHILD_SIZE));
    let mut parents = Vec::with_capacity(count);
    let mut rest = children;
    for left in (1..=count).rev() {
        let (mine, others) = rest.split_at(rest.len().div_ceil(left));
        rest = others;
        let mut block = Block::zeroed();
        let mut node = NodeMut::new(&mut block);
        node.init_internal();
        for (index, (key, child)) in mine.iter().enumerate() {
            node.insert_child(index, *key, *child);
        }
        parents.push((mine[0].0, tx.new_node(block)?));
    }
    Ok(parents)
}
