//! The pool: what its parts share, and what it tells about itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use metadata_btree::{BLOCK_SIZE, BlockStore};
use parking_lot::{Mutex, RwLock};

use crate::allocator::DataAllocator;
use crate::backlog::Backlog;
use crate::chunks::{CHUNK_BLOCKS, Chunk, ChunkBudget, first_block};
use crate::device::{Device, ThinDevice};
use crate::epoch::Epochs;
use crate::error::Error;
use crate::flush::Flushes;
use crate::history::KnownBy;
use crate::host::Host;
use crate::info::{DeviceInfo, DeviceKind, Mode, Status};
use crate::log::IntentLog;
use crate::metadata::{self, Committed};
use crate::name::DeviceName;
use crate::queue::{NoSpacePolicy, SpaceQueue};
use crate::replay::Replayed;
use crate::room::Room;
use crate::stats::{DeviceStats, Histogram};
use crate::sync::{Exclusive, Rounds};
use crate::units::{BlockSize, DataBlock, ThinId, VirtualBlock};
use crate::writer::Writer;

/// An open pool of thin devices.
///
/// All methods may be called from any thread. Locks, in the order in which they may nest: the log's
/// generation, `table`, a device's own; none is held across an await, and only the first across an I/O,
/// that of appending a record to the log. (Blocking work that syncs the log holds a lock of its own.)
pub struct Pool<H: Host> {
    pub(crate) host: Arc<H>,
    pub(crate) data: H::Data,
    pub(crate) store: Arc<dyn BlockStore>,
    pub(crate) block_size: BlockSize,
    pub(crate) zero_new_blocks: bool,
    pub(crate) discard_passdown: bool,
    /// Who has it makes commits, one at a time.
    pub(crate) writer: Arc<Exclusive<Writer>>,
    /// The last commit, from which mappings are loaded.
    pub(crate) committed: RwLock<Committed>,
    /// The snapshot counter, that of a snapshot just being taken included.
    pub(crate) time: AtomicU32,
    pub(crate) table: RwLock<Table<H::Data>>,
    pub(crate) allocator: Mutex<DataAllocator>,
    /// Who has it asks the data store for the space of the next blocks.
    pub(crate) drawing: Arc<Exclusive<()>>,
    /// Writes that wait for data space.
    pub(crate) queue: SpaceQueue,
    pub(crate) epochs: Epochs,
    pub(crate) commits: Rounds,
    pub(crate) flushes: Flushes,
    /// Data blocks that have lost their mapping, and that records name which no commit has taken yet.
    pub(crate) superseded: Mutex<Vec<DataBlock>>,
    pub(crate) commit_durations: Histogram,
    pub(crate) chunk_budget: ChunkBudget,
    pub(crate) metadata_room: Room,
    pub(crate) counters: Counters,
    pub(crate) backlog: Backlog,
    pub(crate) health: Health,
    /// Shared by who changes mappings, had alone by who collects the changes.
    pub(crate) log: Arc<IntentLog>,
    /// What was replayed from the log of a daemon that has not closed the pool.
    pub(crate) replayed: Replayed,
    /// Who knew the superblock at the opening, if block 0 was damaged.
    pub(crate) superblock_known_by: Option<KnownBy>,
}

/// The devices, by name.
pub(crate) struct Table<D> {
    pub(crate) devices: BTreeMap<DeviceName, Arc<Device<D>>>,
}

/// What happened since the pool was opened.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) provisioned_blocks: AtomicU64,
    pub(crate) copied_blocks: AtomicU64,
    /// What filling in partial blocks has copied into them, and how many zeros it has written.
    pub(crate) copied_bytes: AtomicU64,
    pub(crate) zeroed_bytes: AtomicU64,
    /// Data blocks that are not whole yet.
    pub(crate) partial_blocks: AtomicU64,
    /// Devices being deleted.
    pub(crate) deleting: AtomicU64,
    /// Writes in place that are not durable by themselves.
    pub(crate) written_in_place: AtomicU64,
    /// How many of those were completed before the last sync of the data store.
    pub(crate) synced_in_place: AtomicU64,
}

