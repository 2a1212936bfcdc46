//! Comparing the pool with the model.

use std::collections::BTreeMap;

use pool::{DeviceName, Error, ExtentState, ReadPiece, ThinDevice};

use super::Driver;
use crate::executor::block_on;
use crate::model::{BLOCK, Device, UNIT};
use crate::ops::Op;
use crate::sim::{ORIGIN_BYTES, SimHost, to_usize};

impl Driver {
    fn expected(&self, name: &DeviceName) -> &Device {
        match self.model.devices.get(name) {
            Some(device) => device,
            None => panic!("the pool has {name}, the model has not"),
        }
    }

    /// Reads a range and compares it with the model, holes included.
    pub(super) async fn verify_read(
        &self,
        device: &ThinDevice<SimHost>,
        offset: u64,
        len: u64,
    ) -> Result<(), Error> {
        let mut sparse = vec![0x77; to_usize(len)];
        let mut pieces = Vec::new();
        device.read_sparse(offset, &mut sparse, &mut pieces).await?;
        let mut bytes = vec![0x99; to_usize(len)];
        device.read(offset, &mut bytes).await?;
        let expected = self.expected(&device.name());
        let mut at = offset;
        for ReadPiece { len, hole } in &pieces {
            let part = to_usize(at - offset)..to_usize(at - offset) + len;
            if *hole {
                // Without a branch for each byte: most of all bytes are looked at here.
                let touched = sparse[part.clone()]
                    .iter()
                    .fold(0, |sum, byte| sum | (byte ^ 0x77));
                assert_eq!(touched, 0, "a hole was written to");
                sparse[part].fill(0);
            }
            at += *len as u64;
        }
        assert_eq!(
            at - offset,
            len,
            "pieces do not cover the range: {pieces:?}"
        );
        assert!(sparse == bytes, "read_sparse and read differ");
        let kinds: Vec<_> = pieces.iter().map(|piece| piece.hole).collect();
        assert!(
            kinds.is_sorted_by(|one, two| one != two),
            "pieces are not merged"
        );
        compare(expected, offset, &bytes);
        Ok(())
    }

    /// Asks for extents and compares them with the model.
    pub(super) async fn verify_extents(
        &self,
        device: &ThinDevice<SimHost>,
        offset: u64,
        len: u64,
    ) -> Result<(), Error> {
        let extents = device.extents(offset, len, 1000).await?;
        let expected = self.expected(&device.name());
        let mut at = offset;
        for extent in &extents {
            assert!(extent.len > 0, "an empty extent: {extents:?}");
            for block in at / BLOCK..(at + extent.len).div_ceil(BLOCK) {
                let state = match expected.mappings.get(&block) {
                    Some(_) if expected.needs_block(block) => ExtentState::Shared,
                    Some(_) => ExtentState::Exclusive,
                    None if expected.has_origin && block * BLOCK < ORIGIN_BYTES => {
                        ExtentState::Origin
                    }
                    None => ExtentState::Hole,
                };
                assert_eq!(extent.state, state, "block {block} of {}", expected.name);
            }
            at += extent.len;
        }
        assert_eq!(
            at - offset,
            len,
            "extents do not cover the range: {extents:?}"
        );
        Ok(())
    }

    /// Compares what an operation may have touched.
    pub(super) fn verify_touched(&mut self, op: &Op) {
        let name = op.device();
        let Some(expected) = name.and_then(|name| self.model.devices.get(name)) else {
            return;
        };
        let mut range = 0..expected.size;
        if let Op::Write { offset, len, .. }
        | Op::Discard { offset, len, .. }
        | Op::Zeroes { offset, len, .. } = op
        {
            let end = (offset + len).div_ceil(BLOCK) * BLOCK;
            range = (offset / BLOCK * BLOCK).min(expected.size)..end.min(expected.size);
        } else if !op.is_control() {
            return;
        }
        let name = expected.name.clone();
        self.verify_range(&name, range.start, range.end - range.start);
        self.verify_info(&name);
    }

    fn verify_range(&mut self, name: &DeviceName, offset: u64, len: u64) {
        self.tally.bytes_compared += len;
        let device = match self.pool().open_device(name) {
            Ok(device) => device,
            Err(cause) => panic!("{name} does not open: {cause}"),
        };
        let read = block_on(self.verify_read(&device, offset, len));
        assert!(read.is_ok(), "{name} cannot be read: {read:?}");
        let asked = block_on(self.verify_extents(&device, offset, len));
        assert!(asked.is_ok(), "{name} has no extents: {asked:?}");
    }

