//! Which devices a fault concerns, and which of their mappings it costs.
//!
//! The walk meets a shared node once, so it cannot tell. Afterwards, only from roots known to have a fault
//! below them and only along nodes that do, the faults are looked for again, this time with the range of keys
//! that each parent leaves to its child: a node that cannot be trusted costs that range, in every device that
//! reaches it. On a sound pool this costs nothing.
//!
//! The number of nodes that are read again is bounded, and so is the number of ranges. Beyond the first
//! bound, ranges are those of the last node that was read, so that they may be too wide, and never too small.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::{Checker, State, Subtree};
use crate::finding::Role;
use crate::key_range::{KeyRange, MissingRange};
use crate::layout::DEVICE_IDS;
use crate::node::Node;
use crate::report::{Device, Loss};
use crate::tree::LEVELS_MAX;

/// Devices that a finding names.
const DEVICES_MAX: usize = 64;
/// Nodes that are read again at most.
const READS_MAX: usize = 100_000;
/// Ranges that are named at most, of all devices together.
const RANGES_MAX: usize = 65_536;

/// What faults cost.
#[derive(Default)]
pub(crate) struct Losses {
    /// By ascending id.
    pub(crate) devices: Vec<Loss>,
    /// First and last thin id of what nodes of the top-level tree had that cannot be trusted.
    pub(crate) ids: Vec<(u32, u32)>,
    /// Blocks with findings that the pool's own trees reach.
    pub(crate) faulty: BTreeSet<u64>,
}

impl Checker<'_> {
    /// Adds the devices of the pool whose top-level tree is at `mapping_root` to the findings about
    /// mapping nodes, and returns what the faults cost. `devices` are those that have details.
    pub(crate) fn name_losses(&mut self, mapping_root: u64, devices: &[Device]) -> Losses {
        let blocks = self.findings.kept.iter().filter_map(|found| found.block);
        let faulty: BTreeSet<u64> = blocks.collect();
        let mut walk = DamageWalk {
            checker: self,
            faulty: &faulty,
            reads: READS_MAX,
            ranges: RANGES_MAX,
        };
        let top_level = walk.below(Role::TopLevel, mapping_root);
        let ids: Vec<(u32, u32)> = top_level.ranges.iter().filter_map(ids_in).collect();
        let mut in_pool = top_level.faulty;
        in_pool.extend(walk.checker.leaves_of_lost_roots(mapping_root));
        let mut affected: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        let mut losses: BTreeMap<u32, Loss> = BTreeMap::new();
        for (root, sharers) in walk.checker.suspect_roots(mapping_root) {
            let found = walk.below(Role::Mapping, root);
            for block in found.faulty {
                in_pool.insert(block);
                let named = affected.entry(block).or_default();
                named.extend(sharers.iter().take(DEVICES_MAX));
            }
            for device in sharers {
                let room = walk.ranges.min(found.ranges.len());
                walk.ranges -= room;
                let loss = Loss {
                    device,
                    ranges: found.ranges[..room].to_vec(),
                    more_ranges: found.more + (found.ranges.len() - room) as u64,
                };
                losses.insert(device, loss);
            }
        }
        self.note_missing_trees(mapping_root, devices, &ids, &mut losses);
        for finding in &mut self.findings.kept {
            let devices = finding.block.and_then(|block| affected.get(&block));
            if let Some(devices) = devices.filter(|_| finding.devices.is_empty()) {
                finding.devices.extend(devices.iter().take(DEVICES_MAX));
            }
        }
        Losses {
            devices: losses.into_values().collect(),
            ids,
            faulty: in_pool,
        }
    }

    /// The roots below which a fault is, or may be, and the devices that have them.
    fn suspect_roots(&self, mapping_root: u64) -> BTreeMap<u64, Vec<u32>> {
        let mut roots: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for entry in self.top_level_entries(mapping_root) {
            let summary = self.summary_of(Role::Mapping, entry.root);
            if summary.is_none_or(|subtree| subtree.damaged) {
                let sharers = roots.entry(entry.root).or_default();
                sharers.extend(u32::try_from(entry.id));
            }
        }
        roots
    }

    /// The leaves of the top-level tree that name roots which cannot be used.
    fn leaves_of_lost_roots(&self, mapping_root: u64) -> Vec<u64> {
        let mut entries = self.top_level_entries(mapping_root);
        entries.retain(|entry| self.summary_of(Role::Mapping, entry.root).is_none());
        entries.into_iter().map(|entry| entry.leaf).collect()
    }

    /// A device that has details and no mapping tree has lost everything; one that a damaged node of the
    /// top-level tree had is told of by its id.
    fn note_missing_trees(
        &self,
        mapping_root: u64,
        devices: &[Device],
        ids: &[(u32, u32)],
        losses: &mut BTreeMap<u32, Loss>,
    ) {
        let entries = self.top_level_entries(mapping_root);
        let named: BTreeSet<u64> = entries.iter().map(|entry| entry.id).collect();
        for device in devices {
            let is_in = |(first, last): &(u32, u32)| (*first..=*last).contains(&device.id);
            if !named.contains(&u64::from(device.id)) && !ids.iter().any(is_in) {
                let loss = Loss {
                    device: device.id,
                    ranges: vec![MissingRange::ALL],
                    more_ranges: 0,
                };
                losses.insert(device.id, loss);
            }
        }
    }

    /// What is known of a node and all below it, if the node itself could be used.
    fn summary_of(&self, role: Role, block: u64) -> Option<&Subtree> {
        let seen = self.seen_as(role, block)?;
        (seen.state == State::Done).then_some(&seen.summary)
    }
}

