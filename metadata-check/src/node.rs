//! A btree node: where its entries are and what its header must say.
//!
//! After the 32-byte header come `max_entries` keys, then `max_entries` values; only the first
//! `nr_entries` of each mean anything. `max_entries` follows from the value size, so a node with another
//! one is refused: its values would be looked for in the wrong place.

use crate::finding::{BlockKind, FindingKind, Role};
use crate::layout::{Block, LoadError, le32, le64, load};
use crate::source::BlockSource;

const FLAGS: usize = 4;
const NR_ENTRIES: usize = 16;
const MAX_ENTRIES: usize = 20;
const VALUE_SIZE: usize = 24;
const KEYS: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
const POINTER_SIZE: u32 = 8;

/// A node with a sound header. Its keys and values have not been looked at.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    block: Box<Block>,
    leaf: bool,
    entries: u32,
    max_entries: u32,
    value_size: u32,
}

/// A value of a mapping leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) data_block: u64,
    pub(crate) time: u32,
}

impl Mapping {
    /// The time is the low 24 bits, the data block the 40 above.
    fn decode(value: u64) -> Self {
        let [first, second, third, ..] = value.to_le_bytes();
        Self {
            data_block: value >> 24,
            time: u32::from_le_bytes([first, second, third, 0]),
        }
    }
}

impl Node {
    /// Reads block `number` as a node of the tree that `role` belongs to.
    pub(crate) fn load(
        source: &dyn BlockSource,
        role: Role,
        number: u64,
    ) -> Result<Self, LoadError> {
        let block = load(source, BlockKind::Node, number)?;
        Self::decode(role, block).map_err(LoadError::Bad)
    }

    fn decode(role: Role, block: Box<Block>) -> Result<Self, FindingKind> {
        let leaf = match le32(&*block, FLAGS) {
            INTERNAL => false,
            LEAF => true,
            found => return Err(FindingKind::BadNodeFlags { role, found }),
        };
        let expected = if leaf {
            leaf_value_size(role)
        } else {
            POINTER_SIZE
        };
        let value_size = le32(&*block, VALUE_SIZE);
        if value_size != expected {
            return Err(FindingKind::BadValueSize {
                role,
                expected,
                found: value_size,
            });
        }
        let expected = capacity(value_size);
        let max_entries = le32(&*block, MAX_ENTRIES);
        if max_entries != expected {
            return Err(FindingKind::BadMaxEntries {
                role,
                expected,
                found: max_entries,
            });
        }
        let entries = le32(&*block, NR_ENTRIES);
        if entries > max_entries {
            return Err(FindingKind::BadNrEntries {
                role,
                max: max_entries,
                found: entries,
            });
        }
        Ok(Self {
            block,
            leaf,
            entries,
            max_entries,
            value_size,
        })
    }

    /// A node of whichever tree has such leaves.
    pub(crate) fn of_any_tree(block: Box<Block>) -> Option<Self> {
        let role = match le32(&*block, VALUE_SIZE) {
            4 => Role::DataOverflow,
            8 => Role::Mapping,
            16 => Role::DataIndex,
            24 => Role::Details,
            _ => return None,
        };
        Self::decode(role, block).ok()
    }

    /// How many entries a leaf of the tree that `role` belongs to has room for.
    pub(crate) fn leaf_capacity(role: Role) -> u32 {
        capacity(leaf_value_size(role))
    }

    /// How many children an internal node has room for.
    pub(crate) fn internal_capacity() -> u32 {
        capacity(POINTER_SIZE)
    }

    /// Bytes of a value in the leaves of a tree.
    pub(crate) fn leaf_value_size(role: Role) -> u32 {
        leaf_value_size(role)
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(crate) fn len(&self) -> usize {
        self.entries as usize
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    pub(crate) fn key(&self, index: usize) -> u64 {
        assert!(
            index < self.len(),
            "key {index} of a node with {}",
            self.entries
        );
        le64(&*self.block, KEYS + 8 * index)
    }

    /// All keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = u64> {
        self.fields(KEYS)
    }

    /// All values of a mapping leaf.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = Mapping> {
        debug_assert_eq!(self.value_size, POINTER_SIZE, "a leaf of mappings");
        self.fields(self.values_at()).map(Mapping::decode)
    }

    /// The 64-bit fields from `offset` on, one an entry.
    fn fields(&self, offset: usize) -> impl Iterator<Item = u64> {
        let (fields, _) = self.block[offset..].as_chunks();
        fields[..self.len()].iter().copied().map(u64::from_le_bytes)
    }

    fn values_at(&self) -> usize {
        KEYS + 8 * self.max_entries as usize
    }

    pub(crate) fn value(&self, index: usize) -> &[u8] {
        assert!(
            index < self.len(),
            "value {index} of a node with {}",
            self.entries
        );
        let size = self.value_size as usize;
        let start = self.values_at() + size * index;
        &self.block[start..start + size]
    }

    /// Value `index` as the block number it is in an internal or a top-level node.
    pub(crate) fn pointer(&self, index: usize) -> u64 {
        le64(self.value(index), 0)
    }

    /// Bytes of a value.
    pub(crate) fn value_size(&self) -> u8 {
        u8::try_from(self.value_size).unwrap_or(u8::MAX)
    }

    /// Whether each key is larger than the one before.
    pub(crate) fn is_ascending(&self) -> bool {
        self.keys().is_sorted_by(|key, next| key < next)
    }

    pub(crate) fn last_key(&self) -> Option<u64> {
        let last = self.len().checked_sub(1)?;
        Some(self.key(last))
    }

    pub(crate) fn first_key(&self) -> Option<u64> {
        (self.entries > 0).then(|| self.key(0))
    }
}

fn leaf_value_size(role: Role) -> u32 {
    match role {
        Role::TopLevel | Role::Mapping => 8,
        Role::Details => 24,
        Role::DataIndex => 16,
        Role::DataOverflow | Role::MetadataOverflow => 4,
        Role::Superblock
        | Role::MetadataSnapshot
        | Role::DataBitmap
        | Role::MetadataIndex
        | Role::MetadataBitmap => unreachable!("{role} is not a tree"),
    }
}

fn capacity(value_size: u32) -> u32 {
    let fit = (4096 - 32) / (8 + value_size);
    fit / 3 * 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacities() {
        assert_eq!([8, 24, 16, 4].map(capacity), [252, 126, 168, 336]);
    }
}
