//! Writes new thin pool metadata from a dump: the XML of `thinctl dump` and `thin_dump`.
//!
//! `parse` understands a dump, piece by piece, and believes nothing of it; `build` writes what it says
//! through [`pool::Restore`]; `target` sees to it that a file has its name, and a block device a
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
mod target;

pub use build::{MetadataSize, Options, Progress, Restored, restore};
pub use error::{Error, Fault};
