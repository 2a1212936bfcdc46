//! Thin devices: a request on a volume becomes the steps that satisfy it, and the pool's metadata
//! stays true.
//!
//! Reading order:
//!
//! - [`Pool`] is what is shared (`pool.rs`), [`ThinDevice`] the handle to one device (`device.rs`);
//! - `map.rs` decides what a request amounts to, and is pure; `serve/` carries it out;
//! - `chunks.rs` holds the mappings that requests look up, `allocator.rs` and `epoch.rs` the blocks
//!   they may take, `partial.rs` those that are not whole yet, `room.rs` how much may change, `queue.rs`
//!   who waits for space;
//! - `log.rs` records changes for a daemon that is killed, `replay.rs` does them again;
//! - `commit.rs` makes changes durable, through `writer.rs` and `metadata.rs`, where the trees are;
//! - `control.rs` creates and removes, `share.rs` takes snapshots and clones, `grow.rs` makes the
//!   pool larger; `catalog.rs` knows the names, `history.rs` the superblocks of the last commits;
//! - `leaks.rs` gives back what counts as used and is not;
//! - `open.rs` formats, opens and adopts; `restore.rs` makes metadata of what a dump says.
//!
//! The crate uses no runtime, no threads, no clock and no randomness; all that is handed in through
//! [`Host`] and [`DataIo`].

#![forbid(unsafe_code)]

mod allocator;
mod backlog;
mod catalog;
mod chunks;
mod commit;
mod control;
mod device;
mod epoch;
mod error;
mod flush;
mod grow;
mod history;
mod host;
mod info;
mod leaks;
mod log;
mod map;
mod memory;
mod metadata;
mod name;
mod open;
mod partial;
mod pool;
mod queue;
mod replay;
mod restore;
mod room;
mod serve;
mod share;
mod stats;
mod superblock;
mod sync;
mod trees;
mod units;
mod usage;
mod writer;

pub use catalog::{CatalogStore, FileCatalog};
pub use control::{Identity, NewDevice};
pub use device::{Extent, ExtentState, ThinDevice};
pub use error::{Error, ErrorKind};
pub use history::{
    FileHistory, HistoryStore, KeptSuperblock, KnownBy, kept_superblocks, known_superblocks,
    without_log,
};
pub use host::{DataIo, Host};
pub use info::{DeviceInfo, DeviceKind, DeviceUsage, ExclusivePiece, Mode, Status};
pub use leaks::{LeakedBlocks, Leaks};
pub use log::{LogStore, hand_over_log};
pub use map::Zeroing;
pub use memory::MemoryBudget;
pub use name::DeviceName;
pub use open::{AdoptedVolume, OpenOptions, Stores};
pub use pool::Pool;
pub use queue::{NoSpaceOverride, NoSpacePolicy};
pub use restore::{DeviceRecord, MappingRecord, PoolRecord, Restore};
pub use serve::ReadPiece;
pub use stats::{DeviceStats, Histogram, LATENCY_BOUNDS_US, Operation, OperationStats};
pub use superblock::INCOMPAT_LOG;
pub use units::{BlockSize, ThinId};
