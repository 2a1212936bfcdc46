//! A dump, piece by piece.
//!
//! ```text
//! <superblock uuid time transaction flags version data_block_size nr_data_blocks>
//!   <device dev_id mapped_blocks transaction creation_time snap_time>
//!     <range_mapping origin_begin data_begin length time/>
//!     <single_mapping origin_block data_block time/>
//!   </device>
//! </superblock>
//! ```
//!
//! What comes out makes sense: numbers fit their fields, mappings ascend and lie within the data store, no
//! device comes twice, each has as many mappings as it says, and no time is later than the pool's. A dump
//! that ends early is an error, and so is what follows its end; so a dump is good only when [`Parser::next`]
//! has returned none.

mod fields;

use std::io::BufRead;

use metadata_btree::METADATA_BLOCKS_MAX;
use pool::{BlockSize, DeviceRecord, PoolRecord, ThinId};
use quick_xml::Reader;
use quick_xml::errors::SyntaxError;
use quick_xml::events::{BytesStart, Event};

use self::fields::Fields;
use crate::error::{Error, Fault};
use crate::lines::{Lines, PIECE_LEN_MAX};

const SUPERBLOCK: &str = "superblock";
const DEVICE: &str = "device";
const SINGLE: &str = "single_mapping";
const RANGE: &str = "range_mapping";

/// One more than the largest time: 24 bits.
const TIMES: u64 = 1 << 24;

/// More cannot be counted: each 16320 data blocks take a metadata block.
const DATA_BLOCKS_MAX: u64 = METADATA_BLOCKS_MAX * 16320;

/// Where a device ends at the latest: sectors are counted with 64 bits, and a block has 128 or more.
const VIRTUAL_BLOCKS_MAX: u64 = 1 << 57;

const SECTOR_SIZE: u64 = 512;

/// The flag in the superblock that asks for a check.
const NEEDS_CHECK: u64 = 1;

/// What a dump consists of, in this order: the pool, then devices with their runs, each with its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Item {
    Pool(DumpedPool),
    Device(DeviceRecord),
    Run(Run),
    DeviceEnd,
}

/// The superblock of a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DumpedPool {
    pub(crate) record: PoolRecord,
    pub(crate) needs_check: bool,
}

/// Mappings of neighbouring virtual blocks to neighbouring data blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) virtual_begin: u64,
    pub(crate) data_begin: u64,
    pub(crate) length: u64,
    pub(crate) time: u32,
}

/// Which elements are open.
#[derive(Clone, Copy)]
enum Place {
    Outside,
    Pool(PoolRecord),
    Device(PoolRecord, OpenDevice),
    Mapping(PoolRecord, OpenDevice),
    Behind,
}

#[derive(Clone, Copy)]
struct OpenDevice {
    id: u32,
    /// What its tag says.
    mapped_blocks: u64,
    /// What came so far.
    mapped: u64,
    /// One more than the last virtual block.
    next_block: u64,
}

/// A dump that is being read.
pub(crate) struct Parser<R> {
    xml: Reader<Lines<R>>,
    piece: Vec<u8>,
    place: Place,
    ids: IdSet,
    line: u64,
}

impl<R: BufRead> Parser<R> {
    pub(crate) fn new(input: R) -> Self {
        let mut xml = Reader::from_reader(Lines::new(input));
        let config = xml.config_mut();
        config.expand_empty_elements = true;
        config.check_end_names = true;
        Parser {
            xml,
            piece: Vec::new(),
            place: Place::Outside,
            ids: IdSet::new(),
            line: 1,
        }
    }

    /// The next item, or none when the dump has ended as it should. Not to be called after an error.
    pub(crate) fn next(&mut self) -> Result<Option<Item>, Error> {
        loop {
            match self.step() {
                Ok(Step::On) => {}
                Ok(Step::Item(item)) => return Ok(Some(item)),
                Ok(Step::End) => return Ok(None),
                Err(Failure::Read(cause)) => return Err(Error::Read(cause)),
                Err(Failure::Fault(fault)) => {
                    let line = self.line;
                    return Err(Error::Dump { line, fault });
                }
            }
        }
    }

    /// Bytes of the dump read so far.
    pub(crate) fn bytes_read(&mut self) -> u64 {
        self.xml.get_mut().bytes()
    }

    fn step(&mut self) -> Result<Step, Failure> {
        self.line = self.xml.get_mut().begin_piece();
        let mut piece = std::mem::take(&mut self.piece);
        piece.clear();
        let step = self.read_piece(&mut piece);
        self.piece = piece;
        step
    }

