//! From records to metadata, which grows with them where it may.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{FileStore, METADATA_BLOCKS_MAX};
use metadata_check::CheckOptions;
use pool::{DeviceRecord, MappingRecord, PoolRecord, Restore};

use crate::error::Error;
use crate::target::{BLOCK_SIZE, Target};

/// Mappings between two looks at the caller's wishes.
const MAPPINGS_A_TURN: u64 = 4096;

/// How large the new metadata is to be.
#[derive(Clone, Copy)]
pub enum MetadataSize<'a> {
    /// So many bytes.
    Exactly(u64),
    /// As large as this says for so many data blocks, and larger when the mappings need it. Of a block
    /// device, all there is.
    ForDataBlocks(&'a dyn Fn(u64) -> u64),
}

/// How to write new metadata.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// How large the metadata is to be.
    pub size: MetadataSize<'a>,
    /// Called now and then; can stop the work, of which nothing is left then.
    pub watch: &'a dyn Fn(Progress) -> ControlFlow<()>,
}

/// How far it has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The dump is being read.
    Reading {
        /// Bytes of it so far.
        bytes: u64,
    },
    /// All blocks of damaged metadata are being looked at.
    Scanning {
        /// Blocks so far.
        blocks: u64,
        /// How many there are.
        total: u64,
    },
    /// What was salvaged is being written.
    Writing {
        /// Mappings so far.
        mappings: u64,
    },
    /// What was written is being checked.
    Checking {
        /// Metadata blocks so far.
        blocks: u64,
        /// How many there are.
        total: u64,
    },
}

/// What was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Restored {
    /// Thin devices.
    pub devices: u64,
    /// Mappings of all devices.
    pub mappings: u64,
    /// Blocks of the metadata.
    pub metadata_blocks: u64,
    /// Those of them that are in use.
    pub metadata_blocks_used: u64,
    /// Blocks of the data store.
    pub data_blocks: u64,
    /// Those of them that are mapped.
    pub data_blocks_used: u64,
}

/// Metadata that is being written.
pub(crate) struct Building<'a> {
    target: Target,
    restore: Restore,
    options: &'a Options<'a>,
    devices: u64,
    mappings: u64,
}

impl<'a> Building<'a> {
    pub(crate) fn begin(
        record: &PoolRecord,
        mut target: Target,
        options: &'a Options<'a>,
    ) -> Result<Self, Error> {
        let restore = begin_restore(record, &mut target, options.size)?;
        Ok(Building {
            target,
            restore,
            options,
            devices: 0,
            mappings: 0,
        })
    }

    pub(crate) fn begin_device(&mut self, record: DeviceRecord) -> Result<(), Error> {
        self.devices += 1;
        self.with_room(|restore| restore.begin_device(record))
    }

    /// Adds a mapping; whether it is time to look at the caller's wishes.
    pub(crate) fn map(&mut self, mapping: MappingRecord) -> Result<bool, Error> {
        self.with_room(|restore| restore.map(mapping))?;
        self.mappings += 1;
        Ok(self.mappings.is_multiple_of(MAPPINGS_A_TURN))
    }

    /// Adds the mappings of a leaf, which devices that have it share if it is full enough.
    pub(crate) fn map_leaf(
        &mut self,
        number: u64,
        mappings: &[MappingRecord],
    ) -> Result<(), Error> {
        if self.with_room(|restore| restore.map_leaf(number, mappings))? {
            self.mappings += mappings.len() as u64;
            return Ok(());
        }
        for mapping in mappings {
            self.map(*mapping)?;
        }
        Ok(())
    }

    pub(crate) fn end_device(&mut self) -> Result<(), Error> {
        self.with_room(Restore::end_device)
    }

