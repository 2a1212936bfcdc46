//! Where things sit inside a tree node. The only file that knows.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | checksum |
//! | 4 | 4 | flags: 1 internal, 2 leaf |
//! | 8 | 8 | own block number |
//! | 16 | 4 | `nr_entries` |
//! | 20 | 4 | `max_entries` |
//! | 24 | 4 | `value_size` |
//! | 28 | 4 | padding |
//! | 32 | 8 x `max_entries` | keys, strictly ascending |
//! | then | `value_size` x `max_entries` | values, the i-th belonging to the i-th key |
//!
//! [`Node`] and [`NodeMut`] are only ever made over blocks that passed [`verify`] or were built
//! here, so a wrong size field is a broken invariant and not a damaged disk.

use std::ops::Range;

use crate::block::{BLOCK_SIZE, Block, BlockNr};
use crate::codec::{Value, get_u32, get_u64, put_u32, put_u64};
use crate::error::BlockCheck;
use crate::num::to_u32;

const FLAGS_AT: usize = 4;
const NR_ENTRIES_AT: usize = 16;
const MAX_ENTRIES_AT: usize = 20;
const VALUE_SIZE_AT: usize = 24;
const KEYS_AT: usize = 32;
const KEY_SIZE: usize = 8;

const FLAG_INTERNAL: u32 = 1;
const FLAG_LEAF: u32 = 2;

/// Bytes of an internal node's values, which are block numbers.
pub(crate) const CHILD_SIZE: usize = 8;
/// The largest value size.
pub(crate) const VALUE_SIZE_MAX: usize = 24;

/// Capacity of a node with values of this size: a multiple of three.
pub(crate) const fn max_entries(value_size: usize) -> usize {
    (BLOCK_SIZE - KEYS_AT) / (KEY_SIZE + value_size) / 3 * 3
}

const _: () = assert!(max_entries(4) == 336 && max_entries(8) == 252);
const _: () = assert!(max_entries(16) == 168 && max_entries(24) == 126);

/// Checks the header of a node and the order of its keys.
pub(crate) fn verify(block: &Block) -> Result<(), BlockCheck> {
    let bytes = block.as_bytes();
    let flags = get_u32(bytes, FLAGS_AT);
    if flags != FLAG_INTERNAL && flags != FLAG_LEAF {
        return Err(BlockCheck::Flags { found: flags });
    }
    let value_size = get_u32(bytes, VALUE_SIZE_AT);
    if flags == FLAG_INTERNAL && value_size != 8 {
        return Err(BlockCheck::ValueSize {
            expected: "8",
            found: value_size,
        });
    }
    if !matches!(value_size, 4 | 8 | 16 | 24) {
        return Err(BlockCheck::ValueSize {
            expected: "4, 8, 16 or 24",
            found: value_size,
        });
    }
    let expected = to_u32(max_entries(value_size as usize));
    let found = get_u32(bytes, MAX_ENTRIES_AT);
    if found != expected {
        return Err(BlockCheck::MaxEntries { expected, found });
    }
    let nr_entries = get_u32(bytes, NR_ENTRIES_AT);
    let min = u32::from(flags == FLAG_INTERNAL);
    if nr_entries < min || nr_entries > expected {
        return Err(BlockCheck::EntryCount {
            min,
            max: expected,
            found: nr_entries,
        });
    }
    let node = Node::new(block);
    match (1..node.len()).find(|&index| node.key(index - 1) >= node.key(index)) {
        Some(index) => Err(BlockCheck::KeyOrder {
            index: to_u32(index),
        }),
        None => Ok(()),
    }
}

/// A node to be read.
#[derive(Clone, Copy)]
pub(crate) struct Node<'a> {
    bytes: &'a [u8; BLOCK_SIZE],
}

impl<'a> Node<'a> {
    pub(crate) fn new(block: &'a Block) -> Self {
        Self {
            bytes: block.as_bytes(),
        }
    }

    pub(crate) fn is_leaf(self) -> bool {
        get_u32(self.bytes, FLAGS_AT) == FLAG_LEAF
    }

