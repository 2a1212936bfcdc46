//! One open pool, and the one function that executes calls on it: in process for `thinctl`, behind
//! the control socket for the daemon.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use metadata_btree::{BlockStore, FileStore};
use parking_lot::RwLock;
use pool::{
    DeviceInfo, DeviceName, Identity, KnownBy, MemoryBudget, NewDevice, OpenOptions, Pool, Stores,
    ThinDevice,
};
use reactor::{FileHost, FileIo};
use tokio::sync::{Mutex, Notify};

use crate::activity::activity;
use crate::attach::Attachments;
use crate::check::check_pool;
use crate::events::Events;
use crate::pool_dir::{Access, DataAccess, PoolDir, existing_origin, extend_file, no_direct_io};
use crate::protocol::{
    Call, CallError, CallErrorKind, PoolInfo, Progress, Reply, Resized, UsageReport, UsageTotals,
};
use crate::space::{SpacePolicy, UntilFull};
use crate::usage_counts::UsageCounts;

/// The pool as this program runs it.
pub type FilePool = Pool<FileHost>;

/// Says where the superblock came from, if block 0 was damaged.
fn warn_of_lost_superblock(dir: &PoolDir, pool: &FilePool) {
    let source = match pool.superblock_known_by() {
        None => return,
        Some(KnownBy::Log) => "the last commit in its intent log, with all that was flushed since",
        Some(KnownBy::History(_)) => "the newest commit in its history",
    };
    tracing::warn!(
        "{}: the superblock is damaged; the pool can be read, as of {source}: check the disk below, then see \
         'thinctl rewind {}'",
        dir.metadata_path().display(),
        dir.path.display()
    );
}

/// Is told how far long work has come. Called from any thread.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// An open pool with everything a call may need.
pub struct PoolService {
    /// Where it is.
    pub dir: PoolDir,
    /// The pool.
    pub pool: Arc<FilePool>,
    /// Its devices that are local block devices now; only a daemon has any.
    pub attachments: Attachments,
    /// Rung when deleted devices wait to be reclaimed.
    pub deleted: Notify,
    /// What has happened to it.
    pub events: Events,
    /// Who uses how much, as a daemon has counted it in the background.
    pub usage_counts: UsageCounts,
    /// How it deals with its space.
    space: RwLock<SpacePolicy>,
    /// When its stores will be full, as a daemon finds out.
    until_full: RwLock<UntilFull>,
    /// Had by who makes a store larger, one at a time: each looks at the size first.
    growing: Mutex<()>,
}

impl PoolService {
    /// Opens a pool for every use, alone; `memory` is for its mappings and metadata.
    ///
    /// # Errors
    /// `Busy` when another process has it; what makes it impossible to open.
    pub fn open(dir: PoolDir, memory: MemoryBudget) -> Result<Self, CallError> {
        let service = Self::open_writable(dir, memory)?;
        service.attachments.hold_leftovers(&service)?;
        Ok(service)
    }

    fn open_writable(dir: PoolDir, memory: MemoryBudget) -> Result<Self, CallError> {
        let access = if dir.config.read_only {
            Access::Read
        } else {
            Access::Write
        };
        match Self::open_for(dir.clone(), access, memory) {
            // The file system is: the pool on it can still be read.
            Err(error) if error.kind == CallErrorKind::ReadOnly => {
                Self::open_for(dir, Access::Read, memory)
            }
            opened => opened,
        }
    }

    /// Opens a pool for reading only, together with other readers.
    ///
    /// # Errors
    /// As [`PoolService::open`].
    pub fn open_read_only(dir: PoolDir) -> Result<Self, CallError> {
        Self::open_for(dir, Access::Read, MemoryBudget::default())
    }

