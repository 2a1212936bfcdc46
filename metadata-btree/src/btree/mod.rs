//! B+trees from 64-bit keys to small values, by shadow paging.
//!
//! Rules that hold between operations (the format's, and cited as invariant 6): keys in a node
//! ascend; all leaves are equally deep; the key of a child is at most the child's least key; every
//! node but the root is at least a third full. A key of a child may be too low, since removing the
//! child's first entry need not raise it, but never too high.
//!
//! Every step from a node to its child checks what the child must be on the way down: a leaf with
//! values of this tree's size or an internal node, with keys in the interval its parent leaves
//! ([`Span`]). That also keeps damaged trees from leading in circles, together with
//! [`DEPTH_MAX`].

mod build;
mod insert;
mod lookup;
mod remove;

pub use build::TreeBuilder;

use std::fmt;
use std::marker::PhantomData;

use crate::block::BlockNr;
use crate::checksum::BlockKind;
use crate::codec::Value;
use crate::error::{BlockCheck, Error};
use crate::node::{CHILD_SIZE, Node};
use crate::transaction::{Growth, Transaction, check_value_size, empty_leaf};

/// Levels of a tree. The tallest that fits the largest metadata, a third full, has six.
pub(crate) const DEPTH_MAX: usize = 16;

/// A tree, by the block number of its root.
///
/// The root moves when the tree is changed; the methods that change it keep the handle up to date.
/// Copies of a handle made before are then stale.
pub struct Btree<V: Value> {
    root: BlockNr,
    values: PhantomData<fn() -> V>,
}

impl<V: Value> Clone for Btree<V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<V: Value> Copy for Btree<V> {}

impl<V: Value> fmt::Debug for Btree<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Btree({})", self.root)
    }
}

impl<V: Value> Btree<V> {
    const VALUE_SIZE: usize = {
        assert!(
            matches!(V::SIZE, 4 | CHILD_SIZE | 16 | 24),
            "unsupported value size"
        );
        V::SIZE
    };

    /// Makes a tree without entries, whose root has count 1.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`], [`Error::Poisoned`].
    pub fn empty(tx: &mut Transaction) -> Result<Self, Error> {
        let root = tx.change(Growth::Adds, |tx| tx.new_node(empty_leaf(Self::VALUE_SIZE)))?;
        Ok(Self::from_root(root))
    }

    /// The tree with this root.
    pub fn from_root(root: BlockNr) -> Self {
        Self {
            root,
            values: PhantomData,
        }
    }

    /// The root's block number.
    pub fn root(&self) -> BlockNr {
        self.root
    }
}

/// The keys that may occur under a node, both ends included.
#[derive(Clone, Copy)]
struct Span {
    low: u64,
    high: u64,
}

impl Span {
    const ALL: Self = Self {
        low: 0,
        high: u64::MAX,
    };

    /// The keys that may occur under a child, given those of its parent.
    fn of_child(self, parent: Node<'_>, index: usize) -> Self {
        let low = parent.key(index);
        let last = index + 1 == parent.len();
        // Keys ascend, so the next one is at least 1.
        let high = if last {
            self.high
        } else {
            parent.key(index + 1) - 1
        };
        Self { low, high }
    }

    fn overlaps(self, other: Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }

    fn contains(self, other: Self) -> bool {
        self.low <= other.low && other.high <= self.high
    }
}

/// Checks a node against the place it was reached at.
fn check_node<V: Value>(nr: BlockNr, node: Node<'_>, span: Span) -> Result<(), Error> {
    check_value_size::<V>(nr, node)?;
    let (Some(first), Some(last)) = (node.first_key(), node.last_key()) else {
        return Ok(());
    };
    if span.low <= first && last <= span.high {
        return Ok(());
    }
    let found = if first < span.low { first } else { last };
    let check = BlockCheck::KeyBounds {
        found,
        low: span.low,
        high: span.high,
    };
    Err(Error::BadBlock {
        nr,
        kind: BlockKind::Node,
        check,
    })
}

fn check_depth(nr: BlockNr, depth: usize) -> Result<(), Error> {
    if depth < DEPTH_MAX {
        return Ok(());
    }
    let check = BlockCheck::TooDeep { max: DEPTH_MAX };
    Err(Error::BadBlock {
        nr,
        kind: BlockKind::Node,
        check,
    })
}
