//! Removing entries, one or a range, and dropping whole trees.
//!
//! A range is removed in two passes. The first goes down both edges of the range, shadowing only
//! nodes that keep some of their keys; whatever lies wholly between the edges is dropped without
//! being shadowed, and shared parts of it without being changed at all. That leaves nodes along
//! the two edges too empty, perhaps on every level. The second pass goes down the same edges and
//! merges such nodes with a neighbour, or evens them out.
//!
//! A node whose parent has no other child cannot be mended there and then; but such a parent is
//! too empty itself and gets siblings for its child when it is merged. So the second pass is
//! repeated until there is nothing left to mend, at most once for each level. The root, finally,
//! gives way to its child when it has only one.

use std::ops::{Range, RangeBounds};

use probe::{Mark, Sabotage, is_sabotaged, mark};

use crate::block::BlockNr;
use crate::btree::insert::set_first_key;
use crate::btree::lookup::span_of;
use crate::btree::{Btree, DEPTH_MAX, Span, check_depth, check_node};
use crate::checksum::BlockKind;
use crate::codec::Value;
use crate::error::{BlockCheck, Error};
use crate::node::{Node, NodeMut, shift};
use crate::source::ReadNode;
use crate::transaction::{Growth, Transaction};

impl<V: Value> Btree<V> {
    /// Removes a key and returns its value, which loses its reference.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`] with nothing changed; any other error in the middle of the
    /// change poisons the transaction.
    pub fn remove(&mut self, tx: &mut Transaction, key: u64) -> Result<Option<V>, Error> {
        tx.check_alive()?;
        let value = self.lookup(&*tx, key)?;
        if value.is_some() {
            let removed = self.remove_span(
                tx,
                Span {
                    low: key,
                    high: key,
                },
            )?;
            assert_eq!(removed, 1, "a key that was found is removed once");
        }
        Ok(value)
    }

    /// Removes all keys in the range, and returns how many there were. Their values lose their
    /// references, except those in shared nodes that are given up whole.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`] with nothing changed; any other error in the middle of the
    /// change poisons the transaction.
    pub fn remove_range(
        &mut self,
        tx: &mut Transaction,
        keys: impl RangeBounds<u64>,
    ) -> Result<u64, Error> {
        tx.check_alive()?;
        let Some(span) = span_of(&keys) else {
            return Ok(0);
        };
        if !Self::any_key_below(&*tx, self.root, span, Span::ALL, 0)? {
            return Ok(0);
        }
        self.remove_span(tx, span)
    }

    fn remove_span(&mut self, tx: &mut Transaction, range: Span) -> Result<u64, Error> {
        let (root, removed) = tx.change(Growth::Keeps, |tx| {
            let root = tx.shadow::<V>(self.root)?;
            let removed = erase::<V>(tx, root, range, Span::ALL, 0)?;
            let root = mend_edges::<V>(tx, root, range)?;
            Ok((root, removed))
        })?;
        self.root = root;
        Ok(removed)
    }

    /// Gives up one reference to the tree. If it was the last, everything below goes with it:
    /// nodes, and the references of the values, except below nodes that others share.
    ///
    /// # Errors
    /// Any error poisons the transaction.
    pub fn drop_tree(self, tx: &mut Transaction) -> Result<(), Error> {
        tx.change(Growth::Frees, |tx| {
            drop_node::<V>(tx, self.root, Span::ALL, 0)
        })
    }
}

fn drop_node<V: Value>(
    tx: &mut Transaction,
    nr: BlockNr,
    span: Span,
    depth: usize,
) -> Result<(), Error> {
    if tx.count(nr)? > 1 {
        mark(Mark::SharedNodeDropped);
        return tx.dec(nr).map(drop);
    }
    match read_below::<V>(tx, nr, span, depth)? {
        Below::Values(values) => {
            for value in values {
                value.dec(tx)?;
            }
        }
        Below::Children(children) => {
            for (child, span) in children {
                drop_node::<V>(tx, child, span, depth + 1)?;
            }
        }
    }
    tx.dec(nr).map(drop)
}

/// Like [`drop_node`], and returns the number of entries under the node, shared or not.
fn drop_counted<V: Value>(
    tx: &mut Transaction,
    nr: BlockNr,
    span: Span,
    depth: usize,
) -> Result<u64, Error> {
    if tx.count(nr)? > 1 {
        let entries = count_entries::<V>(tx, nr, span, depth)?;
        tx.dec(nr)?;
        return Ok(entries);
    }
    let mut entries = 0;
    match read_below::<V>(tx, nr, span, depth)? {
        Below::Values(values) => {
            entries = values.len() as u64;
            for value in values {
                value.dec(tx)?;
            }
        }
        Below::Children(children) => {
            for (child, span) in children {
                entries += drop_counted::<V>(tx, child, span, depth + 1)?;
            }
        }
    }
    tx.dec(nr)?;
    Ok(entries)
}