impl Counters {
    /// Whether writes in place wait for a sync of the data store.
    pub(crate) fn has_unsynced_writes(&self) -> bool {
        let synced = self.synced_in_place.load(Ordering::SeqCst);
        self.written_in_place.load(Ordering::SeqCst) > synced
    }
}

/// Whether the pool may change, and be read. It only worsens (invariant 8).
pub(crate) struct Health {
    level: AtomicU8,
    reason: Mutex<String>,
}

const HEALTHY: u8 = 0;
const READ_ONLY: u8 = 1;
const FAILED: u8 = 2;

impl Health {
    /// Healthy, or read only for this reason.
    pub(crate) fn new(read_only: Option<String>) -> Self {
        let level = if read_only.is_some() {
            READ_ONLY
        } else {
            HEALTHY
        };
        Health {
            level: AtomicU8::new(level),
            reason: Mutex::new(read_only.unwrap_or_default()),
        }
    }
}

impl<H: Host> Pool<H> {
    /// Worsens the mode. The first reason of a mode is kept.
    pub(crate) fn stop(&self, mode: Mode, reason: &str) {
        let level = if mode == Mode::Failed {
            FAILED
        } else {
            READ_ONLY
        };
        let mut kept = self.health.reason.lock();
        if self.health.level.fetch_max(level, Ordering::SeqCst) < level {
            reason.clone_into(&mut kept);
        }
        drop(kept);
        self.queue.look_again();
    }

    /// Whether nothing may change: [`Pool::status`] says why.
    pub fn is_read_only(&self) -> bool {
        self.health.level.load(Ordering::Acquire) != HEALTHY
    }

    /// Refuses requests of a pool that was closed.
    pub(crate) fn check_readable(&self) -> Result<(), Error> {
        if self.health.level.load(Ordering::Acquire) == FAILED {
            return Err(Error::Stopped {
                reason: self.health.reason.lock().clone(),
            });
        }
        Ok(())
    }

    /// Refuses changes of a pool that may not change.
    pub(crate) fn check_changeable(&self) -> Result<(), Error> {
        self.check_readable()?;
        if self.is_read_only() {
            return Err(Error::PoolReadOnly {
                reason: self.health.reason.lock().clone(),
            });
        }
        Ok(())
    }

    /// Refuses writes to what may not be written.
    pub(crate) fn check_writable(&self, device: &Device<H::Data>) -> Result<(), Error> {
        self.check_changeable()?;
        if device.read_only.load(Ordering::Acquire) {
            return Err(Error::DeviceReadOnly(device.name()));
        }
        Ok(())
    }

    pub(crate) fn device(&self, name: &DeviceName) -> Result<Arc<Device<H::Data>>, Error> {
        let table = self.table.read();
        table
            .devices
            .get(name)
            .map(Arc::clone)
            .ok_or_else(|| Error::NotFound(name.clone()))
    }

    /// Opens a device for I/O. While it is open, operations that would pull it away from under its
    /// users (removing, rolling back, shrinking) are refused with [`Error::InUse`].
    pub fn open_device(self: &Arc<Self>, name: &DeviceName) -> Result<ThinDevice<H>, Error> {
        self.check_readable()?;
        ThinDevice::open(Arc::clone(self), self.device(name)?)
    }

    /// Loads a chunk of a device's mappings from the last commit.
    pub(crate) async fn load_chunk(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        index: u64,
    ) -> Result<Arc<Chunk>, Error> {
        let _loading = device.loading.lock(index).await;
        if let Some(chunk) = device.chunks.get(index) {
            return Ok(chunk);
        }
        self.evict_chunks();
        // Pinned only now: the chunk may just have been evicted, after a commit that this one must
        // not be older than.
        let committed = self.committed.read().clone();
        let id = device.id;
        let read = move || read_chunk(&committed, id, index);
        let chunk = self.host.offload(read).await?;
        self.take_in(device, index, chunk)
    }