    fn open_for(dir: PoolDir, access: Access, memory: MemoryBudget) -> Result<Self, CallError> {
        let files = dir.open_stores(access)?;
        let metadata = metadata_store(files.metadata, &dir.metadata_path())?;
        let host = FileHost::new();
        let data = match dir.config.io {
            DataAccess::Buffered => FileIo::new(files.data, host.threads().clone()),
            DataAccess::Direct => FileIo::direct(files.data, host.threads().clone())
                .map_err(|cause| no_direct_io(&dir.data_path(), &cause))?,
        };
        let stores = Stores {
            metadata: Arc::new(metadata),
            data,
            catalog: Box::new(dir.catalog()),
            log: Box::new(dir.log()?),
            history: Box::new(dir.history()),
        };
        let options = OpenOptions {
            read_only: access == Access::Read,
            zero_new_blocks: dir.config.zero_new_blocks,
            discard_passdown: dir.config.discard_passdown,
            memory,
        };
        let pool = Pool::open(Arc::new(host), stores, options)
            .map_err(|cause| CallError::pool(&dir.path, &cause))?;
        warn_of_lost_superblock(&dir, &pool);
        if pool.replayed_records() > 0 {
            tracing::warn!(
                "{}: was not closed; {} changes were replayed from its intent log",
                dir.path.display(),
                pool.replayed_records()
            );
        }
        if pool.has_cut_log() {
            tracing::warn!(
                "{}: was not closed before a reboot, the loss of a disk, or a failed sync: the pool has what \
                 was flushed, and what was not may be lost",
                dir.path.display()
            );
        }
        let attachments = Attachments::new(&dir);
        Ok(PoolService {
            events: Events::new(dir.label()),
            usage_counts: UsageCounts::default(),
            space: RwLock::new(dir.config.space.clone()),
            until_full: RwLock::default(),
            growing: Mutex::default(),
            dir,
            pool,
            attachments,
            deleted: Notify::new(),
        })
    }

    /// Commits and closes. Nothing may use the pool any more.
    ///
    /// # Errors
    /// What stopped the last commit.
    pub async fn close(&self) -> Result<(), CallError> {
        self.pool.close().await.map_err(|cause| self.failed(&cause))
    }

    /// An error of this pool as a caller sees it.
    pub fn failed(&self, cause: &pool::Error) -> CallError {
        CallError::pool(&self.dir.path, cause)
    }

    /// Opens a device for input and output.
    ///
    /// # Errors
    /// Those of the pool, `NotFound` above all.
    pub fn open_device(&self, name: &DeviceName) -> Result<ThinDevice<FileHost>, CallError> {
        self.pool
            .open_device(name)
            .map_err(|cause| self.failed(&cause))
    }

    /// What the pool is and how it is.
    pub fn pool_info(&self) -> PoolInfo {
        PoolInfo {
            path: self.dir.path.clone(),
            uuid: self.dir.config.uuid.clone(),
            metadata: self.dir.metadata_path(),
            data: self.dir.data_path(),
            status: self.pool.status(),
            space: self.space(),
            daemon_pid: None,
        }
    }

    async fn create(
        &self,
        name: DeviceName,
        size: u64,
        origin: Option<&Path>,
    ) -> Result<DeviceInfo, CallError> {
        let origin = origin.map(existing_origin).transpose()?;
        let created = self
            .pool
            .create_volume(new_device(name), size, origin)
            .await;
        created.map_err(|cause| self.failed(&cause))
    }

    async fn rollback(&self, snapshot: &DeviceName) -> Result<DeviceInfo, CallError> {
        let device = self.pool.rollback(snapshot, new_identity()).await;
        let device = device.map_err(|cause| self.failed(&cause))?;
        self.deleted.notify_one();
        Ok(device)
    }

    async fn usage(&self) -> Result<UsageReport, pool::Error> {
        let devices = self.pool.usage().await?;
        let status = self.pool.status();
        let exclusive_bytes = devices.iter().map(|device| device.exclusive_bytes).sum();
        let pool = UsageTotals {
            data_total_bytes: status.data_total_bytes,
            data_used_bytes: status.data_used_bytes,
            exclusive_bytes,
            shared_bytes: status.data_used_bytes.saturating_sub(exclusive_bytes),
            mapped_bytes: devices.iter().map(|device| device.mapped_bytes).sum(),
        };
        Ok(UsageReport { devices, pool })
    }

