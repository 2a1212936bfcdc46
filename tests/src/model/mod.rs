//! The truth: what every device holds and may hold after a power cut, and which data blocks are in
//! use.
//!
//! The model is told of each operation ([`Model::apply`]) and foretells its outcome, running out of
//! space included: one request at a time, a request fails for want of space exactly when as many
//! different data blocks are mapped as the pool has. [`Model::settle`] says what has become
//! durable with an operation's success. After a power cut each unit holds any version since the
//! last durable one.

mod control;
mod device;
mod requests;
mod unit;

use std::collections::{BTreeMap, BTreeSet};

use pool::{DeviceName, ErrorKind};

pub use control::volume_of;
pub use device::{BLOCK, Device, Mapping};
pub use unit::{Content, UNIT, Unit};

use crate::ops::Op;

/// A pool, as it should be.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Volumes and snapshots.
    pub devices: BTreeMap<DeviceName, Device>,
    /// Mappings of devices that are being deleted.
    pub deleting: Vec<BTreeMap<u64, Mapping>>,
    /// Data blocks of the pool.
    pub data_blocks: u64,
    /// The snapshot counter.
    pub time: u32,
    /// Whether the last request may have made the pool reclaim deleted devices by itself.
    pub may_have_reclaimed: bool,
    /// How many devices map each data block, those being deleted left out.
    references: BTreeMap<u64, u32>,
    next_data: u64,
    /// Blocks put to use since the last commit.
    taken: u64,
}

impl Model {
    /// An empty pool.
    pub fn new(data_blocks: u64) -> Self {
        Model {
            data_blocks,
            ..Model::default()
        }
    }

    /// Does what an operation does, or says why it cannot; what it did before it failed stays.
    ///
    /// # Errors
    /// The kind of error the pool must return.
    pub fn apply(&mut self, op: &Op, number: u64) -> Result<(), ErrorKind> {
        self.may_have_reclaimed = false;
        match op {
            Op::Read { name, offset, len } | Op::Extents { name, offset, len } => {
                self.range(name, *offset, *len).map(|_| ())
            }
            Op::Write { .. } | Op::Zeroes { .. } | Op::Discard { .. } | Op::Flush { .. } => {
                self.request(op, number)
            }
            Op::Commit | Op::Hold(_) | Op::Release | Op::Reopen => Ok(()),
            _ => self.control(op, number),
        }
    }

    /// Notes what the success of an operation has made durable.
    pub fn settle(&mut self, op: &Op) {
        match op {
            Op::Flush { name } => {
                if let Some(device) = self.devices.get_mut(name) {
                    device.settle();
                }
            }
            Op::Write {
                name,
                offset,
                len,
                durable: true,
            }
            | Op::Zeroes {
                name,
                offset,
                len,
                durable: true,
                ..
            } => {
                if let Some(device) = self.devices.get_mut(name) {
                    device.settle_range(*offset..*offset + *len);
                }
            }
            Op::Discard {
                name,
                offset,
                len,
                durable: true,
            } => {
                if let Some(device) = self.devices.get_mut(name) {
                    let blocks = requests::whole_blocks(device, *offset..*offset + *len);
                    device.settle_range(blocks.start * BLOCK..blocks.end * BLOCK);
                }
            }
            Op::Commit | Op::Reopen => self.settle_all(),
            op if op.is_control() => self.settle_all(),
            _ => {}
        }
    }

    fn settle_all(&mut self) {
        self.taken = 0;
        self.devices.values_mut().for_each(Device::settle);
    }

    /// Different data blocks mapped by devices that have a name.
    pub fn live_blocks(&self) -> u64 {
        self.references.len() as u64
    }

    /// Different data blocks mapped by any device.
    pub fn used_blocks(&self) -> u64 {
        let mut blocks: BTreeSet<u64> = self.references.keys().copied().collect();
        for mappings in &self.deleting {
            blocks.extend(mappings.values().map(|mapping| mapping.data));
        }
        blocks.len() as u64
    }

    /// Data blocks that this device alone maps, deleted devices included in the count.
    pub fn exclusive_blocks(&self, device: &Device) -> u64 {
        let mut elsewhere = BTreeSet::new();
        for mappings in &self.deleting {
            elsewhere.extend(mappings.values().map(|mapping| mapping.data));
        }
        let alone = device.mappings.values().filter(|mapping| {
            self.references.get(&mapping.data) == Some(&1) && !elsewhere.contains(&mapping.data)
        });
        alone.count() as u64
    }

    /// Takes over the mappings of all devices, by name, and of those being deleted, and recounts.
    pub fn adopt_mappings(
        &mut self,
        mut found: BTreeMap<DeviceName, (BTreeMap<u64, Mapping>, u32)>,
        deleting: Vec<BTreeMap<u64, Mapping>>,
    ) {
        self.deleting = deleting;
        for device in self.devices.values_mut() {
            if let Some((mappings, snapshotted)) = found.remove(&device.name) {
                device.mappings = mappings;
                device.snapshotted = snapshotted;
            }
        }
        self.recount();
    }

    /// Counts references anew.
    pub fn recount(&mut self) {
        self.references.clear();
        // New blocks get numbers that nothing has, devices that are being deleted included.
        let deleting = self.deleting.iter().flat_map(BTreeMap::values);
        let first_free = deleting.map(|mapping| mapping.data + 1).max();
        self.next_data = self.next_data.max(first_free.unwrap_or(0));
        for device in self.devices.values() {
            for mapping in device.mappings.values() {
                *self.references.entry(mapping.data).or_default() += 1;
                self.next_data = self.next_data.max(mapping.data + 1);
            }
        }
    }

    fn drop_reference(&mut self, mapping: Option<Mapping>) {
        let Some(mapping) = mapping else { return };
        let Some(count) = self.references.get_mut(&mapping.data) else {
            unreachable!("a mapped block is counted")
        };
        *count -= 1;
        if *count == 0 {
            self.references.remove(&mapping.data);
        }
    }

    /// Gives a virtual block a data block of its own, if there is one left.
    fn take_block(&mut self, name: &DeviceName, block: u64) -> Result<(), ErrorKind> {
        self.may_have_reclaimed |= self.used_blocks() + self.taken >= self.data_blocks;
        if self.live_blocks() == self.data_blocks {
            self.may_have_reclaimed = true;
            return Err(ErrorKind::NoSpace);
        }
        let mapping = Mapping {
            data: self.next_data,
            time: self.time,
        };
        self.next_data += 1;
        self.taken += 1;
        self.references.insert(mapping.data, 1);
        let before = self.device_mut(name)?.mappings.insert(block, mapping);
        self.drop_reference(before);
        Ok(())
    }

    fn device(&self, name: &DeviceName) -> Result<&Device, ErrorKind> {
        self.devices.get(name).ok_or(ErrorKind::NotFound)
    }

    fn device_mut(&mut self, name: &DeviceName) -> Result<&mut Device, ErrorKind> {
        self.devices.get_mut(name).ok_or(ErrorKind::NotFound)
    }
}
