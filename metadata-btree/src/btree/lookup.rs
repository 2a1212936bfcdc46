//! Reading a tree: one key, a range, and what only this tree holds on to.

use std::ops::{Bound, ControlFlow, RangeBounds};

use crate::block::BlockNr;
use crate::btree::{Btree, Span, check_depth, check_node};
use crate::codec::Value;
use crate::error::Error;
use crate::node::Node;
use crate::source::NodeSource;
use crate::version::View;

impl<V: Value> Btree<V> {
    /// The value of a key.
    ///
    /// # Errors
    /// When a node on the way cannot be read or is damaged.
    pub fn lookup(&self, source: &impl NodeSource, key: u64) -> Result<Option<V>, Error> {
        let (mut nr, mut span) = (self.root, Span::ALL);
        for depth in 0.. {
            check_depth(nr, depth)?;
            let block = source.read_node(nr)?;
            let node = Node::new(&block);
            check_node::<V>(nr, node, span)?;
            if node.is_leaf() {
                return Ok(node.find(key).ok().map(|index| node.value(index)));
            }
            let Some(index) = node.child_index(key) else {
                break;
            };
            span = span.of_child(node, index);
            nr = node.child(index);
        }
        Ok(None)
    }

    /// Calls `f` with the entries whose keys are in the range, ascending, until it breaks.
    ///
    /// # Errors
    /// When a node on the way cannot be read or is damaged.
    pub fn for_each(
        &self,
        source: &impl NodeSource,
        keys: impl RangeBounds<u64>,
        f: &mut dyn FnMut(u64, V) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let Some(wanted) = span_of(&keys) else {
            return Ok(());
        };
        let mut walk = Walk {
            source,
            enter: |_| Ok(true),
            f,
        };
        walk.node(self.root, wanted, Span::ALL, 0).map(drop)
    }

    /// Calls `f` with the entries in the range that dropping the tree would take a reference away from: those
    /// not below a node that others share, the root included. Ascending, until it breaks.
    ///
    /// # Errors
    /// When a node on the way, or the count of one, cannot be read or is damaged.
    pub fn for_each_exclusive(
        &self,
        source: &View,
        keys: impl RangeBounds<u64>,
        f: &mut dyn FnMut(u64, V) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let Some(wanted) = span_of(&keys) else {
            return Ok(());
        };
        let enter = |nr| source.count(nr).map(|count| count <= 1);
        let mut walk = Walk { source, enter, f };
        walk.node(self.root, wanted, Span::ALL, 0).map(drop)
    }

    /// Whether any key lies in the interval, looking below a node at a known place.
    pub(super) fn any_key_below(
        source: &impl NodeSource,
        nr: BlockNr,
        wanted: Span,
        span: Span,
        depth: usize,
    ) -> Result<bool, Error> {
        let mut stop = |_: u64, _: V| ControlFlow::Break(());
        let mut walk = Walk {
            source,
            enter: |_| Ok(true),
            f: &mut stop,
        };
        Ok(walk.node(nr, wanted, span, depth)?.is_break())
    }
}

/// The interval of a range of keys, or none if it is empty.
pub(super) fn span_of(keys: &impl RangeBounds<u64>) -> Option<Span> {
    let low = match keys.start_bound() {
        Bound::Included(&key) => key,
        Bound::Excluded(&key) => key.checked_add(1)?,
        Bound::Unbounded => 0,
    };
    let high = match keys.end_bound() {
        Bound::Included(&key) => key,
        Bound::Excluded(&key) => key.checked_sub(1)?,
        Bound::Unbounded => u64::MAX,
    };
    (low <= high).then_some(Span { low, high })
}

/// A walk over a part of a tree.
struct Walk<'a, V, S, E> {
    source: &'a S,
    /// Whether to look at a node at all.
    enter: E,
    f: &'a mut dyn FnMut(u64, V) -> ControlFlow<()>,
}

impl<V: Value, S: NodeSource, E: FnMut(BlockNr) -> Result<bool, Error>> Walk<'_, V, S, E> {
    fn node(
        &mut self,
        nr: BlockNr,
        wanted: Span,
        span: Span,
        depth: usize,
    ) -> Result<ControlFlow<()>, Error> {
        check_depth(nr, depth)?;
        if !(self.enter)(nr)? {
            return Ok(ControlFlow::Continue(()));
        }
        let source = self.source;
        let block = source.read_node(nr)?;
        let node = Node::new(&block);
        check_node::<V>(nr, node, span)?;
        let start = match node.is_leaf() {
            true => node.lower_bound(wanted.low),
            false => node.child_index(wanted.low).unwrap_or(0),
        };
        for index in start..node.len() {
            if node.key(index) > wanted.high {
                break;
            }
            let flow = if node.is_leaf() {
                (self.f)(node.key(index), node.value(index))
            } else {
                self.node(
                    node.child(index),
                    wanted,
                    span.of_child(node, index),
                    depth + 1,
                )?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
