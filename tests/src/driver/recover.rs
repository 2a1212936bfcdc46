//! Opening the pool again, and taking over what is found if it may be so.

use std::collections::BTreeMap;

use pool::DeviceName;

use super::Driver;
use crate::executor::block_on;
use crate::image::{Dumped, dumped};
use crate::model::{Mapping, Model, UNIT, Unit};
use crate::sim::to_usize;

impl Driver {
    /// Opens the pool. After a clean close everything must be exactly as it was; after a power cut
    /// it must be one of the things it may be.
    pub(super) fn open_again(&mut self, is_exact: bool) {
        let before = self.machine.metadata.image();
        let pool = match self.machine.open() {
            Ok(pool) => pool,
            Err(_) if self.machine.power.is_off() => return,
            Err(cause) => panic!("the pool does not open: {cause}"),
        };
        let plan = self.machine.power.suspend();
        let needs_check = pool.status().needs_check;
        assert!(!needs_check, "needs_check after opening");
        self.pool = Some(pool);
        let dumped = dumped(&before);
        if is_exact {
            self.verify_everything();
        } else {
            self.adopt(&dumped);
            self.verify_everything();
        }
        self.machine.power.resume(plan);
    }

    fn adopt(&mut self, dumped: &BTreeMap<u32, Dumped>) {
        let contents = self.read_all();
        let other = self.alternative.take();
        if let Err(reason) = self.try_adopt(&contents, dumped) {
            let Some(other) = other else {
                panic!("after a power cut: {reason}")
            };
            self.model = other;
            for device in self.model.devices.values_mut() {
                device.open_count = 0;
            }
            if let Err(second) = self.try_adopt(&contents, dumped) {
                panic!("after a power cut, neither done ({second}) nor undone ({reason})");
            }
        }
    }

    fn read_all(&self) -> BTreeMap<DeviceName, Vec<u8>> {
        let mut contents = BTreeMap::new();
        for info in self.pool().devices() {
            let mut bytes = vec![0; to_usize(info.size)];
            let device = match self.pool().open_device(&info.name) {
                Ok(device) => device,
                Err(cause) => panic!("{} does not open: {cause}", info.name),
            };
            let read = block_on(device.read(0, &mut bytes));
            assert!(read.is_ok(), "{} cannot be read: {read:?}", info.name);
            contents.insert(info.name, bytes);
        }
        contents
    }

    /// Takes over contents and mappings, if the model allows them.
    fn try_adopt(
        &mut self,
        contents: &BTreeMap<DeviceName, Vec<u8>>,
        dumped: &BTreeMap<u32, Dumped>,
    ) -> Result<(), String> {
        let infos = self.pool().devices();
        let names: Vec<_> = infos.iter().map(|info| &info.name).collect();
        let known: Vec<_> = self.model.devices.keys().collect();
        if names != known {
            return Err(format!("found {names:?}, expected {known:?}"));
        }
        for info in &infos {
            let device = &self.model.devices[&info.name];
            let found = (&info.uuid, info.size, info.read_only);
            let expected = (&device.uuid, device.size, device.read_only);
            if found != expected {
                return Err(format!(
                    "{}: found {found:?}, expected {expected:?}",
                    info.name
                ));
            }
        }
        let blocks = self.pool().status().data_total_bytes / crate::model::BLOCK;
        if blocks != self.model.data_blocks {
            return Err(format!(
                "{blocks} data blocks, expected {}",
                self.model.data_blocks
            ));
        }
        allowed(&self.model, contents)?;
        for (name, bytes) in contents {
            let Some(device) = self.model.devices.get_mut(name) else {
                unreachable!("names were compared")
            };
            for (unit, found) in (0..).zip(bytes.chunks(UNIT)) {
                device.adopt(unit, Unit::of(found), true);
            }
            device.settle();
        }
        let mut by_name = BTreeMap::new();
        let mut deleting = dumped.clone();
        for info in infos {
            let Some(found) = deleting.remove(&info.id) else {
                return Err(format!("{} is not in the metadata", info.name));
            };
            by_name.insert(info.name.clone(), (found.mappings, found.snapshotted));
            if let Some(device) = self.model.devices.get_mut(&info.name) {
                device.id = Some(info.id);
            }
        }
        self.model.adopt_mappings(by_name);
        self.model.time = self.pool().status().time;
        self.model.deleting = deleting
            .into_values()
            .map(|device| -> BTreeMap<u64, Mapping> { device.mappings })
            .collect();
        Ok(())
    }
}

fn allowed(model: &Model, contents: &BTreeMap<DeviceName, Vec<u8>>) -> Result<(), String> {
    for (name, bytes) in contents {
        let device = &model.devices[name];
        for (unit, found) in (0..).zip(bytes.chunks(UNIT)) {
            let found = Unit::of(found);
            if !device.allows(unit, &found) {
                let allowed = device.allowed(unit);
                return Err(format!(
                    "{name} at unit {unit}: found {found:x?}, allowed {allowed:x?}"
                ));
            }
        }
    }
    Ok(())
}
