//! One device of the model: its contents, what a power cut may bring back, and its mappings.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use pool::DeviceName;

use super::unit::{Content, UNIT, Unit};
use crate::sim::{ORIGIN_BYTES, origin_word, to_usize};

/// Bytes in a data block.
pub const BLOCK: u64 = 65_536;

const UNITS: usize = 128;

const _: () = assert!(UNITS * UNIT == 65_536);

/// The contents of one block.
pub type Units = [Unit; UNITS];

/// A mapping: the data block is known by a number of the model's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// Equal for two virtual blocks exactly if they share a data block.
    pub data: u64,
    /// When it was made, in snapshots.
    pub time: u32,
}

/// Everything a block may hold after a power cut: unit by unit any of these.
#[derive(Clone, Debug)]
pub struct Versions(Vec<Arc<Units>>);

/// A device, as it should be.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name.
    pub name: DeviceName,
    /// Its number, once the pool has told it.
    pub id: Option<u32>,
    /// Its identity.
    pub uuid: String,
    /// What it was made from.
    pub parent: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it may not be written.
    pub read_only: bool,
    /// Whether the external origin shows through.
    pub has_origin: bool,
    /// How often it is held open.
    pub open_count: u64,
    /// Mapped virtual blocks.
    pub mappings: BTreeMap<u64, Mapping>,
    /// The time of its last snapshot.
    pub snapshotted: u32,
    blocks: BTreeMap<u64, Versions>,
}

impl Device {
    /// An empty device.
    pub fn new(name: DeviceName, uuid: String, size: u64, has_origin: bool, time: u32) -> Self {
        Device {
            name,
            id: None,
            uuid,
            parent: None,
            size,
            read_only: false,
            has_origin,
            open_count: 0,
            mappings: BTreeMap::new(),
            snapshotted: time,
            blocks: BTreeMap::new(),
        }
    }

    /// Whether a write to this virtual block needs a data block.
    pub fn needs_block(&self, block: u64) -> bool {
        self.mappings
            .get(&block)
            .is_none_or(|mapping| self.snapshotted > mapping.time)
    }

    /// What shows where nothing is mapped.
    fn unmapped(&self, block: u64) -> Units {
        std::array::from_fn(|index| {
            let unit = block * UNITS as u64 + index as u64;
            if self.has_origin && unit < ORIGIN_BYTES / UNIT as u64 {
                Unit::Words(origin_word(unit))
            } else {
                Unit::ZERO
            }
        })
    }

    fn versions(&mut self, block: u64) -> &mut Versions {
        if !self.blocks.contains_key(&block) {
            let unmapped = Versions(vec![Arc::new(self.unmapped(block))]);
            self.blocks.insert(block, unmapped);
        }
        let Some(versions) = self.blocks.get_mut(&block) else {
            unreachable!("it was just inserted")
        };
        versions
    }

    /// What the device holds at a unit.
    pub fn unit(&self, unit: u64) -> Unit {
        let (block, index) = (unit / UNITS as u64, to_usize(unit % UNITS as u64));
        match self.blocks.get(&block) {
            Some(Versions(versions)) => versions[versions.len() - 1][index].clone(),
            None => self.unmapped(block)[index].clone(),
        }
    }

    /// Whether the device may hold this after a power cut.
    pub fn allows(&self, unit: u64, found: &Unit) -> bool {
        let (block, index) = (unit / UNITS as u64, to_usize(unit % UNITS as u64));
        match self.blocks.get(&block) {
            Some(Versions(versions)) => versions.iter().any(|units| units[index] == *found),
            None => self.unmapped(block)[index] == *found,
        }
    }

    /// All a unit may hold after a power cut.
    pub fn allowed(&self, unit: u64) -> Vec<Unit> {
        let (block, index) = (unit / UNITS as u64, to_usize(unit % UNITS as u64));
        match self.blocks.get(&block) {
            Some(Versions(versions)) => versions.iter().map(|units| units[index].clone()).collect(),
            None => vec![self.unmapped(block)[index].clone()],
        }
    }

    /// Puts content into a range of one block.
    pub fn put(&mut self, block: u64, range: Range<u64>, content: Content) {
        let versions = self.versions(block);
        let mut units = Units::clone(&versions.0[versions.0.len() - 1]);
        let start = block * BLOCK;
        let unit_size = UNIT as u64;
        for index in range.start / unit_size..range.end.div_ceil(unit_size) {
            let unit = &mut units[to_usize(index - start / unit_size)];
            let inside = index * unit_size..(index + 1) * unit_size;
            let new = content.unit(index);
            if range.start <= inside.start && inside.end <= range.end {
                *unit = new;
                continue;
            }
            let mut bytes = unit.bytes();
            let begin = range.start.max(inside.start) - inside.start;
            let end = range.end.min(inside.end) - inside.start;
            let covered = to_usize(begin)..to_usize(end);
            bytes[covered.clone()].copy_from_slice(&new.bytes()[covered]);
            *unit = Unit::of(&bytes);
        }
        versions.0.push(Arc::new(units));
    }

    /// Unmaps a block.
    pub fn unmap(&mut self, block: u64) {
        let unmapped = Arc::new(self.unmapped(block));
        self.versions(block).0.push(unmapped);
        self.mappings.remove(&block);
    }

    /// Forgets blocks from here on: the device has become shorter.
    pub fn forget_from(&mut self, block: u64) {
        self.blocks.split_off(&block);
        self.mappings.split_off(&block);
    }

    /// Everything so far is durable.
    pub fn settle(&mut self) {
        for Versions(versions) in self.blocks.values_mut() {
            versions.drain(..versions.len() - 1);
        }
    }

    /// What a range holds is durable.
    pub fn settle_range(&mut self, range: Range<u64>) {
        let unit_size = UNIT as u64;
        for unit in range.start / unit_size..range.end.div_ceil(unit_size) {
            let (block, index) = (unit / UNITS as u64, to_usize(unit % UNITS as u64));
            let Some(Versions(versions)) = self.blocks.get_mut(&block) else {
                continue;
            };
            let now = versions[versions.len() - 1][index].clone();
            for units in versions {
                if units[index] != now {
                    Arc::make_mut(units)[index] = now.clone();
                }
            }
        }
    }

    /// Takes over what was found, which is durable if `is_durable`.
    pub fn adopt(&mut self, unit: u64, found: Unit, is_durable: bool) {
        let (block, index) = (unit / UNITS as u64, to_usize(unit % UNITS as u64));
        if !is_durable && self.unit(unit) == found {
            return;
        }
        let Versions(versions) = self.versions(block);
        if is_durable {
            for units in versions {
                if units[index] != found {
                    Arc::make_mut(units)[index] = found.clone();
                }
            }
        } else {
            let mut units = Units::clone(&versions[versions.len() - 1]);
            units[index] = found;
            versions.push(Arc::new(units));
        }
    }

    /// A device with the same contents, all of them durable.
    pub fn share(&mut self, name: DeviceName, uuid: String, time: u32) -> Device {
        self.settle();
        self.snapshotted = time;
        Device {
            read_only: name.is_snapshot(),
            name,
            id: None,
            uuid,
            parent: Some(self.uuid.clone()),
            open_count: 0,
            ..self.clone()
        }
    }
}
