//! The state of a check in progress: what has been found, counted and seen.
//!
//! Every pointer that is followed goes through [`Checker::refer`], which counts the reference, sees to it
//! that a block keeps one role, and says whether the block is new, known or of no use.

use std::collections::BTreeMap;

use crate::ahead::Examined;
use crate::check::CheckOptions;
use crate::counts::Counts;
use crate::finding::{BlockKind, FindingKind, Role};
use crate::layout::{BITMAP_ENTRIES_U64, Block, LoadError, load};
use crate::node::Node;
use crate::report::{Findings, Progress};
use crate::source::BlockSource;
use crate::superblock::Superblock;

/// Blocks in a piece of the table of seen blocks.
const PIECE: u64 = 512;
/// A progress report is due after this many blocks.
const PROGRESS_INTERVAL: u64 = 1024;

pub(crate) struct Checker<'a> {
    source: &'a dyn BlockSource,
    pub(crate) options: &'a CheckOptions<'a>,
    /// Metadata blocks are below this; never more than the format allows.
    pub(crate) limit: u64,
    pub(crate) findings: Findings,
    pub(crate) metadata_counts: Counts,
    pub(crate) data_counts: Counts,
    /// Blocks of the data store, as its space map has it.
    pub(crate) data_blocks: u64,
    pub(crate) pool_time: u32,
    /// Nodes of all trees but the mapping trees, by block: they are small, and wanted again.
    pub(crate) retained: BTreeMap<u64, Node>,
    /// Something that may refer to metadata blocks could not be used.
    pub(crate) metadata_incomplete: bool,
    /// Something that may refer to data blocks could not be used.
    pub(crate) data_incomplete: bool,
    /// Nodes that the walk will come to, by block.
    pub(crate) ahead: BTreeMap<u64, Result<Examined, LoadError>>,
    seen: BTreeMap<u64, Box<[Seen]>>,
    blocks_read: u64,
    blocks_expected: u64,
}

/// What is known of a block that something refers to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    role: Option<Role>,
    pub(crate) state: State,
    /// An under-full node that has been reported as such.
    pub(crate) under_full_reported: bool,
    pub(crate) summary: Subtree,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// On the way from the root to where the walk is now.
    #[default]
    Open,
    /// Walked, or nothing to walk.
    Done,
    /// Could not be used.
    Bad,
}

/// What is known of a node and all below it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Subtree {
    /// Entries in the leaves.
    pub(crate) entries: u64,
    /// The lowest key, that of an internal node itself included; none in an empty leaf.
    pub(crate) first: Option<u64>,
    /// The highest key.
    pub(crate) last: u64,
    /// The latest mapping time (mapping trees only).
    pub(crate) time_max: u32,
    /// Entries in the node itself.
    pub(crate) node_entries: u16,
    /// Levels below the node, if a child could say.
    pub(crate) height: Option<u8>,
    /// There is a fault somewhere in it.
    pub(crate) damaged: bool,
    /// Part of it could not be read, so `entries` and `last` are too low.
    pub(crate) incomplete: bool,
}

/// What following a pointer leads to.
pub(crate) enum Referred {
    /// A block not seen before; the caller must look at it and close it.
    New,
    /// A block that has been looked at in the same role.
    Known(Subtree),
    /// Nothing usable. It has been reported.
    Bad,
}

/// A pointer: from which metadata block, and what it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pointer {
    pub(crate) from: u64,
    pub(crate) role: Role,
    pub(crate) target: u64,
}

impl<'a> Checker<'a> {
    /// `limit` metadata blocks can be referred to; about `blocks_expected` of them are in use.
    pub(crate) fn new(
        source: &'a dyn BlockSource,
        options: &'a CheckOptions<'a>,
        limit: u64,
        blocks_expected: u64,
    ) -> Self {
        let mut metadata_counts = Counts::default();
        for region in 0..limit.div_ceil(BITMAP_ENTRIES_U64) {
            metadata_counts.declare(region);
        }
        Self {
            source,
            options,
            limit,
            findings: Findings::default(),
            metadata_counts,
            data_counts: Counts::default(),
            data_blocks: 0,
            pool_time: 0,
            retained: BTreeMap::new(),
            metadata_incomplete: false,
            data_incomplete: false,
            ahead: BTreeMap::new(),
            seen: BTreeMap::new(),
            blocks_read: 0,
            blocks_expected,
        }
    }