    /// How many mappings there are so far.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings
    }

    /// Tells how far it has come; an error if the caller wants no more.
    pub(crate) fn tell(&self, at: Progress) -> Result<(), Error> {
        tell(self.options, at)
    }

    /// Does one step, with larger metadata if that is what it takes and may be had.
    fn with_room<T>(
        &mut self,
        mut step: impl FnMut(&mut Restore) -> Result<T, pool::Error>,
    ) -> Result<T, Error> {
        loop {
            match step(&mut self.restore) {
                Err(cause) if Restore::is_full(&cause) => self.grow(2)?,
                result => return Ok(result?),
            }
        }
    }

    /// Makes the metadata `factor` times as long, or as long as it can be.
    fn grow(&mut self, factor: u64) -> Result<(), Error> {
        let now = self.restore.metadata_blocks();
        let blocks = now.saturating_mul(factor).min(METADATA_BLOCKS_MAX);
        if blocks <= now || !may_grow(&self.target, self.options.size) {
            return Err(too_small(now, &self.target));
        }
        self.target.extend(blocks)?;
        Ok(self.restore.grow_metadata(blocks)?)
    }

    /// Makes it a pool, if it is sound.
    pub(crate) fn finish(mut self) -> Result<Restored, Error> {
        // A pool that is full at once helps nobody.
        let free = self.restore.free_metadata_blocks();
        let is_tight = free < self.restore.metadata_blocks() / 2;
        if is_tight && may_grow(&self.target, self.options.size) {
            match self.grow(2) {
                Ok(()) | Err(Error::TooSmall { .. }) => {}
                Err(cause) => return Err(cause),
            }
        }
        self.restore.commit()?;
        // A check cannot be stopped, but what it was for can.
        let stopped = Cell::new(false);
        let tell = |at: metadata_check::Progress| {
            let (blocks, total) = (at.blocks_read, at.blocks_expected);
            let watched = (self.options.watch)(Progress::Checking { blocks, total });
            stopped.set(stopped.get() || watched.is_break());
        };
        let options = CheckOptions {
            progress: &tell,
            ..CheckOptions::default()
        };
        let report = metadata_check::check(self.target.file(), &options);
        let Some(summary) = report.superblock.as_ref().filter(|_| report.is_sound()) else {
            let first = report.findings.first().map(ToString::to_string);
            return Err(Error::Unsound(first.unwrap_or_default()));
        };
        if stopped.get() {
            return Err(Error::Stopped);
        }
        self.target.finish()?;
        Ok(Restored {
            devices: self.devices,
            mappings: self.mappings,
            metadata_blocks: summary.metadata_blocks,
            metadata_blocks_used: summary.metadata_blocks_used,
            data_blocks: summary.data_blocks,
            data_blocks_used: summary.data_blocks_used,
        })
    }
}

/// Tells how far it has come; an error if the caller wants no more.
pub(crate) fn tell(options: &Options<'_>, at: Progress) -> Result<(), Error> {
    match (options.watch)(at) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped),
    }
}

fn begin_restore(
    record: &PoolRecord,
    target: &mut Target,
    size: MetadataSize<'_>,
) -> Result<Restore, Error> {
    let mut blocks = match (size, target.device_blocks()) {
        (MetadataSize::Exactly(bytes), None) => bytes / BLOCK_SIZE,
        (MetadataSize::Exactly(bytes), Some(there)) if bytes / BLOCK_SIZE > there => {
            return Err(too_small(there, target));
        }
        (MetadataSize::Exactly(bytes), Some(_)) => bytes / BLOCK_SIZE,
        (MetadataSize::ForDataBlocks(_), Some(there)) => there,
        (MetadataSize::ForDataBlocks(bytes), None) => bytes(record.data_blocks) / BLOCK_SIZE,
    }
    .min(METADATA_BLOCKS_MAX);
    loop {
        target.extend(blocks)?;
        let store =
            FileStore::new(target.try_clone()?).map_err(|cause| target.io("measure it", cause))?;
        match Restore::begin(Arc::new(store), *record, blocks) {
            Err(cause) if Restore::is_full(&cause) => {
                if !may_grow(target, size) || blocks == METADATA_BLOCKS_MAX {
                    return Err(too_small(blocks, target));
                }
                blocks = blocks.saturating_mul(2).min(METADATA_BLOCKS_MAX);
            }
            result => return Ok(result?),
        }
    }
}

fn may_grow(target: &Target, size: MetadataSize<'_>) -> bool {
    matches!(size, MetadataSize::ForDataBlocks(_)) && target.device_blocks().is_none()
}

fn too_small(blocks: u64, target: &Target) -> Error {
    let advice = if blocks >= METADATA_BLOCKS_MAX {
        "that is the most the format can have, so the pool must have fewer snapshots or data blocks"
    } else if target.device_blocks().is_some() {
        "take a larger block device, or a larger size"
    } else {
        "give it a larger size, or none, and it gets what it needs"
    };
    Error::TooSmall {
        bytes: blocks.saturating_mul(BLOCK_SIZE),
        advice,
    }
}
