//! Which intact nodes are not believed: they may be older versions of themselves.

use std::collections::BTreeSet;

use super::State;
use super::trees::{Content, Trees, children};
use crate::finding::Role;
use crate::layout::{BITMAP_ENTRIES_U64, le64};

/// The nodes that name what is named too often: if any of them names all of it, only those.
pub(super) fn doubtful_nodes(trees: &Trees<'_>, state: &State) -> BTreeSet<u64> {
    let excess = Excess::of(trees, state);
    if excess.count == 0 || excess.must_be_the_map(trees, state) {
        return BTreeSet::new();
    }
    let mut all = BTreeSet::new();
    let mut some = BTreeSet::new();
    for block in (0..trees.len()).filter(|block| state.recount.is_visited(*block)) {
        let named = excess.named_by(trees, state, block);
        if named == excess.count {
            all.insert(block);
        } else if named > 0 {
            some.insert(block);
        }
    }
    if !all.is_empty() {
        return all;
    }
    if excess.may_be_the_maps && devices_are_complete(trees, state) {
        return BTreeSet::new();
    }
    some
}

/// What is named more often than the space maps say.
struct Excess {
    /// How many blocks, of both kinds.
    count: u64,
    /// All of them are data blocks.
    is_of_data: bool,
    /// All of them lie in one bitmap, which may be what is wrong.
    may_be_the_maps: bool,
}

impl Excess {
    fn of(trees: &Trees<'_>, state: &State) -> Self {
        let metadata = (0..trees.len())
            .filter(|block| is_metadata_excess(state, *block))
            .map(|block| (false, block / BITMAP_ENTRIES_U64));
        let data = state
            .recount
            .data
            .blocks()
            .filter(|block| is_data_excess(state, *block))
            .map(|block| (true, block / BITMAP_ENTRIES_U64));
        let mut count = 0;
        let mut bitmaps = BTreeSet::new();
        for bitmap in metadata.chain(data) {
            count += 1;
            bitmaps.insert(bitmap);
        }
        Excess {
            count,
            is_of_data: bitmaps.iter().all(|(is_data, _)| *is_data),
            may_be_the_maps: bitmaps.len() == 1,
        }
    }

    /// Whether no leaf can be what is wrong: one with as many mappings as the right one has would leave the
    /// sum of all counts as it is.
    fn must_be_the_map(&self, trees: &Trees<'_>, state: &State) -> bool {
        let counts = state
            .stored
            .data
            .in_use()
            .map(|block| state.stored.data.get(block));
        let stored: u64 = counts.flatten().map(u64::from).sum();
        let named = state.recount.mappings;
        self.is_of_data
            && !state.recount.has_lost_mappings
            && stored != named
            && devices_are_complete(trees, state)
    }

    /// How many of them a node names.
    fn named_by(&self, trees: &Trees<'_>, state: &State, block: u64) -> u64 {
        let content = trees.content(block);
        let is_top_level = state.recount.top_level.contains(&block);
        let role = match content {
            Content::Leaf(16) => Role::DataIndex,
            Content::Leaf(8) if is_top_level => Role::TopLevel,
            Content::Inner | Content::Leaf(8) => Role::Mapping,
            _ => return 0,
        };
        let Some(node) = trees.node(role, block) else {
            return 0;
        };
        let count = if !node.is_leaf() {
            let blocks = children(&node).into_iter().map(|child| child.block);
            blocks
                .filter(|block| is_metadata_excess(state, *block))
                .count()
        } else if role == Role::Mapping {
            let blocks = node.mappings().map(|mapping| mapping.data_block);
            blocks.filter(|block| is_data_excess(state, *block)).count()
        } else {
            let blocks = (0..node.len()).map(|index| le64(node.value(index), 0));
            blocks
                .filter(|block| is_metadata_excess(state, *block))
                .count()
        };
        count as u64
    }
}

fn is_metadata_excess(state: &State, block: u64) -> bool {
    let stored = state.stored.metadata.get(block);
    stored.is_some_and(|stored| state.recount.metadata.get(block) > stored)
}

fn is_data_excess(state: &State, block: u64) -> bool {
    let stored = state.stored.data.get(block);
    stored.is_some_and(|stored| state.recount.data.get(block) > stored)
}

/// Whether every device has all its mappings, as its details say. Then no node is stale that has another
/// number of entries than it should.
fn devices_are_complete(trees: &Trees<'_>, state: &State) -> bool {
    state.roots.iter().all(|(id, root)| {
        let details = state.details.get(id).map(|details| details.mapped_blocks);
        details.is_some() && trees.count(*root) == details
    })
}
