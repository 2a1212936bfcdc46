//! Inserting and replacing.
//!
//! One pass from the root to the leaf, shadowing on the way. A node that is full is given room
//! before it is entered, so that a child can always be added to its parent: by moving entries to a
//! neighbour that has room and is not shared, else by a split.
//!
//! Ascending keys, the usual case, always meet the last child of the last node. There entries are
//! moved to the left neighbour until that is full, and a split leaves two thirds on the left. Each
//! new node so begins a third full, its left neighbour is filled up when it is full itself for the
//! first time, and the tree behind the insertions consists of full nodes.

use probe::{Mark, mark};

use crate::block::{Block, BlockNr};
use crate::btree::{Btree, Span, check_depth, check_node};
use crate::codec::Value;
use crate::error::Error;
use crate::node::{Node, NodeMut, shift};
use crate::source::ReadNode;
use crate::transaction::{Growth, Transaction};

/// A neighbour with less room is not worth moving entries to.
const ROOM_MIN: usize = 8;

/// A node that was made changeable, and its place in its parent.
struct Step {
    nr: BlockNr,
    index: usize,
    span: Span,
}

impl<V: Value> Btree<V> {
    /// Makes `value` the value of `key`, and returns the one that it replaced.
    ///
    /// The replaced value loses its reference unless the new one has the same target. The new
    /// value's reference is the caller's to count.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`] with nothing changed; any other error poisons the
    /// transaction.
    pub fn insert(&mut self, tx: &mut Transaction, key: u64, value: V) -> Result<Option<V>, Error> {
        self.put(tx, Growth::Adds, key, value)
    }

    /// Like [`insert`](Btree::insert) for a key that is present; without it, does nothing.
    ///
    /// Since nothing is added, this may take the last blocks, those that removals keep for
    /// themselves. It is meant for entries that must follow a removal elsewhere.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`] with nothing changed; any other error in the middle of the
    /// change poisons the transaction.
    pub fn replace(
        &mut self,
        tx: &mut Transaction,
        key: u64,
        value: V,
    ) -> Result<Option<V>, Error> {
        tx.check_alive()?;
        match self.lookup(&*tx, key)? {
            Some(_) => self.put(tx, Growth::Keeps, key, value),
            None => Ok(None),
        }
    }

    fn put(
        &mut self,
        tx: &mut Transaction,
        growth: Growth,
        key: u64,
        value: V,
    ) -> Result<Option<V>, Error> {
        let (root, replaced) = tx.change(growth, |tx| {
            let root = tx.shadow::<V>(self.root)?;
            let leaf = leaf_with_room::<V>(tx, root, key)?;
            let mut node = NodeMut::new(tx.node_mut(leaf)?);
            let replaced = match node.as_ref().find(key) {
                Ok(index) => {
                    let replaced = node.as_ref().value::<V>(index);
                    node.set_value(index, &value);
                    Some(replaced)
                }
                Err(index) => {
                    node.insert_value(index, key, &value);
                    None
                }
            };
            if let Some(replaced) = replaced
                && !replaced.same_target(&value)
            {
                replaced.dec(tx)?;
            }
            Ok((root, replaced))
        })?;
        self.root = root;
        Ok(replaced)
    }
}

/// Descends to the leaf where the key is or belongs; all nodes on the way can be changed.
fn leaf_with_room<V: Value>(
    tx: &mut Transaction,
    root: BlockNr,
    key: u64,
) -> Result<BlockNr, Error> {
    let mut nr = root;
    let mut span = Span::ALL;
    if lacks_room::<V>(tx, root, span, key)? {
        push_down_root(tx, root)?;
    }
    for depth in 0.. {
        check_depth(nr, depth)?;
        if Node::new(tx.node_mut(nr)?).is_leaf() {
            break;
        }
        let mut step = enter_child::<V>(tx, nr, span, key)?;
        if lacks_room::<V>(tx, step.nr, step.span, key)? {
            make_room::<V>(tx, nr, span, &step, key)?;
            step = enter_child::<V>(tx, nr, span, key)?;
        }
        (nr, span) = (step.nr, step.span);
    }
    Ok(nr)
}

/// Checks a node, and says whether it must be given room before the key can go below it.
fn lacks_room<V: Value>(
    tx: &mut Transaction,
    nr: BlockNr,
    span: Span,
    key: u64,
) -> Result<bool, Error> {
    let node = Node::new(tx.node_mut(nr)?);
    check_node::<V>(nr, node, span)?;
    Ok(node.is_full() && (!node.is_leaf() || node.find(key).is_err()))
}

/// Shadows the child under which the key belongs.
fn enter_child<V: Value>(
    tx: &mut Transaction,
    parent: BlockNr,
    span: Span,
    key: u64,
) -> Result<Step, Error> {
    let mut node = NodeMut::new(tx.node_mut(parent)?);
    let index = node.as_ref().child_index(key).unwrap_or_else(|| {
        // The least key of all: every node on the left edge must say so.
        node.set_key(0, key);
        0
    });
    let span = span.of_child(node.as_ref(), index);
    let child = node.as_ref().child(index);
    let nr = tx.shadow::<V>(child)?;
    if nr != child {
        NodeMut::new(tx.node_mut(parent)?).set_child(index, nr);
    }
    Ok(Step { nr, index, span })
}

