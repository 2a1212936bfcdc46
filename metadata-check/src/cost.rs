//! What each finding costs, if nothing else were wrong.
//!
//! Counts and details follow from the mapping trees, so they are made anew by a repair. What leads to
//! mappings costs them; which those are is told for each device (`affected`).

use std::collections::BTreeSet;

use crate::checker::Checker;
use crate::finding::{Cost, Finding, FindingKind, Role, Severity, SpaceMap};
use crate::superblock::Superblock;

impl Checker<'_> {
    /// Says of all findings what they cost. `in_pool` are the faulty nodes that the pool's own trees reach;
    /// none if all are.
    pub(crate) fn note_costs(&mut self, in_pool: Option<&BTreeSet<u64>>) {
        let is_in_pool = |finding: &Finding| match (in_pool, finding.block) {
            (Some(in_pool), Some(block)) => block == 0 || in_pool.contains(&block),
            _ => true,
        };
        let costs: Vec<Cost> = self
            .findings
            .kept
            .iter()
            .map(|finding| self.cost_of(finding, is_in_pool(finding)))
            .collect();
        for (finding, cost) in self.findings.kept.iter_mut().zip(costs) {
            finding.cost = cost;
        }
    }

    fn cost_of(&self, finding: &Finding, is_in_pool: bool) -> Cost {
        let of_role = |role| match role {
            Role::Superblock => Cost::Everything,
            Role::MetadataSnapshot => Cost::MetadataSnapshot,
            Role::TopLevel | Role::Mapping if is_in_pool => Cost::Mappings,
            Role::TopLevel | Role::Mapping => Cost::MetadataSnapshot,
            _ => Cost::Nothing,
        };
        let role = finding.block.and_then(|block| self.role_of(block));
        if let Some(role) = finding.kind.role() {
            return of_role(role);
        }
        match &finding.kind {
            FindingKind::Unreadable { .. }
            | FindingKind::BadChecksum { .. }
            | FindingKind::WrongKind { .. }
            | FindingKind::WrongOwnNumber { .. }
            | FindingKind::MappingOutside { .. }
            | FindingKind::MappingTime { .. } => role.map_or(Cost::Unknown, of_role),
            FindingKind::MappingsMissing { .. } => Cost::Mappings,
            // Mappings may be missing or wrong, or the number is; or a block may have been given to another.
            FindingKind::SizeUnknown { .. } | FindingKind::BadMappedBlocks { .. } => Cost::Unknown,
            FindingKind::BadCount {
                map: SpaceMap::Data,
                ..
            } if finding.severity == Severity::Damage => Cost::Unknown,
            FindingKind::NestedSnapshot { .. }
            | FindingKind::SnapshotDiffers { .. }
            | FindingKind::SnapshotTime { .. }
            | FindingKind::SnapshotSpaceMap { .. }
            | FindingKind::HeldMappingTime { .. } => Cost::MetadataSnapshot,
            kind if role == Some(Role::Superblock) && Superblock::is_fatal(kind) => {
                Cost::Everything
            }
            _ => Cost::Nothing,
        }
    }
}
