//! Which devices a fault in a mapping node concerns.
//!
//! The walk meets a shared node once, so it cannot tell. Afterwards, only from roots known to have a fault
//! below them and only along nodes that do, the faulty blocks are looked for again. On a sound pool this
//! costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::{Checker, State};
use crate::finding::Role;
use crate::node::Node;

/// Devices that a finding names.
const DEVICES_MAX: usize = 64;
/// Nodes that are read again at most.
const READS_MAX: usize = 100_000;

impl Checker<'_> {
    /// Adds the devices of the pool whose top-level tree is at `mapping_root` to the findings about
    /// mapping nodes.
    pub(crate) fn name_affected_devices(&mut self, mapping_root: u64) {
        let faulty: BTreeSet<u64> = self
            .findings
            .kept
            .iter()
            .filter_map(|finding| finding.block)
            .collect();
        let mut devices_by_root: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for entry in self.top_level_entries(mapping_root) {
            if self.is_suspect(entry.root) {
                let devices = devices_by_root.entry(entry.root).or_default();
                devices.extend(
                    u32::try_from(entry.id)
                        .ok()
                        .filter(|_| devices.len() < DEVICES_MAX),
                );
            }
        }
        let mut reads = READS_MAX;
        let mut affected: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (root, devices) in devices_by_root {
            for block in self.faulty_below(root, &faulty, &mut reads) {
                affected.entry(block).or_default().extend(&devices);
            }
        }
        for finding in &mut self.findings.kept {
            let devices = finding.block.and_then(|block| affected.get(&block));
            if let Some(devices) = devices.filter(|_| finding.devices.is_empty()) {
                finding.devices.extend(devices.iter().take(DEVICES_MAX));
            }
        }
    }

    /// Whether there is, or may be, a fault at or below a mapping node.
    fn is_suspect(&self, block: u64) -> bool {
        self.seen_as(Role::Mapping, block)
            .is_none_or(|seen| seen.state != State::Done || seen.summary.damaged)
    }

    /// The blocks of `faulty` in the mapping tree at `root`.
    fn faulty_below(&self, root: u64, faulty: &BTreeSet<u64>, reads: &mut usize) -> Vec<u64> {
        let mut found = Vec::new();
        let mut visited = BTreeSet::new();
        let mut waiting = vec![root];
        while let Some(block) = waiting.pop() {
            if !self.is_suspect(block) || !visited.insert(block) {
                continue;
            }
            if faulty.contains(&block) {
                found.push(block);
            }
            let walked = self
                .seen_as(Role::Mapping, block)
                .is_some_and(|seen| seen.state == State::Done && seen.summary.height != Some(0));
            if !walked || *reads == 0 {
                continue;
            }
            *reads -= 1;
            if let Ok(node) = Node::load(self.source(), Role::Mapping, block)
                && !node.is_leaf()
            {
                waiting.extend((0..node.len()).map(|index| node.pointer(index)));
            }
        }
        found
    }
}
