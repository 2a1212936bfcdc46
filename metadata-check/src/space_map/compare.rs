//! Stored counts against recounted ones, bitmap by bitmap.

use std::collections::BTreeMap;

use super::{IndexEntry, bitmap_role, overflow_role};
use crate::check::Leak;
use crate::checker::{Checker, State};
use crate::finding::{BlockKind, FindingKind, SpaceMap};
use crate::layout::{BITMAP_ENTRIES, BITMAP_ENTRIES_U64, Block, PAYLOAD, le32};
use crate::node::Node;
use crate::superblock::MapRoot;

/// From this count on, the bitmap refers to the overflow tree.
const OVERFLOW: u32 = 3;

/// One map while it is being compared.
struct Comparison {
    map: SpaceMap,
    nr_blocks: u64,
    /// References may have been missed.
    references_incomplete: bool,
    /// Overflow entries may be missing because part of their tree could not be read.
    overflow_incomplete: bool,
    overflow: OverflowCursor,
    /// Blocks counted as in use, as far as bitmaps could be read.
    allocated: u64,
    /// Blocks whose count is too high for the references found, while some were not found.
    unverified: u64,
}

/// What a bitmap says of itself.
#[derive(Default)]
struct Tally {
    nr_free: u32,
    first_free: Option<u32>,
    /// Blocks in use that there are.
    allocated: u64,
    beyond_end: u64,
    first_beyond_end: Option<(u64, u32)>,
    /// Positions of the blocks whose count is not simply right.
    suspects: Vec<u64>,
}

/// Neighbouring blocks with the same wrong count.
#[derive(Clone, Copy)]
struct Run {
    first: u64,
    last: u64,
    stored: u32,
    expected: u32,
}