    /// Adds a chunk that was just read to the loaded ones.
    pub(crate) fn take_in(
        &self,
        device: &Device<H::Data>,
        index: u64,
        chunk: Chunk,
    ) -> Result<Arc<Chunk>, Error> {
        // What is free here would be handed to others, too.
        let allocator = self.allocator.lock();
        if let Some(block) = chunk.find_mapped(|block| !allocator.is_in_use(block)) {
            let (block, total) = (block.0, allocator.total());
            let reason = if block < total {
                format!("it maps data block {block}, which the data space map has free")
            } else {
                format!("it maps data block {block}, but the pool has {total}")
            };
            return Err(Error::DeviceDamaged {
                id: device.id.get(),
                reason,
            });
        }
        drop(allocator);
        Ok(device.chunks.insert(index, chunk, &self.chunk_budget))
    }

    fn evict_chunks(&self) {
        let mut wanted = self.chunk_budget.excess();
        if wanted == 0 {
            return;
        }
        let devices: Vec<_> = self.table.read().devices.values().map(Arc::clone).collect();
        for device in devices {
            wanted -= device.chunks.evict(wanted, &self.chunk_budget);
            if wanted == 0 {
                return;
            }
        }
    }

    /// How many records of the intent log were replayed at the opening: of a daemon that has not closed
    /// the pool.
    pub fn replayed_records(&self) -> u64 {
        self.replayed.records
    }

    /// Whether the pool was not closed, and of its intent log only what was flushed could be used: after a
    /// reboot, with a disk that has come back, after a failed sync.
    pub fn has_cut_log(&self) -> bool {
        self.replayed.is_cut
    }

    /// Who knew the superblock at the opening; nobody had to, unless it was damaged.
    pub fn superblock_known_by(&self) -> Option<KnownBy> {
        self.superblock_known_by
    }

