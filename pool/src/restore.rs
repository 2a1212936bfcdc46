//! Metadata made of records: the pool, then each device with its mappings, then one commit.
//!
//! Each device gets a tree of its own, but for leaves of which the caller knows that they are the same: those
//! are shared. A data block's count is the number of leaves that name it. Nothing is durable before the commit,
//! and a store that began with zeros is no pool until then.
//!
//! Every method but [`Restore::commit`] that fails with [`Restore::is_full`] has changed nothing, and can be
//! called again once the metadata has grown.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata_btree::{BlockNr, BlockStore, Btree, Transaction, TreeBuilder};

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
    /// Leaves that can be shared, by what the caller calls them.
    leaves: BTreeMap<u64, BlockNr>,
}

/// The device whose mappings are coming in.
struct OpenDevice {
    record: DeviceRecord,
    tree: TreeBuilder<Mapping>,
    /// When no more mappings come.
    root: Option<DeviceRoot>,
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
            leaves: BTreeMap::new(),
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
            tree: TreeBuilder::default(),
            root: None,
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
        let Some(device) = &mut self.open else {
            unreachable!("a mapping belongs to a device that was begun");
        };
        let (key, value) = device.entry(device.next_block, mapping, &self.record)?;
        // The insertion is what may find no room, and so it comes first.
        device.tree.push(&mut self.tx, key, value)?;
        self.tx.disk_inc(mapping.data_block)?;
        device.advance(mapping, 1);
        Ok(())
    }

    /// Adds all the mappings of a leaf that the caller knows by this number, so that the device shares it with
    /// others that have it. Returns whether that is possible; else they must come one by one.
    ///
    /// # Errors
    /// As [`Restore::map`].
    pub fn map_leaf(&mut self, number: u64, mappings: &[MappingRecord]) -> Result<bool, Error> {
        let Some(device) = &mut self.open else {
            unreachable!("a leaf belongs to a device that was begun");
        };
        let (Some(first), Some(last)) = (mappings.first(), mappings.last()) else {
            return Ok(true);
        };
        if !device.tree.can_share(mappings.len()) {
            return Ok(false);
        }
        device.entry(device.next_block, *first, &self.record)?;
        match self.leaves.get(&number) {
            Some(leaf) => {
                let first_key = first.virtual_block;
                device.tree.share_leaf(&mut self.tx, first_key, *leaf)?;
            }
            None => {
                let mut next_block = device.next_block;
                let mut entries = Vec::with_capacity(mappings.len());
                for mapping in mappings {
                    entries.push(device.entry(next_block, *mapping, &self.record)?);
                    next_block = mapping.virtual_block + 1;
                }
                let leaf = device.tree.add_leaf(&mut self.tx, &entries)?;
                for mapping in mappings {
                    self.tx.disk_inc(mapping.data_block)?;
                }
                self.leaves.insert(number, leaf);
            }
        }
        device.advance(*last, mappings.len() as u64);
        Ok(true)
    }

    /// Ends the device that was begun.
    ///
    /// # Errors
    /// When there is no room.
    pub fn end_device(&mut self) -> Result<(), Error> {
        let Some(device) = &mut self.open else {
            unreachable!("a device ends that was begun");
        };
        let root = match device.root {
            Some(root) => root,
            None => DeviceRoot(device.tree.finish(&mut self.tx)?.root()),
        };
        device.root = Some(root);
        let key = device.record.id.key();
        let details = DeviceDetails {
            mapped_blocks: device.mapped_blocks,
            transaction_id: device.record.transaction_id,
            creation_time: device.record.creation_time,
            snapshotted_time: device.record.snapshotted_time,
        };
        // Called again after the second of these found no room, the first replaces a root by itself.
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

impl OpenDevice {
    /// A mapping as the tree has it, if it can be, and does not come before `next_block`.
    fn entry(
        &self,
        next_block: u64,
        mapping: MappingRecord,
        pool: &PoolRecord,
    ) -> Result<(u64, Mapping), Error> {
        let MappingRecord {
            virtual_block,
            data_block,
            time,
        } = mapping;
        expect("a data block", data_block, pool.data_blocks)?;
        expect("a mapping's time", u64::from(time), TIMES)?;
        if virtual_block < next_block || virtual_block == u64::MAX {
            return Err(Error::DeviceDamaged {
                id: self.record.id.get(),
                reason: format!("block {virtual_block} is mapped out of order"),
            });
        }
        let block = DataBlock(data_block);
        Ok((virtual_block, Mapping { block, time }))
    }

    /// So many mappings came, of which this is the last.
    fn advance(&mut self, last: MappingRecord, mappings: u64) {
        self.mapped_blocks += mappings;
        self.next_block = last.virtual_block + 1;
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
