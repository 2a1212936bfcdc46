//! What a check hands back, and the bounded list in which findings gather.

use crate::finding::{Finding, FindingKind, Severity};
use crate::key_range::MissingRange;

/// Findings that are kept; the rest are only counted.
pub(crate) const FINDINGS_MAX: usize = 1000;

/// The outcome of a check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// The faults, in the order they were met: structure first, reference counts last. At most 1000.
    pub findings: Vec<Finding>,
    /// How many findings there were beyond those kept.
    pub findings_dropped: u64,
    /// How many findings are damage, dropped ones included.
    pub damage_count: u64,
    /// How many findings are leaks, dropped ones included.
    pub leak_count: u64,
    /// The superblock's flag of that name: a metadata operation failed. Not a finding by itself.
    pub needs_check: bool,
    /// What the superblock says, if it could be read.
    pub superblock: Option<Summary>,
    /// The thin devices that have details, by ascending id.
    pub devices: Vec<Device>,
    /// The devices that damage costs mappings, by ascending id, and which.
    pub losses: Vec<Loss>,
    /// First and last thin id of each range in which devices may have lost all their mappings, since the node
    /// that names their trees is damaged.
    pub lost_ids: Vec<(u32, u32)>,
}

impl Report {
    /// Whether nothing at all was found. `needs_check` does not matter here.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage_count == 0 && self.leak_count == 0
    }

    /// Whether there is anything worse than leaked space.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damage_count > 0
    }
}

/// A pool in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The pool's snapshot counter.
    pub time: u32,
    /// The number kept for the operator's tools.
    pub transaction_id: u64,
    /// Size of a data block in sectors of 512 bytes.
    pub data_block_size: u32,
    /// The block of the metadata snapshot, if there is one.
    pub held_root: Option<u64>,
    /// Size of the metadata in blocks, as its space map has it.
    pub metadata_blocks: u64,
    /// Metadata blocks to which something refers, as recounted.
    pub metadata_blocks_used: u64,
    /// Size of the data store in data blocks, as its space map has it.
    pub data_blocks: u64,
    /// Data blocks that are mapped, as recounted.
    pub data_blocks_used: u64,
}

impl Summary {
    /// Metadata blocks that nothing refers to. The pool's reserve is not taken off.
    #[must_use]
    pub fn metadata_blocks_free(&self) -> u64 {
        self.metadata_blocks
            .saturating_sub(self.metadata_blocks_used)
    }

    /// Data blocks that nothing maps.
    #[must_use]
    pub fn data_blocks_free(&self) -> u64 {
        self.data_blocks.saturating_sub(self.data_blocks_used)
    }
}

/// A thin device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Device {
    /// Its number.
    pub id: u32,
    /// Mappings it has, as counted; what its details say if its tree is missing.
    pub mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The pool's time when it was created.
    pub creation_time: u32,
    /// The pool's time at the last snapshot in which it took part.
    pub snapshotted_time: u32,
    /// The highest virtual block that is mapped.
    pub highest_mapped: Option<u64>,
    /// Whether its mapping tree is missing or has a fault in it.
    pub damaged: bool,
}

/// Mappings of a device that cannot be trusted, or found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loss {
    /// Its number.
    pub device: u32,
    /// What the damaged nodes' parents leave to them, in ascending order, neighbours as one. At most 65536 of
    /// all devices.
    pub ranges: Vec<MissingRange>,
    /// How many ranges there are beyond those named.
    pub more_ranges: u64,
}

/// How far a check has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Metadata blocks read so far.
    pub blocks_read: u64,
    /// How many the pool claims to use: an estimate, and on a damaged pool nothing more.
    pub blocks_expected: u64,
}

/// Findings as they are made.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) kept: Vec<Finding>,
    pub(crate) dropped: u64,
    pub(crate) damage: u64,
    pub(crate) leaks: u64,
}

impl Findings {
    /// Adds a finding, unless it is among those kept: what the pool and its metadata snapshot share is
    /// looked at from both.
    pub(crate) fn push(&mut self, finding: Finding) {
        let full = self.kept.len() >= FINDINGS_MAX;
        if !full && self.kept.contains(&finding) {
            return;
        }
        match finding.severity {
            Severity::Damage => self.damage += 1,
            Severity::Leak => self.leaks += 1,
        }
        if full {
            self.dropped += 1;
        } else {
            self.kept.push(finding);
        }
    }

    /// Adds a fault that lies in metadata block `block`.
    pub(crate) fn at(&mut self, block: u64, kind: FindingKind) {
        self.push(Finding::new(Some(block), kind));
    }

    /// Adds a fault that lies in metadata block `block` and concerns one device.
    pub(crate) fn at_device(&mut self, block: u64, device: u64, kind: FindingKind) {
        let mut finding = Finding::new(Some(block), kind);
        finding.devices.extend(u32::try_from(device).ok());
        self.push(finding);
    }
}
