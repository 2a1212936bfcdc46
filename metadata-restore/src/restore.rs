//! From a dump to metadata: what the parser says is done.

use std::io::BufRead;
use std::path::Path;

use pool::MappingRecord;

use crate::build::{Building, Options, Progress, Restored};
use crate::error::Error;
use crate::parse::{Item, Parser, Run};
use crate::target::Target;

/// What was made of a dump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct FromDump {
    /// The new metadata.
    pub restored: Restored,
    /// The pool that was dumped needed a check. What was restored has been checked, and does not.
    pub needed_check: bool,
}

/// Writes new metadata to `path`: a file that does not exist, or a block device that begins with zeros.
///
/// # Errors
/// See [`Error`]. There is no file then, and no pool on the block device.
pub fn restore(dump: impl BufRead, path: &Path, options: &Options<'_>) -> Result<FromDump, Error> {
    let target = Target::create(path)?;
    let mut parser = Parser::new(dump);
    let pool = match parser.next()? {
        Some(Item::Pool(pool)) => pool,
        _ => unreachable!("a dump begins with the pool"),
    };
    let mut building = Building::begin(&pool.record, target, options)?;
    while let Some(item) = parser.next()? {
        let bytes = parser.bytes_read();
        match item {
            Item::Pool(_) => unreachable!("a dump has one pool"),
            Item::Device(record) => {
                building.begin_device(record)?;
                building.tell(Progress::Reading { bytes })?;
            }
            Item::Run(run) => map(&mut building, &run, bytes)?,
            Item::DeviceEnd => building.end_device()?,
        }
    }
    Ok(FromDump {
        restored: building.finish()?,
        needed_check: pool.needs_check,
    })
}

fn map(building: &mut Building<'_>, run: &Run, bytes: u64) -> Result<(), Error> {
    for index in 0..run.length {
        let is_due = building.map(MappingRecord {
            virtual_block: run.virtual_begin + index,
            data_block: run.data_begin + index,
            time: run.time,
        })?;
        if is_due {
            building.tell(Progress::Reading { bytes })?;
        }
    }
    Ok(())
}