    /// Number of entries in use.
    pub(crate) fn len(self) -> usize {
        get_u32(self.bytes, NR_ENTRIES_AT) as usize
    }

    pub(crate) fn capacity(self) -> usize {
        get_u32(self.bytes, MAX_ENTRIES_AT) as usize
    }

    pub(crate) fn value_size(self) -> usize {
        get_u32(self.bytes, VALUE_SIZE_AT) as usize
    }

    pub(crate) fn is_full(self) -> bool {
        self.len() == self.capacity()
    }

    /// The least number of entries of a node that is not a root.
    pub(crate) fn min_len(self) -> usize {
        self.capacity() / 3
    }

    pub(crate) fn key(self, index: usize) -> u64 {
        get_u64(self.bytes, KEYS_AT + KEY_SIZE * index)
    }

    pub(crate) fn first_key(self) -> Option<u64> {
        (self.len() > 0).then(|| self.key(0))
    }

    pub(crate) fn last_key(self) -> Option<u64> {
        self.len().checked_sub(1).map(|last| self.key(last))
    }

    fn values_at(self) -> usize {
        KEYS_AT + KEY_SIZE * self.capacity()
    }

    pub(crate) fn value<V: Value>(self, index: usize) -> V {
        debug_assert!(self.is_leaf() && index < self.len());
        let at = self.values_at() + V::SIZE * index;
        V::decode(&self.bytes[at..at + V::SIZE])
    }

    pub(crate) fn child(self, index: usize) -> BlockNr {
        debug_assert!(!self.is_leaf() && index < self.len());
        BlockNr(get_u64(self.bytes, self.values_at() + CHILD_SIZE * index))
    }

    pub(crate) fn values<V: Value>(self, range: Range<usize>) -> Vec<V> {
        range.map(|index| self.value(index)).collect()
    }

    pub(crate) fn children(self) -> Vec<BlockNr> {
        (0..self.len()).map(|index| self.child(index)).collect()
    }

    /// Index of the first key that is not below `key`.
    pub(crate) fn lower_bound(self, key: u64) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The index of `key`, or where it would go.
    pub(crate) fn find(self, key: u64) -> Result<usize, usize> {
        let index = self.lower_bound(key);
        if index < self.len() && self.key(index) == key {
            Ok(index)
        } else {
            Err(index)
        }
    }

    /// Index of the last key that is not above `key`: the child under which it belongs.
    pub(crate) fn child_index(self, key: u64) -> Option<usize> {
        match self.find(key) {
            Ok(index) => Some(index),
            Err(index) => index.checked_sub(1),
        }
    }
}

/// A node to be changed.
pub(crate) struct NodeMut<'a> {
    bytes: &'a mut [u8; BLOCK_SIZE],
}

impl<'a> NodeMut<'a> {
    pub(crate) fn new(block: &'a mut Block) -> Self {
        Self {
            bytes: block.as_bytes_mut(),
        }
    }

