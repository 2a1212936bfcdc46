//! Operations on names and devices.

use std::collections::BTreeMap;

use pool::{DeviceName, ErrorKind};

use super::Model;
use super::device::{BLOCK, Device};
use crate::ops::{Op, uuid};

impl Model {
    pub(super) fn control(&mut self, op: &Op, number: u64) -> Result<(), ErrorKind> {
        match op {
            Op::Create {
                name,
                size,
                has_origin,
            } => {
                if self.devices.contains_key(name) {
                    return Err(ErrorKind::Exists);
                }
                let device =
                    Device::new(name.clone(), uuid(number, 0), *size, *has_origin, self.time);
                self.devices.insert(name.clone(), device);
                Ok(())
            }
            Op::Snapshots(names) => {
                let pairs = names.iter().map(|name| (volume_of(name), name.clone()));
                self.share(pairs.collect(), number)
            }
            Op::Clone { from, to } => self.share(vec![(from.clone(), to.clone())], number),
            Op::Remove(name) => {
                if self.device(name)?.open_count > 0 {
                    return Err(ErrorKind::Busy);
                }
                self.delete(name);
                Ok(())
            }
            Op::Reclaim => {
                self.deleting.clear();
                Ok(())
            }
            Op::Rename { from, to } => self.rename(from, to),
            Op::Resize { name, size } => self.resize(name, *size),
            Op::Rollback(snapshot) => self.rollback(snapshot, number),
            Op::Freeze(name) => {
                let device = self.device_mut(name)?;
                if device.read_only {
                    return Err(ErrorKind::ReadOnly);
                }
                device.read_only = true;
                Ok(())
            }
            Op::GrowData(blocks) => {
                self.data_blocks += blocks;
                Ok(())
            }
            Op::GrowMetadata(_) => Ok(()),
            _ => unreachable!("{op:?} is no control operation"),
        }
    }

    fn share(
        &mut self,
        pairs: Vec<(DeviceName, DeviceName)>,
        number: u64,
    ) -> Result<(), ErrorKind> {
        for (index, (source, name)) in pairs.iter().enumerate() {
            self.device(source)?;
            let is_twice = pairs[..index].iter().any(|(_, other)| other == name);
            if is_twice || self.devices.contains_key(name) {
                return Err(ErrorKind::Exists);
            }
        }
        for (index, (source, name)) in pairs.into_iter().enumerate() {
            self.time += 1;
            let time = self.time;
            let source = self.device_mut(&source)?;
            let device = source.share(name.clone(), uuid(number, index), time);
            self.add(device);
        }
        Ok(())
    }

    fn add(&mut self, device: Device) {
        for mapping in device.mappings.values() {
            *self.references.entry(mapping.data).or_default() += 1;
        }
        self.devices.insert(device.name.clone(), device);
    }

    fn delete(&mut self, name: &DeviceName) {
        if let Some(device) = self.devices.remove(name) {
            for mapping in device.mappings.values() {
                self.drop_reference(Some(*mapping));
            }
            self.deleting.push(device.mappings);
        }
    }

    fn rename(&mut self, from: &DeviceName, to: &DeviceName) -> Result<(), ErrorKind> {
        self.device(from)?;
        let same_kind = from.is_snapshot() == to.is_snapshot();
        if !same_kind || (from.is_snapshot() && from.volume_part() != to.volume_part()) {
            return Err(ErrorKind::Invalid);
        }
        let moves = |name: &DeviceName| {
            name == from || (!from.is_snapshot() && name.volume_part() == from.volume_part())
        };
        let mut renames = BTreeMap::new();
        for name in self.devices.keys().filter(|name| moves(name)) {
            let renamed = match name.snapshot_part() {
                Some(part) if !from.is_snapshot() => to.at(part),
                _ => Ok(to.clone()),
            };
            let renamed = renamed.map_err(|_| ErrorKind::Invalid)?;
            if self.devices.contains_key(&renamed) {
                return Err(ErrorKind::Exists);
            }
            renames.insert(name.clone(), renamed);
        }
        for (old, new) in renames {
            if let Some(mut device) = self.devices.remove(&old) {
                device.name = new.clone();
                self.devices.insert(new, device);
            }
        }
        Ok(())
    }

    fn resize(&mut self, name: &DeviceName, size: u64) -> Result<(), ErrorKind> {
        let device = self.device(name)?;
        if device.read_only {
            return Err(ErrorKind::ReadOnly);
        }
        if size < device.size {
            if device.open_count > 0 {
                return Err(ErrorKind::Busy);
            }
            let boundary = size.div_ceil(BLOCK);
            let device = self.device_mut(name)?;
            let gone: Vec<_> = device.mappings.range(boundary..).map(|(_, m)| *m).collect();
            device.forget_from(boundary);
            gone.into_iter()
                .for_each(|mapping| self.drop_reference(Some(mapping)));
        } else if !device.size.is_multiple_of(BLOCK) {
            // What was cut off when it was made shorter does not come back.
            let block = device.size / BLOCK;
            let tail = device.size..size.min((block + 1) * BLOCK);
            if device.mappings.contains_key(&block) {
                self.zero_mapped(name, tail, false)?;
            } else {
                self.device_mut(name)?.unmap(block);
            }
        }
        self.device_mut(name)?.size = size;
        Ok(())
    }

    fn rollback(&mut self, snapshot: &DeviceName, number: u64) -> Result<(), ErrorKind> {
        let name = volume_of(snapshot);
        let volume = self.device(&name)?;
        self.device(snapshot)?;
        if volume.read_only {
            return Err(ErrorKind::ReadOnly);
        }
        if volume.open_count > 0 {
            return Err(ErrorKind::Busy);
        }
        self.time += 1;
        let time = self.time;
        let source = self.device_mut(snapshot)?;
        let device = source.share(name.clone(), uuid(number, 0), time);
        self.delete(&name);
        self.add(device);
        Ok(())
    }
}

/// The volume a snapshot's name belongs to.
pub fn volume_of(snapshot: &DeviceName) -> DeviceName {
    let Ok(volume) = DeviceName::volume(snapshot.volume_part()) else {
        unreachable!("a part of a name is a name")
    };
    volume
}
