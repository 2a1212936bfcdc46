//! The mapping trees of all devices: every distinct top-level leaf names roots, every distinct
//! bottom-level leaf names data blocks.

use crate::checker::{Checker, Pointer, Subtree};
use crate::finding::{FindingKind, Role};
use crate::layout::DEVICE_IDS;
use crate::node::Node;

impl Checker<'_> {
    /// Walks the mapping trees named by the top-level leaves seen so far. A root named by several
    /// entries is referred to by each but walked once.
    pub(crate) fn walk_mapping_trees(&mut self) {
        let blocks: Vec<u64> = self.retained.keys().copied().collect();
        for block in blocks {
            if self.seen_as(Role::TopLevel, block).is_none() {
                continue;
            }
            let Some(node) = self
                .retained
                .get(&block)
                .filter(|node| node.is_leaf())
                .cloned()
            else {
                continue;
            };
            for index in 0..node.len() {
                let target = node.pointer(index);
                self.walk(Pointer {
                    from: block,
                    role: Role::Mapping,
                    target,
                });
            }
        }
    }

    /// Reports device ids that are too large, in both trees that have them as keys.
    pub(crate) fn check_device_ids(&mut self) {
        let mut faults = Vec::new();
        for (block, node) in self.retained.iter().filter(|(_, node)| node.is_leaf()) {
            let role = [Role::TopLevel, Role::Details]
                .into_iter()
                .find(|role| self.seen_as(*role, *block).is_some());
            let Some(role) = role else { continue };
            let ids = (0..node.len()).map(|index| node.key(index));
            if let Some(id) = ids.max().filter(|id| *id >= DEVICE_IDS) {
                faults.push((*block, FindingKind::BadDeviceId { role, id }));
            }
        }
        for (block, kind) in faults {
            self.findings.at(block, kind);
        }
    }

    /// Counts the data blocks that a leaf names and checks its mappings against the pool.
    pub(crate) fn count_mappings(&mut self, block: u64, node: &Node, subtree: &mut Subtree) {
        let (mut outside, mut late) = (None, None);
        let (mut outside_count, mut late_count) = (0, 0);
        for index in 0..node.len() {
            let mapping = node.mapping(index);
            if mapping.data_block >= self.data_blocks {
                outside.get_or_insert((node.key(index), mapping));
                outside_count += 1;
            } else {
                self.data_counts.add(mapping.data_block);
            }
            if mapping.time > self.pool_time {
                late.get_or_insert((node.key(index), mapping));
                late_count += 1;
            }
            subtree.time_max = subtree.time_max.max(mapping.time);
        }
        subtree.damaged |= outside.is_some() || late.is_some();
        if let Some((virtual_block, mapping)) = outside {
            let kind = FindingKind::MappingOutside {
                virtual_block,
                data_block: mapping.data_block,
                nr_blocks: self.data_blocks,
                mappings: outside_count,
            };
            self.findings.at(block, kind);
        }
        if let Some((virtual_block, mapping)) = late {
            let kind = FindingKind::MappingTime {
                virtual_block,
                found: mapping.time,
                pool_time: self.pool_time,
                mappings: late_count,
            };
            self.findings.at(block, kind);
        }
    }
}