    pub(crate) fn as_ref(&self) -> Node<'_> {
        Node { bytes: self.bytes }
    }

    /// Makes an empty leaf of the whole block.
    pub(crate) fn init_leaf(&mut self, value_size: usize) {
        self.init(FLAG_LEAF, value_size);
    }

    /// Makes an internal node without children of the whole block.
    pub(crate) fn init_internal(&mut self) {
        self.init(FLAG_INTERNAL, CHILD_SIZE);
    }

    fn init(&mut self, flags: u32, value_size: usize) {
        self.bytes.fill(0);
        put_u32(self.bytes, FLAGS_AT, flags);
        put_u32(self.bytes, MAX_ENTRIES_AT, to_u32(max_entries(value_size)));
        put_u32(self.bytes, VALUE_SIZE_AT, to_u32(value_size));
    }

    /// Makes an empty node of the same sort as the other.
    pub(crate) fn init_like(&mut self, other: Node<'_>) {
        let flags = if other.is_leaf() {
            FLAG_LEAF
        } else {
            FLAG_INTERNAL
        };
        self.init(flags, other.value_size());
    }

    fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.as_ref().capacity(),
            "more entries than a node can hold"
        );
        put_u32(self.bytes, NR_ENTRIES_AT, to_u32(len));
    }

    pub(crate) fn set_key(&mut self, index: usize, key: u64) {
        put_u64(self.bytes, KEYS_AT + KEY_SIZE * index, key);
    }

    pub(crate) fn set_child(&mut self, index: usize, child: BlockNr) {
        assert!(!self.as_ref().is_leaf() && index < self.as_ref().len());
        let at = self.as_ref().values_at() + CHILD_SIZE * index;
        put_u64(self.bytes, at, child.0);
    }

    pub(crate) fn set_value<V: Value>(&mut self, index: usize, value: &V) {
        assert!(self.as_ref().is_leaf() && index < self.as_ref().len());
        let at = self.as_ref().values_at() + V::SIZE * index;
        value.encode(&mut self.bytes[at..at + V::SIZE]);
    }

    pub(crate) fn insert_value<V: Value>(&mut self, index: usize, key: u64, value: &V) {
        assert!(self.as_ref().is_leaf() && self.as_ref().value_size() == V::SIZE);
        let mut bytes = [0; VALUE_SIZE_MAX];
        value.encode(&mut bytes[..V::SIZE]);
        self.insert(index, key, &bytes[..V::SIZE]);
    }

    pub(crate) fn insert_child(&mut self, index: usize, key: u64, child: BlockNr) {
        assert!(!self.as_ref().is_leaf());
        self.insert(index, key, &child.0.to_le_bytes());
    }

    fn insert(&mut self, index: usize, key: u64, value: &[u8]) {
        let len = self.as_ref().len();
        assert!(index <= len);
        self.set_len(len + 1);
        self.move_within(index..len, index + 1);
        self.set_key(index, key);
        let at = self.as_ref().values_at() + value.len() * index;
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    pub(crate) fn remove(&mut self, range: Range<usize>) {
        let len = self.as_ref().len();
        assert!(range.start <= range.end && range.end <= len);
        self.move_within(range.end..len, range.start);
        self.set_len(len - range.len());
    }

    fn move_within(&mut self, range: Range<usize>, to: usize) {
        let (values_at, size) = (self.as_ref().values_at(), self.as_ref().value_size());
        for (at, size) in [(KEYS_AT, KEY_SIZE), (values_at, size)] {
            self.bytes.copy_within(
                at + size * range.start..at + size * range.end,
                at + size * to,
            );
        }
    }

    fn copy_from(&mut self, to: usize, other: Node<'_>, range: Range<usize>) {
        let (values_at, size) = (self.as_ref().values_at(), self.as_ref().value_size());
        for (at, size) in [(KEYS_AT, KEY_SIZE), (values_at, size)] {
            self.bytes[at + size * to..at + size * (to + range.len())]
                .copy_from_slice(&other.bytes[at + size * range.start..at + size * range.end]);
        }
    }
}

/// Moves entries between two neighbours so that the left one holds `left_target`.
pub(crate) fn shift(left: &mut Block, right: &mut Block, left_target: usize) {
    let (mut left, mut right) = (NodeMut::new(left), NodeMut::new(right));
    let (left_len, right_len) = (left.as_ref().len(), right.as_ref().len());
    assert_eq!(left.as_ref().is_leaf(), right.as_ref().is_leaf());
    assert_eq!(left.as_ref().value_size(), right.as_ref().value_size());
    assert!(left_target <= left_len + right_len);
    if left_target >= left_len {
        let moved = left_target - left_len;
        left.set_len(left_target);
        left.copy_from(left_len, right.as_ref(), 0..moved);
        right.remove(0..moved);
    } else {
        let moved = left_len - left_target;
        right.set_len(right_len + moved);
        right.move_within(0..right_len, moved);
        right.copy_from(0, left.as_ref(), left_target..left_len);
        left.set_len(left_target);
    }
}