    /// Counts and follows a pointer.
    pub(crate) fn refer(&mut self, pointer: Pointer) -> Referred {
        let Pointer { from, role, target } = pointer;
        if target >= self.limit {
            self.findings.at(
                from,
                FindingKind::OutOfRange {
                    role,
                    target,
                    limit: self.limit,
                },
            );
            self.give_up(role);
            return Referred::Bad;
        }
        self.metadata_counts.add(target);
        let seen = self.seen_mut(target);
        let Some(first) = seen.role else {
            seen.role = Some(role);
            return Referred::New;
        };
        let seen = *seen;
        if first != role {
            self.findings.at(
                target,
                FindingKind::TwoRoles {
                    first,
                    second: role,
                },
            );
            self.give_up(role);
            return Referred::Bad;
        }
        if !shareable(role) {
            self.findings.at(target, FindingKind::UsedTwice { role });
            self.seen_mut(target).summary.damaged = true;
        }
        match seen.state {
            State::Done => Referred::Known(self.seen_mut(target).summary),
            State::Bad => Referred::Bad,
            State::Open => {
                self.findings.at(target, FindingKind::Cycle { role });
                Referred::Bad
            }
        }
    }

    /// Reads a node that [`Checker::refer`] called new. A fault is reported and the block closed as bad.
    pub(crate) fn read_node(&mut self, role: Role, block: u64) -> Option<Examined> {
        self.count_read();
        let examined = self.examined(role, block);
        self.usable(role, block, examined)
    }

    /// As [`Checker::read_node`], for blocks that are not nodes.
    pub(crate) fn read_block(
        &mut self,
        kind: BlockKind,
        role: Role,
        block: u64,
    ) -> Option<Box<Block>> {
        self.count_read();
        let loaded = load(self.source, kind, block);
        self.usable(role, block, loaded)
    }

    /// As [`Checker::read_node`], for a metadata snapshot.
    pub(crate) fn read_snapshot(&mut self, block: u64) -> Option<Superblock> {
        self.count_read();
        let loaded = Superblock::load_held(self.source, block);
        self.usable(Role::MetadataSnapshot, block, loaded)
    }

    fn usable<T>(&mut self, role: Role, block: u64, loaded: Result<T, LoadError>) -> Option<T> {
        match loaded {
            Ok(usable) => Some(usable),
            Err(error) => {
                self.findings.at(block, error.into());
                self.seen_mut(block).state = State::Bad;
                self.give_up(role);
                None
            }
        }
    }

    /// The source itself, for what does not count as part of the walk.
    pub(crate) fn source(&self) -> &'a dyn BlockSource {
        self.source
    }

    /// What is known of `block`, which is below the limit.
    pub(crate) fn seen_mut(&mut self, block: u64) -> &mut Seen {
        assert!(
            block < self.limit,
            "metadata block {block} is beyond {}",
            self.limit
        );
        let piece = self.seen.entry(block / PIECE).or_insert_with(|| {
            (0..PIECE)
                .map(|_| Seen::default())
                .collect::<Vec<_>>()
                .into_boxed_slice()
        });
        let Ok(index) = usize::try_from(block % PIECE) else {
            unreachable!("less than {PIECE}")
        };
        &mut piece[index]
    }

    /// Marks `block` as looked at.
    pub(crate) fn close(&mut self, block: u64, summary: Subtree) {
        let seen = self.seen_mut(block);
        seen.state = State::Done;
        seen.summary = summary;
    }

    /// The state of `block` if something refers to it as `role`.
    pub(crate) fn seen_as(&self, role: Role, block: u64) -> Option<&Seen> {
        let seen = self.seen(block)?;
        (seen.role == Some(role)).then_some(seen)
    }

    /// What refers to `block` takes it for.
    pub(crate) fn role_of(&self, block: u64) -> Option<Role> {
        self.seen(block)?.role
    }

    fn seen(&self, block: u64) -> Option<&Seen> {
        let index = usize::try_from(block % PIECE).ok()?;
        Some(&self.seen.get(&(block / PIECE))?[index])
    }

    /// Whether nothing has referred yet to `block`, to which something can refer.
    pub(crate) fn is_unknown(&self, block: u64) -> bool {
        block < self.limit && self.role_of(block).is_none()
    }

    /// Notes that what a block of `role` refers to stays unknown.
    pub(crate) fn give_up(&mut self, role: Role) {
        match role {
            Role::DataBitmap
            | Role::MetadataBitmap
            | Role::DataOverflow
            | Role::MetadataOverflow
            | Role::DataIndex
            | Role::MetadataIndex
            | Role::Details
            | Role::Superblock => self.metadata_incomplete = true,
            Role::TopLevel | Role::Mapping | Role::MetadataSnapshot => {
                self.metadata_incomplete = true;
                self.data_incomplete = true;
            }
        }
    }

    fn count_read(&mut self) {
        self.blocks_read += 1;
        if self.blocks_read.is_multiple_of(PROGRESS_INTERVAL) {
            self.report_progress();
        }
    }

    pub(crate) fn report_progress(&self) {
        let Self {
            blocks_read,
            blocks_expected,
            ..
        } = *self;
        (self.options.progress)(Progress {
            blocks_read,
            blocks_expected,
        });
    }
}

/// Whether several references to a block in this role are in order.
fn shareable(role: Role) -> bool {
    matches!(role, Role::TopLevel | Role::Mapping | Role::Details)
}
