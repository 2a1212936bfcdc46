//! Operations on names and devices: each is one transaction, done in full or not at all.
//!
//! # Snapshots
//!
//! A snapshot shares its origin's whole mapping tree; taking one costs a reference count, two
//! details and a catalog line, whatever the size. What it must contain is every write completed
//! before it was asked for. So it closes the gates of its origins (all of them, for a group at one
//! instant), waits for the writes inside, collects their changes and raises the time in memory;
//! then the gates open again, before anything is written. Later writes see older mappings as
//! shared and move off them, and their changes belong to the next commit. Should this commit fail,
//! the raised time merely costs copies.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::catalog::{Entry, Operation};
use crate::chunks::chunk_of;
use crate::device::{Device, Origin};
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::info::{DeviceInfo, Mode};
use crate::map::Zeroing;
use crate::metadata::Metadata;
use crate::name::DeviceName;
use crate::open::open_origin;
use crate::pool::Pool;
use crate::sync::{Gate, Held};
use crate::trees::TIME_MAX;
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

/// A device that shares another's mappings, about to be made.
struct Share<D> {
    origin: Arc<Device<D>>,
    entry: Entry,
    id: ThinId,
    time: u32,
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
        };
        let operations = vec![Operation::Add(entry.clone())];
        let change = Box::new(move |metadata: &mut Metadata| metadata.create_thin(id));
        self.change_with(writer, Control { operations, change }, vec![id])
            .await?;
        let time = self.committed.read().superblock.time;
        self.add(Device::new(id, entry, time, 0, origin));
        self.info(&new.name)
    }

    /// Takes snapshots of several volumes at one instant. The names are `VOL@SNAP`.
    pub async fn create_snapshots(
        self: &Arc<Self>,
        new: Vec<NewDevice>,
    ) -> Result<Vec<DeviceInfo>, Error> {
        let names: Vec<DeviceName> = new.iter().map(|new| new.name.clone()).collect();
        let mut pairs = Vec::new();
        for new in new {
            check_kind(&new.name, true)?;
            pairs.push((DeviceName::volume(new.name.volume_part())?, new));
        }
        self.share(pairs).await?;
        names.iter().map(|name| self.info(name)).collect()
    }

    /// Makes a writable volume with the contents of a snapshot, or of a volume now.
    pub async fn clone_device(
        self: &Arc<Self>,
        source: &DeviceName,
        new: NewDevice,
    ) -> Result<DeviceInfo, Error> {
        check_kind(&new.name, false)?;
        let name = new.name.clone();
        self.share(vec![(source.clone(), new)]).await?;
        self.info(&name)
    }

    /// Makes devices that share the mappings of others, all at one instant.
    async fn share(self: &Arc<Self>, pairs: Vec<(DeviceName, NewDevice)>) -> Result<(), Error> {
        let writer = self.writer_for_change().await?;
        self.check_metadata_space()?;
        let shares = self.plan_shares(&writer, pairs)?;
        let mut origins: Vec<Option<Origin<H::Data>>> = Vec::new();
        for share in &shares {
            let path = share.entry.external_origin.as_ref();
            origins.push(
                path.map(|path| open_origin(&*self.host, path))
                    .transpose()?,
            );
        }
        let gates: Vec<&Gate> = shares.iter().map(|share| &share.origin.writes).collect();
        let closed = ClosedGates::close(&gates);
        closed.drained().await;
        let begun = self.begin_commit();
        for share in &shares {
            share
                .origin
                .snapshotted_time
                .store(share.time, Ordering::Release);
            self.time.fetch_max(share.time, Ordering::AcqRel);
        }
        let mapped: Vec<u64> = shares
            .iter()
            .map(|share| share.origin.mapped_blocks.load(Ordering::Relaxed))
            .collect();
        drop(closed);
        let plan: Vec<_> = shares
            .iter()
            .map(|share| (share.id, share.origin.id, share.time))
            .collect();
        let control = Control {
            operations: shares
                .iter()
                .map(|share| Operation::Add(share.entry.clone()))
                .collect(),
            change: Box::new(move |metadata| {
                let mut plan = plan.into_iter();
                plan.try_for_each(|(id, origin, time)| metadata.create_snapshot(id, origin, time))
            }),
        };
        let ids = shares.iter().map(|share| share.id).collect();
        self.note_ids(writer, begun, control, ids).await?;
        for ((share, origin), mapped) in shares.into_iter().zip(origins).zip(mapped) {
            self.add(Device::new(
                share.id,
                share.entry,
                share.time,
                mapped,
                origin,
            ));
        }
        Ok(())
    }

    /// Checks names and draws up the new devices' entries.
    fn plan_shares(
        &self,
        writer: &Writer,
        pairs: Vec<(DeviceName, NewDevice)>,
    ) -> Result<Vec<Share<H::Data>>, Error> {
        let mut shares: Vec<Share<H::Data>> = Vec::new();
        let now = self.time.load(Ordering::Acquire);
        for ((source, new), time) in pairs.into_iter().zip(now + 1..) {
            let origin = self.device(&source)?;
            writer.catalog.expect_free(&new.name)?;
            if shares.iter().any(|share| share.entry.name == new.name) {
                return Err(Error::Exists(new.name));
            }
            if time > TIME_MAX {
                return Err(Error::OutOfTime);
            }
            let parent = origin.entry.read().clone();
            let id = writer.unused_id(shares.len())?;
            let entry = Entry {
                id: id.get(),
                read_only: new.name.is_snapshot(),
                name: new.name,
                size: origin.size(),
                uuid: new.identity.uuid,
                created: new.identity.created,
                parent: Some(parent.uuid),
                external_origin: parent.external_origin,
            };
            shares.push(Share {
                origin,
                entry,
                id,
                time,
            });
        }
        Ok(shares)
    }

    /// Removes a volume or snapshot: its name is gone when this returns, its blocks come back
    /// through [`Pool::reclaim`]. Other devices lose nothing, whatever they were made from.
    pub async fn remove(self: &Arc<Self>, name: &DeviceName) -> Result<(), Error> {
        let writer = self.writer_for_change().await?;
        let device = self.device(name)?;
        let _claim = device.claim()?;
        let operations = vec![Operation::Remove { name: name.clone() }];
        self.counters.deleting.fetch_add(1, Ordering::Relaxed);
        let removed = self.change_catalog(writer, operations).await;
        if removed.is_err() {
            self.counters.deleting.fetch_sub(1, Ordering::Relaxed);
        }
        removed?;
        self.table.write().devices.remove(name);
        device.chunks.drop_from(0, &self.chunk_budget);
        Ok(())
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
        self.change_catalog(writer, vec![operation]).await?;
        {
            let mut table = self.table.write();
            for (old, new) in renames {
                if let Some(device) = table.devices.remove(&old) {
                    device.entry.write().name = new.clone();
                    table.devices.insert(new, device);
                }
            }
        }
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
        let device = self.device(name)?;
        self.check_writable(&device)?;
        if size < device.size() {
            return self.shrink(&device, size).await;
        }
        let writer = self.writer_for_change().await?;
        let operation = Operation::Resize {
            name: name.clone(),
            size,
        };
        self.change_catalog(writer, vec![operation]).await?;
        self.update(&device, |entry| entry.size = size);
        self.info(name)
    }

    async fn shrink(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        size: u64,
    ) -> Result<DeviceInfo, Error> {
        let _claim = device.claim()?;
        let name = device.name();
        // What remains of the last block beyond the new end must not come back by growing again.
        let boundary = self.block_size.blocks_covering(size) * self.block_size.bytes();
        let rest = boundary.min(device.size()) - size;
        self.write_zeroes(device, size, rest, Zeroing::MayUnmap, false)
            .await?;
        let writer = self.writer_for_change().await?;
        let begun = self.begin_commit();
        let first = self.block_size.block_of(boundary);
        let id = device.id;
        let control = Control {
            operations: vec![Operation::Resize {
                name: name.clone(),
                size,
            }],
            change: Box::new(move |metadata| metadata.remove_from(id, first)),
        };
        self.finish_commit(writer, begun, Some(control)).await?;
        device.chunks.drop_from(chunk_of(first), &self.chunk_budget);
        self.update(device, |entry| entry.size = size);
        let mapped = self.committed.read().details(id)?.mapped_blocks;
        device.mapped_blocks.store(mapped, Ordering::Relaxed);
        self.info(&name)
    }

    /// Gives a volume the contents that a snapshot of it holds. What it held is deleted. Refused
    /// while the volume is open.
    pub async fn rollback(
        self: &Arc<Self>,
        snapshot: &DeviceName,
        identity: Identity,
    ) -> Result<DeviceInfo, Error> {
        check_kind(snapshot, true)?;
        let name = DeviceName::volume(snapshot.volume_part())?;
        let writer = self.writer_for_change().await?;
        self.check_metadata_space()?;
        let volume = self.device(&name)?;
        let source = self.device(snapshot)?;
        self.check_writable(&volume)?;
        let _claim = volume.claim()?;
        let time = self.time.load(Ordering::Acquire) + 1;
        if time > TIME_MAX {
            return Err(Error::OutOfTime);
        }
        let id = writer.unused_id(0)?;
        let parent = source.entry.read().clone();
        let mut entry = volume.entry.read().clone();
        entry.id = id.get();
        entry.uuid = identity.uuid;
        entry.size = parent.size;
        entry.parent = Some(parent.uuid.clone());
        let origin = entry.external_origin.as_ref();
        let origin = origin
            .map(|path| open_origin(&*self.host, path))
            .transpose()?;
        let operation = Operation::Rollback {
            name: name.clone(),
            id: id.get(),
            uuid: entry.uuid.clone(),
            parent: parent.uuid,
            size: entry.size,
        };
        let begun = self.begin_commit();
        source.snapshotted_time.store(time, Ordering::Release);
        self.time.fetch_max(time, Ordering::AcqRel);
        let from = source.id;
        let change =
            Box::new(move |metadata: &mut Metadata| metadata.create_snapshot(id, from, time));
        let control = Control {
            operations: vec![operation],
            change,
        };
        self.counters.deleting.fetch_add(1, Ordering::Relaxed);
        self.note_ids(writer, begun, control, vec![id]).await?;
        volume.chunks.drop_from(0, &self.chunk_budget);
        let mapped = source.mapped_blocks.load(Ordering::Relaxed);
        self.add(Device::new(id, entry, time, mapped, origin));
        self.info(&name)
    }

    /// Makes a volume read only for good: an image to clone from.
    pub async fn freeze(self: &Arc<Self>, name: &DeviceName) -> Result<DeviceInfo, Error> {
        let device = self.device(name)?;
        self.check_writable(&device)?;
        let writer = self.writer_for_change().await?;
        let gates = [&device.writes];
        let closed = ClosedGates::close(&gates);
        closed.drained().await;
        device.read_only.store(true, Ordering::Release);
        drop(closed);
        let operation = Operation::Freeze { name: name.clone() };
        let frozen = self.change_catalog(writer, vec![operation]).await;
        self.update(&device, |entry| entry.read_only = frozen.is_ok());
        frozen?;
        self.info(name)
    }

    /// Makes the pool use `bytes` of its data store, which must be that large already.
    pub async fn grow_data(self: &Arc<Self>, bytes: u64) -> Result<(), Error> {
        let found = self.data.size().map_err(|source| Error::Io {
            what: "reading the size of the data store".into(),
            source,
        })?;
        let blocks = bytes / self.block_size.bytes();
        let before = self.allocator.lock().total();
        check_growth(
            "the data store",
            bytes,
            before * self.block_size.bytes(),
            found,
        )?;
        let writer = self.writer_for_change().await?;
        let change = Box::new(move |metadata: &mut Metadata| {
            Ok(metadata.transaction().grow_disk(blocks)?)
        });
        let begun = self.begin_commit();
        let control = Control {
            operations: Vec::new(),
            change,
        };
        self.finish_commit(writer, begun, Some(control)).await?;
        self.allocator.lock().grow(blocks);
        Ok(())
    }

    /// Makes the pool use `bytes` of its metadata store, which must be that large already.
    pub async fn grow_metadata(self: &Arc<Self>, bytes: u64) -> Result<(), Error> {
        let block_size = metadata_btree::BLOCK_SIZE as u64;
        let present = self.store.block_count().map_err(|source| Error::Io {
            what: "reading the size of the metadata store".into(),
            source,
        })?;
        let before = self.metadata_space.total.load(Ordering::Relaxed);
        let blocks = bytes / block_size;
        check_growth(
            "the metadata store",
            bytes,
            before * block_size,
            present * block_size,
        )?;
        let writer = self.writer_for_change().await?;
        let change = Box::new(move |metadata: &mut Metadata| {
            Ok(metadata.transaction().grow_metadata(blocks)?)
        });
        let begun = self.begin_commit();
        let control = Control {
            operations: Vec::new(),
            change,
        };
        self.finish_commit(writer, begun, Some(control)).await
    }

    /// Commits, and refuses everything from then on. Whoever serves the pool's devices must have
    /// stopped before. Closing twice is no error.
    pub async fn close(self: &Arc<Self>) -> Result<(), Error> {
        let committed = if self.is_read_only() {
            Ok(())
        } else {
            self.commit_through(self.commits.next()).await
        };
        self.release_drained().await;
        self.stop(Mode::Failed, "it was closed");
        committed
    }

    /// The writer, of a pool that may change.
    async fn writer_for_change(self: &Arc<Self>) -> Result<Held<Writer>, Error> {
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
    ) -> Result<(), Error> {
        let control = Control {
            operations,
            change: Box::new(|_| Ok(())),
        };
        self.change_with(writer, control, Vec::new()).await
    }

    async fn change_with(
        self: &Arc<Self>,
        writer: Held<Writer>,
        control: Control,
        new_ids: Vec<ThinId>,
    ) -> Result<(), Error> {
        let begun = self.begin_commit();
        self.note_ids(writer, begun, control, new_ids).await
    }

    /// Finishes a commit that makes new devices.
    async fn note_ids(
        self: &Arc<Self>,
        mut writer: Held<Writer>,
        begun: crate::commit::Begun<H::Data>,
        control: Control,
        new_ids: Vec<ThinId>,
    ) -> Result<(), Error> {
        // Noted before it is certain: an id that stays unused after a failure does no harm.
        writer.ids.extend(new_ids);
        self.finish_commit(writer, begun, Some(control)).await
    }

    fn add(&self, device: Device<H::Data>) {
        let name = device.name();
        self.table.write().devices.insert(name, Arc::new(device));
    }

    fn update(&self, device: &Device<H::Data>, change: impl FnOnce(&mut Entry)) {
        let mut entry = device.entry.read().clone();
        change(&mut entry);
        device.update(entry);
    }
}

/// Gates that are closed until dropped.
struct ClosedGates<'a>(&'a [&'a Gate]);

impl<'a> ClosedGates<'a> {
    fn close(gates: &'a [&'a Gate]) -> Self {
        gates.iter().for_each(|gate| gate.close());
        ClosedGates(gates)
    }

    async fn drained(&self) {
        for gate in self.0 {
            gate.drained().await;
        }
    }
}

impl Drop for ClosedGates<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|gate| gate.open());
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

fn check_kind(name: &DeviceName, snapshot: bool) -> Result<(), Error> {
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

fn check_growth(store: &'static str, wanted: u64, before: u64, present: u64) -> Result<(), Error> {
    if wanted <= before {
        return Err(Error::BadValue {
            what: "the new size",
            found: format!("{wanted} bytes"),
            expected: format!("more than the {before} bytes in use; a pool cannot shrink"),
        });
    }
    if present < wanted {
        return Err(Error::StoreTooShort {
            store,
            found: present,
            expected: wanted,
        });
    }
    Ok(())
}
