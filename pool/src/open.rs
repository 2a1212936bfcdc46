//! Formatting, opening and adopting pools.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use metadata_btree::{Block, BlockKind, BlockStore};
use parking_lot::{Mutex, RwLock};
use probe::{Mark, mark};

use crate::allocator::DataAllocator;
use crate::backlog::Backlog;
use crate::catalog::{Catalog, CatalogStore, Entry, thin_id};
use crate::chunks::ChunkBudget;
use crate::commit::sync_error;
use crate::control::{Identity, check_size};
use crate::device::{Device, Origin};
use crate::epoch::Epochs;
use crate::error::{Error, is_full};
use crate::flush::Flushes;
use crate::history::{History, HistoryStore, KnownBy, find_superblock};
use crate::host::{DataIo, Host};
use crate::info::Mode;
use crate::log::{self, IntentLog, LogStore, log_error};
use crate::memory::MemoryBudget;
use crate::metadata::{Committed, Metadata};
use crate::name::DeviceName;
use crate::pool::{Counters, Health, Pool, Table};
use crate::queue::{NoSpaceOverride, SpaceQueue};
use crate::replay::Replayed;
use crate::room::Room;
use crate::stats::Histogram;
use crate::superblock::{LOCATION, Superblock};
use crate::sync::{Exclusive, Rounds};
use crate::trees::DeviceDetails;
use crate::units::{BlockSize, DEVICE_SIZE_MAX, SECTOR_SIZE, ThinId};
use crate::writer::Writer;

/// What a pool consists of.
pub struct Stores<H: Host> {
    /// The metadata store.
    pub metadata: Arc<dyn BlockStore>,
    /// The data store.
    pub data: H::Data,
    /// The catalog.
    pub catalog: Box<dyn CatalogStore>,
    /// The intent log.
    pub log: Box<dyn LogStore>,
    /// The superblocks of the last commits.
    pub history: Box<dyn HistoryStore>,
}

/// How to open a pool.
#[derive(Clone, Copy, Debug)]
pub struct OpenOptions {
    /// Change nothing.
    pub read_only: bool,
    /// Fill new blocks with zeros around the first, partial write. Without it, the rest of a new
    /// block shows what some other volume left there.
    pub zero_new_blocks: bool,
    /// Give the space of blocks that nobody maps any more back to the data store.
    pub discard_passdown: bool,
    /// What mappings and metadata may take in memory.
    pub memory: MemoryBudget,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            read_only: false,
            zero_new_blocks: true,
            discard_passdown: true,
            memory: MemoryBudget::default(),
        }
    }
}

/// A device of a foreign pool, to be known by a name.
#[derive(Clone, Debug)]
pub struct AdoptedVolume {
    /// Its id in the metadata.
    pub id: ThinId,
    /// What it is to be called.
    pub name: DeviceName,
    /// Its size in bytes, which the metadata does not record: a multiple of 512.
    pub size: u64,
    /// The external origin it was used with.
    pub external_origin: Option<PathBuf>,
    /// Its identity.
    pub identity: Identity,
}

impl<H: Host> Pool<H> {
    /// Formats an empty pool on a metadata store whose first block is all zero.
    pub fn format(
        metadata: Arc<dyn BlockStore>,
        block_size: BlockSize,
        metadata_blocks: u64,
        data_blocks: u64,
    ) -> Result<(), Error> {
        let mut first = Block::zeroed();
        let what = || "reading the first metadata block".into();
        metadata
            .read(LOCATION, &mut first)
            .map_err(|source| Error::Io {
                what: what(),
                source,
            })?;
        if first.as_bytes().iter().any(|byte| *byte != 0) {
            return Err(Error::Superblock {
                what: "block 0 of the metadata store",
                found: "not empty".into(),
                expected: "all zero; wipe it first if its contents are not needed".into(),
            });
        }
        Metadata::format(metadata, block_size, metadata_blocks, data_blocks)
    }

