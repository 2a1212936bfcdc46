//! Finds the mappings in damaged metadata that can be trusted.
//!
//! # What is given
//!
//! Everything that is reached from the superblock through nodes that are what they should be: checksum, own
//! number, header, ascending keys, and keys inside the range that the parent has for them. A wrong mapping is
//! worse than none, as somebody would read another volume's data; so what is not certain is listed as
//! missing.
//!
//! # Stale nodes
//!
//! A block that holds an older version of itself has a right checksum. What gives it away are the reference
//! counts: it names blocks that now belong to others, or to nobody, so these are named more often than the
//! space maps say. If there is one node that names all of them, it alone is not believed; else all that name
//! any are not (`doubt`). The counts themselves are believed only where bitmap, index and superblock agree
//! (`stored`).
//!
//! # Orphans
//!
//! Below a damaged inner node, there may be whole trees that nothing leads to any more. The metadata space
//! map tells them from what was freed: their blocks are counted once more than they are named. They take the
//! place of the lost node if they fit only there, and if the device then has as many mappings as its details
//! say (`orphans`).
//!
//! # Without a superblock
//!
//! Copies kept elsewhere are tried in turn. Without any, every metadata index block on the store is taken for
//! that of a commit: of the blocks that it counts as in use, the ones that nothing names must be the roots
//! (`commits`). Such a commit is taken only if everything about it agrees, and no other differs from it.

mod commits;
mod doubt;
mod holes;
mod orphans;
mod recount;
mod stored;
mod trees;

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use crate::devices::Details;
use crate::finding::{BlockKind, Role};
use crate::key_range::MissingRange;
use crate::layout::{DEVICE_IDS, METADATA_BLOCKS_MAX, le64, seal};
use crate::node::Node;
use crate::report::Progress;
use crate::source::BlockSource;
use crate::superblock::Superblock;

use doubt::doubtful_nodes;
use holes::DeviceWalk;
use recount::Recount;
use stored::StoredMaps;
use trees::{Lost, Trees, Visitor};

pub use orphans::Orphan;

/// What helps to salvage.
#[derive(Clone, Copy)]
pub struct SalvageOptions<'a> {
    /// What the last superblock was, for when block 0 cannot be used. Its checksum is not looked at. It is used if
    /// one of its two trees has a root; with an older one instead, blocks would be given that are others' by now.
    pub superblock: Option<&'a [u8; 4096]>,
    /// Bits of `incompat_flags` that may be set.
    pub allowed_incompat: u32,
    /// Size of a data block in sectors, which only superblocks know.
    pub data_block_size: Option<u32>,
    /// Bytes of the data store, without which a pool without superblock is as large as its bitmaps.
    pub data_bytes: Option<u64>,
    /// Called now and then.
    pub progress: &'a dyn Fn(Progress),
}

impl Default for SalvageOptions<'_> {
    fn default() -> Self {
        Self {
            superblock: None,
            allowed_incompat: 0,
            data_block_size: None,
            data_bytes: None,
            progress: &|_| {},
        }
    }
}

/// Why nothing can be salvaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// The size of the store is unknown.
    #[error("the metadata store cannot be read")]
    Read(#[from] io::Error),
    /// There is nothing to start from.
    #[error("no usable superblock, and no commit is whole without one")]
    NoCommit,
    /// Only the superblock knows how large data blocks are.
    #[error("no usable superblock, and nothing else tells the size of a data block")]
    BlockSizeUnknown,
    /// Several commits are whole, and differ.
    #[error(
        "no usable superblock, and commits that are whole but differ: nothing tells which was the last"
    )]
    Ambiguous,
}

/// Where the trees were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Block 0.
    Superblock,
    /// The copy of block 0.
    Copy,
    /// A commit that is whole but for its superblock.
    Commit,
}

/// The pool, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SalvagedPool {
    /// What this is known from.
    pub start: Start,
    /// The pool's snapshot counter.
    pub time: u32,
    /// The number kept for the operator's tools.
    pub transaction_id: u64,
    /// Size of a data block in sectors.
    pub data_block_size: u32,
    /// Blocks of the data store.
    pub data_blocks: u64,
    /// The superblock's flag of that name.
    pub needs_check: bool,
}

/// A device of which something is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct SalvagedDevice {
    /// Its number.
    pub id: u32,
    /// The root of its mapping tree, if that is known.
    root: Option<u64>,
    /// How many mappings it had, if its details were found.
    pub mapped_blocks: Option<u64>,
    /// The pool's transaction id when it was created; 0 if that is not known.
    pub transaction_id: u64,
    /// The pool's time when it was created; the pool's if that is not known.
    pub creation_time: u32,
    /// The pool's time at its last snapshot; the pool's if that is not known, which is never too early.
    pub snapshotted_time: u32,
}

/// A mapping that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SalvagedMapping {
    /// The block of the device.
    pub virtual_block: u64,
    /// Where it is on the data store.
    pub data_block: u64,
    /// The pool's time when it was mapped.
    pub time: u32,
}

/// Mappings that can be trusted, in ascending order, and are a leaf of one or more devices.
#[derive(Debug, Clone, Copy)]
pub struct SalvagedLeaf<'a> {
    /// Where the leaf is in the metadata.
    pub block: u64,
    /// What it maps.
    pub mappings: &'a [SalvagedMapping],
}

/// Metadata from which can be had what is certain.
pub struct Salvage<'a> {
    trees: Trees<'a>,
    pool: SalvagedPool,
    devices: Vec<SalvagedDevice>,
    orphans: Vec<Orphan>,
    doubted_nodes: u64,
}

