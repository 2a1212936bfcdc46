//! The bytes of the log. All numbers are little endian; checksums are CRC-32C of what follows them.
//!
//! ```text
//! record: offset size field              entry: offset size field
//!              0    4 checksum                       0    4 checksum, over 4..1024
//!              4    1 kind: 1 map,                   4    4 zero
//!                     2 own, 3 unmap                 8    8 magic
//!              5    3 zero                          16    8 slots in an area
//!              8    8 generation                    24   40 what is durable
//!             16    4 thin id                       64  128 incarnation, zero padded
//!             20    4 time (map)                   192  504 superblock, its first two fields left out
//!             24    8 virtual block
//!             32    8 data block (map, own)     marker: offset size field
//!             40    8 owned sub-blocks (map, own)     0    4 checksum, over 4..64
//!             48    8 what the others show (map): a   4    4 zero
//!                     data block + 1, 0 for a hole    8    8 magic
//!             56    8 zero                           16   40 what is durable
//!                                                    56    8 zero
//! what is durable: generation, slots and records of it, slots and records of the one before
//! generation: the number of its term in the upper half
//! note of a void log: as a marker, with another magic, and the last generation that it is about
//! ```

use metadata_btree::Block;

use crate::partial::Partial;
use crate::trees::{Mapping, TIME_MAX};
use crate::units::{DataBlock, ThinId, VirtualBlock};

/// Owning every sub-block, however many there are.
pub(crate) const WHOLE: u64 = u64::MAX;

pub(super) const RECORD_BYTES: usize = 64;
const PAGE_BYTES: usize = 4096;
const ENTRY_BYTES: usize = 1024;
const INCARNATION_BYTES: usize = 128;
const DURABLE_BYTES: usize = 40;
const MAGIC: u64 = u64::from_le_bytes(*b"thinlog2");
const MARKER_MAGIC: u64 = u64::from_le_bytes(*b"thinmark");
const VOID_MAGIC: u64 = u64::from_le_bytes(*b"thinvoid");

/// Pages of the log: two for entries, two for markers, one for the note that it is void.
const HEAD_PAGES: usize = 5;
const MARKER_PAGE: usize = 2;
const VOID_PAGE: usize = 4;

/// The most slots that are believed.
const SLOTS_LIMIT: u64 = 1 << 24;

/// All of the superblock that ever changes lies in its first sector. Not compared are its checksum and the
/// flags that a check sets and clears.
pub(super) const SUPERBLOCK: std::ops::Range<usize> = 8..512;

/// One change of a device, about to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) device: ThinId,
    pub(crate) at: VirtualBlock,
    pub(crate) intent: Intent,
}

/// What happens to a virtual block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Intent {
    /// It is mapped to a data block that holds these sub-blocks, one bit each. The others are still in
    /// another data block, or nowhere.
    Map {
        mapping: Mapping,
        owned: u64,
        over: Option<DataBlock>,
    },
    /// Of the data block it is mapped to, these sub-blocks are there now.
    Own { block: DataBlock, owned: u64 },
    /// It is unmapped.
    Unmap,
}

impl Intent {
    /// Mapping to a block, of which this is the note if it is not whole.
    pub(crate) fn map(mapping: Mapping, partial: Option<&Partial>) -> Self {
        match partial.filter(|partial| !partial.is_whole()) {
            None => Intent::Map {
                mapping,
                owned: WHOLE,
                over: None,
            },
            Some(partial) => Intent::Map {
                mapping,
                owned: partial.owned(),
                over: partial.over(),
            },
        }
    }
}

/// What a slot holds.
pub(super) enum Slot {
    /// Nothing: it was never written.
    Empty,
    /// A record, and the generation it belongs to.
    Full(u64, Record),
}

