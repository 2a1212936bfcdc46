//! Operations on names and devices: each is one transaction, done in full or not at all.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::catalog::{Entry, Operation};
use crate::chunks::chunk_of;
use crate::commit::Begun;
use crate::device::{Device, ThinDevice};
use crate::error::Error;
use crate::host::Host;
use crate::info::{DeviceInfo, Mode};
use crate::metadata::Metadata;
use crate::name::DeviceName;
use crate::open::open_origin;
use crate::pool::Pool;
use crate::queue::NoSpaceOverride;
use crate::sync::{ClosedGates, Held};
use crate::units::{DEVICE_SIZE_MAX, SECTOR_SIZE, ThinId};
use crate::writer::{Control, Writer};

/// What a new device gets that the pool cannot make up itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// A fresh UUID.
    pub uuid: String,
    /// Now, RFC 3339, UTC.
    pub created: String,
}

/// A device to be made.
#[derive(Clone, Debug)]
pub struct NewDevice {
    /// What it is to be called.
    pub name: DeviceName,
    /// Its identity.
    pub identity: Identity,
}

impl<H: Host> Pool<H> {
    /// Creates an empty volume of `size` bytes, a multiple of 512. With an external origin, that
    /// file or block device shows through until written; it must never change.
    pub async fn create_volume(
        self: &Arc<Self>,
        new: NewDevice,
        size: u64,
        external_origin: Option<PathBuf>,
    ) -> Result<DeviceInfo, Error> {
        check_size(size)?;
        check_kind(&new.name, false)?;
        let origin = match &external_origin {
            None => None,
            Some(path) => Some(open_origin(&*self.host, path)?),
        };
        let writer = self.writer_for_change().await?;
        self.check_metadata_space()?;
        writer.catalog.expect_free(&new.name)?;
        let id = writer.unused_id(0)?;
        let entry = Entry {
            id: id.get(),
            name: new.name.clone(),
            size,
            uuid: new.identity.uuid,
            created: new.identity.created,
            read_only: false,
            parent: None,
            external_origin,
            no_space: NoSpaceOverride::default(),
        };
        let operations = vec![Operation::Add(entry.clone())];
        let change = Box::new(move |metadata: &mut Metadata| metadata.create_thin(id));
        // At least the time of creation, which is what matters.
        let time = self.time.load(Ordering::Acquire);
        let begun = self.begin_commit();
        let publish = || self.add(Device::new(id, entry, time, 0, origin));
        let control = Control { operations, change };
        self.make_devices(writer, begun, control, vec![id], publish)
            .await?;
        self.info(&new.name)
    }

    /// Removes a volume or snapshot: its name is gone when this returns, its blocks come back
    /// through [`Pool::reclaim`]. Other devices lose nothing, whatever they were made from.
    pub async fn remove(self: &Arc<Self>, name: &DeviceName) -> Result<(), Error> {
        let writer = self.writer_for_change().await?;
        let device = self.device(name)?;
        let claim = device.claim()?;
        let operations = vec![Operation::Remove { name: name.clone() }];
        let publish = || {
            claim.keep_for_good();
            self.counters.deleting.fetch_add(1, Ordering::Relaxed);
            self.table.write().devices.remove(name);
            self.drop_contents(&device);
        };
        let mut begun = self.begin_commit();
        begun.abandon(device.id);
        let control = Control::catalog_only(operations);
        self.finish_commit(writer, begun, Some(control), publish)
            .await
    }

    /// Gives a device another name; a volume's snapshots follow it.
    pub async fn rename(
        self: &Arc<Self>,
        from: &DeviceName,
        to: &DeviceName,
    ) -> Result<DeviceInfo, Error> {
        let writer = self.writer_for_change().await?;
        let renames = writer.catalog.renames(from, to)?;
        let operation = Operation::Rename {
            from: from.clone(),
            to: to.clone(),
        };
        let publish = || {
            let mut table = self.table.write();
            for (old, new) in renames {
                if let Some(device) = table.devices.remove(&old) {
                    device.entry.write().name = new.clone();
                    table.devices.insert(new, device);
                }
            }
        };
        self.change_catalog(writer, vec![operation], publish)
            .await?;
        self.info(to)
    }

