//! Carrying an operation out on the pool.

use std::path::PathBuf;

use pool::{DeviceInfo, Error, Identity, NewDevice};

use super::Driver;
use crate::model::{BLOCK, Content};
use crate::ops::{Op, uuid};
use crate::sim::ORIGIN_PATH;

fn identity(number: u64, index: usize) -> Identity {
    Identity {
        uuid: uuid(number, index),
        created: format!("at {number}"),
    }
}

impl Driver {
    /// Does it; returns the devices it has made.
    pub(super) async fn perform(&self, op: &Op) -> Result<Vec<DeviceInfo>, Error> {
        let (pool, number) = (self.pool(), self.number);
        let new = |name: &pool::DeviceName, index| NewDevice {
            name: name.clone(),
            identity: identity(number, index),
        };
        let made = match op {
            Op::Create {
                name,
                size,
                has_origin,
            } => {
                let origin = has_origin.then(|| PathBuf::from(ORIGIN_PATH));
                vec![pool.create_volume(new(name, 0), *size, origin).await?]
            }
            Op::Snapshots(names) => {
                let all = names
                    .iter()
                    .enumerate()
                    .map(|(index, name)| new(name, index));
                pool.create_snapshots(all.collect()).await?
            }
            Op::Clone { from, to } => vec![pool.clone_device(from, new(to, 0)).await?],
            Op::Rollback(snapshot) => {
                vec![pool.rollback(snapshot, identity(number, 0)).await?]
            }
            Op::Rename { from, to } => vec![pool.rename(from, to).await?],
            Op::Resize { name, size } => vec![pool.resize(name, *size).await?],
            Op::Freeze(name) => vec![pool.freeze(name).await?],
            _ => {
                self.perform_without_device(op).await?;
                Vec::new()
            }
        };
        Ok(made)
    }

    async fn perform_without_device(&self, op: &Op) -> Result<(), Error> {
        let pool = self.pool();
        match op {
            Op::Remove(name) => pool.remove(name).await,
            Op::Reclaim => pool.reclaim().await,
            Op::Commit => pool.commit().await,
            Op::GrowData(_) => {
                let bytes = self.model.data_blocks * BLOCK;
                self.machine.data.grow(bytes);
                pool.grow_data(bytes).await
            }
            Op::GrowMetadata(blocks) => {
                let bytes = pool.status().metadata_total_bytes + blocks * 4096;
                self.machine.metadata.grow(bytes / 4096);
                pool.grow_metadata(bytes).await
            }
            _ => self.perform_request(op).await,
        }
    }

    async fn perform_request(&self, op: &Op) -> Result<(), Error> {
        let Some(name) = op.device() else {
            unreachable!("{op:?} is about no device")
        };
        let device = self.pool().open_device(name)?;
        match op {
            Op::Read { offset, len, .. } => self.verify_read(&device, *offset, *len).await,
            Op::Extents { offset, len, .. } => self.verify_extents(&device, *offset, *len).await,
            Op::Flush { .. } => device.flush().await,
            Op::Write {
                offset,
                len,
                durable,
                ..
            } => {
                let bytes = Content::Write(self.number).bytes(*offset, *len);
                device.write(*offset, &bytes, *durable).await
            }
            Op::Discard {
                offset,
                len,
                durable,
                ..
            } => device.discard(*offset, *len, *durable).await,
            Op::Zeroes {
                offset,
                len,
                zeroing,
                durable,
                ..
            } => device.write_zeroes(*offset, *len, *zeroing, *durable).await,
            _ => unreachable!("{op:?} is no request"),
        }
    }
}