/// Moves the contents of the root to a new only child. The root keeps its place.
fn push_down_root(tx: &mut Transaction, root: BlockNr) -> Result<(), Error> {
    mark(Mark::RootSplit);
    let copy = Block::clone(tx.node_mut(root)?);
    let Some(first_key) = Node::new(&copy).first_key() else {
        unreachable!("a node without room has entries");
    };
    let child = tx.new_node(copy)?;
    let mut node = NodeMut::new(tx.node_mut(root)?);
    node.init_internal();
    node.insert_child(0, first_key, child);
    Ok(())
}

/// Gives a full child room, on the side where the key will go.
fn make_room<V: Value>(
    tx: &mut Transaction,
    parent: BlockNr,
    span: Span,
    step: &Step,
    key: u64,
) -> Result<(), Error> {
    let children = Node::new(tx.node_mut(parent)?).len();
    let full = Node::new(tx.node_mut(step.nr)?);
    let is_last = step.index + 1 == children;
    let appends = is_last && full.last_key().is_some_and(|last| last < key);
    if step.index > 0
        && let Some(left) = roomy_sibling::<V>(tx, parent, span, step, step.index - 1)?
    {
        return move_left(tx, parent, left, step, appends);
    }
    if !is_last && let Some(right) = roomy_sibling::<V>(tx, parent, span, step, step.index + 1)? {
        return move_right(tx, parent, step, right);
    }
    split(tx, parent, step, appends)
}

/// The neighbour at `index`, shadowed, if moving entries to it is cheap and worth while.
fn roomy_sibling<V: Value>(
    tx: &mut Transaction,
    parent: BlockNr,
    span: Span,
    full: &Step,
    index: usize,
) -> Result<Option<BlockNr>, Error> {
    let node = Node::new(tx.node_mut(parent)?);
    let (sibling, span) = (node.child(index), span.of_child(node, index));
    if tx.count(sibling)? != 1 {
        return Ok(None);
    }
    let is_leaf = Node::new(tx.node_mut(full.nr)?).is_leaf();
    {
        let block = tx.read_node(sibling)?;
        let node = Node::new(&block);
        check_node::<V>(sibling, node, span)?;
        if node.is_leaf() != is_leaf || node.capacity() - node.len() < ROOM_MIN {
            return Ok(None);
        }
    }
    let nr = tx.shadow::<V>(sibling)?;
    NodeMut::new(tx.node_mut(parent)?).set_child(index, nr);
    Ok(Some(nr))
}

fn move_left(
    tx: &mut Transaction,
    parent: BlockNr,
    left: BlockNr,
    step: &Step,
    appends: bool,
) -> Result<(), Error> {
    let (left, right) = tx.node_pair(left, step.nr)?;
    let node = Node::new(right);
    let total = Node::new(left).len() + node.len();
    let target = if appends {
        node.capacity().min(total - node.min_len())
    } else {
        total / 2
    };
    shift(left, right, target);
    set_first_key(tx, parent, step.index, step.nr)
}

fn move_right(
    tx: &mut Transaction,
    parent: BlockNr,
    step: &Step,
    right: BlockNr,
) -> Result<(), Error> {
    let (left, right_block) = tx.node_pair(step.nr, right)?;
    let total = Node::new(left).len() + Node::new(right_block).len();
    shift(left, right_block, total / 2);
    set_first_key(tx, parent, step.index + 1, right)
}

fn split(tx: &mut Transaction, parent: BlockNr, step: &Step, appends: bool) -> Result<(), Error> {
    mark(Mark::NodeSplit);
    let full = Node::new(tx.node_mut(step.nr)?);
    let kept = if appends {
        full.len() - full.min_len()
    } else {
        full.len() / 2
    };
    let mut block = Block::zeroed();
    NodeMut::new(&mut block).init_like(full);
    let right = tx.new_node(block)?;
    let (left, right_block) = tx.node_pair(step.nr, right)?;
    shift(left, right_block, kept);
    let first_key = Node::new(right_block).key(0);
    NodeMut::new(tx.node_mut(parent)?).insert_child(step.index + 1, first_key, right);
    Ok(())
}

/// Brings a child's key in its parent up to date after entries moved.
pub(super) fn set_first_key(
    tx: &mut Transaction,
    parent: BlockNr,
    index: usize,
    child: BlockNr,
) -> Result<(), Error> {
    let Some(key) = Node::new(tx.node_mut(child)?).first_key() else {
        unreachable!("entries were moved so that both nodes have some");
    };
    NodeMut::new(tx.node_mut(parent)?).set_key(index, key);
    Ok(())
}
