//! What can go wrong, in terms a caller can act on.

use std::io;

use thiserror::Error;

use crate::block::BlockNr;
use crate::checksum::BlockKind;

/// An operation on metadata failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A block does not hold what the blocks naming it say. The metadata is damaged.
    #[error("metadata block {nr} ({kind}): {check}")]
    BadBlock {
        /// The damaged block.
        nr: BlockNr,
        /// What it was wanted as.
        kind: BlockKind,
        /// The check that failed.
        check: BlockCheck,
    },
    /// The count of a metadata block is not one that the operation can meet in sound metadata.
    #[error("metadata block {nr}: reference count {found}, expected {expected}")]
    BadCount {
        /// The block counted.
        nr: BlockNr,
        /// Which counts would do.
        expected: &'static str,
        /// The count found.
        found: u32,
    },
    /// The count of a disk block is not one that the operation can meet in sound metadata.
    #[error("disk block {block}: reference count {found}, expected {expected}")]
    BadDiskCount {
        /// The block counted.
        block: u64,
        /// Which counts would do.
        expected: &'static str,
        /// The count found.
        found: u32,
    },
    /// A bitmap says "3 or more" but the overflow tree has no such count.
    #[error("overflow tree at metadata block {root}: no count of 3 or more for block {block}")]
    NoOverflowCount {
        /// Root of the overflow tree.
        root: BlockNr,
        /// The block whose count is wanted.
        block: u64,
    },
    /// The bitmap index of the disk space map has no entry for a bitmap.
    #[error("bitmap index at metadata block {root}: no entry for bitmap {bitmap}")]
    NoBitmap {
        /// Root of the bitmap index.
        root: BlockNr,
        /// The bitmap wanted.
        bitmap: u64,
    },
    /// A size is out of bounds: shrinking, larger than the format allows, or than the store.
    #[error("{what}: {found} blocks, expected {min} to {max}")]
    BadSize {
        /// Whose size.
        what: &'static str,
        /// The size asked for.
        found: u64,
        /// Least acceptable size.
        min: u64,
        /// Greatest acceptable size.
        max: u64,
    },
    /// Too few metadata blocks can be allocated. Nothing was changed, and what was done before
    /// can be committed, unless the error came from the commit itself.
    #[error("out of metadata space: {available} blocks can be allocated, expected {needed}")]
    OutOfMetadataSpace {
        /// Blocks that can be allocated now.
        available: u64,
        /// Blocks the operation and the commit after it may need.
        needed: u64,
    },
    /// A disk block number is not below the number of disk blocks.
    #[error("disk block {block}: out of range, expected less than {blocks}")]
    DiskBlockOutOfRange {
        /// The number asked for.
        block: u64,
        /// Number of disk blocks.
        blocks: u64,
    },
    /// The block store failed.
    #[error("cannot {op} metadata{}", at(.nr))]
    Io {
        /// The block concerned, if one was.
        nr: Option<BlockNr>,
        /// What was tried: "read", "write", "flush", "measure" or "prepare the commit of".
        op: &'static str,
        /// The store's own error.
        source: io::Error,
    },
    /// An earlier error left the transaction half-changed: it can only be dropped.
    #[error("metadata transaction was given up after an earlier error")]
    Poisoned,
}

fn at(nr: &Option<BlockNr>) -> String {
    nr.map_or_else(String::new, |nr| format!(" block {nr}"))
}

/// The check that a metadata block failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlockCheck {
    /// The checksum over the block with the constant of its kind.
    #[error("bad checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// Computed from the contents.
        expected: u32,
        /// Stored in the block.
        found: u32,
    },
    /// The block's own number.
    #[error("bad own block number {found}, expected {expected}")]
    Location {
        /// Where it was read from.
        expected: BlockNr,
        /// Stored in the block.
        found: BlockNr,
    },
    /// The block lies beyond the end of the metadata.
    #[error("block number out of range, expected less than {blocks}")]
    OutOfRange {
        /// Number of metadata blocks.
        blocks: u64,
    },
    /// A node's flags.
    #[error("bad flags {found:#x}, expected 1 (internal) or 2 (leaf)")]
    Flags {
        /// Stored in the node.
        found: u32,
    },
    /// A node's value size.
    #[error("bad value size {found}, expected {expected}")]
    ValueSize {
        /// What the tree asks for.
        expected: &'static str,
        /// Stored in the node.
        found: u32,
    },
    /// A node's capacity.
    #[error("bad max_entries {found}, expected {expected}")]
    MaxEntries {
        /// What its value size asks for.
        expected: u32,
        /// Stored in the node.
        found: u32,
    },
    /// A node's number of entries.
    #[error("bad nr_entries {found}, expected {min} to {max}")]
    EntryCount {
        /// Least number for this node.
        min: u32,
        /// Its capacity.
        max: u32,
        /// Stored in the node.
        found: u32,
    },
    /// Keys of a node must ascend.
    #[error("key {index} is not greater than the one before it")]
    KeyOrder {
        /// Index of the offending key.
        index: u32,
    },
    /// Keys of a node must lie in the interval its parent gives it.
    #[error("key {found} out of place, expected {low} to {high}")]
    KeyBounds {
        /// The offending key.
        found: u64,
        /// Least key allowed.
        low: u64,
        /// Greatest key allowed.
        high: u64,
    },
    /// Neighbouring nodes must both be leaves or both be internal.
    #[error("not at the depth of its sibling")]
    Depth,
    /// Neighbouring entries of a node must name different blocks.
    #[error("named by two neighbouring entries")]
    NamedTwice,
    /// Trees have few levels; more means that blocks name each other in a circle.
    #[error("tree deeper than {max} levels")]
    TooDeep {
        /// Levels a tree may have.
        max: usize,
    },
}