    /// Changes a volume's size, in bytes, a multiple of 512. Shrinking unmaps what lies beyond,
    /// and is refused while the volume is open.
    pub async fn resize(
        self: &Arc<Self>,
        name: &DeviceName,
        size: u64,
    ) -> Result<DeviceInfo, Error> {
        check_size(size)?;
        loop {
            let device = self.device(name)?;
            self.check_writable(&device)?;
            let before = device.size();
            if size < before {
                return self.shrink(&device, size).await;
            }
            // Open meanwhile, so that nobody removes what this writes to.
            let _open = ThinDevice::open(Arc::clone(self), Arc::clone(&device))?;
            self.zero_hidden_tail(&device, before, size).await?;
            let writer = self.writer_for_change().await?;
            // It may have been removed, rolled back, frozen or resized meanwhile.
            let is_same = Arc::ptr_eq(&device, &self.device(name)?) && device.size() == before;
            if is_same {
                self.check_writable(&device)?;
                return self.enlarge(writer, &device, size).await;
            }
        }
    }

    async fn enlarge(
        self: &Arc<Self>,
        writer: Held<Writer>,
        device: &Arc<Device<H::Data>>,
        size: u64,
    ) -> Result<DeviceInfo, Error> {
        let name = device.name();
        let operation = Operation::Resize {
            name: name.clone(),
            size,
        };
        let control = Control::catalog_only(vec![operation]);
        let publish = || device.update(|entry| entry.size = size);
        let gates = [&device.writes];
        let closed = ClosedGates::close(&gates);
        closed.drained().await;
        // The zeros in the tail must be part of this commit.
        self.complete_devices(std::iter::once(&**device)).await?;
        let begun = self.begin_commit();
        drop(closed);
        self.finish_commit(writer, begun, Some(control), publish)
            .await?;
        self.info(&name)
    }

    async fn shrink(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        size: u64,
    ) -> Result<DeviceInfo, Error> {
        let _claim = device.claim()?;
        // What remains of the last block beyond the new end is zeroed by whoever enlarges the device
        // again: zeroing it now would be seen if the power went before the commit.
        let boundary = self.block_size.blocks_covering(size) * self.block_size.bytes();
        let writer = self.writer_for_change().await?;
        self.complete_devices(std::iter::once(&**device)).await?;
        let begun = self.begin_commit();
        let name = device.name();
        let first = self.block_size.block_of(boundary);
        let id = device.id;
        let control = Control {
            operations: vec![Operation::Resize {
                name: name.clone(),
                size,
            }],
            change: Box::new(move |metadata| metadata.remove_from(id, first)),
        };
        let publish = || {
            device.chunks.drop_from(chunk_of(first), &self.chunk_budget);
            device.update(|entry| entry.size = size);
        };
        self.finish_commit(writer, begun, Some(control), publish)
            .await?;
        let mapped = self.committed.read().details(id)?.mapped_blocks;
        device.mapped_blocks.store(mapped, Ordering::Relaxed);
        self.info(&name)
    }

    /// Makes a volume read only for good: an image to clone from.
    pub async fn freeze(self: &Arc<Self>, name: &DeviceName) -> Result<DeviceInfo, Error> {
        let writer = self.writer_for_change().await?;
        let device = self.device(name)?;
        self.check_writable(&device)?;
        let gates = [&device.writes];
        let closed = ClosedGates::close(&gates);
        closed.drained().await;
        // Later nobody could overwrite or discard what cannot be filled in.
        self.complete_devices(std::iter::once(&*device)).await?;
        device.read_only.store(true, Ordering::Release);
        drop(closed);
        let name = device.name();
        let operation = Operation::Freeze { name: name.clone() };
        let publish = || device.update(|entry| entry.read_only = true);
        let frozen = self.change_catalog(writer, vec![operation], publish).await;
        if frozen.is_err() {
            device.read_only.store(false, Ordering::Release);
        }
        // Its writes that wait for space are refused now.
        self.queue.look_again();
        frozen?;
        self.info(&name)
    }

