//! Commits that are whole but for the superblock.
//!
//! Each commit has a metadata index block, which leads to bitmaps, and these say which blocks the commit has.
//! Of them, what none of the others names must be the roots; which is which is told by the size of the values
//! in their leaves. With a superblock made of that, everything must pass a check, down to the last count.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hasher};
use std::ops::ControlFlow;

use super::holes::DeviceWalk;
use super::stored::{self, StoredCounts};
use super::trees::{Content, Lost, Trees, Visitor, children};
use super::{SalvageError, SalvageOptions, SalvagedLeaf, entries};
use crate::check::{CheckOptions, check};
use crate::devices::Details;
use crate::finding::{BlockKind, Role};
use crate::layout::{BITMAP_ENTRIES_U64, BLOCK_SIZE, Block, le64, load, seal};
use crate::node::Node;
use crate::superblock::{
    DATA_MAP, MAGIC, METADATA_BLOCK_SECTORS, METADATA_MAP, MapRoot, Superblock, VERSION,
};
use crate::tree::LEVELS_MAX;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// The commit that is whole, if there is one, or several that map the same.
pub(super) fn find(
    trees: &Trees<'_>,
    options: &SalvageOptions<'_>,
) -> Result<Superblock, SalvageError> {
    let indexes = (0..trees.len()).filter(|block| trees.content(*block) == Content::MetadataIndex);
    let mut newest: Option<(Superblock, u64)> = None;
    let mut is_size_unknown = false;
    for index in indexes {
        let Some(mut commit) = Commit::of(trees, index) else {
            continue;
        };
        let Some(data_block_size) = commit.data_block_size(trees).or(options.data_block_size)
        else {
            is_size_unknown = true;
            continue;
        };
        if let Some(bytes) = options.data_bytes {
            let block_bytes = u64::from(data_block_size.max(1)) * SECTOR;
            commit.data.nr_blocks = commit.data.nr_blocks.min(bytes / block_bytes);
        }
        let mut superblocks = commit.superblocks(trees, data_block_size);
        let Some(superblock) = superblocks.find_map(|image| sound(trees, &image)) else {
            continue;
        };
        let digest = digest(trees, &superblock);
        match &newest {
            Some((_, other)) if *other != digest => return Err(SalvageError::Ambiguous),
            Some((other, _)) if age(other) >= age(&superblock) => {}
            _ => newest = Some((superblock, digest)),
        }
    }
    match newest {
        Some((superblock, _)) => Ok(superblock),
        None if is_size_unknown => Err(SalvageError::BlockSizeUnknown),
        None => Err(SalvageError::NoCommit),
    }
}

fn age(superblock: &Superblock) -> (u64, u32) {
    (superblock.transaction_id, superblock.time)
}

/// The superblock, if with it everything is sound.
fn sound(trees: &Trees<'_>, image: &Block) -> Option<Superblock> {
    let options = CheckOptions {
        superblock: Some(image),
        ..CheckOptions::default()
    };
    let is_sound = check(trees.source(), &options).is_sound();
    let superblock = Superblock::load(trees.source(), Some(image)).ok()?;
    is_sound.then_some(superblock)
}

/// What all mappings of a commit come to.
fn digest(trees: &Trees<'_>, superblock: &Superblock) -> u64 {
    let mut hasher = DefaultHasher::new();
    for (id, value) in entries(trees, Role::TopLevel, superblock.mapping_root).found {
        hasher.write_u64(id);
        let mut visit = |leaf: SalvagedLeaf<'_>| {
            for mapping in leaf.mappings {
                hasher.write_u64(mapping.virtual_block);
                hasher.write_u64(mapping.data_block);
                hasher.write_u32(mapping.time);
            }
            ControlFlow::Continue(())
        };
        let _ = trees.walk(
            Role::Mapping,
            le64(&value, 0),
            &mut DeviceWalk::new(&mut visit),
        );
    }
    hasher.finish()
}

/// The roots of a commit.
struct Commit {
    metadata: MapRoot,
    data: MapRoot,
    /// The roots of the two overflow trees, in no known order.
    overflow: [u64; 2],
    details: u64,
    /// Those that may be the top-level one.
    top_level: Vec<u64>,
    held_root: u64,
}

