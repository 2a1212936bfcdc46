//! The mapping trees of all devices: every distinct top-level leaf names roots, every distinct
//! bottom-level leaf names data blocks.

use crate::checker::{Checker, Pointer};
use crate::finding::{FindingKind, Role};
use crate::layout::DEVICE_IDS;
use crate::node::{Mapping, Node};

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

    /// Counts the data blocks that a leaf names.
    pub(crate) fn count_mappings(&mut self, node: &Node) {
        for mapping in node.mappings() {
            if mapping.data_block < self.data_blocks {
                self.data_counts.add(mapping.data_block);
            }
        }
    }
}

/// What a mapping may be in this pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MappingLimits {
    /// Blocks of the data store.
    pub(crate) data_blocks: u64,
    pub(crate) pool_time: u32,
}

impl MappingLimits {
    /// The latest time in a leaf, and what is wrong with its mappings.
    pub(crate) fn faults(self, node: &Node) -> (u32, Vec<FindingKind>) {
        let (mut time_max, mut data_block_max) = (0, 0);
        for mapping in node.mappings() {
            time_max = time_max.max(mapping.time);
            data_block_max = data_block_max.max(mapping.data_block);
        }
        let mut faults = Vec::new();
        if data_block_max >= self.data_blocks {
            faults.extend(self.outside(node));
        }
        if time_max > self.pool_time {
            faults.extend(self.late(node));
        }
        (time_max, faults)
    }

    fn outside(self, node: &Node) -> Option<FindingKind> {
        let mappings = || node.keys().zip(node.mappings());
        let is_outside = |(_, mapping): &(u64, Mapping)| mapping.data_block >= self.data_blocks;
        let (virtual_block, first) = mappings().find(is_outside)?;
        Some(FindingKind::MappingOutside {
            virtual_block,
            data_block: first.data_block,
            nr_blocks: self.data_blocks,
            mappings: mappings().filter(is_outside).count(),
        })
    }

    fn late(self, node: &Node) -> Option<FindingKind> {
        let mappings = || node.keys().zip(node.mappings());
        let is_late = |(_, mapping): &(u64, Mapping)| mapping.time > self.pool_time;
        let (virtual_block, first) = mappings().find(is_late)?;
        Some(FindingKind::MappingTime {
            virtual_block,
            found: first.time,
            pool_time: self.pool_time,
            mappings: mappings().filter(is_late).count(),
        })
    }
}