    /// Writes the catalog of a foreign pool: the given volumes by their names, every other device
    /// as `thin-<id>`, as large as its last mapped block demands. The metadata is only read.
    pub fn adopt(
        metadata: Arc<dyn BlockStore>,
        catalog: &dyn CatalogStore,
        volumes: Vec<AdoptedVolume>,
        identity: &mut dyn FnMut() -> Identity,
    ) -> Result<(), Error> {
        let metadata = Metadata::open(metadata)?;
        if metadata.superblock().has_log {
            return Err(Error::Superblock {
                what: "the flag of an intent log",
                found: "set".into(),
                expected: "clear: the log is where the pool was served, and so must it be closed"
                    .into(),
            });
        }
        let committed = metadata.committed();
        let mut unnamed: BTreeMap<ThinId, DeviceDetails> =
            committed.devices()?.into_iter().collect();
        let mut adopted = Catalog::default();
        for volume in volumes {
            check_size(volume.size)?;
            if unnamed.remove(&volume.id).is_none() {
                return Err(Error::BadValue {
                    what: "a thin id to adopt",
                    found: volume.id.to_string(),
                    expected: "the id of a device in the metadata, each at most once".into(),
                });
            }
            let entry = Entry {
                id: volume.id.get(),
                read_only: volume.name.is_snapshot(),
                name: volume.name,
                size: volume.size,
                uuid: volume.identity.uuid,
                created: volume.identity.created,
                parent: None,
                external_origin: volume.external_origin,
                no_space: NoSpaceOverride::default(),
            };
            adopted.apply(&crate::catalog::Operation::Add(entry))?;
        }
        for id in unnamed.into_keys() {
            let identity = identity();
            let name = adopted.name_for(id)?;
            let entry = unnamed_entry(&committed, id, name, identity)?;
            adopted.apply(&crate::catalog::Operation::Add(entry))?;
        }
        catalog
            .replace(&adopted.encode(committed.superblock.transaction_id))
            .map_err(|source| Error::Io {
                what: "writing the catalog".into(),
                source,
            })
    }

    /// Opens a pool, and does again what the intent log of a daemon says that was killed, or whose machine
    /// lost its power. Blocking.
    /// With `read_only`, or when the superblock asks for a check, nothing is written, and
    /// [`Pool::status`] says why.
    pub fn open(
        host: Arc<H>,
        stores: Stores<H>,
        options: OpenOptions,
    ) -> Result<Arc<Pool<H>>, Error> {
        let (superblock, known_by) =
            find_superblock(&*stores.metadata, &*stores.log, &*stores.history)?;
        let mut metadata = Metadata::open_at(Arc::clone(&stores.metadata), superblock.clone())?;
        check_data_size(&superblock, &stores.data)?;
        let read_only = read_only_reason(&superblock, known_by, options.read_only);
        let may_write = read_only.is_none();
        let left = load_log(&stores, &superblock, may_write)?;
        let committed = metadata.committed();
        let devices: BTreeMap<_, _> = committed.devices()?.into_iter().collect();
        let loaded = load_catalog(&*stores.catalog, &committed, &devices)?;
        let mut allocator = DataAllocator::new(superblock.space_maps.disk.nr_blocks);
        metadata
            .transaction()
            .for_each_free_disk_run(&mut |run| allocator.add_free(run))?;
        let table = open_devices(&*host, &loaded.catalog, &devices)?;
        let deleting = loaded.catalog.deleting().len() as u64;
        let log = Arc::new(IntentLog::new(
            stores.log,
            superblock.space_maps.disk.nr_blocks,
            &left,
            superblock.has_log,
        ));
        let mut history = History::new(stores.history);
        history.go_on_from(&superblock, left.is_there, may_write);
        if may_write && left.is_there && !superblock.has_log && left.records.is_empty() {
            // Of a pool that was closed, or of a commit that never was. Not before the superblock is durable, and in the
            // history: until then this log may be all that knows it. Only who loses block 0 would miss this.
            let _ = log.remove();
        }
        let writer = Writer::new(
            metadata,
            loaded,
            stores.catalog,
            Arc::clone(&log),
            history,
            devices.into_keys().collect(),
        );
        let pool = Pool {
            data: stores.data,
            store: stores.metadata,
            block_size: superblock.block_size,
            zero_new_blocks: options.zero_new_blocks,
            discard_passdown: options.discard_passdown,
            writer: Arc::new(Exclusive::new(writer)),
            time: AtomicU32::new(superblock.time),
            committed: RwLock::new(committed),
            table: RwLock::new(table),
            allocator: Mutex::new(allocator),
            drawing: Arc::new(Exclusive::new(())),
            queue: SpaceQueue::default(),
            epochs: Epochs::new(),
            commits: Rounds::default(),
            flushes: Flushes::default(),
            superseded: Mutex::default(),
            commit_durations: Histogram::default(),
            chunk_budget: ChunkBudget::new(options.memory.chunks_max()),
            metadata_room: Room::new(options.memory.changed_chunks_max()),
            counters: Counters {
                deleting: deleting.into(),
                // Whatever the last daemon wrote in place may not be synced.
                written_in_place: u64::from(may_write).into(),
                ..Counters::default()
            },
            backlog: Backlog::default(),
            health: Health::new(read_only),
            log,
            replayed: Replayed::new(&left),
            superblock_known_by: known_by,
            host,
        };
        pool.taken_up(&superblock, &left)
    }