fn count_entries<V: Value>(
    tx: &Transaction,
    nr: BlockNr,
    span: Span,
    depth: usize,
) -> Result<u64, Error> {
    match read_below::<V>(tx, nr, span, depth)? {
        Below::Values(values) => Ok(values.len() as u64),
        Below::Children(children) => children
            .into_iter()
            .map(|(child, span)| count_entries::<V>(tx, child, span, depth + 1))
            .sum(),
    }
}

/// What a node names.
enum Below<V> {
    Values(Vec<V>),
    Children(Vec<(BlockNr, Span)>),
}

fn read_below<V: Value>(
    tx: &Transaction,
    nr: BlockNr,
    span: Span,
    depth: usize,
) -> Result<Below<V>, Error> {
    check_depth(nr, depth)?;
    let block = tx.read_node(nr)?;
    let node = Node::new(&block);
    check_node::<V>(nr, node, span)?;
    if node.is_leaf() {
        return Ok(Below::Values(node.values(0..node.len())));
    }
    let children = (0..node.len()).map(|index| (node.child(index), span.of_child(node, index)));
    Ok(Below::Children(children.collect()))
}

/// Removes a range of keys below a shadowed node, and nodes that become empty. Others may end up
/// too empty.
fn erase<V: Value>(
    tx: &mut Transaction,
    nr: BlockNr,
    range: Span,
    span: Span,
    depth: usize,
) -> Result<u64, Error> {
    check_depth(nr, depth)?;
    let mut node = NodeMut::new(tx.node_mut(nr)?);
    check_node::<V>(nr, node.as_ref(), span)?;
    if node.as_ref().is_leaf() {
        let start = node.as_ref().lower_bound(range.low);
        let end = range
            .high
            .checked_add(1)
            .map(|key| node.as_ref().lower_bound(key));
        let gone = start..end.unwrap_or(node.as_ref().len());
        let values = node.as_ref().values::<V>(gone.clone());
        node.remove(gone);
        if is_sabotaged(Sabotage::ForgetDecrement) && values.len() > 1 {
            values[0].dec(tx)?;
            return Ok(values.len() as u64);
        }
        for value in &values {
            value.dec(tx)?;
        }
        return Ok(values.len() as u64);
    }
    let len = node.as_ref().len();
    let children: Vec<_> = (0..len)
        .map(|index| {
            (
                index,
                node.as_ref().child(index),
                span.of_child(node.as_ref(), index),
            )
        })
        .filter(|(_, _, span)| span.overlaps(range))
        .collect();
    let mut removed = 0;
    let mut gone: Option<Range<usize>> = None;
    for (index, child, child_span) in children {
        let (entries, vanished) = if range.contains(child_span) {
            (drop_counted::<V>(tx, child, child_span, depth + 1)?, true)
        } else {
            erase_edge::<V>(tx, (nr, index), child, range, child_span, depth + 1)?
        };
        removed += entries;
        if vanished {
            gone.get_or_insert(index..index).end = index + 1;
        }
    }
    if let Some(gone) = gone {
        // What vanishes is contiguous: only the two outermost children can keep entries.
        NodeMut::new(tx.node_mut(nr)?).remove(gone);
    }
    Ok(removed)
}

/// Removes what the range takes of a child that it covers in part. Returns the number of entries
/// removed, and whether the child vanished with them.
fn erase_edge<V: Value>(
    tx: &mut Transaction,
    (parent, index): (BlockNr, usize),
    child: BlockNr,
    range: Span,
    span: Span,
    depth: usize,
) -> Result<(u64, bool), Error> {
    if !Btree::<V>::any_key_below(&*tx, child, range, span, depth)? {
        return Ok((0, false));
    }
    let nr = shadow_child::<V>(tx, parent, index)?;
    let removed = erase::<V>(tx, nr, range, span, depth)?;
    let is_empty = Node::new(tx.node_mut(nr)?).len() == 0;
    if is_empty {
        tx.dec(nr)?;
    }
    Ok((removed, is_empty))
}

fn shadow_child<V: Value>(
    tx: &mut Transaction,
    parent: BlockNr,
    index: usize,
) -> Result<BlockNr, Error> {
    let node = Node::new(tx.node_mut(parent)?);
    let (child, span) = (node.child(index), Span::ALL.of_child(node, index));
    let nr = tx.shadow::<V>(child)?;
    check_node::<V>(nr, Node::new(tx.node_mut(nr)?), span)?;
    NodeMut::new(tx.node_mut(parent)?).set_child(index, nr);
    Ok(nr)
}