    async fn resize(
        &self,
        name: &DeviceName,
        size: u64,
        shrink: bool,
    ) -> Result<Resized, CallError> {
        let present = self
            .pool
            .info(name)
            .map_err(|cause| self.failed(&cause))?
            .size;
        if size < present && !shrink {
            return Err(CallError::invalid(format!(
                "{}/{name}: from {present} to {size} bytes it would lose its end: add --shrink if that is meant",
                self.dir.path.display()
            )));
        }
        let resized = self.pool.resize(name, size).await;
        let volume = resized.map_err(|cause| self.failed(&cause))?;
        // The volume has its size, whatever becomes of the block device.
        let followed = self.attachments.follow_size(self, volume.id).await;
        let note = followed.unwrap_or_else(|error| Some(error.message));
        Ok(Resized {
            volume,
            notes: note.into_iter().collect(),
        })
    }

    /// How the pool deals with its space.
    pub fn space(&self) -> SpacePolicy {
        self.space.read().clone()
    }

    /// When its stores will be full at the present rate.
    pub fn until_full(&self) -> UntilFull {
        *self.until_full.read()
    }

    /// Notes when its stores will be full.
    pub fn set_until_full(&self, until_full: UntilFull) {
        *self.until_full.write() = until_full;
    }

    fn set_space(&self, policy: SpacePolicy) -> Result<(), CallError> {
        policy.check()?;
        let data = self.dir.data_path();
        if policy.auto_grow.is_some() && !data.is_file() {
            let message = format!(
                "{}: only a data store that is a file can grow by itself",
                data.display()
            );
            return Err(CallError::invalid(message));
        }
        self.dir.set_space(&policy)?;
        self.pool.set_no_space_policy(policy.no_space());
        *self.space.write() = policy;
        Ok(())
    }

    /// Makes the stores as large as said, in bytes.
    ///
    /// # Errors
    /// What stopped it; the metadata store may have grown.
    pub async fn grow(&self, data: Option<u64>, metadata: Option<u64>) -> Result<(), CallError> {
        let _growing = self.growing.lock().await;
        let status = self.pool.status();
        if let Some(bytes) = metadata {
            self.expect_growth("metadata", bytes, status.metadata_total_bytes, 4096)?;
        }
        if let Some(bytes) = data {
            self.expect_growth("data", bytes, status.data_total_bytes, status.block_size)?;
        }
        // Metadata first: more data is of no use without room to map it.
        if let Some(bytes) = metadata {
            extend(&self.dir.metadata_path(), bytes, true)?;
            let grown = self.pool.grow_metadata(bytes).await;
            grown.map_err(|cause| self.failed(&cause))?;
        }
        if let Some(bytes) = data {
            extend(&self.dir.data_path(), bytes, false)?;
            let grown = self.pool.grow_data(bytes).await;
            grown.map_err(|cause| self.failed(&cause))?;
        }
        Ok(())
    }

    fn expect_growth(
        &self,
        what: &str,
        bytes: u64,
        present: u64,
        unit: u64,
    ) -> Result<(), CallError> {
        let place = self.dir.path.display();
        if self.dir.config.read_only {
            let message = format!("{place}: the pool is read only: pool.toml says so");
            return Err(CallError::new(CallErrorKind::ReadOnly, message));
        }
        if !bytes.is_multiple_of(unit) {
            let next = bytes.next_multiple_of(unit);
            let message = format!(
                "{place}: {what} size {bytes} is not a multiple of {unit}; the next is {next}"
            );
            return Err(CallError::invalid(message));
        }
        if bytes <= present {
            let message = format!(
                "{place}: its {what} store has {present} bytes already, a pool cannot shrink"
            );
            return Err(CallError::invalid(message));
        }
        Ok(())
    }
}

/// The metadata in an open file, if there can be any.
///
/// # Errors
/// `Damaged` when there cannot.
pub fn metadata_store(file: File, path: &Path) -> Result<FileStore, CallError> {
    let failed = |cause: std::io::Error| CallError::io(path.display(), &cause);
    let store = FileStore::new(file).map_err(failed)?;
    if store.block_count().map_err(failed)? == 0 {
        let message = format!(
            "{}: too short to hold the metadata of a pool",
            path.display()
        );
        return Err(CallError::new(CallErrorKind::Damaged, message));
    }
    Ok(store)
}

