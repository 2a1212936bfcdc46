//! Trees that nothing leads to, and whose they were.
//!
//! A block that the metadata space map counts more often than it is named is named by a node that is lost,
//! too. Such a tree goes where a node is missing if its keys fit there and nowhere else, no other tree that
//! fits overlaps it, and the device then has the mappings that its details say. Where the node is missing
//! that names the roots of devices, the number of mappings alone must tell them apart.

use std::collections::{BTreeMap, BTreeSet};

use super::trees::{Child, Content, Counted, Trees};
use super::{SalvagedDevice, State};
use crate::finding::Role;
use crate::key_range::KeyRange;
use crate::layout::DEVICE_IDS;
use crate::node::Node;
use crate::superblock::Superblock;
use crate::tree::LEVELS_MAX;

/// A tree of mappings that belong to some device, but it is not certain to which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Orphan {
    /// Its topmost node.
    pub block: u64,
    /// How many mappings can be read.
    pub mappings: u64,
    /// The first virtual block.
    pub first: u64,
    /// The last virtual block.
    pub last: u64,
}

/// A tree that is counted more often than it is named.
struct Candidate {
    block: u64,
    /// How much more often.
    missing: u32,
    counted: Counted,
}

impl Candidate {
    fn fits(&self, hole: &Hole) -> bool {
        let (Some(first), Some(last)) = (self.counted.first, self.counted.last) else {
            return false;
        };
        hole.places
            .iter()
            .all(|(_, range)| range.has(first) && range.has(last))
    }
}

/// A node of mapping trees that is lost and may have been an inner one.
#[derive(Default)]
struct Hole {
    /// The devices in whose trees it was, and where.
    places: Vec<(u64, KeyRange)>,
}

/// Finds orphans, gives back what is certain to the devices there are, and returns those, and the rest.
pub(super) fn give_back(
    trees: &mut Trees<'_>,
    superblock: &Superblock,
    state: &mut State,
) -> (Vec<SalvagedDevice>, Vec<Orphan>) {
    let mut candidates = candidates(trees, state);
    let filled = fill_holes(trees, state, &candidates);
    candidates.retain(|candidate| !filled.contains(&candidate.block));
    if !state.roots_are_whole {
        let found = assign_roots(state, &candidates);
        candidates.retain(|candidate| !found.values().any(|root| *root == candidate.block));
        state.roots.extend(found);
    }
    let orphans = candidates.iter().filter_map(|candidate| {
        Some(Orphan {
            block: candidate.block,
            mappings: candidate.counted.entries,
            first: candidate.counted.first?,
            last: candidate.counted.last?,
        })
    });
    let orphans = orphans.collect();
    (devices(trees, superblock, state), orphans)
}

fn candidates(trees: &Trees<'_>, state: &mut State) -> Vec<Candidate> {
    let State {
        recount, stored, ..
    } = state;
    for block in stored.metadata.in_use() {
        let is_inner = trees.content(block) == Content::Inner;
        if is_inner && !recount.is_visited(block) && leads_to_mappings(trees, block) {
            recount.walk_orphan(trees, stored, block);
        }
    }
    let mut candidates = Vec::new();
    for block in stored.metadata.in_use() {
        let named = recount.metadata.get(block);
        let counted = stored.metadata.get(block).unwrap_or(0);
        let is_other = recount.top_level.contains(&block) || !trees.content(block).may_map();
        if counted > named && !is_other && leads_to_mappings(trees, block) {
            candidates.push(Candidate {
                block,
                missing: counted - named,
                counted: trees.count_what_is_there(block),
            });
        }
    }
    candidates.sort_by_key(|candidate| candidate.counted.first);
    candidates
}

/// Whether the leftmost leaf below a node is one of mappings.
fn leads_to_mappings(trees: &Trees<'_>, block: u64) -> bool {
    let mut block = block;
    for _ in 0..LEVELS_MAX {
        match trees.node(Role::Mapping, block) {
            Some(node) if node.is_leaf() => return true,
            Some(node) if node.len() > 0 => block = node.pointer(0),
            // A lost leaf: the others will tell.
            _ => return trees.content(block) == Content::Unusable,
        }
    }
    false
}

/// Puts candidates into holes. Returns those that have found their place.
fn fill_holes(trees: &mut Trees<'_>, state: &State, candidates: &[Candidate]) -> BTreeSet<u64> {
    let holes = holes(trees, state);
    let mut fillings: BTreeMap<u64, Vec<&Candidate>> = BTreeMap::new();
    let mut unclear = BTreeSet::new();
    for candidate in candidates {
        let fitting = holes.iter().filter(|(_, hole)| candidate.fits(hole));
        let fitting: Vec<u64> = fitting.map(|(block, _)| *block).collect();
        match fitting[..] {
            [block] => fillings.entry(block).or_default().push(candidate),
            _ => unclear.extend(fitting),
        }
    }
    fillings.retain(|block, filling| !unclear.contains(block) && is_a_node(trees, filling));
    for (block, filling) in &fillings {
        let children = filling.iter().map(|candidate| Child {
            key: candidate.counted.first.unwrap_or(0),
            block: candidate.block,
        });
        trees.adopt(*block, children.collect());
    }
    let wrong = fillings.keys().filter(|block| {
        let mut places = holes[*block].places.iter();
        !places.all(|(id, _)| has_its_mappings(trees, state, *id))
    });
    let wrong: Vec<u64> = wrong.copied().collect();
    for block in wrong {
        trees.disown(block);
        fillings.remove(&block);
    }
    let filled = fillings.values().flatten();
    filled.map(|candidate| candidate.block).collect()
}