    /// The pool, after what the log holds was done again.
    fn taken_up(self, superblock: &Superblock, left: &log::Loaded) -> Result<Arc<Self>, Error> {
        let pool = Arc::new(self);
        let Some(mut writer) = pool.writer.try_acquire() else {
            unreachable!("nobody else has the pool yet")
        };
        pool.note_metadata_space(&mut writer);
        pool.replay(&left.records)?;
        pool.take_log_over(superblock, left)?;
        if !pool.is_read_only() {
            // Not before: until then the log may name a commit that was given up, and is all that is known
            // of it should block 0 be lost now. Its names must still be there.
            writer.mend_if_there_is_space()?;
        }
        drop(writer);
        Ok(pool)
    }

    /// Goes on in the log that was replayed, unless the pool is read only. It is when that needs space which is not
    /// there: what was acknowledged can be read then, and nothing is lost.
    fn take_log_over(&self, superblock: &Superblock, left: &log::Loaded) -> Result<(), Error> {
        if self.is_read_only() || !superblock.has_log && left.records.is_empty() {
            return Ok(());
        }
        match self.log.take_over(&superblock.block(), left) {
            Err(cause) if is_full(&cause) => {
                mark(Mark::NoSpaceToTakeOver);
                let reason = format!(
                    "there is no space to go on with the intent log ({cause}): free some where the pool's \
                     directory is, then start again"
                );
                self.stop(Mode::ReadOnly, &reason);
                Ok(())
            }
            taken_over => taken_over.map_err(log_error),
        }
    }
}

/// Reads what a daemon has left that did not close the pool, and makes it durable.
fn load_log<H: Host>(
    stores: &Stores<H>,
    superblock: &Superblock,
    may_write: bool,
) -> Result<log::Loaded, Error> {
    let left = log::load(&*stores.log, superblock)?;
    if may_write {
        make_durable(&*stores.metadata, superblock, left.is_there).map_err(|source| Error::Io {
            what: "making the superblock durable".into(),
            source,
        })?;
    }
    if may_write && !left.records.is_empty() {
        stores.data.sync_at_opening().map_err(|cause| {
            // The next sync may well succeed, and say nothing of what this one has lost. If this fails
            // as well, there is nothing left to do.
            let _ = left.make_void(&*stores.log);
            sync_error(cause)
        })?;
    }
    Ok(left)
}

/// Makes the superblock durable that is built on from here: it may be in the page cache only. Of a pool that was
/// not closed it is written again, since a sync that failed may have given up its page; what it names was
/// durable before it was written.
fn make_durable(
    metadata: &dyn BlockStore,
    superblock: &Superblock,
    was_left: bool,
) -> std::io::Result<()> {
    if was_left {
        let mut block = superblock.block();
        BlockKind::Superblock.seal(&mut block, LOCATION);
        metadata.write(LOCATION, &block)?;
    }
    metadata.flush()
}

/// Opens an external origin.
pub(crate) fn open_origin<H: Host>(host: &H, path: &Path) -> Result<Origin<H::Data>, Error> {
    let open = || -> std::io::Result<Origin<H::Data>> {
        let data = host.open_origin(path)?;
        let len = data.size()?;
        Ok(Origin { data, len })
    };
    open().map_err(|source| Error::Io {
        what: format!("opening the external origin {}", path.display()),
        source,
    })
}

