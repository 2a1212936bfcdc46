//! Writes new thin pool metadata: from a dump, the XML of `thinctl dump` and `thin_dump`, or from what can be
//! trusted in damaged metadata.
//!
//! `parse` understands a dump, piece by piece, and believes nothing of it; [`metadata_check::Salvage`] says what
//! of damaged metadata can be trusted; `build` writes either through [`pool::Restore`]; `target` sees to it that a file has its name, and a block device a
//! superblock, only when everything is written, synced and checked. How metadata looks is the business of
//! the crates below.
//!
//! Devices do not share parts of trees afterwards, as the dump does not say what they shared: metadata
//! with many snapshots takes more room than it did.
//!
//! Memory is bounded: a piece of the dump of at most 64 KiB, a bit for each possible thin id, what a pool
//! of that size takes when it is open, and what [`metadata_check::check`] takes.

#![forbid(unsafe_code)]

mod build;
mod error;
mod lines;
mod parse;
mod repair;
mod restore;
mod target;

pub use build::{MetadataSize, Options, Progress, Restored};
pub use error::{Error, Fault};
pub use repair::{Hints, Repaired, RepairedDevice, repair};
pub use restore::{FromDump, restore};