    fn read_piece(&mut self, piece: &mut Vec<u8>) -> Result<Step, Failure> {
        let event = self.xml.read_event_into(piece);
        if self.xml.get_mut().is_too_long() {
            let limit = PIECE_LEN_MAX;
            return Err(Fault::TooLong { limit }.into());
        }
        let unexpected = match event.map_err(Failure::from)? {
            Event::Start(tag) => return self.open(&tag),
            Event::End(_) => return self.close(),
            Event::Eof => return self.end(),
            Event::Comment(_) => return Ok(Step::On),
            Event::Decl(_) if matches!(self.place, Place::Outside) => return Ok(Step::On),
            Event::Text(text) if is_blank(&text) => return Ok(Step::On),
            Event::Empty(_) => unreachable!("empty elements are expanded"),
            Event::Text(_) | Event::GeneralRef(_) => "text",
            Event::CData(_) => "CDATA",
            Event::Decl(_) => "XML declaration",
            Event::PI(_) => "processing instruction",
            Event::DocType(_) => "document type",
        };
        Err(Fault::Unexpected(unexpected).into())
    }

    fn open(&mut self, tag: &BytesStart<'_>) -> Result<Step, Failure> {
        let name = tag.name();
        let name: &str = name.as_ref();
        let expected = match (self.place, name) {
            (Place::Outside, SUPERBLOCK) => {
                let pool = parse_pool(tag)?;
                self.place = Place::Pool(pool.record);
                return Ok(Step::Item(Item::Pool(pool)));
            }
            (Place::Pool(pool), DEVICE) => {
                let (device, mapped_blocks) = parse_device(tag, &pool)?;
                let id = device.id.get();
                if !self.ids.insert(id) {
                    return Err(Fault::DeviceTwice { id }.into());
                }
                let open = OpenDevice {
                    id,
                    mapped_blocks,
                    mapped: 0,
                    next_block: 0,
                };
                self.place = Place::Device(pool, open);
                return Ok(Step::Item(Item::Device(device)));
            }
            (Place::Device(pool, device), SINGLE | RANGE) => {
                let run = parse_run(tag, name == SINGLE, &pool)?;
                let device = device.with(&run, &pool)?;
                self.place = Place::Mapping(pool, device);
                return Ok(Step::Item(Item::Run(run)));
            }
            (_, "def" | "ref") => {
                let name = name.to_owned();
                return Err(Fault::SharedParts { name }.into());
            }
            (Place::Outside, _) => "<superblock>",
            (Place::Pool(_), _) => "<device> or </superblock>",
            (Place::Device(..), _) => "<single_mapping>, <range_mapping> or </device>",
            (Place::Mapping(..), _) => "the end of the mapping",
            (Place::Behind, _) => "nothing more",
        };
        let name = shortened(name);
        Err(Fault::Element { name, expected }.into())
    }

    /// The reader has made sure that the tag closes what was opened last.
    fn close(&mut self) -> Result<Step, Failure> {
        match self.place {
            Place::Mapping(pool, device) => {
                self.place = Place::Device(pool, device);
                Ok(Step::On)
            }
            Place::Device(pool, device) => {
                device.expect_complete()?;
                self.place = Place::Pool(pool);
                Ok(Step::Item(Item::DeviceEnd))
            }
            Place::Pool(_) => {
                self.place = Place::Behind;
                Ok(Step::On)
            }
            Place::Outside | Place::Behind => Err(Fault::Unexpected("closing tag").into()),
        }
    }

    fn end(&self) -> Result<Step, Failure> {
        match self.place {
            Place::Behind => Ok(Step::End),
            _ => Err(Fault::CutOff.into()),
        }
    }
}

/// What a piece of the dump came to.
enum Step {
    On,
    Item(Item),
    End,
}

/// Why a piece could not be taken.
enum Failure {
    Read(std::io::Error),
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Fault(fault)
    }
}

impl From<quick_xml::Error> for Failure {
    fn from(cause: quick_xml::Error) -> Self {
        use quick_xml::Error as Xml;
        match cause {
            Xml::Io(cause) => Failure::Read(std::io::Error::new(cause.kind(), cause)),
            // All other faults of syntax are that what was begun has no end.
            Xml::Syntax(cause) if cause != SyntaxError::InvalidBangMarkup => {
                Failure::Fault(Fault::CutOff)
            }
            other => Failure::Fault(Fault::Syntax(shortened(&other.to_string()))),
        }
    }
}

impl OpenDevice {
    /// The device with one more run, if it may follow.
    fn with(self, run: &Run, pool: &PoolRecord) -> Result<Self, Fault> {
        let id = self.id;
        let ends = |what, begin: u64, end_max| {
            let end = begin.checked_add(run.length);
            end.filter(|end| *end <= end_max).ok_or(Fault::Beyond {
                id,
                what,
                begin,
                length: run.length,
                end: end_max,
            })
        };
        if pool.data_blocks == 0 {
            return Err(Fault::NoDataBlocks);
        }
        if run.virtual_begin < self.next_block {
            return Err(Fault::Order {
                id,
                found: run.virtual_begin,
                expected: self.next_block,
            });
        }
        let next_block = ends("virtual blocks", run.virtual_begin, VIRTUAL_BLOCKS_MAX)?;
        ends("data blocks", run.data_begin, pool.data_blocks)?;
        let device = OpenDevice {
            // Runs do not overlap and end at 2^57 at the latest.
            mapped: self.mapped + run.length,
            next_block,
            ..self
        };
        if device.mapped > device.mapped_blocks {
            return Err(device.miscounted());
        }
        Ok(device)
    }