impl Record {
    pub(super) fn encode(&self, generation: u64) -> [u8; RECORD_BYTES] {
        let (kind, time, block, owned) = match self.intent {
            Intent::Map { mapping, owned, .. } => (1, mapping.time, mapping.block.0, owned),
            Intent::Own { block, owned } => (2, 0, block.0, owned),
            Intent::Unmap => (3, 0, 0, 0),
        };
        let over = match self.intent {
            Intent::Map {
                over: Some(block), ..
            } => block.0 + 1,
            _ => 0,
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[4] = kind;
        put(&mut bytes, 8, &generation.to_le_bytes());
        put(&mut bytes, 16, &self.device.get().to_le_bytes());
        put(&mut bytes, 20, &time.to_le_bytes());
        put(&mut bytes, 24, &self.at.0.to_le_bytes());
        put(&mut bytes, 32, &block.to_le_bytes());
        put(&mut bytes, 40, &owned.to_le_bytes());
        put(&mut bytes, 48, &over.to_le_bytes());
        seal(&mut bytes);
        bytes
    }

    /// Understands a slot, or says what is wrong with it.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES]) -> Result<Slot, &'static str> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(Slot::Empty);
        }
        if !is_sealed(bytes) {
            return Err("its checksum is wrong");
        }
        let block = u64_at(bytes, 32);
        let time = u32_at(bytes, 20);
        let at = u64_at(bytes, 24);
        let over = u64_at(bytes, 48).checked_sub(1).map(DataBlock);
        let is_block = |block: u64| block < DataBlock::LIMIT;
        let are_blocks = is_block(block) && over.is_none_or(|over| is_block(over.0));
        if !are_blocks || time > TIME_MAX || at >= VirtualBlock::LIMIT {
            return Err("a block number or a time in it is out of range");
        }
        let block = DataBlock(block);
        let owned = u64_at(bytes, 40);
        let intent = match bytes[4] {
            1 => Intent::Map {
                mapping: Mapping { block, time },
                owned,
                over,
            },
            2 => Intent::Own { block, owned },
            3 => Intent::Unmap,
            _ => return Err("it is of an unknown kind"),
        };
        let device = ThinId::new(u32_at(bytes, 16)).ok_or("its thin id is out of range")?;
        let record = Record {
            device,
            at: VirtualBlock(at),
            intent,
        };
        Ok(Slot::Full(u64_at(bytes, 8), record))
    }
}

/// Where things are in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    /// Slots in each area.
    pub(super) slots: u64,
}

impl Layout {
    /// The position of a slot in the area of a generation.
    pub(super) fn position(self, generation: u64, slot: u64) -> usize {
        let records = (generation % 2) * self.slots + slot;
        HEAD_PAGES * PAGE_BYTES
            + usize::try_from(records).unwrap_or(usize::MAX / 128) * RECORD_BYTES
    }

    /// Bytes in all.
    pub(super) fn len(self) -> u64 {
        self.position(0, 2 * self.slots) as u64
    }

    /// The slots of a generation's area in the content of a log; those beyond its end are empty.
    pub(super) fn area(self, content: &[u8], generation: u64) -> &[[u8; RECORD_BYTES]] {
        let begin = self.position(generation, 0).min(content.len());
        let end = self.position(generation, self.slots).min(content.len());
        content[begin..end].as_chunks().0
    }
}

/// How much of a generation's area is in use.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Filled {
    /// Slots that were taken, from the first on.
    pub(crate) slots: u64,
    /// Records that were written to them. A slot stays empty when that failed, or the daemon died.
    pub(crate) records: u64,
}

/// What of the log a power cut leaves, and of the data that it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Durable {
    /// The last generation of which there is something.
    pub(crate) generation: u64,
    /// What there is of it.
    pub(crate) filled: Filled,
    /// All of the generation before.
    pub(crate) before: Filled,
}

impl Durable {
    /// What is durable of a generation, when the superblock lacks all from `first` on.
    pub(super) fn of(&self, generation: u64, first: u64) -> Filled {
        if generation < first {
            Filled::default()
        } else if generation == self.generation {
            self.filled
        } else if generation.checked_add(1) == Some(self.generation) {
            self.before
        } else {
            Filled::default()
        }
    }

    fn encode(&self) -> [u8; DURABLE_BYTES] {
        let mut bytes = [0; DURABLE_BYTES];
        put(&mut bytes, 0, &self.generation.to_le_bytes());
        put(&mut bytes, 8, &self.filled.slots.to_le_bytes());
        put(&mut bytes, 16, &self.filled.records.to_le_bytes());
        put(&mut bytes, 24, &self.before.slots.to_le_bytes());
        put(&mut bytes, 32, &self.before.records.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        Durable {
            generation: u64_at(bytes, 0),
            filled: Filled {
                slots: u64_at(bytes, 8),
                records: u64_at(bytes, 16),
            },
            before: Filled {
                slots: u64_at(bytes, 24),
                records: u64_at(bytes, 32),
            },
        }
    }

    /// It as a marker, one of the two in turn; and where that belongs.
    pub(super) fn marker(&self, turn: u64) -> (u64, [u8; RECORD_BYTES]) {
        let page = MARKER_PAGE as u64 + turn % 2;
        (
            page * PAGE_BYTES as u64,
            marker(MARKER_MAGIC, &self.encode()),
        )
    }

    /// What the markers say that were written, two at most.
    pub(super) fn marked(content: &[u8]) -> Result<Vec<Durable>, &'static str> {
        let pages = MARKER_PAGE..MARKER_PAGE + 2;
        let markers = pages.map(|page| marker_in(content, page, MARKER_MAGIC));
        let markers = markers.filter_map(Result::transpose);
        markers.map(|marker| Ok(Durable::decode(marker?))).collect()
    }
}