fn check_data_size(superblock: &Superblock, data: &impl DataIo) -> Result<(), Error> {
    let found = data.size().map_err(|source| Error::Io {
        what: "reading the size of the data store".into(),
        source,
    })?;
    let blocks = superblock.space_maps.disk.nr_blocks;
    let expected = blocks.saturating_mul(superblock.block_size.bytes());
    if found < expected {
        return Err(Error::StoreTooShort {
            store: "the data store",
            found,
            expected,
        });
    }
    Ok(())
}

fn read_only_reason(
    superblock: &Superblock,
    known_by: Option<KnownBy>,
    asked: bool,
) -> Option<String> {
    if let Some(known_by) = known_by {
        let source = match known_by {
            KnownBy::Log => {
                "the last commit that the intent log has whole, with all that was flushed since"
            }
            KnownBy::History(_) => "the newest commit in the history",
        };
        return Some(format!(
            "the superblock is damaged: this is {source}; 'rewind' writes its superblock anew, 'repair' new metadata"
        ));
    }
    if superblock.needs_check() {
        let advice = "needs_check is set in the superblock: check and repair the metadata first";
        return Some(advice.into());
    }
    let flags = superblock.compat_read_only_flags();
    if flags != 0 {
        return Some(format!(
            "the superblock has unknown compat read-only flags {flags:#x}"
        ));
    }
    asked.then(|| "it was opened read only".into())
}

/// Reads the catalog and brings it in line with the devices there are: they are the truth.
fn load_catalog(
    store: &dyn CatalogStore,
    committed: &Committed,
    devices: &BTreeMap<ThinId, DeviceDetails>,
) -> Result<crate::catalog::Loaded, Error> {
    let content = store.load().map_err(|source| Error::Io {
        what: "reading the catalog".into(),
        source,
    })?;
    let superblock = &committed.superblock;
    let mut loaded = Catalog::decode(&content, superblock.transaction_id)?;
    let lost = loaded.catalog.retain(|id| devices.contains_key(&id));
    let named: BTreeSet<ThinId> = loaded.catalog.ids()?;
    for id in devices.keys().filter(|id| !named.contains(id)) {
        let identity = Identity {
            uuid: format!("00000000-0000-0000-0000-{:012x}", id.get()),
            created: String::new(),
        };
        let name = loaded.catalog.name_for(*id)?;
        let entry = unnamed_entry(committed, *id, name, identity)?;
        loaded
            .catalog
            .apply(&crate::catalog::Operation::Add(entry))?;
        loaded.is_changed = true;
    }
    loaded.is_changed |= lost;
    Ok(loaded)
}

/// What is known of a device that no catalog knows: as large as its last mapped block demands.
fn unnamed_entry(
    committed: &Committed,
    id: ThinId,
    name: DeviceName,
    identity: Identity,
) -> Result<Entry, Error> {
    let mut blocks = 0;
    committed
        .mappings(id)?
        .for_each(&committed.view, 0..u64::MAX, &mut |block, _| {
            blocks = block.saturating_add(1);
            ControlFlow::Continue(())
        })?;
    let size = blocks
        .saturating_mul(committed.superblock.block_size.bytes())
        .clamp(SECTOR_SIZE, DEVICE_SIZE_MAX);
    Ok(Entry {
        id: id.get(),
        name,
        size,
        uuid: identity.uuid,
        created: identity.created,
        read_only: false,
        parent: None,
        external_origin: None,
        no_space: NoSpaceOverride::default(),
    })
}

fn open_devices<H: Host>(
    host: &H,
    catalog: &Catalog,
    details: &BTreeMap<ThinId, DeviceDetails>,
) -> Result<Table<H::Data>, Error> {
    let mut devices = BTreeMap::new();
    for entry in catalog.entries() {
        let id = thin_id(entry.id)?;
        let Some(details) = details.get(&id) else {
            unreachable!("entries without a device were dropped")
        };
        let origin = match &entry.external_origin {
            None => None,
            Some(path) => Some(open_origin(host, path)?),
        };
        let device = Device::new(
            id,
            entry.clone(),
            details.snapshotted_time,
            details.mapped_blocks,
            origin,
        );
        devices.insert(entry.name.clone(), Arc::new(device));
    }
    Ok(Table { devices })
}