impl Commit {
    /// The commit of a metadata index block, if it looks like one.
    fn of(trees: &Trees<'_>, index: u64) -> Option<Self> {
        let all = MapRoot {
            nr_blocks: trees.len(),
            nr_allocated: 0,
            bitmap_root: index,
            ref_count_root: 0,
        };
        let mut bitmaps = stored::metadata_index(trees, &all);
        bitmaps.retain(|entry| entry.bitmap != 0);
        let metadata = measured(trees, index, &bitmaps, trees.len())?;
        let counts = StoredCounts::load(trees, &metadata, Role::MetadataOverflow, &bitmaps);
        let unnamed = unnamed(trees, &counts);
        let of_kind = |kind: Content| {
            let unnamed = unnamed.iter().copied();
            unnamed.filter(move |block| leaf_below(trees, *block) == Some(kind))
        };
        let [details] = of_kind(Content::Leaf(24)).collect::<Vec<_>>()[..] else {
            return None;
        };
        let [data_index] = of_kind(Content::Leaf(16)).collect::<Vec<_>>()[..] else {
            return None;
        };
        let overflow = of_kind(Content::Leaf(4)).collect::<Vec<_>>();
        let ids: Vec<u64> = entries(trees, Role::Details, details)
            .found
            .into_keys()
            .collect();
        let top_level = of_kind(Content::Leaf(8))
            .filter(|block| has_keys(trees, Role::TopLevel, *block, &ids))
            .collect();
        let held = counts
            .in_use()
            .find(|block| *block > 0 && trees.content(*block) == Content::Superblock);
        Some(Commit {
            metadata,
            data: measured(
                trees,
                data_index,
                &stored::data_index(trees, data_index),
                u64::MAX,
            )?,
            overflow: overflow.try_into().ok()?,
            details,
            top_level,
            held_root: held.unwrap_or(0),
        })
    }

    /// What the metadata snapshot says.
    fn data_block_size(&self, trees: &Trees<'_>) -> Option<u32> {
        let held = Superblock::load_held(trees.source(), self.held_root);
        held.ok()
            .filter(|_| self.held_root != 0)
            .map(|held| held.data_block_size)
    }

    /// The superblocks that it may have had.
    fn superblocks<'c>(
        &'c self,
        trees: &'c Trees<'_>,
        data_block_size: u32,
    ) -> impl Iterator<Item = Block> + 'c {
        let (one, other) = (self.overflow[0], self.overflow[1]);
        let orders = [(one, other), (other, one)];
        let all = self
            .top_level
            .iter()
            .flat_map(move |root| orders.map(|order| (*root, order)));
        all.map(move |(top_level, (data, metadata))| {
            let roots = Roots {
                data: MapRoot {
                    ref_count_root: data,
                    ..self.data
                },
                metadata: MapRoot {
                    ref_count_root: metadata,
                    ..self.metadata
                },
                top_level,
                details: self.details,
                held_root: self.held_root,
            };
            roots.superblock(trees, data_block_size)
        })
    }
}

/// What a superblock names.
struct Roots {
    data: MapRoot,
    metadata: MapRoot,
    top_level: u64,
    details: u64,
    held_root: u64,
}

impl Roots {
    /// The superblock, with the lowest time and transaction id it can have had.
    fn superblock(&self, trees: &Trees<'_>, data_block_size: u32) -> Block {
        let mut latest = Latest::default();
        for (_, value) in entries(trees, Role::TopLevel, self.top_level).found {
            let _ = trees.walk(Role::Mapping, le64(&value, 0), &mut latest);
        }
        let mut transaction_id = 0;
        for (_, value) in entries(trees, Role::Details, self.details).found {
            let details = Details::decode(&value);
            latest.0 = latest
                .0
                .max(details.creation_time)
                .max(details.snapshotted_time);
            transaction_id = details.transaction_id.max(transaction_id);
        }
        self.encode(latest.0, transaction_id, data_block_size)
    }