/// What lies in place of both entries of a log that belongs to no superblock.
pub(super) fn no_entries() -> [u8; MARKER_PAGE * PAGE_BYTES] {
    [0; MARKER_PAGE * PAGE_BYTES]
}

/// The note that up to this generation only what is durable may be used, and where it belongs.
pub(super) fn void_note(generation: u64) -> (u64, [u8; RECORD_BYTES]) {
    let at = (VOID_PAGE * PAGE_BYTES) as u64;
    let last = Durable {
        generation,
        filled: Filled::default(),
        before: Filled::default(),
    };
    (at, marker(VOID_MAGIC, &last.encode()))
}

/// Whether a log has that note on this generation.
pub(super) fn is_void(content: &[u8], generation: u64) -> Result<bool, &'static str> {
    Ok(voided(content)?.is_some_and(|last| last >= generation))
}

/// The last generation that the note is about, if a log has it.
pub(super) fn voided(content: &[u8]) -> Result<Option<u64>, &'static str> {
    let note = marker_in(content, VOID_PAGE, VOID_MAGIC)?;
    Ok(note.map(|last| Durable::decode(last).generation))
}

fn marker(magic: u64, durable: &[u8; DURABLE_BYTES]) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    put(&mut bytes, 8, &magic.to_le_bytes());
    put(&mut bytes, 16, durable);
    seal(&mut bytes);
    bytes
}

/// What a marker says, if it was ever written. It lies in one sector: a power cut does not damage it.
fn marker_in(content: &[u8], page: usize, magic: u64) -> Result<Option<&[u8]>, &'static str> {
    let place = page * PAGE_BYTES..page * PAGE_BYTES + RECORD_BYTES;
    let bytes = content.get(place).ok_or("it is too short")?;
    if bytes.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    if !is_sealed(bytes) || u64_at(bytes, 8) != magic {
        return Err("a marker in it is damaged");
    }
    Ok(Some(&bytes[16..16 + DURABLE_BYTES]))
}

/// What is to be replayed with a superblock: its generation, and all after it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) layout: Layout,
    /// What is durable of what the superblock lacks.
    pub(super) durable: Durable,
    /// Where and when it was written.
    pub(super) incarnation: String,
    /// The superblock's first sector, without checksum and flags.
    pub(super) superblock: Vec<u8>,
}

impl Entry {
    pub(super) fn superblock(block: &Block) -> Vec<u8> {
        block.as_bytes()[SUPERBLOCK].to_vec()
    }

    /// As much of the superblock as there is, in its place.
    pub(super) fn superblock_image(&self) -> Block {
        let mut block = Block::zeroed();
        block.as_bytes_mut()[SUPERBLOCK].copy_from_slice(&self.superblock);
        block
    }

    /// Where the entry of a generation is.
    pub(super) fn position(generation: u64) -> u64 {
        (generation % 2) * PAGE_BYTES as u64
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        put(&mut bytes, 8, &MAGIC.to_le_bytes());
        put(&mut bytes, 16, &self.layout.slots.to_le_bytes());
        put(&mut bytes, 24, &self.durable.encode());
        let incarnation = self.incarnation.as_bytes();
        let length = incarnation.len().min(INCARNATION_BYTES);
        put(&mut bytes, 64, &incarnation[..length]);
        put(&mut bytes, 192, &self.superblock);
        seal(&mut bytes[..ENTRY_BYTES]);
        bytes
    }

    /// One of the two pages as it is, and where it is.
    pub(super) fn page(content: &[u8], page: usize) -> Option<(u64, Vec<u8>)> {
        let at = page * PAGE_BYTES;
        let bytes = content.get(at..at + PAGE_BYTES)?;
        Some((at as u64, bytes.to_vec()))
    }