fn ids_in(range: &MissingRange) -> Option<(u32, u32)> {
    let highest = DEVICE_IDS - 1;
    let first = u32::try_from(range.first).ok()?;
    let last = u32::try_from(range.last.unwrap_or(highest).min(highest)).ok()?;
    (first <= last).then_some((first, last))
}

/// What a walk found in a tree.
#[derive(Default)]
struct Found {
    /// Blocks that findings are about.
    faulty: BTreeSet<u64>,
    ranges: Vec<MissingRange>,
    /// Ranges that are not named.
    more: u64,
}

/// A node to look at.
#[derive(Clone, Copy)]
struct Place {
    block: u64,
    range: KeyRange,
    depth: usize,
    /// Its range is lost already.
    is_lost: bool,
}

/// Walks along what is damaged.
struct DamageWalk<'a, 'b> {
    checker: &'a Checker<'b>,
    faulty: &'a BTreeSet<u64>,
    /// How many more nodes may be read.
    reads: usize,
    /// How many more ranges may be named.
    ranges: usize,
}

impl DamageWalk<'_, '_> {
    fn below(&mut self, role: Role, root: u64) -> Found {
        let mut found = Found::default();
        let place = Place {
            block: root,
            range: KeyRange::ALL,
            depth: 0,
            is_lost: false,
        };
        self.step(role, place, &mut found);
        found
    }

    /// At most `LEVELS_MAX` deep; ends on every input, as each node with children takes one of the reads.
    fn step(&mut self, role: Role, place: Place, found: &mut Found) {
        let summary = self.checker.summary_of(role, place.block).copied();
        if summary.is_some_and(|subtree| !subtree.damaged) {
            return;
        }
        if self.faulty.contains(&place.block) {
            found.faulty.insert(place.block);
        }
        let node = summary.and_then(|_| self.inner_node(role, place));
        let is_lost = match &node {
            Some(node) => self.is_wrong_itself(role, place.block, node),
            None => true,
        };
        if is_lost && !place.is_lost {
            self.lose(place.range, found);
        }
        let Some(node) = node else { return };
        let misplaced = self.misplaced(role, &node);
        for index in 0..node.len() {
            let next = (index + 1 < node.len()).then(|| node.key(index + 1));
            let range = place.range.of_child(node.key(index), next);
            let is_lost = place.is_lost || is_lost;
            if misplaced.contains(&index) && !is_lost {
                self.lose(range, found);
            }
            let child = Place {
                block: node.pointer(index),
                range,
                depth: place.depth + 1,
                is_lost: is_lost || misplaced.contains(&index),
            };
            self.step(role, child, found);
        }
    }

    /// The node, if it has children that can be looked at.
    fn inner_node(&mut self, role: Role, place: Place) -> Option<Node> {
        let summary = self.checker.summary_of(role, place.block)?;
        if summary.height == Some(0) || place.depth + 1 >= LEVELS_MAX || self.reads == 0 {
            return None;
        }
        self.reads -= 1;
        let node = Node::load(self.checker.source(), role, place.block).ok()?;
        (!node.is_leaf()).then_some(node)
    }

    /// Whether an inner node's own entries cannot be trusted, so that nothing is certain of its range.
    fn is_wrong_itself(&self, role: Role, block: u64, node: &Node) -> bool {
        let seen = self.checker.seen_as(role, block);
        let is_under_full = seen.is_some_and(|seen| seen.under_full_reported);
        let children = (0..node.len()).map(|index| node.pointer(index));
        let mut heights = children.filter_map(|child| self.checker.summary_of(role, child)?.height);
        let first = heights.next();
        let is_uneven = heights.any(|height| Some(height) != first);
        is_under_full || is_uneven || node.len() == 0 || !node.is_ascending()
    }

    /// The children whose keys are not where the node says: look-ups miss keys of either neighbour.
    fn misplaced(&self, role: Role, node: &Node) -> BTreeSet<usize> {
        let ends = |index: usize| {
            let child = self.checker.summary_of(role, node.pointer(index))?;
            Some((child.first?, child.last))
        };
        let mut misplaced = BTreeSet::new();
        for index in 0..node.len() {
            let key = node.key(index);
            let before = index.checked_sub(1);
            let is_early = ends(index).is_some_and(|(first, _)| first < key);
            let is_reached = before.and_then(ends).is_some_and(|(_, last)| last >= key);
            if is_early || is_reached {
                misplaced.extend(before);
                misplaced.insert(index);
            }
        }
        misplaced
    }

    fn lose(&self, range: KeyRange, found: &mut Found) {
        let Some(range) = MissingRange::of(range) else {
            return;
        };
        if found.ranges.len() < self.ranges {
            range.add_to(&mut found.ranges);
        } else {
            found.more += 1;
        }
    }
}
