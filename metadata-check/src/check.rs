//! The order of a check: superblock, space map trees, device trees, mapping trees; then the comparisons,
//! which need all references counted.

use std::fmt;
use std::num::NonZero;

use crate::affected::Losses;
use crate::checker::{Checker, Pointer, Referred, Subtree};
use crate::finding::{Finding, FindingKind, Role, SpaceMap};
use crate::layout::METADATA_BLOCKS_MAX;
use crate::parallel::all_processors;
use crate::report::{Device, Findings, Progress, Report, Summary};
use crate::source::BlockSource;
use crate::space_map::IndexEntry;
use crate::superblock::{MapRoot, Superblock};

/// Data block numbers have 40 bits.
const DATA_BLOCKS_MAX: u64 = 1 << 40;
/// Mapping times have 24 bits.
const TIME_MAX: u32 = (1 << 24) - 1;

/// What to check and what to expect.
#[derive(Clone, Copy)]
pub struct CheckOptions<'a> {
    /// The superblock to start from, instead of block 0: a pinned commit of a live pool.
    pub superblock: Option<&'a [u8; 4096]>,
    /// Bits of `incompat_flags` that may be set.
    pub allowed_incompat: u32,
    /// Size of the data store in data blocks, if known. The pool must not be larger.
    pub data_blocks_available: Option<u64>,
    /// How many threads read metadata at a time.
    pub threads: NonZero<usize>,
    /// Called now and then, and once at the end.
    pub progress: &'a dyn Fn(Progress),
    /// Is told of all leaks, while findings are bounded.
    pub leak: &'a dyn Fn(Leak),
}

/// Neighbouring blocks whose count is higher than there are references.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leak {
    /// Which blocks they are.
    pub map: SpaceMap,
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// What the space map says.
    pub stored: u32,
    /// How many references there are.
    pub expected: u32,
}

impl Default for CheckOptions<'_> {
    fn default() -> Self {
        Self {
            superblock: None,
            allowed_incompat: 0,
            data_blocks_available: None,
            threads: all_processors(),
            progress: &|_| {},
            leak: &|_| {},
        }
    }
}

impl fmt::Debug for CheckOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions")
            .field("pinned", &self.superblock.is_some())
            .field("allowed_incompat", &self.allowed_incompat)
            .field("data_blocks_available", &self.data_blocks_available)
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// Verifies the metadata in `source` as a whole.
///
/// Checks the superblock, every reachable block's checksum, kind and own number, the structure of all
/// trees, the agreement of devices and mappings, times, and both space maps to the last count; a metadata
/// snapshot too. Faults are findings of the report, never errors or panics. Needs a superblock with a
/// right checksum: without one there is nothing to start from, and the report says only that.
#[must_use]
pub fn check(source: &dyn BlockSource, options: &CheckOptions<'_>) -> Report {
    let superblock = match Superblock::load(source, options.superblock) {
        Ok(superblock) => superblock,
        Err(error) => {
            let mut findings = Findings::default();
            findings.at(0, error.into());
            return report(findings, None, Vec::new(), Losses::default());
        }
    };
    let store_blocks = source.block_count();
    let stored = *store_blocks.as_ref().unwrap_or(&METADATA_BLOCKS_MAX);
    let available = stored.min(METADATA_BLOCKS_MAX);
    let limit = match superblock.metadata_map.nr_blocks {
        0 => available,
        nr_blocks => available.min(nr_blocks),
    }
    .max(1);
    let expected = superblock.metadata_map.nr_allocated.min(limit);
    let mut checker = Checker::new(source, options, limit, expected);
    if let Err(error) = store_blocks {
        let kind = FindingKind::SizeUnknown {
            cause: error.kind(),
        };
        checker.findings.push(Finding::new(None, kind));
    }
    checker.check_superblock(&superblock, available, options);
    let (devices, losses) = checker.check_pool(&superblock, options);
    checker.report_progress();
    let summary = summary(&superblock, &checker);
    report(
        checker.findings,
        Some((summary, superblock.needs_check())),
        devices,
        losses,
    )
}