impl Checker<'_> {
    /// Compares everything that the space map `root` stores with the recount. `entries` are its bitmaps.
    /// To be called when all references have been counted.
    pub(crate) fn compare_map(&mut self, map: SpaceMap, root: &MapRoot, entries: &[IndexEntry]) {
        let incomplete = match map {
            SpaceMap::Data => self.data_incomplete,
            SpaceMap::Metadata => self.metadata_incomplete,
        };
        let tree = self.seen_as(overflow_role(map), root.ref_count_root);
        let overflow_whole =
            tree.is_some_and(|seen| seen.state == State::Done && !seen.summary.incomplete);
        let leaves = self.leaves(overflow_role(map), root.ref_count_root);
        let mut state = Comparison {
            map,
            nr_blocks: root.nr_blocks,
            references_incomplete: incomplete,
            overflow_incomplete: !overflow_whole,
            overflow: OverflowCursor::new(&self.retained, leaves),
            allocated: 0,
            unverified: 0,
        };
        let mut bitmaps: Vec<u64> = entries.iter().map(|entry| entry.bitmap).collect();
        bitmaps.sort_unstable();
        self.source().will_read(&bitmaps);
        let mut bitmaps_read = 0;
        for entry in entries {
            let role = bitmap_role(map);
            if let Some(bitmap) = self.read_block(BlockKind::Bitmap, role, entry.bitmap) {
                self.compare_bitmap(&mut state, entry, &bitmap);
                bitmaps_read += 1;
            }
        }
        self.finish_overflow(&mut state);
        if state.unverified > 0 {
            let blocks = state.unverified;
            self.findings
                .at(0, FindingKind::CountsUnverified { map, blocks });
        }
        let (found, expected) = (root.nr_allocated, state.allocated);
        let all_read = bitmaps_read == root.nr_blocks.div_ceil(BITMAP_ENTRIES_U64);
        if all_read && found != expected {
            self.findings.at(
                0,
                FindingKind::BadNrAllocated {
                    map,
                    found,
                    expected,
                },
            );
        }
    }

    fn compare_bitmap(&mut self, state: &mut Comparison, entry: &IndexEntry, bitmap: &Block) {
        let first_block = entry.index * BITMAP_ENTRIES_U64;
        let end = state.nr_blocks.min(first_block + BITMAP_ENTRIES_U64);
        let counted = self.counts(state.map).region(entry.index);
        let tally = Tally::of(bitmap, first_block, state.nr_blocks, counted);
        state.allocated += tally.allocated;
        let mut run: Option<Run> = None;
        let mut suspects = tally.suspects.iter().copied().peekable();
        loop {
            let suspect = suspects.peek().map(|position| first_block + position);
            let overflow = state.overflow.at_least(&self.retained, first_block);
            let overflow = overflow.filter(|block| *block < end);
            let Some(block) = suspect.into_iter().chain(overflow).min() else {
                break;
            };
            suspects.next_if(|position| first_block + position == block);
            let counted = Counted {
                block,
                bits: count_bits(bitmap, position(block)),
                expected: self.counts(state.map).get(block),
            };
            let Some((stored, expected)) = self.difference(state, entry, counted) else {
                continue;
            };
            match &mut run {
                Some(run) if run.continues(block, stored, expected) => run.last = block,
                _ => {
                    let next = Run {
                        first: block,
                        last: block,
                        stored,
                        expected,
                    };
                    if let Some(done) = run.replace(next) {
                        self.note_run(state.map, entry, done);
                    }
                }
            }
        }
        if let Some(done) = run {
            self.note_run(state.map, entry, done);
        }
        self.check_tally(state, entry, &tally);
    }

    fn note_run(&mut self, map: SpaceMap, entry: &IndexEntry, run: Run) {
        self.findings.at(entry.bitmap, run.finding(map));
        if run.stored > run.expected {
            (self.options.leak)(Leak {
                map,
                first: run.first,
                last: run.last,
                stored: run.stored,
                expected: run.expected,
            });
        }
    }

    /// The stored and the expected count, if they differ and that says something.
    fn difference(
        &mut self,
        state: &mut Comparison,
        entry: &IndexEntry,
        counted: Counted,
    ) -> Option<(u32, u32)> {
        let stored = self.stored_count(state, entry, counted);
        let expected = counted.expected;
        if stored > expected && state.references_incomplete {
            state.unverified += 1;
            return None;
        }
        (stored != expected).then_some((stored, expected))
    }

    /// The count that bitmap and overflow tree store together. If they contradict each other, which is
    /// reported, the one that adds no second finding.
    fn stored_count(
        &mut self,
        state: &mut Comparison,
        entry: &IndexEntry,
        counted: Counted,
    ) -> u32 {
        let Counted {
            block,
            bits,
            expected,
        } = counted;
        let (map, overflow) = (state.map, state.overflow.take(&self.retained, block));
        match overflow {
            Some(overflow) if bits < OVERFLOW => {
                let (found, stored) = (overflow.count, bits);
                let kind = FindingKind::OverflowNeedless {
                    map,
                    block,
                    found,
                    stored,
                };
                self.findings.at(overflow.leaf, kind);
                bits
            }
            Some(overflow) if overflow.count < OVERFLOW => {
                let found = overflow.count;
                let kind = FindingKind::OverflowTooSmall { map, block, found };
                self.findings.at(overflow.leaf, kind);
                expected
            }
            Some(overflow) => overflow.count,
            None if bits < OVERFLOW => bits,
            None if state.overflow_incomplete => expected,
            None => {
                let kind = FindingKind::OverflowMissing {
                    map,
                    block,
                    expected,
                };
                self.findings.at(entry.bitmap, kind);
                if expected < OVERFLOW { bits } else { expected }
            }
        }
    }

    fn check_tally(&mut self, state: &Comparison, entry: &IndexEntry, tally: &Tally) {
        let map = state.map;
        let IndexEntry {
            holder,
            index,
            nr_free,
            none_free_before,
            ..
        } = *entry;
        if nr_free != tally.nr_free {
            let (found, expected) = (nr_free, tally.nr_free);
            self.findings.at(
                holder,
                FindingKind::BadNrFree {
                    map,
                    index,
                    found,
                    expected,
                },
            );
        }
        let max = tally.first_free.unwrap_or(BITMAP_ENTRIES_U32);
        if none_free_before > max {
            let found = none_free_before;
            self.findings.at(
                holder,
                FindingKind::BadNoneFreeBefore {
                    map,
                    index,
                    found,
                    max,
                },
            );
        }
        if let Some((first, stored)) = tally.first_beyond_end {
            let (nr_blocks, blocks) = (state.nr_blocks, tally.beyond_end);
            let kind = FindingKind::CountBeyondEnd {
                map,
                first,
                stored,
                nr_blocks,
                blocks,
            };
            self.findings.at(entry.bitmap, kind);
        }
    }

    /// Looks at the overflow entries behind the last bitmap.
    fn finish_overflow(&mut self, state: &mut Comparison) {
        let (map, nr_blocks) = (state.map, state.nr_blocks);
        while let Some(entry) = state.overflow.current {
            if entry.block >= nr_blocks {
                let block = entry.block;
                let kind = FindingKind::OverflowBeyondEnd {
                    map,
                    block,
                    nr_blocks,
                };
                self.findings.at(entry.leaf, kind);
            }
            state.overflow.advance(&self.retained);
        }
    }
}

