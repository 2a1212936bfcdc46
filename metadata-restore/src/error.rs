//! What can go wrong, one variant a remedy.

use std::io;
use std::path::PathBuf;

/// Why metadata could not be restored. Nothing of it is left then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The dump is not one that can be restored.
    #[error("line {line}: {fault}")]
    Dump {
        /// The line, from 1, on which the piece that is wrong begins.
        line: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// The dump could not be read.
    #[error("cannot read the dump")]
    Read(#[source] io::Error),
    /// There is something in the place of the new metadata.
    #[error("{path}: {reason}", path = .path.display())]
    Exists {
        /// Where.
        path: PathBuf,
        /// What, and what to do.
        reason: String,
    },
    /// The block device is mounted, or another process works on it.
    #[error("{path}: in use: unmount it, or end who uses it, first", path = .0.display())]
    InUse(PathBuf),
    /// The metadata does not fit the size that was asked for, that of the block device, or the format.
    #[error("the metadata does not fit {bytes} bytes: {advice}")]
    TooSmall {
        /// The size it may have.
        bytes: u64,
        /// What to do.
        advice: &'static str,
    },
    /// Nothing can be salvaged.
    #[error(transparent)]
    Salvage(#[from] metadata_check::SalvageError),
    /// The new metadata could not be written.
    #[error("{path}: cannot {op}", path = .path.display())]
    Io {
        /// What was written to.
        path: PathBuf,
        /// What was tried.
        op: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The pool's part of the work failed.
    #[error(transparent)]
    Pool(#[from] pool::Error),
    /// What was written does not pass the check.
    #[error("what was written is damaged: {0}")]
    Unsound(String),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// What is wrong with a dump.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It is not well-formed.
    #[error("no well-formed XML: {0}")]
    Syntax(String),
    /// It ends too early.
    #[error("the dump ends before </superblock>: it was cut off")]
    CutOff,
    /// A tag, comment or text that no dump has.
    #[error("a piece of more than {limit} bytes, which no dump has")]
    TooLong {
        /// How long one may be.
        limit: u64,
    },
    /// Text, a document type or the like, where only elements and comments may be.
    #[error("unexpected {0}, expected elements and comments only")]
    Unexpected(&'static str),
    /// An element that is unknown, or stands where it may not.
    #[error("unexpected element <{name}>, expected {expected}")]
    Element {
        /// What it is called, cut off when long.
        name: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// Parts that devices share, written once and referred to.
    #[error(
        "<{name}>: parts that devices share are not understood: write the dump with `thinctl dump` or thin_dump 0.9.0"
    )]
    SharedParts {
        /// `def` or `ref`.
        name: String,
    },
    /// An attribute that is unknown.
    #[error("<{element}>: unknown attribute {name:?}")]
    Attribute {
        /// Of which element.
        element: &'static str,
        /// What it is called, cut off when long.
        name: String,
    },
    /// An attribute is missing.
    #[error("<{element}>: {name} is missing")]
    Missing {
        /// In which element.
        element: &'static str,
        /// Which.
        name: &'static str,
    },
    /// A number that is none, or outside of what may be.
    #[error("{name} is {found:?}, expected {expected}")]
    Number {
        /// Which attribute.
        name: &'static str,
        /// What it says, cut off when long.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// A device comes twice.
    #[error("device {id} comes a second time")]
    DeviceTwice {
        /// Its id.
        id: u32,
    },
    /// Mappings must ascend, and may not overlap.
    #[error("device {id}: block {found} is mapped out of order, expected {expected} or more")]
    Order {
        /// Of which device.
        id: u32,
        /// The virtual block.
        found: u64,
        /// The least that may follow.
        expected: u64,
    },
    /// Mappings reach beyond what a device, or the data store, can have.
    #[error(
        "device {id}: mappings of {what} from {begin} on, {length} long, expected to end at {end} or before"
    )]
    Beyond {
        /// Of which device.
        id: u32,
        /// Blocks of which kind.
        what: &'static str,
        /// Where they begin.
        begin: u64,
        /// How many there are.
        length: u64,
        /// Where the last may end.
        end: u64,
    },
    /// There are mappings, but no data blocks, in what is dumped of a metadata snapshot.
    #[error(
        "blocks are mapped, but nr_data_blocks is 0, as in the dump of a metadata snapshot: put in how many the pool has"
    )]
    NoDataBlocks,
    /// `mapped_blocks` is not the number of mappings.
    #[error("device {id}: {found} blocks are mapped, expected {expected}, as mapped_blocks says")]
    MappedBlocks {
        /// Of which device.
        id: u32,
        /// How many mappings there are, or were when it became too many.
        found: u64,
        /// What `mapped_blocks` says.
        expected: u64,
    },
}
