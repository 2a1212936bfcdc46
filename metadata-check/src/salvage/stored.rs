//! The reference counts that the space maps have, where they can be believed.
//!
//! A bitmap must have as many free blocks as its index entry says, and all of them together as many blocks in
//! use as the superblock says. What disagrees with that counts nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::trees::{Trees, Visitor};
use crate::finding::{BlockKind, Role};
use crate::layout::{
    BITMAP_ENTRIES, BITMAP_ENTRIES_U64, Block, METADATA_BITMAPS_MAX, PAYLOAD, le32, le64, load,
};
use crate::node::Node;
use crate::superblock::{MapRoot, Superblock};

/// A count that is not in the byte, but in `large` or unknown.
const ELSEWHERE: u8 = u8::MAX;

/// From this count on, the bitmap refers to the overflow tree.
const OVERFLOW: u8 = 3;

/// Both space maps.
pub(super) struct StoredMaps {
    pub(super) data: StoredCounts,
    pub(super) metadata: StoredCounts,
    /// The blocks of all bitmaps.
    pub(super) bitmaps: Vec<u64>,
}

/// The counts of one of them.
#[derive(Default)]
pub(super) struct StoredCounts {
    /// A byte a block, for each bitmap that is believed.
    regions: BTreeMap<u64, Box<[u8]>>,
    large: BTreeMap<u64, u32>,
}

/// An entry of an index.
#[derive(Clone, Copy)]
pub(super) struct IndexEntry {
    pub(super) index: u64,
    pub(super) bitmap: u64,
    pub(super) nr_free: u32,
}

impl IndexEntry {
    fn decode(index: u64, value: &[u8]) -> Self {
        IndexEntry {
            index,
            bitmap: le64(value, 0),
            nr_free: le32(value, 8),
        }
    }
}

impl StoredMaps {
    pub(super) fn load(trees: &Trees<'_>, superblock: &Superblock) -> Self {
        let data = data_index(trees, superblock.data_map.bitmap_root);
        let metadata = metadata_index(trees, &superblock.metadata_map);
        let bitmaps = data.iter().chain(&metadata).map(|entry| entry.bitmap);
        StoredMaps {
            bitmaps: bitmaps.collect(),
            data: StoredCounts::load(trees, &superblock.data_map, Role::DataOverflow, &data),
            metadata: StoredCounts::load(
                trees,
                &superblock.metadata_map,
                Role::MetadataOverflow,
                &metadata,
            ),
        }
    }
}

/// The bitmaps of the data space map.
pub(super) fn data_index(trees: &Trees<'_>, root: u64) -> Vec<IndexEntry> {
    struct Index(Vec<IndexEntry>);
    impl Visitor for Index {
        fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
            let entries =
                (0..node.len()).map(|index| IndexEntry::decode(node.key(index), node.value(index)));
            self.0.extend(entries);
            ControlFlow::Continue(())
        }
    }
    let mut index = Index(Vec::new());
    let _ = trees.walk(Role::DataIndex, root, &mut index);
    index.0
}

/// The bitmaps of the metadata space map.
pub(super) fn metadata_index(trees: &Trees<'_>, root: &MapRoot) -> Vec<IndexEntry> {
    let Ok(block) = load(trees.source(), BlockKind::MetadataIndex, root.bitmap_root) else {
        return Vec::new();
    };
    let bitmaps = root.nr_blocks.div_ceil(BITMAP_ENTRIES_U64);
    (0..METADATA_BITMAPS_MAX)
        .zip(0..bitmaps)
        .map(|(slot, index)| IndexEntry::decode(index, &block[PAYLOAD + 16 * slot..][..16]))
        .collect()
}

impl StoredCounts {
    /// The counts in the bitmaps of `entries`.
    pub(super) fn load(
        trees: &Trees<'_>,
        root: &MapRoot,
        overflow: Role,
        entries: &[IndexEntry],
    ) -> Self {
        let bitmaps = root.nr_blocks.div_ceil(BITMAP_ENTRIES_U64);
        let mut counts = StoredCounts::default();
        let mut allocated = 0;
        for entry in entries.iter().filter(|entry| entry.index < bitmaps) {
            let Ok(bitmap) = load(trees.source(), BlockKind::Bitmap, entry.bitmap) else {
                continue;
            };
            let region = decode(&bitmap);
            let used = used(&region);
            // Those beyond the end count as free.
            if used + u64::from(entry.nr_free) == BITMAP_ENTRIES_U64 {
                allocated += used;
                counts.regions.insert(entry.index, region);
            }
        }
        let are_all = counts.regions.len() as u64 == bitmaps;
        if are_all && allocated != root.nr_allocated {
            return StoredCounts::default();
        }
        let _ = trees.walk(overflow, root.ref_count_root, &mut counts);
        counts
    }

    /// How many places name a block, if that is known.
    pub(super) fn get(&self, block: u64) -> Option<u32> {
        let region = self.regions.get(&(block / BITMAP_ENTRIES_U64))?;
        match *region.get(position(block))? {
            ELSEWHERE => self.large.get(&block).copied(),
            count => Some(u32::from(count)),
        }
    }

    /// Blocks that may be in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = u64> {
        self.regions.iter().flat_map(|(index, region)| {
            let first = index * BITMAP_ENTRIES_U64;
            let used = region.iter().zip(first..).filter(|(count, _)| **count > 0);
            used.map(|(_, block)| block)
        })
    }
}

/// Overflow entries.
impl Visitor for StoredCounts {
    fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
        for index in 0..node.len() {
            let block = node.key(index);
            let region = self.regions.get(&(block / BITMAP_ENTRIES_U64));
            let byte = region.and_then(|region| region.get(position(block)));
            if byte == Some(&ELSEWHERE) {
                self.large.insert(block, le32(node.value(index), 0));
            }
        }
        ControlFlow::Continue(())
    }
}

/// How many blocks of a bitmap are in use.
pub(super) fn used(counts: &[u8]) -> u64 {
    counts.iter().filter(|count| **count > 0).count() as u64
}

/// The counts in a bitmap. The lower-numbered bit of a pair is the high one.
pub(super) fn decode(bitmap: &Block) -> Box<[u8]> {
    let count = |position: usize| {
        let pair = bitmap[PAYLOAD + position / 4] >> (2 * (position % 4)) & 3;
        match (pair & 1) << 1 | pair >> 1 {
            OVERFLOW => ELSEWHERE,
            count => count,
        }
    };
    (0..BITMAP_ENTRIES).map(count).collect()
}

fn position(block: u64) -> usize {
    usize::try_from(block % BITMAP_ENTRIES_U64).unwrap_or(usize::MAX)
}