    fn verify_info(&self, name: &DeviceName) {
        let info = match self.pool().info(name) {
            Ok(info) => info,
            Err(cause) => panic!("{name}: {cause}"),
        };
        let expected = self.expected(name);
        let mut others = self.model.devices.values();
        let parent = expected.parent.as_ref();
        let parent = parent.and_then(|uuid| others.find(|other| other.uuid == *uuid));
        assert_eq!(info.size, expected.size, "size of {name}");
        assert_eq!(info.uuid, expected.uuid, "uuid of {name}");
        assert_eq!(
            info.parent,
            parent.map(|parent| parent.name.clone()),
            "parent of {name}"
        );
        assert_eq!(info.read_only, expected.read_only, "read_only of {name}");
        assert_eq!(
            info.external_origin.is_some(),
            expected.has_origin,
            "origin of {name}"
        );
        assert_eq!(info.open_count, expected.open_count, "open count of {name}");
        assert_eq!(Some(info.id), expected.id, "id of {name}");
        assert_eq!(
            info.mapped_bytes,
            expected.mappings.len() as u64 * BLOCK,
            "mapped bytes of {name}"
        );
    }

    /// Compares all there is.
    pub(super) fn verify_everything(&mut self) {
        let names: Vec<_> = self.model.devices.keys().cloned().collect();
        let found: Vec<_> = self
            .pool()
            .devices()
            .into_iter()
            .map(|info| info.name)
            .collect();
        assert_eq!(found, names, "names");
        for name in &names {
            let size = self.expected(name).size;
            self.verify_range(name, 0, size);
            self.verify_info(name);
        }
        let committed = block_on(self.pool().commit());
        assert!(committed.is_ok(), "a commit failed: {committed:?}");
        self.model.settle(&Op::Commit);
        self.verify_space();
        self.check_metadata();
        self.verify_mappings();
    }

    /// After a commit, with nothing in flight: space is exactly what the model says.
    fn verify_space(&self) {
        let status = self.pool().status();
        assert_eq!(status.data_total_bytes, self.model.data_blocks * BLOCK);
        assert_eq!(
            status.data_used_bytes,
            self.model.used_blocks() * BLOCK,
            "data space used: {} blocks, expected {}",
            status.data_used_bytes / BLOCK,
            self.model.used_blocks()
        );
        assert_eq!(
            status.deleting,
            self.model.deleting.len() as u64,
            "devices being deleted"
        );
        let snapshots = self
            .model
            .devices
            .keys()
            .filter(|name| name.is_snapshot())
            .count();
        assert_eq!(status.snapshots, snapshots as u64);
        assert_eq!(
            status.volumes + status.snapshots,
            self.model.devices.len() as u64
        );
        let usages = match block_on(self.pool().usage()) {
            Ok(usages) => usages,
            Err(cause) => panic!("no usage: {cause}"),
        };
        assert_eq!(usages.len(), self.model.devices.len());
        for usage in usages {
            let device = self.expected(&usage.name);
            let (mapped, alone) = (
                device.mappings.len() as u64,
                self.model.exclusive_blocks(device),
            );
            assert_eq!(usage.mapped_bytes, mapped * BLOCK, "mapped, {}", usage.name);
            assert_eq!(
                usage.exclusive_bytes,
                alone * BLOCK,
                "exclusive, {}",
                usage.name
            );
            assert_eq!(
                usage.shared_bytes,
                (mapped - alone) * BLOCK,
                "shared, {}",
                usage.name
            );
            assert_eq!(
                usage.freed_if_deleted_bytes,
                alone * BLOCK,
                "freed, {}",
                usage.name
            );
        }
    }

    /// After a commit: the trees share data blocks exactly where the model does.
    fn verify_mappings(&self) {
        let dumped = crate::image::dumped(&self.machine.metadata.image());
        let mut same: BTreeMap<u64, u64> = BTreeMap::new();
        for device in self.model.devices.values() {
            let found = device.id.and_then(|id| dumped.get(&id));
            let Some(found) = found else {
                panic!("{} is not in the metadata", device.name)
            };
            let keys = found.mappings.keys().eq(device.mappings.keys());
            assert!(keys, "mapped blocks of {} differ", device.name);
            for (block, mapping) in &device.mappings {
                let data = found.mappings[block].data;
                let known = *same.entry(data).or_insert(mapping.data);
                assert_eq!(
                    known, mapping.data,
                    "{}, block {block}: wrongly shared",
                    device.name
                );
            }
        }
        assert_eq!(
            same.len() as u64,
            self.model.live_blocks(),
            "distinct data blocks"
        );
    }
}

fn compare(expected: &Device, offset: u64, bytes: &[u8]) {
    let unit_size = UNIT as u64;
    let end = offset + bytes.len() as u64;
    for unit in offset / unit_size..end.div_ceil(unit_size) {
        let begin = (unit * unit_size).max(offset);
        let stop = ((unit + 1) * unit_size).min(end);
        let found = &bytes[to_usize(begin - offset)..to_usize(stop - offset)];
        let wanted = expected.unit(unit);
        let inside = to_usize(begin % unit_size)..to_usize(begin % unit_size + stop - begin);
        let same = if found.len() == UNIT {
            wanted.is(found)
        } else {
            wanted.bytes()[inside] == *found
        };
        assert!(
            same,
            "{} at unit {unit} (block {}): found {:x?}, expected {wanted:x?}",
            expected.name,
            unit * unit_size / BLOCK,
            &found[..found.len().min(16)]
        );
    }
}
