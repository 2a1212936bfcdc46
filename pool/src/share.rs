//! Snapshots, clones, rollback: devices that share what another one maps.
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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use probe::{Sabotage, is_sabotaged};

use crate::catalog::{Entry, Operation};
use crate::control::{Identity, NewDevice, check_kind};
use crate::device::{Device, Origin};
use crate::error::Error;
use crate::host::Host;
use crate::info::DeviceInfo;
use crate::metadata::Metadata;
use crate::name::DeviceName;
use crate::open::open_origin;
use crate::pool::Pool;
use crate::queue::NoSpaceOverride;
use crate::sync::{ClosedGates, Gate};
use crate::trees::TIME_MAX;
use crate::units::ThinId;
use crate::writer::{Control, Writer};

/// A device that shares another's mappings, about to be made.
struct Share<D> {
    origin: Arc<Device<D>>,
    entry: Entry,
    id: ThinId,
    time: u32,
}

impl<H: Host> Pool<H> {
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
        let sources = || shares.iter().map(|share| &*share.origin);
        // Most of it while writes go on; what they have added is done with the gates closed. A block
        // that cannot be filled in thus fails this operation, and no commit.
        self.complete_devices(sources()).await?;
        let gates: Vec<&Gate> = shares.iter().map(|share| &share.origin.writes).collect();
        let closed = ClosedGates::close(&gates);
        if !is_sabotaged(Sabotage::SnapshotWithoutDrain) {
            closed.drained().await;
        }
        self.complete_devices(sources()).await?;
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
        let publish = || {
            for ((share, origin), mapped) in shares.iter().zip(origins).zip(mapped) {
                let entry = share.entry.clone();
                self.add(Device::new(share.id, entry, share.time, mapped, origin));
            }
        };
        self.make_devices(writer, begun, control, ids, publish)
            .await
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
                no_space: NoSpaceOverride::default(),
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
        let claim = volume.claim()?;
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
        // The snapshot's, which need not be the volume's: the name may have been given anew.
        entry.external_origin = parent.external_origin;
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
            external_origin: entry.external_origin.clone(),
        };
        let mut begun = self.begin_commit();
        begun.abandon(volume.id);
        source.snapshotted_time.store(time, Ordering::Release);
        self.time.fetch_max(time, Ordering::AcqRel);
        let from = source.id;
        let change =
            Box::new(move |metadata: &mut Metadata| metadata.create_snapshot(id, from, time));
        let control = Control {
            operations: vec![operation],
            change,
        };
        let mapped = source.mapped_blocks.load(Ordering::Relaxed);
        let publish = || {
            claim.keep_for_good();
            self.counters.deleting.fetch_add(1, Ordering::Relaxed);
            self.drop_contents(&volume);
            self.add(Device::new(id, entry, time, mapped, origin));
        };
        self.make_devices(writer, begun, control, vec![id], publish)
            .await?;
        self.info(&name)
    }
}