/// Makes a store's file as long as a pool that is to grow needs it. It stays so if the pool does not grow in the
/// end: a commit that has failed may be the last one all the same, and longer files do no harm.
fn extend(path: &Path, size: u64, reserve: bool) -> Result<(), CallError> {
    let failed = |cause: std::io::Error| CallError::io(path.display(), &cause);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let present = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(failed)?;
    if size <= present {
        return Ok(());
    }
    if !file.metadata().map_err(failed)?.is_file() {
        let message = format!(
            "{}: the device holds {present} bytes, not {size}: enlarge it first",
            path.display()
        );
        return Err(CallError::new(CallErrorKind::NoSpace, message));
    }
    let extended = extend_file(&file, size, reserve).and_then(|()| file.sync_all());
    if let Err(cause) = extended {
        // The pool knows nothing of it yet. What stopped it matters more than this.
        let _ = file.set_len(present);
        return Err(failed(cause));
    }
    Ok(())
}

/// A new identity: the pool itself has neither clock nor randomness.
pub fn new_identity() -> Identity {
    Identity {
        uuid: uuid::Uuid::new_v4().to_string(),
        created: now(),
    }
}

/// The time, RFC 3339, UTC, in whole seconds: enough for people, and one form for all tools.
pub fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second())
        .unwrap_or(now)
        .to_string()
}

fn new_device(name: DeviceName) -> NewDevice {
    NewDevice {
        name,
        identity: new_identity(),
    }
}

/// The pool has changed, which is what counts; a table beside it that could not follow is told.
fn followed<T>(result: Result<T, CallError>) {
    if let Err(error) = result {
        tracing::error!("{error}");
    }
}

/// Executes one call. Must run to its end once begun.
///
/// # Errors
/// Whatever stopped it, with nothing changed.
pub async fn execute(
    service: &Arc<PoolService>,
    call: Call,
    progress: &ProgressSink,
) -> Result<Reply, CallError> {
    let pool = &service.pool;
    let failed = |cause: pool::Error| service.failed(&cause);
    let reply = match call {
        Call::Create { name, size, origin } => {
            Reply::Device(service.create(name, size, origin.as_deref()).await?)
        }
        Call::CreateSnapshots { names } => {
            let new = names.into_iter().map(new_device).collect();
            Reply::Devices(pool.create_snapshots(new).await.map_err(failed)?)
        }
        Call::Clone { source, name } => Reply::Device(
            pool.clone_device(&source, new_device(name))
                .await
                .map_err(failed)?,
        ),
        Call::Remove { name } => {
            pool.remove(&name).await.map_err(failed)?;
            service.deleted.notify_one();
            followed(service.dir.forget_persistent(&name));
            Reply::Done
        }
        Call::Reclaim => {
            pool.reclaim().await.map_err(failed)?;
            Reply::Done
        }
        Call::Rename { from, to } => {
            let device = pool.rename(&from, &to).await.map_err(failed)?;
            followed(service.dir.rename_persistent(&from, &to));
            Reply::Device(device)
        }
        Call::Resize { name, size, shrink } => {
            Reply::Resized(service.resize(&name, size, shrink).await?)
        }
        Call::Rollback { snapshot } => Reply::Device(service.rollback(&snapshot).await?),
        Call::Freeze { name } => Reply::Device(pool.freeze(&name).await.map_err(failed)?),
        Call::Grow {
            data_size,
            metadata_size,
        } => {
            service.grow(data_size, metadata_size).await?;
            Reply::Pool(service.pool_info())
        }
        Call::SetSpace(policy) => {
            service.set_space(policy)?;
            Reply::Pool(service.pool_info())
        }
        Call::SetNoSpace { name, no_space } => {
            Reply::Device(pool.set_no_space(&name, no_space).await.map_err(failed)?)
        }
        Call::List => Reply::Devices(pool.devices()),
        Call::Info { name } => Reply::Device(pool.info(&name).map_err(failed)?),
        Call::Status => Reply::Pool(service.pool_info()),
        Call::Activity => Reply::Activity(activity(service)),
        Call::Usage => Reply::Usage(service.usage().await.map_err(failed)?),
        Call::Check => Reply::Check(check_pool(service, progress).await?),
        Call::Attach(request) => {
            Reply::Attached(service.attachments.attach(service, request).await?)
        }
        Call::Detach { target } => {
            Reply::Detached(service.attachments.detach(service, &target).await?)
        }
    };
    Ok(reply)
}