impl<'a> Salvage<'a> {
    /// Looks at all of the metadata, and decides what can be trusted.
    ///
    /// # Errors
    /// See [`SalvageError`].
    pub fn begin(
        source: &'a dyn BlockSource,
        options: &SalvageOptions<'_>,
    ) -> Result<Self, SalvageError> {
        let blocks = source.block_count()?.min(METADATA_BLOCKS_MAX);
        let mut trees = Trees::scan(source, blocks, options.progress);
        let (start, superblock) = match usable(&trees, options) {
            Some(found) => found,
            None => (Start::Commit, commits::find(&trees, options)?),
        };
        trees.set_limits(&superblock);
        let mut state = State::of(&trees, &superblock);
        let doubted = doubtful_nodes(&trees, &state);
        let doubted_nodes = doubted.len() as u64;
        if doubted_nodes > 0 {
            trees.doubt(doubted);
            state = State::of(&trees, &superblock);
        }
        let (devices, orphans) = orphans::give_back(&mut trees, &superblock, &mut state);
        Ok(Salvage {
            trees,
            pool: pool_of(start, &superblock),
            devices,
            orphans,
            doubted_nodes,
        })
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &SalvagedPool {
        &self.pool
    }

    /// The devices, by ascending id.
    #[must_use]
    pub fn devices(&self) -> &[SalvagedDevice] {
        &self.devices
    }

    /// Trees that nothing leads to, and of which it is not certain whose they are.
    #[must_use]
    pub fn orphans(&self) -> &[Orphan] {
        &self.orphans
    }

    /// How many intact nodes are not believed.
    #[must_use]
    pub fn doubted_nodes(&self) -> u64 {
        self.doubted_nodes
    }

    /// Hands out the leaves of a device in ascending order, until `visit` breaks off; then which ranges are
    /// missing. Devices that have a leaf with the same number have the same leaf.
    pub fn leaves(
        &self,
        device: &SalvagedDevice,
        visit: &mut dyn FnMut(SalvagedLeaf<'_>) -> ControlFlow<()>,
    ) -> Vec<MissingRange> {
        let Some(root) = device.root else {
            let has_none = device.mapped_blocks == Some(0);
            let missing = [MissingRange::ALL].into_iter();
            return missing.filter(|_| !has_none).collect();
        };
        let mut walk = DeviceWalk::new(visit);
        // Whoever broke off knows it.
        let _ = self.trees.walk(Role::Mapping, root, &mut walk);
        walk.missing()
    }
}

/// Block 0, or the copy of it.
fn usable(trees: &Trees<'_>, options: &SalvageOptions<'_>) -> Option<(Start, Superblock)> {
    let is_possible = |superblock: &Superblock| superblock.is_understood(options.allowed_incompat);
    if let Ok(superblock) = Superblock::load(trees.source(), None)
        && is_possible(&superblock)
    {
        return Some((Start::Superblock, superblock));
    }
    let mut copy = *options.superblock?;
    seal(BlockKind::Superblock, &mut copy);
    let superblock = Superblock::load(trees.source(), Some(&copy)).ok()?;
    let has_root = trees
        .node(Role::TopLevel, superblock.mapping_root)
        .or_else(|| trees.node(Role::Details, superblock.details_root))
        .is_some();
    (has_root && is_possible(&superblock)).then_some((Start::Copy, superblock))
}

fn pool_of(start: Start, superblock: &Superblock) -> SalvagedPool {
    SalvagedPool {
        start,
        time: superblock.time,
        transaction_id: superblock.transaction_id,
        data_block_size: superblock.data_block_size,
        data_blocks: superblock.data_map.nr_blocks,
        needs_check: superblock.needs_check(),
    }
}

/// What a superblock leads to, beside what its space maps say.
struct State {
    recount: Recount,
    stored: StoredMaps,
    /// Devices and their roots, as the top-level tree has them.
    roots: BTreeMap<u64, u64>,
    /// Whether that is all of it.
    roots_are_whole: bool,
    details: BTreeMap<u64, Details>,
}

impl State {
    fn of(trees: &Trees<'_>, superblock: &Superblock) -> Self {
        let stored = StoredMaps::load(trees, superblock);
        let roots = entries(trees, Role::TopLevel, superblock.mapping_root);
        let details = entries(trees, Role::Details, superblock.details_root);
        let root = |(id, value): (u64, Vec<u8>)| (id, le64(&value, 0));
        let detail = |(id, value): (u64, Vec<u8>)| (id, Details::decode(&value));
        State {
            recount: Recount::of(trees, superblock, &stored),
            stored,
            roots_are_whole: roots.is_whole,
            roots: roots.found.into_iter().map(root).collect(),
            details: details.found.into_iter().map(detail).collect(),
        }
    }
}

/// The entries of a small tree, as far as it can be read.
struct Entries {
    found: BTreeMap<u64, Vec<u8>>,
    is_whole: bool,
}

impl Visitor for Entries {
    fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
        let of_devices = (0..node.len()).filter(|index| node.key(*index) < DEVICE_IDS);
        let entry = |index| (node.key(index), node.value(index).to_vec());
        self.found.extend(of_devices.map(entry));
        ControlFlow::Continue(())
    }

    fn lost(&mut self, _: Lost) {
        self.is_whole = false;
    }
}

/// The entries of a tree of devices.
fn entries(trees: &Trees<'_>, role: Role, root: u64) -> Entries {
    let mut entries = Entries {
        found: BTreeMap::new(),
        is_whole: true,
    };
    let _ = trees.walk(role, root, &mut entries);
    entries
}
