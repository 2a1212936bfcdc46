//! Finding the records to be replayed.

use super::record::{Entry, Record, Slot, VOID};
use super::store::LogStore;
use crate::error::Error;
use crate::superblock::Superblock;

/// What the log of an earlier daemon holds.
#[derive(Default)]
pub(crate) struct Loaded {
    /// What to do again, in order.
    pub(crate) records: Vec<Record>,
    /// Whether there should be some, and what there is cannot be used.
    pub(crate) is_lost: bool,
}

/// Reads the log, as it belongs to a superblock.
pub(crate) fn load(store: &dyn LogStore, superblock: &Superblock) -> Result<Loaded, Error> {
    let failed = |source| Error::Io {
        what: "reading the intent log".into(),
        source,
    };
    let content = store.load().map_err(failed)?.unwrap_or_default();
    let incarnation = store.incarnation();
    let entries = [0, 1].map(|page| Entry::decode(&content, page));
    let valid = |entry: &Entry| entry.incarnation == incarnation;
    let entries: Vec<Entry> = entries.into_iter().flatten().filter(valid).collect();
    let is_void = entries.iter().any(|entry| entry.generation == VOID);
    if entries.is_empty() || is_void {
        return Ok(Loaded {
            records: Vec::new(),
            is_lost: superblock.has_log,
        });
    }
    Ok(Loaded {
        records: replayable(&content, &entries, superblock)?,
        is_lost: false,
    })
}

fn replayable(
    content: &[u8],
    entries: &[Entry],
    superblock: &Superblock,
) -> Result<Vec<Record>, Error> {
    let image = Entry::superblock(&superblock.block());
    let of_superblock = entries.iter().filter(|entry| entry.superblock == image);
    let Some(entry) = of_superblock.max_by_key(|entry| entry.generation) else {
        // Nothing was recorded before a superblock that says so.
        if !superblock.has_log {
            return Ok(Vec::new());
        }
        return Err(Error::Log {
            reason: "it belongs to other metadata than what is there now".into(),
        });
    };
    let first = entry.generation;
    let mut records = Vec::new();
    for generation in [first, first.saturating_add(1)] {
        for (slot, bytes) in entry.layout.area(content, generation).iter().enumerate() {
            let damaged = |what: &str| Error::Log {
                reason: format!("slot {slot} of generation {generation}: {what}"),
            };
            match Record::decode(bytes).map_err(damaged)? {
                Slot::Full(found, record) if found == generation => records.push(record),
                // Left over from before.
                Slot::Full(found, _) if found < first => {}
                Slot::Full(_, _) => return Err(damaged("it is of a generation yet to come")),
                Slot::Empty => {}
            }
        }
    }
    Ok(records)
}
