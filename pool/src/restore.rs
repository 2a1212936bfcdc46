//! Metadata made of records: the pool, then each device with its mappings, then one commit.
//!
//! Nothing is shared but data blocks: each device gets a tree of its own, and a data block's count is the
//! number of mappings that name it. Nothing is durable before the commit, and a store that began with zeros
//! is no pool until then.
//!
//! Every method but [`Restore::commit`] that fails with [`Restore::is_full`] has changed nothing, and can be
//! called again once the metadata has grown.

use std::sync::Arc;

use metadata_btree::{BlockStore, Btree, Transaction};

use crate::error::Error;
use crate::superblock::Superblock;
use crate::trees::{DeviceDetails, DeviceRoot, Mapping, TIME_MAX};
use crate::units::{BlockSize, DataBlock, ThinId};

/// What the superblock is to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolRecord {
    /// The pool's snapshot counter: 24 bits.
    pub time: u32,
    /// The number kept for the operator's tools.
    pub transaction_id: u64,
    /// The size of a data block.
    pub block_size: BlockSize,
    /// How many data blocks there are.
    pub data_blocks: u64,
}

/// What the details of a device are to say, but for its mapped blocks, which are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceRecord {
    /// Its number.
    pub id: ThinId,
    /// The pool's transaction id when it was created.
    pub transaction_id: u64,
    /// The pool's time when it was created.
    pub creation_time: u32,
    /// The pool's time at the last snapshot it took part in.
    pub snapshotted_time: u32,
}

/// One mapping of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappingRecord {
    /// The block of the device.
    pub virtual_block: u64,
    /// Where it is on the data store.
    pub data_block: u64,
    /// The pool's time when it was mapped.
    pub time: u32,
}

/// Metadata in the making.
pub struct Restore {
    tx: Transaction,
    record: PoolRecord,
    top_level: Btree<DeviceRoot>,
    details: Btree<DeviceDetails>,
    open: Option<OpenDevice>,
}

/// The device whose mappings are coming in.
struct OpenDevice {
    record: DeviceRecord,
    tree: Btree<Mapping>,
    mapped_blocks: u64,
    /// One more than the last virtual block.
    next_block: u64,
}

impl Restore {
    /// Begins metadata of `metadata_blocks` blocks, which the store must hold.
    ///
    /// # Errors
    /// When the store is smaller, or the counts of the data blocks alone do not fit; it can then be begun
    /// again with more.
    pub fn begin(
        store: Arc<dyn BlockStore>,
        record: PoolRecord,
        metadata_blocks: u64,
    ) -> Result<Self, Error> {
        expect("the pool's time", u64::from(record.time), TIMES)?;
        expect("data blocks", record.data_blocks, DataBlock::LIMIT + 1)?;
        let mut tx = Transaction::format(store, metadata_blocks, record.data_blocks)?;
        let top_level = Btree::empty(&mut tx)?;
        let details = Btree::empty(&mut tx)?;
        Ok(Restore {
            tx,
            record,
            top_level,
            details,
            open: None,
        })
    }

    /// Begins a device. The one before must have been ended.
    ///
    /// # Errors
    /// When there was one of that id.
    pub fn begin_device(&mut self, record: DeviceRecord) -> Result<(), Error> {
        assert!(self.open.is_none(), "devices come one after another");
        if self.details.lookup(&self.tx, record.id.key())?.is_some() {
            return Err(Error::DeviceDamaged {
                id: record.id.get(),
                reason: "it comes twice".into(),
            });
        }
        self.open = Some(OpenDevice {
            record,
            tree: Btree::empty(&mut self.tx)?,
            mapped_blocks: 0,
            next_block: 0,
        });
        Ok(())
    }

    /// Adds a mapping to the device that was begun, above all it has.
    ///
    /// # Errors
    /// For blocks and times that cannot be, and when there is no room.
    pub fn map(&mut self, mapping: MappingRecord) -> Result<(), Error> {
        let MappingRecord {
            virtual_block,
            data_block,
            time,
        } = mapping;
        let Some(device) = &mut self.open else {
            unreachable!("a mapping belongs to a device that was begun");
        };
        expect("a data block", data_block, self.record.data_blocks)?;
        expect("a mapping's time", u64::from(time), TIMES)?;
        let Some(next_block) = virtual_block
            .checked_add(1)
            .filter(|_| virtual_block >= device.next_block)
        else {
            return Err(Error::DeviceDamaged {
                id: device.record.id.get(),
                reason: format!("block {virtual_block} is mapped out of order"),
            });
        };
        let mapping = Mapping {
            block: DataBlock(data_block),
            time,
        };
        // The insertion is what may find no room, and so it comes first.
        device.tree.insert(&mut self.tx, virtual_block, mapping)?;
        self.tx.disk_inc(data_block)?;
        device.mapped_blocks += 1;
        device.next_block = next_block;
        Ok(())
    }

    /// Ends the device that was begun.
    ///
    /// # Errors
    /// When there is no room.
    pub fn end_device(&mut self) -> Result<(), Error> {
        let Some(device) = &self.open else {
            unreachable!("a device ends that was begun");
        };
        let key = device.record.id.key();
        let details = DeviceDetails {
            mapped_blocks: device.mapped_blocks,
            transaction_id: device.record.transaction_id,
            creation_time: device.record.creation_time,
            snapshotted_time: device.record.snapshotted_time,
        };
        // Called again after the second of these found no room, the first replaces a root by itself.
        let root = DeviceRoot(device.tree.root());
        self.top_level.insert(&mut self.tx, key, root)?;
        self.details.insert(&mut self.tx, key, details)?;
        self.open = None;
        Ok(())
    }

    /// Blocks of the metadata.
    pub fn metadata_blocks(&self) -> u64 {
        self.tx.metadata_blocks()
    }

    /// Those of them that nothing uses so far. The commit takes some.
    pub fn free_metadata_blocks(&self) -> u64 {
        self.tx.free_metadata_blocks()
    }

    /// Makes the metadata longer, which its store must be already.
    ///
    /// # Errors
    /// For sizes that the store does not have.
    pub fn grow_metadata(&mut self, metadata_blocks: u64) -> Result<(), Error> {
        Ok(self.tx.grow_metadata(metadata_blocks)?)
    }

    /// Makes all of it durable, the superblock last.
    ///
    /// # Errors
    /// What stopped it. If that was the last write, the store may hold a pool all the same.
    pub fn commit(mut self) -> Result<(), Error> {
        assert!(self.open.is_none(), "every device was ended");
        let mut superblock = Superblock::new(self.record.block_size, self.tx.metadata_blocks());
        superblock.time = self.record.time;
        superblock.transaction_id = self.record.transaction_id;
        superblock.mapping_root = self.top_level.root();
        superblock.details_root = self.details.root();
        self.tx
            .commit(|space_maps| Ok(superblock.encode(space_maps)))?;
        Ok(())
    }

    /// Whether this error says that larger metadata would do.
    pub fn is_full(error: &Error) -> bool {
        matches!(
            error,
            Error::Metadata(metadata_btree::Error::OutOfMetadataSpace { .. })
        )
    }
}

/// One more than the largest time.
const TIMES: u64 = TIME_MAX as u64 + 1;

fn expect(what: &'static str, found: u64, limit: u64) -> Result<(), Error> {
    if found < limit {
        return Ok(());
    }
    Err(Error::BadValue {
        what,
        found: found.to_string(),
        expected: format!("less than {limit}"),
    })
}
