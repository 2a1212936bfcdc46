//! What the leaves of the pool's trees hold.
//!
//! ```text
//! mapping tree, top level      thin id        -> root of the device's mapping tree
//! mapping tree, bottom level   virtual block  -> data block << 24 | time
//! device details               thin id        -> mapped blocks, transaction id, times
//! ```

use metadata_btree::{BlockNr, Btree, Error, Transaction, Value};

use crate::units::DataBlock;

/// The largest time a mapping can carry: 24 bits.
pub(crate) const TIME_MAX: u32 = 0x00ff_ffff;

const TIME_BITS: u32 = 24;

/// A data block, and the pool's time when it was mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub(crate) block: DataBlock,
    pub(crate) time: u32,
}

impl Mapping {
    pub(crate) fn pack(self) -> u64 {
        assert!(self.block.0 < DataBlock::LIMIT && self.time <= TIME_MAX);
        self.block.0 << TIME_BITS | u64::from(self.time)
    }

    pub(crate) fn unpack(packed: u64) -> Self {
        let time = u32::try_from(packed & u64::from(TIME_MAX)).unwrap_or(TIME_MAX);
        Mapping {
            block: DataBlock(packed >> TIME_BITS),
            time,
        }
    }
}

impl Value for Mapping {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        Mapping::unpack(u64_at(bytes, 0))
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.pack().to_le_bytes());
    }

    /// A leaf that is copied names the block already: counted from 0, it would come free a second time.
    fn inc(&self, tx: &mut Transaction) -> Result<(), Error> {
        let (block, found) = (self.block.0, tx.disk_count(self.block.0)?);
        if found == 0 {
            let expected = "at least 1, as it is mapped";
            return Err(Error::BadDiskCount {
                block,
                expected,
                found,
            });
        }
        tx.disk_inc(block)
    }

    fn dec(&self, tx: &mut Transaction) -> Result<(), Error> {
        tx.disk_dec(self.block.0)
    }

    fn same_target(&self, other: &Self) -> bool {
        self.block == other.block
    }
}

/// The root of a device's mapping tree, as a value of the top level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceRoot(pub(crate) BlockNr);

impl DeviceRoot {
    pub(crate) fn tree(self) -> Btree<Mapping> {
        Btree::from_root(self.0)
    }
}

impl Value for DeviceRoot {
    const SIZE: usize = 8;

    fn decode(bytes: &[u8]) -> Self {
        DeviceRoot(BlockNr(u64_at(bytes, 0)))
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0.0.to_le_bytes());
    }

    fn inc(&self, tx: &mut Transaction) -> Result<(), Error> {
        tx.inc(self.0)
    }

    fn dec(&self, tx: &mut Transaction) -> Result<(), Error> {
        self.tree().drop_tree(tx)
    }

    /// A root is replaced only by the one it became through shadowing, which has already moved the
    /// reference.
    fn same_target(&self, _: &Self) -> bool {
        true
    }
}

/// What the metadata records of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceDetails {
    /// Entries in its mapping tree (invariant 7).
    pub(crate) mapped_blocks: u64,
    /// The pool's transaction id when it was created.
    pub(crate) transaction_id: u64,
    /// The pool's time when it was created.
    pub(crate) creation_time: u32,
    /// The pool's time at the last snapshot it took part in.
    pub(crate) snapshotted_time: u32,
}

impl Value for DeviceDetails {
    const SIZE: usize = 24;

    fn decode(bytes: &[u8]) -> Self {
        DeviceDetails {
            mapped_blocks: u64_at(bytes, 0),
            transaction_id: u64_at(bytes, 8),
            creation_time: u32_at(bytes, 16),
            snapshotted_time: u32_at(bytes, 20),
        }
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes[0..8].copy_from_slice(&self.mapped_blocks.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.transaction_id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.creation_time.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.snapshotted_time.to_le_bytes());
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use metadata_btree::MemStore;

    use super::*;

    #[test]
    fn a_mapping_of_a_free_block_is_not_shared() {
        let mut tx = Transaction::format(Arc::new(MemStore::new(64)), 64, 100).unwrap();
        let mapping = Mapping {
            block: DataBlock(7),
            time: 0,
        };
        let refused = mapping.inc(&mut tx);
        assert!(
            matches!(
                refused,
                Err(Error::BadDiskCount {
                    block: 7,
                    found: 0,
                    ..
                })
            ),
            "{refused:?}"
        );
        tx.disk_inc(7).unwrap();
        mapping.inc(&mut tx).unwrap();
        assert_eq!(tx.disk_count(7).unwrap(), 2);
    }
}