    /// Says where a volume differs from its pool in what becomes of writes without data space.
    pub async fn set_no_space(
        self: &Arc<Self>,
        name: &DeviceName,
        no_space: NoSpaceOverride,
    ) -> Result<DeviceInfo, Error> {
        check_kind(name, false)?;
        let writer = self.writer_for_change().await?;
        let device = self.device(name)?;
        let operation = Operation::NoSpace {
            name: name.clone(),
            no_space,
        };
        let publish = || device.update(|entry| entry.no_space = no_space);
        self.change_catalog(writer, vec![operation], publish)
            .await?;
        self.queue.look_again();
        self.info(name)
    }

    /// Commits, and refuses everything from then on. Whoever serves the pool's devices must have
    /// stopped before. Closing twice is no error; closing after a failed commit is.
    pub async fn close(self: &Arc<Self>) -> Result<(), Error> {
        let nothing_to_commit = self.is_read_only() && !self.commits.has_unfinished();
        let committed = if nothing_to_commit {
            Ok(())
        } else {
            self.commit_and_end_log().await
        };
        self.release_drained().await;
        let has_ended = committed.is_ok() && !self.is_read_only();
        self.stop(Mode::Failed, "it was closed");
        if has_ended && self.log.is_empty() {
            // What would remain of it says nothing.
            let _ = self.log.remove();
        }
        committed
    }

    async fn commit_and_end_log(self: &Arc<Self>) -> Result<(), Error> {
        self.commit_everything().await?;
        let writer = self.writer_for_change().await?;
        if writer.metadata.superblock().has_log {
            self.log.end();
            let begun = self.begin_commit();
            let control = Control::end_of_log();
            self.finish_commit(writer, begun, Some(control), || ())
                .await?;
            self.check_all_covered()?;
        }
        Ok(())
    }

    /// The writer, of a pool that may change.
    pub(crate) async fn writer_for_change(self: &Arc<Self>) -> Result<Held<Writer>, Error> {
        self.check_changeable()?;
        let writer = self.writer.acquire().await;
        self.check_changeable()?;
        Ok(writer)
    }

    /// One transaction that changes nothing but the catalog.
    async fn change_catalog(
        self: &Arc<Self>,
        writer: Held<Writer>,
        operations: Vec<Operation>,
        publish: impl FnOnce() + Send,
    ) -> Result<(), Error> {
        let begun = self.begin_commit();
        let control = Control::catalog_only(operations);
        self.finish_commit(writer, begun, Some(control), publish)
            .await
    }

    /// Finishes a commit that makes new devices.
    pub(crate) async fn make_devices(
        self: &Arc<Self>,
        mut writer: Held<Writer>,
        begun: Begun<H::Data>,
        control: Control,
        new_ids: Vec<ThinId>,
        publish: impl FnOnce() + Send,
    ) -> Result<(), Error> {
        // Noted before it is certain: an id that stays unused after a failure does no harm.
        writer.ids.extend(new_ids);
        self.finish_commit(writer, begun, Some(control), publish)
            .await
    }

    /// Drops what is in memory of a device that is no more.
    pub(crate) fn drop_contents(&self, device: &Device<H::Data>) {
        device.chunks.drop_from(0, &self.chunk_budget);
        for partial in device.partials.all() {
            self.forget_partial(device, partial.block);
        }
    }

    pub(crate) fn add(&self, device: Device<H::Data>) {
        let name = device.name();
        self.table.write().devices.insert(name, Arc::new(device));
    }
}

pub(crate) fn check_size(size: u64) -> Result<(), Error> {
    if size == 0 || !size.is_multiple_of(SECTOR_SIZE) || size > DEVICE_SIZE_MAX {
        return Err(Error::BadValue {
            what: "the volume's size",
            found: format!("{size} bytes"),
            expected: format!("a multiple of 512 from 512 to {DEVICE_SIZE_MAX}"),
        });
    }
    Ok(())
}

pub(crate) fn check_kind(name: &DeviceName, snapshot: bool) -> Result<(), Error> {
    if name.is_snapshot() == snapshot {
        return Ok(());
    }
    let expected = if snapshot {
        "a snapshot's name, VOL@SNAP"
    } else {
        "a volume's, without @"
    };
    Err(Error::BadValue {
        what: "the name",
        found: name.to_string(),
        expected: expected.into(),
    })
}