/// Fills up nodes along both edges of a removed range. Returns the root, which may be another.
fn mend_edges<V: Value>(
    tx: &mut Transaction,
    root: BlockNr,
    range: Span,
) -> Result<BlockNr, Error> {
    let mut root = root;
    for _ in 0..=DEPTH_MAX {
        root = collapse_root::<V>(tx, root)?;
        let low_is_sound = mend_path::<V>(tx, root, range.low, 0)?;
        let high_is_sound = mend_path::<V>(tx, root, range.high, 0)?;
        if low_is_sound && high_is_sound {
            return collapse_root::<V>(tx, root);
        }
    }
    let check = BlockCheck::TooDeep { max: DEPTH_MAX };
    Err(Error::BadBlock {
        nr: root,
        kind: BlockKind::Node,
        check,
    })
}

/// Replaces a root with one child by the child, and one without any by an empty leaf.
fn collapse_root<V: Value>(tx: &mut Transaction, root: BlockNr) -> Result<BlockNr, Error> {
    let mut root = root;
    for _ in 0..=DEPTH_MAX {
        let child = {
            let block = tx.read_node(root)?;
            let node = Node::new(&block);
            if node.is_leaf() || node.len() > 1 {
                return Ok(root);
            }
            (node.len() == 1).then(|| node.child(0))
        };
        let Some(child) = child else {
            NodeMut::new(tx.node_mut(root)?).init_leaf(V::SIZE);
            return Ok(root);
        };
        // The child's one reference from here passes to whoever names the tree.
        mark(Mark::RootCollapsed);
        tx.dec(root)?;
        root = child;
    }
    let check = BlockCheck::TooDeep { max: DEPTH_MAX };
    Err(Error::BadBlock {
        nr: root,
        kind: BlockKind::Node,
        check,
    })
}

/// Mends the nodes on the way to a key, lowest first. Returns whether all of them are full enough.
fn mend_path<V: Value>(
    tx: &mut Transaction,
    nr: BlockNr,
    key: u64,
    depth: usize,
) -> Result<bool, Error> {
    check_depth(nr, depth)?;
    if !tx.is_owned(nr) {
        // Not changed by this operation, so neither it nor anything below it needs mending.
        return Ok(true);
    }
    let node = Node::new(tx.node_mut(nr)?);
    if node.is_leaf() {
        return Ok(true);
    }
    let index = node.child_index(key).unwrap_or(0);
    let child = node.child(index);
    if !tx.is_owned(child) {
        return Ok(true);
    }
    let is_sound_below = mend_path::<V>(tx, child, key, depth + 1)?;
    let is_sound_here = mend_child::<V>(tx, nr, index)?;
    Ok(is_sound_below && is_sound_here)
}

/// Brings a child up to the least number of entries, if it has a sibling.
fn mend_child<V: Value>(
    tx: &mut Transaction,
    parent: BlockNr,
    index: usize,
) -> Result<bool, Error> {
    let mut index = index;
    loop {
        let node = Node::new(tx.node_mut(parent)?);
        let (siblings, child) = (node.len(), node.child(index));
        let child = Node::new(tx.node_mut(child)?);
        if child.len() >= child.min_len() {
            return Ok(true);
        }
        if siblings == 1 {
            return Ok(false);
        }
        let left_index = index.saturating_sub(1);
        let left = shadow_child::<V>(tx, parent, left_index)?;
        let right = shadow_child::<V>(tx, parent, left_index + 1)?;
        balance_pair(tx, parent, left_index, (left, right))?;
        index = left_index;
    }
}

/// Merges two neighbours, or spreads their entries evenly if there are too many for one.
fn balance_pair(
    tx: &mut Transaction,
    parent: BlockNr,
    left_index: usize,
    (left_nr, right_nr): (BlockNr, BlockNr),
) -> Result<(), Error> {
    let (left, right) = tx.node_pair(left_nr, right_nr)?;
    let (left_node, right_node) = (Node::new(left), Node::new(right));
    if left_node.is_leaf() != right_node.is_leaf() {
        let check = BlockCheck::Depth;
        return Err(Error::BadBlock {
            nr: right_nr,
            kind: BlockKind::Node,
            check,
        });
    }
    let total = left_node.len() + right_node.len();
    // A merged node has a little room on both sides of the limits.
    if total < 2 * (left_node.min_len() + 1) {
        mark(Mark::NodesMerged);
        shift(left, right, total);
        NodeMut::new(tx.node_mut(parent)?).remove(left_index + 1..left_index + 2);
        // What the right node named is named by the left one now, so only itself goes.
        return tx.dec(right_nr).map(drop);
    }
    mark(Mark::NodesBalanced);
    shift(left, right, total / 2);
    set_first_key(tx, parent, left_index + 1, right_nr)
}