    fn encode(&self, time: u32, transaction_id: u64, data_block_size: u32) -> Block {
        let mut block = [0; BLOCK_SIZE];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(32, &MAGIC.to_le_bytes());
        put(40, &VERSION.to_le_bytes());
        put(44, &time.to_le_bytes());
        put(48, &transaction_id.to_le_bytes());
        put(56, &self.held_root.to_le_bytes());
        for (at, map) in [(DATA_MAP, self.data), (METADATA_MAP, self.metadata)] {
            put(at, &map.nr_blocks.to_le_bytes());
            put(at + 8, &map.nr_allocated.to_le_bytes());
            put(at + 16, &map.bitmap_root.to_le_bytes());
            put(at + 24, &map.ref_count_root.to_le_bytes());
        }
        put(320, &self.top_level.to_le_bytes());
        put(328, &self.details.to_le_bytes());
        put(336, &data_block_size.to_le_bytes());
        put(340, &METADATA_BLOCK_SECTORS.to_le_bytes());
        put(344, &self.metadata.nr_blocks.to_le_bytes());
        seal(BlockKind::Superblock, &mut block);
        block
    }
}

/// The latest time in mappings.
#[derive(Default)]
struct Latest(u32);

impl Visitor for Latest {
    fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
        let times = node.mappings().map(|mapping| mapping.time);
        self.0 = times.fold(self.0, u32::max);
        ControlFlow::Continue(())
    }
}

/// A space map of at most `nr_blocks` blocks, if each bitmap has as many in use as its index entry says.
fn measured(
    trees: &Trees<'_>,
    bitmap_root: u64,
    entries: &[stored::IndexEntry],
    nr_blocks: u64,
) -> Option<MapRoot> {
    let mut nr_allocated = 0;
    for (number, entry) in (0..).zip(entries) {
        let bitmap = load(trees.source(), BlockKind::Bitmap, entry.bitmap).ok()?;
        let used = stored::used(&stored::decode(&bitmap));
        if entry.index != number || used + u64::from(entry.nr_free) != BITMAP_ENTRIES_U64 {
            return None;
        }
        nr_allocated += used;
    }
    Some(MapRoot {
        nr_blocks: nr_blocks.min(entries.len() as u64 * BITMAP_ENTRIES_U64),
        nr_allocated,
        bitmap_root,
        ref_count_root: 0,
    })
}

/// The nodes in use that no other block in use names.
fn unnamed(trees: &Trees<'_>, counts: &StoredCounts) -> BTreeSet<u64> {
    let is_node = |block: &u64| matches!(trees.content(*block), Content::Inner | Content::Leaf(_));
    let mut unnamed: BTreeSet<u64> = counts.in_use().filter(is_node).collect();
    for block in counts.in_use() {
        match trees.content(block) {
            Content::Inner => {
                let node = trees.node(Role::Mapping, block);
                for child in node.iter().flat_map(children) {
                    unnamed.remove(&child.block);
                }
            }
            Content::Superblock if block > 0 => {
                if let Ok(held) = Superblock::load_held(trees.source(), block) {
                    unnamed.remove(&held.mapping_root);
                    unnamed.remove(&held.details_root);
                }
            }
            _ => {}
        }
    }
    unnamed
}

/// What the leaves of a tree are, as its first one has it.
fn leaf_below(trees: &Trees<'_>, block: u64) -> Option<Content> {
    let mut block = block;
    for _ in 0..LEVELS_MAX {
        match trees.content(block) {
            Content::Inner => block = trees.node(Role::Mapping, block)?.pointer(0),
            content => return Some(content),
        }
    }
    None
}

/// Whether these, and no others, are the keys of a tree.
fn has_keys(trees: &Trees<'_>, role: Role, root: u64, keys: &[u64]) -> bool {
    struct Keys<'a> {
        expected: &'a [u64],
        is_whole: bool,
    }
    impl Visitor for Keys<'_> {
        fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
            for index in 0..node.len() {
                match self.expected.split_first() {
                    Some((next, rest)) if *next == node.key(index) => self.expected = rest,
                    _ => {
                        self.is_whole = false;
                        return ControlFlow::Break(());
                    }
                }
            }
            ControlFlow::Continue(())
        }
        fn lost(&mut self, _: Lost) {
            self.is_whole = false;
        }
    }
    let mut found = Keys {
        expected: keys,
        is_whole: true,
    };
    let _ = trees.walk(role, root, &mut found);
    found.is_whole && found.expected.is_empty()
}
