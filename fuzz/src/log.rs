//! An intent log, changed in a few places, of a pool that nobody has closed and that is sound.

use crate::exercise::{Trust, use_and_close};
use crate::machine::{Contents, Machine};
use crate::mutate::{Field, Random, value_at, vary};
use crate::patch::{Patch, Patches};
use crate::pools;

/// Slots of records, and what is sealed on each of the first pages.
const SLOT_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
const SLOTS_A_PAGE: usize = PAGE_BYTES / SLOT_BYTES;
const ENTRY_PAGES: usize = 2;
const ENTRY_BYTES: usize = 1024;
const HEAD_PAGES: usize = 5;

/// Patches with this are not sealed.
const AS_IT_IS: u8 = 1;
/// These cut the log off.
const CUT: u8 = 2;

pub fn run(input: &[u8]) {
    let patches = Patches::decode(input);
    let Contents {
        metadata,
        catalog,
        log,
    } = pools::killed().contents.clone();
    let mut log = log.unwrap();
    // With another incarnation, only what was flushed is replayed: bytes 64 to 192 of the first pages.
    for patch in &patches.list {
        apply(patch, &mut log);
    }
    let machine = Machine::new(Contents {
        metadata,
        catalog,
        log: Some(log),
    });
    let Ok(pool) = machine.open() else { return };
    // What was replayed is checked against the metadata: no log makes it unsound.
    use_and_close(&machine, &pool, Trust::Sound);
}

/// The bytes that have a checksum together with a slot.
fn sealed_with(slot: usize) -> std::ops::Range<usize> {
    let at = slot * SLOT_BYTES;
    let page = slot / SLOTS_A_PAGE;
    if page < ENTRY_PAGES {
        page * PAGE_BYTES..page * PAGE_BYTES + ENTRY_BYTES
    } else {
        at..at + SLOT_BYTES
    }
}

fn apply(patch: &Patch, log: &mut Vec<u8>) {
    let at = usize::from(patch.unit) * SLOT_BYTES + patch.at % SLOT_BYTES;
    if patch.seal == CUT {
        return log.truncate(at);
    }
    let sealed = sealed_with(patch.unit.into());
    let end = (at + patch.bytes.len()).max(sealed.end);
    if end > log.len() {
        return;
    }
    log[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
    if patch.seal != AS_IT_IS {
        let checksum = crc32c::crc32c(&log[sealed.start + 4..sealed.end]);
        log[sealed.start..sealed.start + 4].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// Changes a field of an entry, a marker or a record; records that are there, and the slots behind them.
pub fn mutate(patches: &mut Patches, random: &mut Random) {
    let log = pools::killed().contents.log.as_deref().unwrap();
    let is_used = |slot: &usize| {
        log[slot * SLOT_BYTES..][..SLOT_BYTES]
            .iter()
            .any(|byte| *byte != 0)
    };
    let slots = HEAD_PAGES * SLOTS_A_PAGE..log.len() / SLOT_BYTES;
    let used: Vec<usize> = slots.filter(is_used).collect();
    let slot = random.pick(&used);
    let likely: Vec<u64> = [16, 20, 24, 32, 40, 48]
        .map(|at| value_at(&log[slot * SLOT_BYTES..], at, if at < 24 { 4 } else { 8 }))
        .to_vec();
    if random.below(4) == 0 {
        return patches.list.push(another_record(log, slot, random));
    }
    vary(patches, random, |random| field(log, &used, random), &likely);
}

/// A record once more, in one of the next slots.
fn another_record(log: &[u8], slot: usize, random: &mut Random) -> Patch {
    Patch {
        unit: u16::try_from(slot + random.below(6)).unwrap(),
        at: 0,
        seal: 0,
        bytes: log[slot * SLOT_BYTES..][..SLOT_BYTES].to_vec(),
    }
}

fn field(log: &[u8], used: &[usize], random: &mut Random) -> Field {
    const ENTRY: [(usize, usize); 8] = [
        (8, 8),
        (16, 8),
        (24, 8),
        (32, 8),
        (40, 8),
        (48, 8),
        (56, 8),
        (64, 4),
    ];
    const RECORD: [(usize, usize); 8] = [
        (4, 1),
        (8, 8),
        (16, 4),
        (20, 4),
        (24, 8),
        (32, 8),
        (40, 8),
        (48, 8),
    ];
    let (slot, (at, len)) = match random.below(8) {
        // A field may lie in the next slot of the page: 64 is its first.
        0 | 1 => (random.below(2) * SLOTS_A_PAGE, random.pick(&ENTRY)),
        2 => (
            (2 + random.below(3)) * SLOTS_A_PAGE,
            random.pick(&ENTRY[1..6]),
        ),
        _ => (random.pick(used) + random.below(3), random.pick(&RECORD)),
    };
    let (slot, at) = (slot + at / SLOT_BYTES, at % SLOT_BYTES);
    let place = slot * SLOT_BYTES + at;
    Field {
        unit: u16::try_from(slot).unwrap(),
        at,
        len,
        value: value_at(log, place, len),
    }
}