/// A block, the two bits of the bitmap decoded, and the references found.
#[derive(Clone, Copy)]
struct Counted {
    block: u64,
    bits: u32,
    expected: u32,
}

const BITMAP_ENTRIES_U32: u32 = 16320;

fn position(block: u64) -> usize {
    let Ok(position) = usize::try_from(block % BITMAP_ENTRIES_U64) else {
        unreachable!("less than 16320")
    };
    position
}

fn count_bits(bitmap: &Block, position: usize) -> u32 {
    match bitmap[PAYLOAD + position / 4] >> (2 * (position % 4)) & 3 {
        0 => 0,
        1 => 2,
        2 => 1,
        _ => OVERFLOW,
    }
}

impl Tally {
    /// Goes through a bitmap beside the references that were counted.
    fn of(bitmap: &Block, first_block: u64, nr_blocks: u64, counted: Option<&[u8]>) -> Self {
        let mut tally = Self::default();
        let inside = nr_blocks.saturating_sub(first_block);
        for position in 0..BITMAP_ENTRIES {
            let bits = count_bits(bitmap, position);
            tally.add(position, bits);
            if position as u64 >= inside {
                tally.add_beyond_end(first_block + position as u64, bits);
                continue;
            }
            tally.allocated += u64::from(bits != 0);
            let expected = counted.map_or(0, |counted| u32::from(counted[position]));
            if bits == OVERFLOW || bits != expected {
                tally.suspects.push(position as u64);
            }
        }
        tally
    }

    fn add(&mut self, position: usize, bits: u32) {
        if bits == 0 {
            self.nr_free += 1;
            if self.first_free.is_none() {
                self.first_free = u32::try_from(position).ok();
            }
        }
    }

    fn add_beyond_end(&mut self, block: u64, bits: u32) {
        if bits != 0 {
            self.beyond_end += 1;
            self.first_beyond_end.get_or_insert((block, bits));
        }
    }
}

impl Run {
    fn continues(&self, block: u64, stored: u32, expected: u32) -> bool {
        self.last + 1 == block && self.stored == stored && self.expected == expected
    }

    fn finding(self, map: SpaceMap) -> FindingKind {
        let Self {
            first,
            last,
            stored,
            expected,
        } = self;
        match expected {
            0 => FindingKind::Leaked {
                map,
                first,
                last,
                stored,
            },
            _ => FindingKind::BadCount {
                map,
                first,
                last,
                stored,
                expected,
            },
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct OverflowEntry {
    leaf: u64,
    block: u64,
    count: u32,
}

/// Goes through an overflow tree in the order of its blocks.
struct OverflowCursor {
    leaves: std::vec::IntoIter<u64>,
    leaf: Option<u64>,
    next: usize,
    current: Option<OverflowEntry>,
}

impl OverflowCursor {
    fn new(retained: &BTreeMap<u64, Node>, leaves: Vec<u64>) -> Self {
        let mut leaves = leaves.into_iter();
        let leaf = leaves.next();
        let mut cursor = Self {
            leaves,
            leaf,
            next: 0,
            current: None,
        };
        cursor.advance(retained);
        cursor
    }

    fn advance(&mut self, retained: &BTreeMap<u64, Node>) {
        self.current = None;
        while let Some(leaf) = self.leaf {
            let node = &retained[&leaf];
            if self.next < node.len() {
                let (block, count) = (node.key(self.next), le32(node.value(self.next), 0));
                self.current = Some(OverflowEntry { leaf, block, count });
                self.next += 1;
                return;
            }
            self.leaf = self.leaves.next();
            self.next = 0;
        }
    }

    /// The block of the next entry from `block` on. Those passed over belong to bitmaps that could not be read.
    fn at_least(&mut self, retained: &BTreeMap<u64, Node>, block: u64) -> Option<u64> {
        while self.current.is_some_and(|entry| entry.block < block) {
            self.advance(retained);
        }
        self.current.map(|entry| entry.block)
    }

    /// The entry of `block`, if there is one. Blocks must be asked for in ascending order.
    fn take(&mut self, retained: &BTreeMap<u64, Node>, block: u64) -> Option<OverflowEntry> {
        self.at_least(retained, block);
        let found = self.current.filter(|entry| entry.block == block)?;
        self.advance(retained);
        Some(found)
    }
}
