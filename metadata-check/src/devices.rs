//! Devices: the top-level tree and the details tree must name the same ones and agree about them.

use crate::checker::{Checker, State};
use crate::finding::{FindingKind, Role};
use crate::layout::{DEVICE_IDS, le32, le64};
use crate::report::Device;
use crate::superblock::Superblock;

/// An entry of the top-level tree.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopLevelEntry {
    /// The leaf that holds it.
    pub(crate) leaf: u64,
    pub(crate) id: u64,
    pub(crate) root: u64,
}

/// An entry of the details tree.
#[derive(Debug, Clone, Copy)]
struct DetailsEntry {
    /// The leaf that holds it.
    leaf: u64,
    id: u64,
    details: Details,
}

/// A device's record in the details tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) mapped_blocks: u64,
    pub(crate) transaction_id: u64,
    pub(crate) creation_time: u32,
    pub(crate) snapshotted_time: u32,
}

impl Details {
    /// Decodes a 24-byte value.
    pub(crate) fn decode(value: &[u8]) -> Self {
        Self {
            mapped_blocks: le64(value, 0),
            transaction_id: le64(value, 8),
            creation_time: le32(value, 16),
            snapshotted_time: le32(value, 20),
        }
    }
}

impl Checker<'_> {
    /// Compares the two trees of the pool, or of its metadata snapshot, and returns the devices in them.
    pub(crate) fn check_devices(&mut self, superblock: &Superblock) -> Vec<Device> {
        let top_level = self.top_level_entries(superblock.mapping_root);
        let details = self.details_entries(superblock.details_root);
        if self.is_whole(Role::Details, superblock.details_root) {
            for entry in &top_level {
                if details
                    .binary_search_by_key(&entry.id, |details| details.id)
                    .is_err()
                {
                    let kind = FindingKind::DetailsMissing { id: entry.id };
                    self.findings.at_device(entry.leaf, entry.id, kind);
                }
            }
        }
        let top_level_whole = self.is_whole(Role::TopLevel, superblock.mapping_root);
        let mut devices = Vec::new();
        for entry in &details {
            self.check_times(entry, superblock.time);
            let found = top_level.binary_search_by_key(&entry.id, |other| other.id);
            let root = found.ok().map(|index| top_level[index].root);
            if root.is_none() && top_level_whole {
                let kind = FindingKind::MappingsMissing { id: entry.id };
                self.findings.at_device(entry.leaf, entry.id, kind);
            }
            devices.extend(self.check_mapped(entry, root, superblock.time));
        }
        devices
    }

    /// The top-level entries with a possible id below `root`, by ascending id, each id once.
    pub(crate) fn top_level_entries(&self, root: u64) -> Vec<TopLevelEntry> {
        let mut entries = Vec::new();
        for leaf in self.leaves(Role::TopLevel, root) {
            let node = &self.retained[&leaf];
            entries.extend((0..node.len()).map(|index| TopLevelEntry {
                leaf,
                id: node.key(index),
                root: node.pointer(index),
            }));
        }
        // Ascending already unless the tree is damaged, which has been reported.
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        entries.retain(|entry| entry.id < DEVICE_IDS);
        entries
    }

    fn details_entries(&self, root: u64) -> Vec<DetailsEntry> {
        let mut entries = Vec::new();
        for leaf in self.leaves(Role::Details, root) {
            let node = &self.retained[&leaf];
            entries.extend((0..node.len()).map(|index| DetailsEntry {
                leaf,
                id: node.key(index),
                details: Details::decode(node.value(index)),
            }));
        }
        entries.sort_by_key(|entry| entry.id);
        entries.dedup_by_key(|entry| entry.id);
        entries.retain(|entry| entry.id < DEVICE_IDS);
        entries
    }

    fn check_times(&mut self, entry: &DetailsEntry, pool_time: u32) {
        let (created, snapshotted) = (entry.details.creation_time, entry.details.snapshotted_time);
        let id = entry.id;
        for (field, found) in [
            ("creation_time", created),
            ("snapshotted_time", snapshotted),
        ] {
            if found > pool_time {
                let kind = FindingKind::DeviceTime {
                    id,
                    field,
                    found,
                    pool_time,
                };
                self.findings.at_device(entry.leaf, id, kind);
            }
        }
        if snapshotted < created {
            let kind = FindingKind::SnapshottedBeforeCreation {
                id,
                snapshotted,
                created,
            };
            self.findings.at_device(entry.leaf, id, kind);
        }
    }

    /// Compares a device's details with its mapping tree.
    fn check_mapped(
        &mut self,
        entry: &DetailsEntry,
        root: Option<u64>,
        time: u32,
    ) -> Option<Device> {
        let DetailsEntry { leaf, id, details } = *entry;
        let seen = root
            .and_then(|root| self.seen_as(Role::Mapping, root))
            .copied();
        let tree = seen
            .filter(|seen| seen.state == State::Done)
            .map(|seen| seen.summary);
        if let Some(tree) = tree {
            if !tree.incomplete && tree.entries != details.mapped_blocks {
                let (found, expected) = (details.mapped_blocks, tree.entries);
                let kind = FindingKind::BadMappedBlocks {
                    id,
                    found,
                    expected,
                };
                self.findings.at_device(leaf, id, kind);
            }
            if time < self.pool_time && tree.time_max > time {
                let (found, held_time) = (tree.time_max, time);
                let kind = FindingKind::HeldMappingTime {
                    id,
                    found,
                    held_time,
                };
                self.findings.at_device(root.unwrap_or(leaf), id, kind);
            }
        }
        Some(Device {
            id: u32::try_from(id).ok()?,
            mapped_blocks: tree.map_or(details.mapped_blocks, |tree| tree.entries),
            transaction_id: details.transaction_id,
            creation_time: details.creation_time,
            snapshotted_time: details.snapshotted_time,
            highest_mapped: tree.filter(|tree| tree.entries > 0).map(|tree| tree.last),
            damaged: tree.is_none_or(|tree| tree.damaged),
        })
    }

    /// Whether all of the tree at `root` could be read.
    fn is_whole(&self, role: Role, root: u64) -> bool {
        self.seen_as(role, root)
            .is_some_and(|seen| seen.state == State::Done && !seen.summary.incomplete)
    }
}