impl Checker<'_> {
    fn check_superblock(
        &mut self,
        superblock: &Superblock,
        metadata_available: u64,
        options: &CheckOptions<'_>,
    ) {
        for fault in superblock.faults(options.allowed_incompat) {
            self.findings.at(0, fault);
        }
        if superblock.time > TIME_MAX {
            let (found, max) = (superblock.time, TIME_MAX);
            self.findings.at(0, FindingKind::BadTime { found, max });
        }
        let data_max = options.data_blocks_available.unwrap_or(DATA_BLOCKS_MAX);
        for (map, nr_blocks, min, max) in [
            (
                SpaceMap::Data,
                superblock.data_map.nr_blocks,
                0,
                data_max.min(DATA_BLOCKS_MAX),
            ),
            (
                SpaceMap::Metadata,
                superblock.metadata_map.nr_blocks,
                1,
                metadata_available,
            ),
        ] {
            if !(min..=max).contains(&nr_blocks) {
                self.findings.at(
                    0,
                    FindingKind::BadMapSize {
                        map,
                        nr_blocks,
                        min,
                        max,
                    },
                );
            }
        }
    }

    /// Walks and compares everything; returns the devices of the live trees, and what damage costs them.
    fn check_pool(
        &mut self,
        superblock: &Superblock,
        options: &CheckOptions<'_>,
    ) -> (Vec<Device>, Losses) {
        self.pool_time = superblock.time;
        // A larger size has been reported; arithmetic must not suffer from it.
        let nr_blocks = superblock.data_map.nr_blocks.min(DATA_BLOCKS_MAX);
        let data_map = MapRoot {
            nr_blocks,
            ..superblock.data_map
        };
        self.data_blocks = nr_blocks;
        let root = Pointer {
            from: 0,
            role: Role::Superblock,
            target: 0,
        };
        let Referred::New = self.refer(root) else {
            unreachable!("nothing was referred to before")
        };
        self.close(0, Subtree::default());

        let data: Vec<IndexEntry> = self.open_data_map(&data_map);
        let metadata: Vec<IndexEntry> = self.open_metadata_map(&superblock.metadata_map);
        self.walk_device_trees(0, superblock);
        let held = self.open_snapshot(superblock, options.allowed_incompat);
        if let Some(held) = &held {
            self.walk_device_trees(superblock.held_root, held);
        }
        self.walk_mapping_trees();

        self.check_device_ids();
        let devices = self.check_devices(superblock);
        if let Some(held) = &held {
            self.check_devices(held);
        }
        let losses = self.name_losses(superblock.mapping_root, &devices);
        self.compare_map(SpaceMap::Data, &data_map, &data);
        self.compare_map(SpaceMap::Metadata, &superblock.metadata_map, &metadata);
        self.note_costs(held.is_some().then_some(&losses.faulty));
        (devices, losses)
    }

    fn walk_device_trees(&mut self, from: u64, superblock: &Superblock) {
        self.walk(Pointer {
            from,
            role: Role::TopLevel,
            target: superblock.mapping_root,
        });
        self.walk(Pointer {
            from,
            role: Role::Details,
            target: superblock.details_root,
        });
    }

    /// Reads and verifies the metadata snapshot, if there is one.
    fn open_snapshot(&mut self, pool: &Superblock, allowed_incompat: u32) -> Option<Superblock> {
        let target = pool.held_root;
        if target == 0 {
            return None;
        }
        let role = Role::MetadataSnapshot;
        let Referred::New = self.refer(Pointer {
            from: 0,
            role,
            target,
        }) else {
            return None;
        };
        let held = self.read_snapshot(target)?;
        self.close(target, Subtree::default());
        for fault in held.snapshot_faults(pool, allowed_incompat) {
            self.findings.at(target, fault);
        }
        Some(held)
    }
}

fn summary(superblock: &Superblock, checker: &Checker<'_>) -> Summary {
    Summary {
        time: superblock.time,
        transaction_id: superblock.transaction_id,
        data_block_size: superblock.data_block_size,
        held_root: (superblock.held_root != 0).then_some(superblock.held_root),
        metadata_blocks: superblock.metadata_map.nr_blocks,
        metadata_blocks_used: checker.metadata_counts.used(),
        data_blocks: superblock.data_map.nr_blocks,
        data_blocks_used: checker.data_counts.used(),
    }
}

fn report(
    findings: Findings,
    pool: Option<(Summary, bool)>,
    devices: Vec<Device>,
    losses: Losses,
) -> Report {
    Report {
        findings: findings.kept,
        findings_dropped: findings.dropped,
        damage_count: findings.damage,
        leak_count: findings.leaks,
        needs_check: pool.as_ref().is_some_and(|(_, needs_check)| *needs_check),
        superblock: pool.map(|(summary, _)| summary),
        devices,
        losses: losses.devices,
        lost_ids: losses.ids,
    }
}