    /// All volumes and snapshots, by name.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        let table = self.table.read();
        // One look at all of them, not one for each: there may be thousands.
        let by_uuid: HashMap<String, &Arc<Device<H::Data>>> = table
            .devices
            .values()
            .map(|device| (device.entry.read().uuid.clone(), device))
            .collect();
        let with_uuid = |uuid: &str| by_uuid.get(uuid).copied();
        let devices = table.devices.values();
        devices
            .map(|device| self.describe(device, with_uuid))
            .collect()
    }

    /// One volume or snapshot.
    pub fn info(&self, name: &DeviceName) -> Result<DeviceInfo, Error> {
        let device = self.device(name)?;
        let table = self.table.read();
        let with_uuid = |uuid: &str| {
            let mut devices = table.devices.values();
            devices.find(|other| other.entry.read().uuid == uuid)
        };
        Ok(self.describe(&device, with_uuid))
    }

    fn describe<'a>(
        &self,
        device: &Device<H::Data>,
        with_uuid: impl Fn(&str) -> Option<&'a Arc<Device<H::Data>>>,
    ) -> DeviceInfo {
        let entry = device.entry.read().clone();
        let parent = entry.parent.as_deref().and_then(with_uuid);
        let parent = parent.filter(|parent| parent.id != device.id);
        let mapped = device.mapped_blocks.load(Ordering::Relaxed);
        let kind = if entry.name.is_snapshot() {
            DeviceKind::Snapshot
        } else {
            DeviceKind::Volume
        };
        DeviceInfo {
            kind,
            id: device.id.get(),
            uuid: entry.uuid,
            size: device.size(),
            mapped_bytes: mapped.saturating_mul(self.block_size.bytes()),
            parent: parent.map(|parent| parent.name()),
            created: entry.created,
            read_only: entry.read_only || self.is_read_only(),
            external_origin: entry.external_origin,
            no_space: entry.no_space,
            queued_writes: device.queued_writes.load(Ordering::Relaxed),
            open_count: device.open_count(),
            name: entry.name,
        }
    }

    /// The counters of a device.
    pub fn device_stats(&self, name: &DeviceName) -> Option<Arc<DeviceStats>> {
        self.device(name)
            .ok()
            .map(|device| Arc::clone(&device.stats))
    }

    /// How long commits took, from taking the writer to the last sync.
    pub fn commit_durations(&self) -> &Histogram {
        &self.commit_durations
    }

    /// The state of the pool now.
    pub fn status(&self) -> Status {
        let (free, total) = {
            let allocator = self.allocator.lock();
            (allocator.free(), allocator.total())
        };
        let committed = self.committed.read().clone();
        let metadata_total = self.metadata_room.total();
        let metadata_free = self.metadata_room.free();
        let (mode, mode_reason) = self.mode(free);
        let (snapshots, volumes) = {
            let table = self.table.read();
            let snapshots = table
                .devices
                .keys()
                .filter(|name| name.is_snapshot())
                .count() as u64;
            (snapshots, table.devices.len() as u64 - snapshots)
        };
        let counter = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            block_size: self.block_size.bytes(),
            data_total_bytes: total * self.block_size.bytes(),
            data_used_bytes: (total - free) * self.block_size.bytes(),
            metadata_total_bytes: metadata_total * BLOCK_SIZE as u64,
            metadata_used_bytes: (metadata_total - metadata_free) * BLOCK_SIZE as u64,
            metadata_reserve_bytes: metadata::reserve(metadata_total) * BLOCK_SIZE as u64,
            held_root: committed.superblock.held_root,
            transaction_id: committed.superblock.transaction_id,
            time: committed.superblock.time,
            mode,
            mode_reason,
            needs_check: committed.superblock.needs_check(),
            discard_passdown: self.discard_passdown,
            volumes,
            snapshots,
            deleting: counter(&self.counters.deleting),
            commits: counter(&self.counters.commits),
            flushes: self.flushes.rounds.completed(),
            provisioned_blocks: counter(&self.counters.provisioned_blocks),
            copied_blocks: counter(&self.counters.copied_blocks),
            copied_bytes: counter(&self.counters.copied_bytes),
            zeroed_bytes: counter(&self.counters.zeroed_bytes),
            partial_blocks: counter(&self.counters.partial_blocks),
            queued_writes: self.queue.len(),
            log_bytes: self.log.len(),
            log_records: self.log.records(),
            log_records_max: self.log.records_max(),
            queues_without_space: self.queue.would_wait(self.host.now()),
        }
    }

    /// The mode and its reason. Running out of space is not remembered: space cures it.
    fn mode(&self, free_data_blocks: u64) -> (Mode, String) {
        match self.health.level.load(Ordering::Acquire) {
            FAILED => (Mode::Failed, self.health.reason.lock().clone()),
            READ_ONLY => (Mode::ReadOnly, self.health.reason.lock().clone()),
            _ if self.metadata_room.is_exhausted() => (
                Mode::OutOfMetadataSpace,
                Error::OutOfMetadataSpace.to_string(),
            ),
            _ if free_data_blocks == 0 => (Mode::OutOfDataSpace, Error::OutOfDataSpace.to_string()),
            _ => match self.queue.lack() {
                Some(reason) => (Mode::OutOfDataSpace, reason),
                None => (Mode::Write, String::new()),
            },
        }
    }

    /// Says what becomes of writes for which there is no data space. Until this is called they fail at
    /// once: it is for those who serve a pool that others can give more space meanwhile, and who call
    /// [`Pool::look_for_space`].
    pub fn set_no_space_policy(&self, policy: NoSpacePolicy) {
        self.queue.set_policy(policy);
    }

    /// Has no write wait for data space any more: nobody will give any.
    pub fn end_waiting(&self) {
        self.queue.end();
    }
}

/// Reads a chunk of a device's mappings in a commit.
pub(crate) fn read_chunk(committed: &Committed, id: ThinId, index: u64) -> Result<Chunk, Error> {
    let blocks = first_block(index).0..first_block(index + 1).0;
    let mut mappings = Vec::with_capacity(CHUNK_BLOCKS);
    committed
        .mappings(id)?
        .for_each(&committed.view, blocks, &mut |block, mapping| {
            mappings.push((VirtualBlock(block), mapping));
            std::ops::ControlFlow::Continue(())
        })?;
    Ok(Chunk::new(&mappings))
}
