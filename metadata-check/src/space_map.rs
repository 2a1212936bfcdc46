//! Space maps: their indexes, and the comparison of what they store with what was recounted.
//!
//! A bitmap holds 16320 two-bit counts. The lower-numbered bit of a pair is the high bit of the count, so
//! the raw values 0, 2, 1, 3 mean 0, 1, 2 and "three or more, see the overflow tree". Bitmaps and
//! overflow tree are both in the order of block numbers and are compared side by side.

use crate::checker::{Checker, Pointer, Referred, Subtree};
use crate::counts::Counts;
use crate::finding::{BlockKind, FindingKind, Role, SpaceMap};
use crate::layout::{BITMAP_ENTRIES_U64, METADATA_BITMAPS_MAX, PAYLOAD, le32, le64};
use crate::superblock::MapRoot;

mod compare;

/// One bitmap, as the index describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IndexEntry {
    /// The block of the index that holds this entry.
    holder: u64,
    /// The bitmap's number.
    index: u64,
    /// The bitmap's block.
    bitmap: u64,
    nr_free: u32,
    none_free_before: u32,
}

impl IndexEntry {
    fn decode(holder: u64, index: u64, value: &[u8]) -> Self {
        Self {
            holder,
            index,
            bitmap: le64(value, 0),
            nr_free: le32(value, 8),
            none_free_before: le32(value, 12),
        }
    }

    fn is_zero(&self) -> bool {
        self.bitmap == 0 && self.nr_free == 0 && self.none_free_before == 0
    }
}

impl Checker<'_> {
    /// Walks the data space map's two trees, and allows data blocks that a bitmap covers to be counted.
    /// Returns the usable bitmaps by ascending number.
    pub(crate) fn open_data_map(&mut self, root: &MapRoot) -> Vec<IndexEntry> {
        let role = Role::DataIndex;
        let whole = self
            .walk(Pointer {
                from: 0,
                role,
                target: root.bitmap_root,
            })
            .is_some_and(|tree| !tree.incomplete);
        let overflow = Role::DataOverflow;
        self.walk(Pointer {
            from: 0,
            role: overflow,
            target: root.ref_count_root,
        });
        let mut listed = Vec::new();
        for leaf in self.leaves(role, root.bitmap_root) {
            let node = &self.retained[&leaf];
            listed.extend(
                (0..node.len())
                    .map(|index| IndexEntry::decode(leaf, node.key(index), node.value(index))),
            );
        }
        listed.sort_by_key(|entry| entry.index);
        let bitmaps = root.nr_blocks.div_ceil(BITMAP_ENTRIES_U64);
        if whole {
            self.check_gaps(SpaceMap::Data, root.bitmap_root, &listed, bitmaps);
        }
        let entries = self.claim_bitmaps(SpaceMap::Data, listed, bitmaps);
        for entry in &entries {
            self.data_counts.declare(entry.index);
        }
        entries
    }

    /// As [`Checker::open_data_map`], for the metadata space map and its single index block.
    pub(crate) fn open_metadata_map(&mut self, root: &MapRoot) -> Vec<IndexEntry> {
        let overflow = Role::MetadataOverflow;
        self.walk(Pointer {
            from: 0,
            role: overflow,
            target: root.ref_count_root,
        });
        let (role, target) = (Role::MetadataIndex, root.bitmap_root);
        let Referred::New = self.refer(Pointer {
            from: 0,
            role,
            target,
        }) else {
            return Vec::new();
        };
        let Some(block) = self.read_block(BlockKind::MetadataIndex, role, target) else {
            return Vec::new();
        };
        self.close(target, Subtree::default());
        let bitmaps = root.nr_blocks.div_ceil(BITMAP_ENTRIES_U64);
        let listed = (0..METADATA_BITMAPS_MAX)
            .zip(0..)
            .map(|(slot, index)| {
                IndexEntry::decode(target, index, &block[PAYLOAD + 16 * slot..][..16])
            })
            .filter(|entry| entry.index < bitmaps || !entry.is_zero())
            .collect();
        self.claim_bitmaps(SpaceMap::Metadata, listed, bitmaps)
    }

    /// Reports bitmap numbers that `listed`, in ascending order, lacks.
    fn check_gaps(&mut self, map: SpaceMap, root: u64, listed: &[IndexEntry], bitmaps: u64) {
        let mut expected = 0;
        for index in listed
            .iter()
            .map(|entry| entry.index.min(bitmaps))
            .chain([bitmaps])
        {
            if index > expected {
                let (first, last) = (expected, index - 1);
                self.findings
                    .at(root, FindingKind::BitmapMissing { map, first, last });
            }
            expected = expected.max(index.saturating_add(1));
        }
    }

    /// Counts the references to bitmaps and keeps the entries whose bitmap can be one.
    fn claim_bitmaps(
        &mut self,
        map: SpaceMap,
        listed: Vec<IndexEntry>,
        bitmaps: u64,
    ) -> Vec<IndexEntry> {
        let mut entries: Vec<IndexEntry> = Vec::new();
        for entry in listed {
            let IndexEntry {
                holder,
                index,
                bitmap,
                ..
            } = entry;
            let pointer = Pointer {
                from: holder,
                role: bitmap_role(map),
                target: bitmap,
            };
            let new = matches!(self.refer(pointer), Referred::New);
            if new {
                self.close(bitmap, Subtree::default());
            }
            if index >= bitmaps {
                self.findings.at(
                    holder,
                    FindingKind::BitmapBeyondEnd {
                        map,
                        index,
                        bitmaps,
                    },
                );
            } else if new && entries.last().is_none_or(|last| last.index < index) {
                entries.push(entry);
            }
        }
        entries
    }

    fn counts(&self, map: SpaceMap) -> &Counts {
        match map {
            SpaceMap::Data => &self.data_counts,
            SpaceMap::Metadata => &self.metadata_counts,
        }
    }
}

fn bitmap_role(map: SpaceMap) -> Role {
    match map {
        SpaceMap::Data => Role::DataBitmap,
        SpaceMap::Metadata => Role::MetadataBitmap,
    }
}

fn overflow_role(map: SpaceMap) -> Role {
    match map {
        SpaceMap::Data => Role::DataOverflow,
        SpaceMap::Metadata => Role::MetadataOverflow,
    }
}
