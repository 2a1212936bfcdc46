//! Finding the records to be replayed.

use probe::{Mark, mark};

use super::make_void;
use super::record::{Durable, Entry, RECORD_BYTES, Record, Slot, is_void};
use super::store::LogStore;
use super::term::{ReliedOn, Term, last, number};
use crate::error::Error;
use crate::superblock::Superblock;

/// What the log of an earlier daemon holds.
#[derive(Default)]
pub(crate) struct Loaded {
    /// What to do again, in order.
    pub(crate) records: Vec<Record>,
    /// Whether there may have been more, which nobody has flushed and which cannot be used.
    pub(crate) is_cut: bool,
    /// Whether there is a log at all: a daemon has not closed the pool, or failed to.
    pub(crate) is_there: bool,
    /// The first generation that was to be replayed.
    generation: u64,
    /// What was replayed by.
    pub(super) relied_on: Option<ReliedOn>,
    /// Where the next daemon goes on in it; none when it cannot.
    pub(crate) next_term: Option<Term>,
}

impl Loaded {
    /// Sees to it that of this log only what is durable is ever replayed: a sync has failed.
    pub(crate) fn make_void(&self, store: &dyn LogStore) -> std::io::Result<()> {
        make_void(store, last(self.generation))
    }
}

/// Records, by the entry that says where they are.
struct Found<'a> {
    entry: &'a Entry,
    records: Vec<Record>,
}

/// Reads the log, as it belongs to a superblock.
pub(crate) fn load(store: &dyn LogStore, superblock: &Superblock) -> Result<Loaded, Error> {
    let failed = |source| Error::Io {
        what: "reading the intent log".into(),
        source,
    };
    let damaged = |reason: &str| Error::Log {
        reason: reason.into(),
    };
    let found = store.load().map_err(failed)?;
    if found.is_none() && superblock.has_log {
        return Err(damaged("it is not there"));
    }
    let is_there = found.is_some();
    let content = found.unwrap_or_default();
    let entries = [0, 1].map(|page| Entry::decode(&content, page));
    let is_ours = entries.iter().any(Option::is_some);
    let image = Entry::superblock(&superblock.block());
    let of_superblock = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.superblock == image);
    let mut entries: Vec<Entry> = of_superblock.collect();
    // The latest first. There are two when a commit had nothing to write but its entry.
    entries.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.durable.generation));
    let Some(latest) = entries.first() else {
        // Whoever wants to go on without it leaves an empty one; and nothing was recorded before a superblock
        // that says so.
        if content.is_empty() || !superblock.has_log {
            return Ok(Loaded {
                is_cut: superblock.has_log,
                is_there,
                ..Loaded::default()
            });
        }
        return Err(damaged(if is_ours {
            "it belongs to other metadata than what is there now"
        } else {
            "it is damaged, or of another version of this program"
        }));
    };
    let is_void = is_void(&content, latest.durable.generation).map_err(damaged)?;
    if is_void {
        mark(Mark::VoidLog);
    }
    let is_whole = latest.incarnation == store.incarnation() && !is_void;
    let found = if is_whole {
        all_records(&content, latest)?
    } else {
        flushed_records(&content, &entries)?
    };
    let relied_on = ReliedOn::of(&content, found.entry);
    let replayed = found.records.len() as u64;
    Ok(Loaded {
        generation: found.entry.durable.generation,
        next_term: relied_on
            .as_ref()
            .and_then(|relied_on| Term::after(&content, relied_on, replayed)),
        relied_on,
        records: found.records,
        is_cut: superblock.has_log && !is_whole,
        is_there,
    })
}

/// Every record that a superblock lacks.
fn all_records<'a>(content: &[u8], entry: &'a Entry) -> Result<Found<'a>, Error> {
    let first = entry.durable.generation;
    let mut records = Vec::new();
    for generation in [first, first.saturating_add(1)] {
        let area = Area { generation, first };
        let before = records.len();
        area.read(entry.layout.area(content, generation), &mut records)?;
        if before > 0 && records.len() > before {
            mark(Mark::ReplayTwoGenerations);
        }
    }
    Ok(Found { entry, records })
}

