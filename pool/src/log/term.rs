//! Terms: how a daemon goes on in the log of the one before.
//!
//! There may be no space for another log when a daemon was killed and the next one starts. So that goes on
//! in the log there is: in a *term* of its own, whose number is the upper half of its generations' numbers.
//!
//! 1. The entry that was replayed by, and the records it is about, are written once more as they are, and
//!    synced: they were found after a kill, perhaps, and are not on the disk, or a sync that failed has
//!    lost them. From here on nothing older is needed.
//! 2. What was replayed is written again, as the first generation of the new term, behind the records it
//!    was.
//! 3. An entry for the same superblock says that this is to be replayed from now on. It takes the page that
//!    the other one does not have. A sync, and only then anything else is recorded.
//!
//! A daemon that is killed before the third step, or whose entry is lost with the power, or found without
//! the records, has changed nothing: the entry before stands, and all that it is about. What it has left
//! behind belongs to a term that no entry names; the next daemon's number is higher still, so that nobody
//! ever takes it for his own. Once the entry is durable, everything of earlier terms is void: entries,
//! markers, records, and the note of a failed sync.
//!
//! The new term begins in the area that the entry's page, hence its parity, says. Its other area has
//! nothing that is needed. If records of the old term are in the same area, they were made while a commit
//! ran that did not end, and are few (`IntentLog::permit`).

use std::io;

use probe::{Mark, Sabotage, is_sabotaged, mark};

use super::record::{Entry, Layout, RECORD_BYTES, Record, Slot, voided};
use super::{FIRST, LogStore, RECORDS_MIN, records_max};

/// The bits of a generation's number below those of its term.
const BITS: u32 = 32;

/// The number of a generation's term.
pub(super) fn number(generation: u64) -> u64 {
    generation >> BITS
}

/// The highest number of a generation in the same term.
pub(super) fn last(generation: u64) -> u64 {
    generation | ((1 << BITS) - 1)
}

/// The entry by which a log was replayed, and all that it is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ReliedOn {
    pub(super) entry: Entry,
    page: usize,
    /// How many slots of each area are needed.
    used: [usize; 2],
    /// Positions in the log, and what is there.
    parts: Vec<(u64, Vec<u8>)>,
}

impl ReliedOn {
    pub(super) fn of(content: &[u8], entry: &Entry) -> Option<Self> {
        let entries = [0, 1].map(|page| Entry::decode(content, page));
        let page = entries
            .iter()
            .position(|found| found.as_ref() == Some(entry))?;
        let layout = entry.layout;
        let first = entry.durable.generation;
        let needed = first..=first.saturating_add(1);
        let is_needed =
            |slot| generation_of(slot).is_some_and(|generation| needed.contains(&generation));
        let used = [0, 1].map(|area| {
            let slots = layout.area(content, area);
            slots.iter().rposition(is_needed).map_or(0, |last| last + 1)
        });
        let areas = [0, 1].map(|area: u64| {
            let slots = &layout.area(content, area)[..used[usize::from(area == 1)]];
            (
                layout.position(area, 0) as u64,
                slots.as_flattened().to_vec(),
            )
        });
        let page_as_it_is = Entry::page(content, page)?;
        Some(ReliedOn {
            entry: entry.clone(),
            page,
            used,
            parts: [page_as_it_is].into_iter().chain(areas).collect(),
        })
    }

    /// Writes it once more as it is. After a sync nothing else is needed.
    pub(super) fn write_again(&self, store: &dyn LogStore) -> io::Result<()> {
        self.parts
            .iter()
            .try_for_each(|(at, bytes)| store.write(*at, bytes))
    }

    /// Where another entry may be written then.
    pub(super) fn other_page(&self) -> u64 {
        Entry::position(1 - self.page as u64)
    }
}

/// Where a daemon begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Term {
    pub(super) layout: Layout,
    /// Its first generation.
    pub(super) first: u64,
    /// The first slot for it.
    pub(super) slot: u64,
}

impl Term {
    /// The first of a new log.
    pub(super) fn of_new_log(layout: Layout) -> Self {
        Term {
            layout,
            first: FIRST,
            slot: 0,
        }
    }

    /// The one after that of an entry by which so many records were replayed. None where there is no room for it.
    pub(super) fn after(content: &[u8], relied_on: &ReliedOn, replayed: u64) -> Option<Self> {
        let entry = &relied_on.entry;
        let layout = entry.layout;
        let replayed_from = entry.durable.generation;
        let entries = [0, 1].map(|page| Entry::decode(content, page));
        let named = entries
            .iter()
            .flatten()
            .map(|entry| entry.durable.generation);
        let areas = [0, 1].map(|area| layout.area(content, area));
        let recorded = areas.iter().copied().flatten().filter_map(generation_of);
        // A term whose first sync has failed may have left nothing but the note.
        let voided = voided(content).ok()?;
        let newest = named.chain(recorded).chain(voided).map(number).max()?;
        if newest > number(replayed_from) {
            mark(Mark::TermGivenUp);
        }
        let newest = match is_sabotaged(Sabotage::ReusedTerm) {
            true => number(replayed_from),
            false => newest,
        };
        let term = u32::try_from(newest).ok()?.checked_add(1)?;
        // Of the other parity than the page.
        let first = u64::from(term) << BITS | (FIRST + 1 - relied_on.page as u64);
        let slot = relied_on.used[usize::from(first % 2 == 1)] as u64;
        if slot > 0 {
            mark(Mark::TermBesideAnother);
        }
        let end = slot + replayed + records_max(layout);
        let has_room = records_max(layout) >= RECORDS_MIN && end <= layout.slots;
        let is_all_there = content.len() as u64 >= layout.len();
        (has_room && is_all_there).then_some(Term {
            layout,
            first,
            slot,
        })
    }
}

/// The generation of the record in a slot.
fn generation_of(slot: &[u8; RECORD_BYTES]) -> Option<u64> {
    match Record::decode(slot) {
        Ok(Slot::Full(generation, _)) => Some(generation),
        _ => None,
    }
}
