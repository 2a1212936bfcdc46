//! How often each block is named, and by what, as far as can be seen.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::stored::StoredMaps;
use super::trees::{Lost, Trees, Visitor};
use crate::counts::Counts;
use crate::finding::Role;
use crate::layout::BITMAP_ENTRIES_U64;
use crate::node::Node;
use crate::superblock::Superblock;

/// What was counted.
pub(super) struct Recount {
    pub(super) metadata: Counts,
    pub(super) data: Counts,
    /// A bit for each metadata block that was looked at.
    visited: Vec<u64>,
    /// Leaves of top-level trees, which look like mapping leaves.
    pub(super) top_level: BTreeSet<u64>,
    /// The entries of all mapping leaves.
    pub(super) mappings: u64,
    /// A node of a mapping tree could not be used.
    pub(super) has_lost_mappings: bool,
}

/// A walk that counts.
struct Counting<'a> {
    recount: &'a mut Recount,
    stored: &'a StoredMaps,
    role: Role,
    roots: Vec<u64>,
}

impl Recount {
    pub(super) fn new(trees: &Trees<'_>, data_blocks: u64) -> Self {
        let mut metadata = Counts::default();
        for region in 0..trees.len().div_ceil(BITMAP_ENTRIES_U64) {
            metadata.declare(region);
        }
        let mut data = Counts::default();
        // As many as metadata can map; a wild size takes no memory.
        let regions = data_blocks.div_ceil(BITMAP_ENTRIES_U64);
        for region in 0..regions.min(1 << 24) {
            data.declare(region);
        }
        Recount {
            metadata,
            data,
            visited: vec![0; usize::try_from(trees.len().div_ceil(64)).unwrap_or(0)],
            top_level: BTreeSet::new(),
            mappings: 0,
            has_lost_mappings: false,
        }
    }

    /// Counts all that a superblock leads to.
    pub(super) fn of(trees: &Trees<'_>, superblock: &Superblock, stored: &StoredMaps) -> Self {
        let mut recount = Recount::new(trees, superblock.data_map.nr_blocks);
        recount.metadata.add(0);
        for (role, root) in [
            (Role::DataIndex, superblock.data_map.bitmap_root),
            (Role::DataOverflow, superblock.data_map.ref_count_root),
            (
                Role::MetadataOverflow,
                superblock.metadata_map.ref_count_root,
            ),
        ] {
            recount.walk(trees, stored, role, root);
        }
        recount.metadata.add(superblock.metadata_map.bitmap_root);
        for bitmap in &stored.bitmaps {
            recount.metadata.add(*bitmap);
        }
        recount.devices(trees, stored, superblock);
        if superblock.held_root != 0 {
            recount.metadata.add(superblock.held_root);
            if let Ok(held) = Superblock::load_held(trees.source(), superblock.held_root) {
                recount.devices(trees, stored, &held);
            }
        }
        recount
    }

    fn devices(&mut self, trees: &Trees<'_>, stored: &StoredMaps, superblock: &Superblock) {
        self.walk(trees, stored, Role::Details, superblock.details_root);
        let roots = self.walk(trees, stored, Role::TopLevel, superblock.mapping_root);
        for root in roots {
            self.walk(trees, stored, Role::Mapping, root);
        }
    }

    /// Counts what is in a tree and was not counted before; returns the roots in its leaves, if those are
    /// top-level ones.
    pub(super) fn walk(
        &mut self,
        trees: &Trees<'_>,
        stored: &StoredMaps,
        role: Role,
        root: u64,
    ) -> Vec<u64> {
        let mut counting = Counting {
            recount: self,
            stored,
            role,
            roots: Vec::new(),
        };
        let _ = trees.walk(role, root, &mut counting);
        counting.roots
    }

    /// Counts what is in a tree to which nothing leads.
    pub(super) fn walk_orphan(&mut self, trees: &Trees<'_>, stored: &StoredMaps, root: u64) {
        self.walk(trees, stored, Role::Mapping, root);
        self.metadata.take_off(root);
    }

    pub(super) fn is_visited(&self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok();
        word.and_then(|word| self.visited.get(word))
            .is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    fn forget(&mut self, block: u64) {
        let word = usize::try_from(block / 64).ok();
        if let Some(word) = word.and_then(|word| self.visited.get_mut(word)) {
            *word &= !(1 << (block % 64));
        }
    }

    /// Whether it was visited for the first time now.
    fn visit(&mut self, block: u64) -> bool {
        let word = usize::try_from(block / 64).ok();
        let Some(word) = word.and_then(|word| self.visited.get_mut(word)) else {
            // Outside of the metadata: looked at, and found lost, each time.
            return true;
        };
        let is_new = *word >> (block % 64) & 1 == 0;
        *word |= 1 << (block % 64);
        is_new
    }
}

impl Visitor for Counting<'_> {
    fn named(&mut self, block: u64) -> bool {
        self.recount.metadata.add(block);
        // What is below a free block belongs to nobody.
        self.stored.metadata.get(block) != Some(0) && self.recount.visit(block)
    }

    fn leaf(&mut self, block: u64, node: &Node) -> ControlFlow<()> {
        match self.role {
            Role::Mapping => {
                self.recount.mappings += u64::from(node.entries());
                for mapping in node.mappings() {
                    self.recount.data.add(mapping.data_block);
                }
            }
            Role::TopLevel => {
                self.recount.top_level.insert(block);
                self.roots
                    .extend((0..node.len()).map(|index| node.pointer(index)));
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }

    /// Where it is in its right place, it may be seen yet.
    fn lost(&mut self, lost: Lost) {
        self.recount.forget(lost.block);
        self.recount.has_lost_mappings |= self.role == Role::Mapping;
    }
}