/// A marker that was being synced may be there before what it says is, and so may an entry for a superblock
/// that was there before: nobody relied on them.
const INCOMPLETE_MAX: usize = 2;

/// The records that are durable, by the latest account that is complete.
fn flushed_records<'a>(content: &[u8], entries: &'a [Entry]) -> Result<Found<'a>, Error> {
    let key = |durable: &Durable| (durable.generation, durable.filled.slots);
    let marked = Durable::marked(content).map_err(|what| Error::Log {
        reason: what.into(),
    })?;
    let mut accounts = Vec::new();
    for entry in entries {
        // What an entry says is the least: a commit has carried records to there.
        let later = marked
            .iter()
            .filter(|marked| key(marked) > key(&entry.durable));
        accounts.extend(
            later
                .chain([&entry.durable])
                .map(|durable| (entry, durable)),
        );
    }
    accounts.sort_by_key(|(_, durable)| std::cmp::Reverse(key(durable)));
    let alike = accounts.chunk_by(|(_, one), (_, next)| one == next);
    for (entry, durable) in alike.take(INCOMPLETE_MAX + 1).flatten() {
        let is_latest = entry.durable.generation == entries[0].durable.generation;
        match durable_records(content, entry, durable) {
            Ok(Some(records)) => {
                mark(Mark::ReplayToMarker);
                return Ok(Found { entry, records });
            }
            Ok(None) => mark(Mark::IncompleteMarker),
            Err(cause) if is_latest => return Err(cause),
            // If the latest entry is durable, what the one before it is about may be overwritten.
            Err(_) => {}
        }
    }
    Err(Error::Log {
        reason: "flushed records are missing".into(),
    })
}

/// The records that are durable by this account; none if some of them were never written.
fn durable_records(
    content: &[u8],
    entry: &Entry,
    durable: &Durable,
) -> Result<Option<Vec<Record>>, Error> {
    let first = entry.durable.generation;
    if durable.generation > first.saturating_add(1) {
        return Err(Error::Log {
            reason: "it belongs to a later commit than that of the metadata".into(),
        });
    }
    let mut records = Vec::new();
    for generation in [first, first.saturating_add(1)] {
        let area = Area { generation, first };
        let of_it = durable.of(generation, first);
        let slots = entry.layout.area(content, generation);
        let slots = usize::try_from(of_it.slots)
            .ok()
            .and_then(|count| slots.get(..count))
            .ok_or_else(|| area.damaged("it is shorter than what was flushed"))?;
        let before = records.len();
        area.read(slots, &mut records)?;
        // One more may be there: its daemon has not heard that it was written.
        if ((records.len() - before) as u64) < of_it.records {
            return Ok(None);
        }
    }
    Ok(Some(records))
}

/// A generation whose slots are read.
struct Area {
    generation: u64,
    /// The first generation that is replayed.
    first: u64,
}

impl Area {
    fn read(&self, slots: &[[u8; RECORD_BYTES]], records: &mut Vec<Record>) -> Result<(), Error> {
        let mut was_empty = false;
        for (slot, bytes) in slots.iter().enumerate() {
            let damaged = |what: &str| self.damaged(&format!("slot {slot}: {what}"));
            match Record::decode(bytes).map_err(damaged)? {
                Slot::Full(found, record) if found == self.generation => {
                    if was_empty {
                        mark(Mark::EmptySlot);
                    }
                    records.push(record);
                }
                // Left over from before, or by a daemon that did not come to the end of taking the log over.
                Slot::Full(found, _) if found < self.first => {}
                Slot::Full(found, _) if number(found) > number(self.first) => {}
                Slot::Full(_, _) => return Err(damaged("it is of a generation yet to come")),
                Slot::Empty => was_empty = true,
            }
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Log {
            reason: format!("generation {}: {what}", self.generation),
        }
    }
}
