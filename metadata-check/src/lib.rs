//! Verifies and dumps thin pool metadata, sharing no code with the crate that writes it.
//!
//! [`check`] walks everything reachable from the superblock, recounts every reference and compares
//! the result with what the pool says of itself. It only reads, never panics on what it reads, never
//! stops at the first fault, and reads each block once however often it is shared (nodes above a fault
//! twice, to tell which devices it affects).
//! [`dump`] writes the mappings as the XML that `thin_restore` reads. [`compare`] tells whether the blocks of an
//! earlier commit can be another's by now.
//!
//! Both need metadata that holds still: a pool that is not in use, or a pinned commit of a live one,
//! given as its superblock, whose blocks are not reused meanwhile.
//!
//! Memory is bounded by the metadata itself: one byte for each data block that a reachable bitmap covers,
//! less than 64 bytes for each metadata block in a region of 512 that is in use, the nodes of the small
//! trees, at most 65536 ranges that damage costs, and the children of the nodes on the way to where a walk is: 2 MiB
//! in a tree of three levels, and as much text of a dump for each. No length read from disk is believed before
//! something else bounds it.
//!
//! ```no_run
//! let metadata = std::fs::File::open("/var/lib/pool/metadata")?;
//! let report = metadata_check::check(&metadata, &metadata_check::CheckOptions::default());
//! for finding in &report.findings {
//!     eprintln!("{finding}");
//! }
//! assert!(report.is_sound());
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Reading order: `layout`, `superblock` and `node` know where the bytes are; `tree` walks; `mapping`,
//! `devices` and `space_map` compare; `affected` and `cost` tell what faults cost; `check` puts them in
//! order.

#![forbid(unsafe_code)]

mod affected;
mod ahead;
mod check;
mod checker;
mod compare;
mod cost;
mod counts;
mod devices;
mod dump;
mod finding;
mod key_range;
mod layout;
mod mapping;
mod node;
mod parallel;
mod report;
mod salvage;
mod source;
mod space_map;
mod superblock;
mod tree;

pub use check::{CheckOptions, Leak, check};
pub use compare::{Compared, ComparedDevice, compare};
pub use dump::{DumpError, DumpOptions, dump};
pub use finding::{BlockKind, Cost, Finding, FindingKind, Role, Severity, SpaceMap};
pub use key_range::MissingRange;
pub use parallel::all_processors;
pub use report::{Device, Loss, Progress, Report, Summary};
pub use salvage::{
    Orphan, Salvage, SalvageError, SalvageOptions, SalvagedDevice, SalvagedLeaf, SalvagedMapping,
    SalvagedPool, Start,
};
pub use source::BlockSource;