    fn expect_complete(&self) -> Result<(), Fault> {
        if self.mapped == self.mapped_blocks {
            return Ok(());
        }
        Err(self.miscounted())
    }

    fn miscounted(&self) -> Fault {
        Fault::MappedBlocks {
            id: self.id,
            found: self.mapped,
            expected: self.mapped_blocks,
        }
    }
}

fn parse_pool(tag: &BytesStart<'_>) -> Result<DumpedPool, Fault> {
    let mut fields = Fields::of(
        SUPERBLOCK,
        tag,
        &[
            "uuid",
            "time",
            "transaction",
            "flags",
            "version",
            "data_block_size",
            "nr_data_blocks",
        ],
    )?;
    // Every tool writes an empty one, and no field of the format has room for what it would mean.
    fields.ignore("uuid");
    let time = fields.small("time", TIMES)?;
    let transaction_id = fields.number("transaction", u64::MAX)?;
    let needs_check = match fields.optional("flags")? {
        None | Some(0) => false,
        Some(NEEDS_CHECK) => true,
        Some(_) => return Err(fields.wrong("flags", "0, or 1 for needs_check")),
    };
    if !matches!(fields.optional("version")?, None | Some(2)) {
        return Err(fields.wrong("version", "2"));
    }
    let sectors = fields.number("data_block_size", u64::MAX)?;
    let block_size = sectors.checked_mul(SECTOR_SIZE).and_then(BlockSize::new);
    let Some(block_size) = block_size else {
        return Err(fields.wrong(
            "data_block_size",
            "a multiple of 128 sectors, at most 2097152",
        ));
    };
    let record = PoolRecord {
        time,
        transaction_id,
        block_size,
        data_blocks: fields.number("nr_data_blocks", DATA_BLOCKS_MAX)?,
    };
    Ok(DumpedPool {
        record,
        needs_check,
    })
}

/// A device, and the number of its mappings.
fn parse_device(tag: &BytesStart<'_>, pool: &PoolRecord) -> Result<(DeviceRecord, u64), Fault> {
    let fields = Fields::of(
        DEVICE,
        tag,
        &[
            "dev_id",
            "mapped_blocks",
            "transaction",
            "creation_time",
            "snap_time",
        ],
    )?;
    let times = u64::from(pool.time) + 1;
    let Some(id) = ThinId::new(fields.small("dev_id", u64::from(ThinId::MAX.get()) + 1)?) else {
        unreachable!("it is not larger than the largest");
    };
    let device = DeviceRecord {
        id,
        transaction_id: fields.number("transaction", u64::MAX)?,
        creation_time: fields.small("creation_time", times)?,
        snapshotted_time: fields.small("snap_time", times)?,
    };
    Ok((device, fields.number("mapped_blocks", VIRTUAL_BLOCKS_MAX)?))
}

fn parse_run(tag: &BytesStart<'_>, is_single: bool, pool: &PoolRecord) -> Result<Run, Fault> {
    let (element, virtual_begin, data_begin) = if is_single {
        (SINGLE, "origin_block", "data_block")
    } else {
        (RANGE, "origin_begin", "data_begin")
    };
    let known = [virtual_begin, data_begin, "time", "length"];
    let known = if is_single { &known[..3] } else { &known[..] };
    let fields = Fields::of(element, tag, known)?;
    let length = if is_single {
        1
    } else {
        fields.number("length", u64::MAX)?
    };
    if length == 0 {
        return Err(fields.wrong("length", "1 or more"));
    }
    Ok(Run {
        virtual_begin: fields.number(virtual_begin, u64::MAX)?,
        data_begin: fields.number(data_begin, u64::MAX)?,
        length,
        time: fields.small("time", u64::from(pool.time) + 1)?,
    })
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_whitespace())
}

/// Hostile text, fit for a line of a message.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let printable = text.chars().map(|char| match char {
        char if char.is_control() => '?',
        char => char,
    });
    let mut short: String = printable.take(CHARS_MAX).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

/// The ids that came: a bit each, since there are 2^24 at most.
struct IdSet(Vec<u64>);

impl IdSet {
    fn new() -> Self {
        let ids = u64::from(ThinId::MAX.get()) + 1;
        IdSet(vec![0; usize::try_from(ids / 64).unwrap_or(0)])
    }

    /// Whether it was not there before.
    fn insert(&mut self, id: u32) -> bool {
        let Some(word) = self.0.get_mut(id as usize / 64) else {
            return false;
        };
        let bit = 1 << (id % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests;
