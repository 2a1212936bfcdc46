//! From damaged metadata to sound metadata: what [`metadata_check::Salvage`] trusts is written anew.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;

use metadata_check::{
    BlockSource, MissingRange, Orphan, Salvage, SalvageOptions, SalvagedDevice, SalvagedLeaf,
    SalvagedMapping, SalvagedPool,
};
use pool::{BlockSize, DeviceRecord, MappingRecord, PoolRecord, ThinId};

use crate::build::{Building, Options, Progress, Restored, tell};
use crate::error::Error;
use crate::target::Target;

/// Bytes of a sector.
const SECTOR: u64 = 512;

/// What helps to find the trees when the superblock is lost.
#[derive(Clone, Copy, Default, Debug)]
pub struct Hints<'a> {
    /// What the last superblock was.
    pub superblock: Option<&'a [u8; 4096]>,
    /// Size of a data block, if nothing else tells.
    pub block_size: Option<BlockSize>,
    /// Bytes of the data store.
    pub data_bytes: Option<u64>,
    /// The transaction id that the pool had at least.
    pub transaction_id: u64,
}

/// What a repair has come to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Repaired {
    /// The new metadata.
    pub restored: Restored,
    /// The pool, as it was found.
    pub pool: SalvagedPool,
    /// Its devices, by ascending id.
    pub devices: Vec<RepairedDevice>,
    /// Mappings of which it is not certain whose they were.
    pub orphans: Vec<Orphan>,
    /// Nodes that are intact, but contradict what others say.
    pub doubted_nodes: u64,
}

impl Repaired {
    /// Whether there is nothing that should be there and is not.
    pub fn is_complete(&self) -> bool {
        self.orphans.is_empty() && self.devices.iter().all(RepairedDevice::is_complete)
    }
}

/// What there is of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RepairedDevice {
    /// Its id.
    pub id: u32,
    /// Mappings it has now.
    pub mappings: u64,
    /// Mappings it had, if that is known.
    pub mapped_blocks: Option<u64>,
    /// Where mappings may be missing.
    pub missing: Vec<MissingRange>,
}

impl RepairedDevice {
    /// Whether all its mappings are there.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
            && self
                .mapped_blocks
                .is_none_or(|count| count <= self.mappings)
    }

    /// How many mappings are missing, if that is known.
    pub fn missing_count(&self) -> Option<u64> {
        let had = self.mapped_blocks?;
        Some(had.saturating_sub(self.mappings))
    }
}

/// Writes what can be trusted in damaged metadata to `path`: a file that does not exist, or a block device
/// that begins with zeros. The source is only read.
///
/// # Errors
/// See [`Error`]. There is no file then, and no pool on the block device.
pub fn repair(
    source: &dyn BlockSource,
    path: &Path,
    hints: &Hints<'_>,
    options: &Options<'_>,
) -> Result<Repaired, Error> {
    let target = Target::create(path)?;
    let salvage = scan(source, hints, options)?;
    let pool = *salvage.pool();
    let record = PoolRecord {
        time: pool.time,
        transaction_id: pool.transaction_id.max(hints.transaction_id),
        block_size: block_size(&pool)?,
        data_blocks: pool.data_blocks,
    };
    let mut building = Building::begin(&record, target, options)?;
    let mut devices = Vec::new();
    for device in salvage.devices() {
        devices.push(write_device(&mut building, &salvage, device)?);
    }
    Ok(Repaired {
        restored: building.finish()?,
        pool,
        devices,
        orphans: salvage.orphans().to_vec(),
        doubted_nodes: salvage.doubted_nodes(),
    })
}

/// Decides what can be trusted. That cannot be stopped half way, but what it is for can.
fn scan<'a>(
    source: &'a dyn BlockSource,
    hints: &Hints<'_>,
    options: &Options<'_>,
) -> Result<Salvage<'a>, Error> {
    let stopped = Cell::new(false);
    let progress = |at: metadata_check::Progress| {
        let (blocks, total) = (at.blocks_read, at.blocks_expected);
        let told = tell(options, Progress::Scanning { blocks, total });
        stopped.set(stopped.get() || told.is_err());
    };
    let block_sectors = |size: BlockSize| u32::try_from(size.bytes() / SECTOR).ok();
    let salvage = Salvage::begin(
        source,
        &SalvageOptions {
            superblock: hints.superblock,
            allowed_incompat: pool::INCOMPAT_LOG,
            data_block_size: hints.block_size.and_then(block_sectors),
            data_bytes: hints.data_bytes,
            progress: &progress,
        },
    )?;
    if stopped.get() {
        return Err(Error::Stopped);
    }
    Ok(salvage)
}

fn block_size(pool: &SalvagedPool) -> Result<BlockSize, Error> {
    let bytes = u64::from(pool.data_block_size) * SECTOR;
    BlockSize::new(bytes).ok_or_else(|| {
        let size = format!("a data block of {bytes} bytes, which no pool has");
        Error::Unsound(size)
    })
}

fn write_device(
    building: &mut Building<'_>,
    salvage: &Salvage<'_>,
    device: &SalvagedDevice,
) -> Result<RepairedDevice, Error> {
    let Some(id) = ThinId::new(device.id) else {
        unreachable!("larger ids are not salvaged")
    };
    building.begin_device(DeviceRecord {
        id,
        transaction_id: device.transaction_id,
        creation_time: device.creation_time,
        snapshotted_time: device.snapshotted_time,
    })?;
    let before = building.mappings();
    let mut failed = None;
    let missing = salvage.leaves(device, &mut |leaf| match write_leaf(building, leaf) {
        Ok(()) => ControlFlow::Continue(()),
        Err(cause) => {
            failed = Some(cause);
            ControlFlow::Break(())
        }
    });
    if let Some(cause) = failed {
        return Err(cause);
    }
    building.end_device()?;
    Ok(RepairedDevice {
        id: device.id,
        mappings: building.mappings() - before,
        mapped_blocks: device.mapped_blocks,
        missing,
    })
}

fn write_leaf(building: &mut Building<'_>, leaf: SalvagedLeaf<'_>) -> Result<(), Error> {
    let record = |mapping: &SalvagedMapping| MappingRecord {
        virtual_block: mapping.virtual_block,
        data_block: mapping.data_block,
        time: mapping.time,
    };
    let records: Vec<MappingRecord> = leaf.mappings.iter().map(record).collect();
    building.map_leaf(leaf.block, &records)?;
    building.tell(Progress::Writing {
        mappings: building.mappings(),
    })
}