    /// The entry in one of the two pages at the log's beginning, if there is a sound one.
    pub(super) fn decode(content: &[u8], page: usize) -> Option<Entry> {
        let bytes = content.get(page * PAGE_BYTES..page * PAGE_BYTES + ENTRY_BYTES)?;
        if !is_sealed(bytes) || u64_at(bytes, 8) != MAGIC {
            return None;
        }
        let slots = u64_at(bytes, 16);
        let incarnation = bytes[64..64 + INCARNATION_BYTES].split(|byte| *byte == 0);
        let incarnation = str::from_utf8(incarnation.into_iter().next()?).ok()?;
        (slots <= SLOTS_LIMIT).then(|| Entry {
            layout: Layout { slots },
            durable: Durable::decode(&bytes[24..]),
            incarnation: incarnation.to_owned(),
            superblock: bytes[192..192 + SUPERBLOCK.len()].to_vec(),
        })
    }
}

fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c(&bytes[4..]);
    put(bytes, 0, &checksum.to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    crc32c::crc32c(&bytes[4..]) == u32_at(bytes, 0)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURABLE: Durable = Durable {
        generation: 4,
        filled: Filled {
            slots: 3,
            records: 2,
        },
        before: Filled {
            slots: 7,
            records: 6,
        },
    };

    fn record(intent: Intent) -> Record {
        Record {
            device: ThinId::MAX,
            at: VirtualBlock(77),
            intent,
        }
    }

    #[test]
    fn records_come_back() {
        let mapping = Mapping {
            block: DataBlock(DataBlock::LIMIT - 1),
            time: TIME_MAX,
        };
        let block = DataBlock(5);
        for intent in [
            Intent::Map {
                mapping,
                owned: 9,
                over: None,
            },
            Intent::Map {
                mapping,
                owned: 9,
                over: Some(DataBlock(0)),
            },
            Intent::Own {
                block,
                owned: WHOLE,
            },
            Intent::Unmap,
        ] {
            let bytes = record(intent).encode(3);
            let Ok(Slot::Full(generation, found)) = Record::decode(&bytes) else {
                panic!("{intent:?} does not come back")
            };
            assert_eq!((generation, found), (3, record(intent)));
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = record(Intent::Unmap).encode(3);
        for bit in 0..8 * RECORD_BYTES {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&damaged).is_err(), "bit {bit}");
        }
        assert!(matches!(
            Record::decode(&[0; RECORD_BYTES]),
            Ok(Slot::Empty)
        ));
    }

    #[test]
    fn an_entry_comes_back_whole_or_not_at_all() {
        let entry = Entry {
            layout: Layout { slots: 12 },
            durable: DURABLE,
            incarnation: "here and now".to_owned(),
            superblock: vec![7; SUPERBLOCK.len()],
        };
        let mut content = [entry.encode(), vec![0; PAGE_BYTES]].concat();
        assert_eq!(Entry::decode(&content, 0), Some(entry));
        assert_eq!(Entry::decode(&content, 1), None);
        assert_eq!(Entry::decode(&content[..100], 0), None);
        content[200] ^= 1;
        assert_eq!(Entry::decode(&content, 0), None);
    }

    #[test]
    fn markers_come_back_in_turn() {
        let mut content = vec![0; HEAD_PAGES * PAGE_BYTES];
        assert_eq!(Durable::marked(&content), Ok(Vec::new()));
        let later = Durable {
            generation: 5,
            ..DURABLE
        };
        for (turn, durable) in [(6, DURABLE), (7, later)] {
            let (at, bytes) = durable.marker(turn);
            put(&mut content, usize::try_from(at).unwrap_or(0), &bytes);
        }
        assert_eq!(Durable::marked(&content), Ok(vec![DURABLE, later]));
        content[MARKER_PAGE * PAGE_BYTES + 20] ^= 1;
        assert!(Durable::marked(&content).is_err());
        assert_eq!(is_void(&content, 5), Ok(false));
        let (at, bytes) = void_note(5);
        put(&mut content, usize::try_from(at).unwrap_or(0), &bytes);
        assert_eq!(is_void(&content, 5), Ok(true));
        assert_eq!(is_void(&content, 6), Ok(false), "a later term");
    }

    #[test]
    fn of_each_generation_something_else_is_durable() {
        assert_eq!(DURABLE.of(4, 3), DURABLE.filled);
        assert_eq!(DURABLE.of(3, 3), DURABLE.before);
        assert_eq!(DURABLE.of(3, 4), Filled::default(), "the superblock has it");
        assert_eq!(DURABLE.of(5, 4), Filled::default());
    }
}