/// The lost nodes that may have been inner ones.
fn holes(trees: &Trees<'_>, state: &State) -> BTreeMap<u64, Hole> {
    let mut holes: BTreeMap<u64, Hole> = BTreeMap::new();
    for (id, root) in &state.roots {
        for lost in trees.count_what_is_there(*root).lost {
            let was_inner = lost.is_leaf != Some(true);
            if was_inner && !state.recount.is_visited(lost.block) {
                let hole = holes.entry(lost.block).or_default();
                hole.places.push((*id, lost.range));
            }
        }
    }
    holes
}

/// Whether these, in the order of their first keys, can have been the children of one node.
fn is_a_node(trees: &Trees<'_>, filling: &[&Candidate]) -> bool {
    let is_leaf = |candidate: &Candidate| trees.content(candidate.block) != Content::Inner;
    let in_order = filling
        .windows(2)
        .all(|pair| pair[0].counted.last < pair[1].counted.first);
    let alike = filling
        .windows(2)
        .all(|pair| is_leaf(pair[0]) == is_leaf(pair[1]));
    let once = filling.iter().all(|candidate| candidate.missing == 1);
    in_order && alike && once && filling.len() <= Node::internal_capacity() as usize
}

/// Whether a device has as many mappings as its details say, but for leaves that are lost.
fn has_its_mappings(trees: &Trees<'_>, state: &State, id: u64) -> bool {
    let (Some(root), Some(details)) = (state.roots.get(&id), state.details.get(&id)) else {
        return false;
    };
    let counted = trees.count_what_is_there(*root);
    let Some(missing) = details.mapped_blocks.checked_sub(counted.entries) else {
        return false;
    };
    let leaf_max = u64::from(Node::leaf_capacity(Role::Mapping));
    let leaves = counted.lost.len() as u64;
    missing <= leaves * leaf_max && (missing > 0 || leaves == 0)
}

/// The roots of devices that no top-level leaf names: the only one with so many mappings.
fn assign_roots(state: &State, candidates: &[Candidate]) -> BTreeMap<u64, u64> {
    let mut by_count: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut devices = 0;
    for (id, details) in &state.details {
        if !state.roots.contains_key(id) {
            by_count.entry(details.mapped_blocks).or_default().push(*id);
            devices += 1;
        }
    }
    let named: u32 = candidates.iter().map(|candidate| candidate.missing).sum();
    if named > devices {
        // Some are not roots: what was above them is lost, too.
        return BTreeMap::new();
    }
    let mut roots = BTreeMap::new();
    for (count, ids) in by_count {
        let of_count = |candidate: &&Candidate| candidate.counted.entries == count;
        let fitting: Vec<&Candidate> = candidates.iter().filter(of_count).collect();
        if let [only] = fitting[..]
            && only.counted.lost.is_empty()
            && only.missing as usize == ids.len()
        {
            roots.extend(ids.iter().map(|id| (*id, only.block)));
        }
    }
    roots
}

fn devices(trees: &Trees<'_>, superblock: &Superblock, state: &State) -> Vec<SalvagedDevice> {
    let ids: BTreeSet<u64> = state
        .roots
        .keys()
        .chain(state.details.keys())
        .copied()
        .collect();
    let of_devices = ids.into_iter().filter(|id| *id < DEVICE_IDS);
    let device = |id: u64| {
        let root = state.roots.get(&id).copied();
        let details = state.details.get(&id);
        let is_believed = details.is_some_and(|details| {
            let times = details.creation_time <= details.snapshotted_time
                && details.snapshotted_time <= superblock.time;
            let counted = root.map(|root| trees.count_what_is_there(root));
            times
                && counted.is_some_and(|counted| {
                    !counted.lost.is_empty() || counted.entries == details.mapped_blocks
                })
        });
        Some(SalvagedDevice {
            id: u32::try_from(id).ok()?,
            root,
            mapped_blocks: details.map(|details| details.mapped_blocks),
            transaction_id: details.map_or(0, |details| details.transaction_id),
            creation_time: match details {
                Some(details) if details.creation_time <= superblock.time => details.creation_time,
                _ => superblock.time,
            },
            // Too late costs a copy; too early lets one device write what another one shares.
            snapshotted_time: match details {
                Some(details) if is_believed => details.snapshotted_time,
                _ => superblock.time,
            },
        })
    };
    of_devices.filter_map(device).collect()
}
