//! Attachments: devices of a pool that are local block devices, kept by the daemon.
//!
//! A device of ublk or of the kernel's NBD client is served by threads of its own and outlives the
//! daemon; the pool's tables of them are `RUNTIME/UUID/ublk.json` and `nbd.json`. Through FUSE, all of a
//! pool's files are in one mount, `RUNTIME/UUID/fuse`, made with the first attachment, and a loop device
//! makes one of them a block device. `RUNTIME/UUID/pool` leads back to the pool's directory.
//!
//! Control commands of drivers, loop devices and mounts end in requests to this very process; so they are
//! awaited on threads that serve none, and nothing here looks at a path below the mount.

pub mod blocks;
mod file_system;
mod leftovers;
mod loops;
pub mod nbd;
mod resize;
#[cfg(not(feature = "ublk"))]
#[path = "attach/no_ublk.rs"]
pub mod ublk;
#[cfg(feature = "ublk")]
pub mod ublk;

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuse_target::{FuseMount, LoopDevice};
use pool::{DeviceInfo, DeviceName, Pool, ThinDevice};
use reactor::FileHost;
use tokio::sync::{Mutex, Notify};

use crate::links::Links;
use crate::pool_dir::{ATTACHMENTS_FILE, Persistent, PoolDir};
use crate::protocol::{
    AttachRequest, AttachTarget, Attachment, CallError, CallErrorKind, Detached,
};
use crate::service::PoolService;
use crate::systemd;
use crate::transports::{Choice, Transport, choose};
use blocks::{BlockDevice, BlockDevices, Driver, Leftover, NewDevice};
use file_system::{Contents, mount_as_asked, mount_device};

/// Where mounts and tables are, unless `THINPOOL_RUNTIME_DIR` says otherwise.
const DEFAULT_RUNTIME_DIR: &str = "/run/thinpool";

/// How long the kernel may take to close the file of a loop device that is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how many times, a busy attachment is tried again when the daemon ends.
const SHUTDOWN_RETRY_INTERVAL: Duration = Duration::from_millis(250);
const SHUTDOWN_RETRIES_MAX: u32 = 20;

/// The link from a pool's runtime directory to the pool.
pub const POOL_LINK: &str = "pool";

/// Where the runtime things of pools are, each in a directory of its own.
pub fn runtime_root() -> PathBuf {
    let root = env::var_os("THINPOOL_RUNTIME_DIR");
    let root = root.map_or_else(|| DEFAULT_RUNTIME_DIR.into(), PathBuf::from);
    // The kernel tells of a loop device's file without symbolic links; so must we.
    root.canonicalize().unwrap_or(root)
}

/// Where the runtime things of a pool are.
pub fn runtime_dir(dir: &PoolDir) -> PathBuf {
    runtime_root().join(&dir.config.uuid)
}

/// The file that shows a device, without asking the file system.
pub fn device_file(dir: &PoolDir, name: &DeviceName) -> PathBuf {
    runtime_dir(dir).join("fuse").join(name.to_string())
}

/// A pool's attachments.
pub struct Attachments {
    runtime_dir: PathBuf,
    pool_dir: PathBuf,
    links: Links,
    /// Held through a whole attach or detach: they come one after the other.
    state: Mutex<State>,
    /// Devices whose block devices wait for their daemon, by thin id: they count as open.
    held: parking_lot::Mutex<BTreeMap<u32, ThinDevice<FileHost>>>,
    ends_when_empty: AtomicBool,
    /// Rung when an attach or detach left nothing attached.
    pub emptied: Notify,
}

#[derive(Default)]
struct State {
    mount: Option<FuseMount<FileHost>>,
    /// Read when first needed.
    block_devices: Option<BlockDevices>,
    /// By thin id, which renaming does not change.
    attached: BTreeMap<u32, Attached>,
}

struct Attached {
    backing: Backing,
    attachment: Attachment,
}

/// What is behind an attachment.
enum Backing {
    Loop(LoopDevice),
    Block(BlockDevice),
}

impl Attachments {
    /// None so far.
    pub fn new(dir: &PoolDir) -> Self {
        Attachments {
            runtime_dir: runtime_dir(dir),
            pool_dir: dir.path.clone(),
            links: Links::of_pool(&dir.label()),
            state: Mutex::default(),
            held: parking_lot::Mutex::default(),
            ends_when_empty: AtomicBool::new(false),
            emptied: Notify::new(),
        }
    }

    /// Makes a device a local block device, and mounts it if asked to.
    ///
    /// # Errors
    /// `Exists` when it is attached already; what stopped it, with nothing left behind.
    pub async fn attach(
        &self,
        service: &Arc<PoolService>,
        request: AttachRequest,
    ) -> Result<Attachment, CallError> {
        let mut state = self.state.lock().await;
        self.forget_gone(&mut state).await;
        let result = self.attach_with(&mut state, service, request).await;
        if state.attached.is_empty() {
            self.emptied.notify_one();
        }
        result
    }

    async fn attach_with(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        mut request: AttachRequest,
    ) -> Result<Attachment, CallError> {
        let info = service
            .pool
            .info(&request.name)
            .map_err(|cause| service.failed(&cause))?;
        self.recover_waiting(state, service, |leftover| leftover.volume() == info.uuid)
            .await?;
        if let Some(present) = state.attached.get(&info.id) {
            let message = format!(
                "{}/{}: already attached as {}",
                self.pool_dir.display(),
                request.name,
                present.attachment.device.display()
            );
            return Err(CallError::new(CallErrorKind::Exists, message));
        }
        let asked = request.transport;
        let choice = blocking(move || choose(asked)).await??;
        let id = info.id;
        let persistent = request.persist.then(|| Persistent::from(&request));
        let mut notes = fit_options(&mut request, choice.transport)?;
        let queues = request.options.queues;
        let driver = match choice.transport {
            Transport::Ublk => Some(Driver::Ublk),
            Transport::Nbd => Some(Driver::Nbd),
            Transport::Fuse => None,
        };
        let mut attached = match driver {
            Some(driver) => {
                self.attach_block(state, service, &info, request, (driver, choice))
                    .await?
            }
            None => {
                self.attach_loop(state, service, &info, request, choice)
                    .await?
            }
        };
        let attachment = &mut attached.attachment;
        attachment.link = self.links.make(&attachment.name, &attachment.device);
        notes.extend(other_queues(attachment, queues));
        attachment.notes = notes;
        let attachment = attachment.clone();
        if let Some(Err(error)) = persistent.map(|persistent| service.dir.persist(persistent)) {
            if let Err((attached, cause)) = self.take_away(state, attached).await {
                tracing::warn!("{} is left attached: {cause}", attachment.device.display());
                state.attached.insert(id, attached);
            }
            return Err(error);
        }
        state.attached.insert(id, attached);
        Ok(attachment)
    }

    /// Attaches what every daemon is to attach, unless it is still there. What cannot be is told in
    /// the log.
    pub async fn attach_persistent(&self, service: &Arc<PoolService>) {
        let place = self.pool_dir.join(ATTACHMENTS_FILE);
        let persistent = match service.dir.persistent() {
            Ok(persistent) => persistent,
            Err(error) => return tracing::error!("nothing is attached: {error}"),
        };
        for persistent in persistent {
            let name = persistent.name.clone();
            match self.attach(service, persistent.into()).await {
                Ok(attachment) => tracing::info!("{name}: {}", attachment.device.display()),
                Err(error) if error.kind == CallErrorKind::Exists => {}
                Err(error) => tracing::error!("{}: {name}: {error}", place.display()),
            }
        }
    }

    async fn attach_block(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        info: &DeviceInfo,
        request: AttachRequest,
        (driver, choice): (Driver, Choice),
    ) -> Result<Attached, CallError> {
        prepare_runtime_dir(&self.runtime_dir, &self.pool_dir)
            .map_err(|cause| CallError::io(self.runtime_dir.display(), &cause))?;
        let thin = service.open_device(&request.name)?;
        let contents = contents_of(info, &thin);
        let new = NewDevice {
            volume: info.uuid.clone(),
            // Whoever reads JSON numbers as floating point keeps 53 bits of it.
            token: uuid::Uuid::new_v4().as_u64_pair().1 & ((1 << 53) - 1),
            mountpoint: request.mount.clone(),
            options: request.options,
        };
        let asked = request.clone();
        let attach = move |blocks: &mut BlockDevices| {
            let mut device = blocks.attach(driver, &thin, new)?;
            match mount_as_asked(&device.path(), contents, &asked) {
                Ok(made) => Ok((device, made)),
                Err(error) => {
                    if let Err(cause) = blocks.detach(&mut device) {
                        tracing::warn!("{} is left attached: {cause}", device.path().display());
                    }
                    Err(error)
                }
            }
        };
        let (device, made) = self.with_blocks(state, attach).await??;
        let attachment = Attachment {
            name: request.name,
            device: device.path(),
            link: None,
            transport: choice.transport,
            reason: choice.reason,
            file: None,
            mountpoint: request.mount,
            made,
            read_only: contents.read_only,
            direct_io: None,
            queues: device.queues(),
            notes: Vec::new(),
        };
        Ok(Attached {
            backing: Backing::Block(device),
            attachment,
        })
    }

    async fn attach_loop(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        info: &DeviceInfo,
        request: AttachRequest,
        choice: Choice,
    ) -> Result<Attached, CallError> {
        if state.mount.is_none() {
            state.mount = Some(self.start_mount(Arc::clone(&service.pool)).await?);
        }
        let Some(mount) = &state.mount else {
            unreachable!("it was made above")
        };
        let file = mount.file(&request.name);
        let contents = contents_of(info, &service.open_device(&request.name)?);
        blocking(move || loops::attach_file(request, choice, file, contents)).await?
    }

    async fn start_mount(
        &self,
        pool: Arc<Pool<FileHost>>,
    ) -> Result<FuseMount<FileHost>, CallError> {
        let (runtime_dir, pool_dir) = (self.runtime_dir.clone(), self.pool_dir.clone());
        blocking(move || {
            prepare_runtime_dir(&runtime_dir, &pool_dir)
                .map_err(|cause| CallError::io(runtime_dir.display(), &cause))?;
            FuseMount::start(pool, &runtime_dir.join("fuse")).map_err(|cause| fuse_error(&cause))
        })
        .await?
    }

    /// Unmounts what was mounted by us and takes the block device away.
    ///
    /// # Errors
    /// `NotFound` when it is not attached, `Busy` when something uses it; it stays as it was then.
    pub async fn detach(
        &self,
        service: &Arc<PoolService>,
        target: &AttachTarget,
    ) -> Result<Detached, CallError> {
        let mut state = self.state.lock().await;
        let found = self.find(&mut state, service, target).await?;
        let Some(attached) = found.and_then(|id| Some((id, state.attached.remove(&id)?))) else {
            if let AttachTarget::Name(name) = target
                && service.dir.forget_persistent(name)?
            {
                return Ok(Detached {
                    name: name.clone(),
                    device: None,
                    daemon_ends: false,
                });
            }
            let what = match target {
                AttachTarget::Name(name) => format!("{}/{name}", self.pool_dir.display()),
                AttachTarget::Device(device) => device.display().to_string(),
            };
            return Err(CallError::new(
                CallErrorKind::NotFound,
                format!("{what}: not attached"),
            ));
        };
        let (id, attached) = attached;
        let attachment = attached.attachment.clone();
        let waiting = queued_writes(service, id);
        if waiting > 0 {
            state.attached.insert(id, attached);
            let device = attachment.device.display();
            let message = format!(
                "{device}: {waiting} writes to it wait for data space: grow the pool, or delete what is not \
                 needed, first"
            );
            return Err(CallError::new(CallErrorKind::Busy, message));
        }
        if let Err((attached, error)) = self.take_away(&mut state, attached).await {
            state.attached.insert(id, attached);
            return Err(error);
        }
        let is_empty = state.attached.is_empty();
        if is_empty {
            self.emptied.notify_one();
        }
        let name = current_name(service, id, &attachment);
        service.dir.forget_persistent(&name)?;
        let daemon_ends = is_empty && self.ends_when_empty.load(Ordering::Relaxed);
        Ok(Detached {
            name,
            device: Some(attachment.device),
            daemon_ends,
        })
    }

    /// The thin id of what is attached by this name or as this block device.
    async fn find(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        target: &AttachTarget,
    ) -> Result<Option<u32>, CallError> {
        let info = match target {
            AttachTarget::Name(name) => Some(service.pool.info(name)),
            AttachTarget::Device(_) => None,
        };
        let info = info.transpose().map_err(|cause| service.failed(&cause))?;
        let is_meant = |leftover: &Leftover| match target {
            AttachTarget::Name(_) => info
                .as_ref()
                .is_some_and(|info| info.uuid == leftover.volume()),
            AttachTarget::Device(device) => leftover.path() == *device,
        };
        self.recover_waiting(state, service, is_meant).await?;
        let mut attached = state.attached.iter();
        let found = attached.find(|(id, attached)| match target {
            AttachTarget::Name(_) => info.as_ref().is_some_and(|info| info.id == **id),
            AttachTarget::Device(device) => attached.attachment.device == *device,
        });
        Ok(found.map(|(id, _)| *id))
    }

    /// Takes an attachment away, or gives it back with the reason why it stays.
    async fn take_away(
        &self,
        state: &mut State,
        attached: Attached,
    ) -> Result<(), (Attached, CallError)> {
        let (name, device) = (
            attached.attachment.name.clone(),
            attached.attachment.device.clone(),
        );
        let is_loop = matches!(attached.backing, Backing::Loop(_));
        let shared = Arc::new(parking_lot::Mutex::new(attached));
        let theirs = Arc::clone(&shared);
        let result = if is_loop {
            blocking(move || detach_device(&mut theirs.lock(), None)).await
        } else {
            let detach =
                move |blocks: &mut BlockDevices| detach_device(&mut theirs.lock(), Some(blocks));
            self.with_blocks(state, detach).await
        };
        if let Err(error) = result.and_then(|result| result) {
            let Some(attached) = Arc::into_inner(shared) else {
                unreachable!("its thread is done with it")
            };
            return Err((attached.into_inner(), error));
        }
        self.links.remove(&device);
        if is_loop && let Err(error) = self.wait_closed(state, &name).await {
            tracing::warn!("{}: {error}", device.display());
        }
        Ok(())
    }

    /// Until the kernel has closed the file, the device counts as in use.
    async fn wait_closed(&self, state: &mut State, name: &DeviceName) -> Result<(), CallError> {
        let Some(mount) = state.mount.take() else {
            return Ok(());
        };
        let name = name.clone();
        let (mount, closed) = blocking(move || {
            let closed = mount.wait_closed(&name, CLOSE_TIMEOUT);
            (mount, closed)
        })
        .await?;
        state.mount = Some(mount);
        if !closed {
            tracing::warn!("{}: a file of it is still open", self.pool_dir.display());
        }
        Ok(())
    }

    /// Says whether the daemon ends with its last attachment, for those who detach it to know.
    pub fn set_ends_when_empty(&self, ends: bool) {
        self.ends_when_empty.store(ends, Ordering::Relaxed);
    }

    /// How each device is attached; not known while that is just changing.
    pub fn transports(&self) -> Option<Vec<Transport>> {
        let state = self.state.try_lock().ok()?;
        let attached = state.attached.values();
        Some(attached.map(|one| one.attachment.transport).collect())
    }

    /// Whether nothing is attached.
    pub async fn is_empty(&self) -> bool {
        let mut state = self.state.lock().await;
        self.forget_gone(&mut state).await;
        state.attached.is_empty()
    }

    /// Detaches everything, as far as it lets go, and takes the mount away. Block devices that can wait
    /// for the next daemon are left to it if they are in use, or are to be attached by it anyway. Not so
    /// when the machine is shut down: unmounting needs a daemon, and systemd unmounts most file systems
    /// after it has ended all services. So this unmounts them as soon as nobody uses them any more, until
    /// all are, or the service manager loses patience.
    pub async fn shut_down(&self, service: &PoolService) {
        let machine_ends = blocking(systemd::machine_ends).await.unwrap_or_default();
        let mut state = self.state.lock().await;
        if machine_ends {
            // What waits for space would keep file systems from being unmounted, and nobody can give any now.
            service.pool.end_waiting();
        } else if let Some(mount) = &state.mount {
            // Loop devices cannot be left to the next daemon.
            mount.end_waiting();
        }
        let mut tries_left = SHUTDOWN_RETRIES_MAX;
        while let Some((id, attached)) = state.attached.pop_first() {
            let device = attached.attachment.device.clone();
            let mountpoint = attached.attachment.mountpoint.clone();
            let is_block = matches!(attached.backing, Backing::Block(_));
            let can_wait = is_block && !machine_ends;
            if machine_ends {
                unmount_all(&device).await;
            }
            let stays = can_wait.then(|| self.reason_to_stay(service, id, &attached.attachment));
            let result = match stays.flatten() {
                Some(reason) => Err((attached, CallError::new(CallErrorKind::Busy, reason))),
                None => self.take_away(&mut state, attached).await,
            };
            match result {
                Ok(()) => {}
                Err((attached, cause)) if can_wait => leave(attached, &cause).await,
                Err((attached, cause))
                    if machine_ends || cause.kind == CallErrorKind::Busy && tries_left > 0 =>
                {
                    if tries_left == SHUTDOWN_RETRIES_MAX {
                        tracing::warn!("waiting for {}: {cause}", device.display());
                    }
                    tries_left = tries_left.saturating_sub(1);
                    state.attached.insert(id, attached);
                    tokio::time::sleep(SHUTDOWN_RETRY_INTERVAL).await;
                }
                Err((_, cause)) => {
                    tracing::error!("{} is cut off: {cause}", device.display());
                    if let Err(cause) = blocking(move || save_contents(mountpoint.as_deref())).await
                    {
                        tracing::error!("{cause}");
                    }
                }
            }
        }
        if let Some(mut mount) = state.mount.take() {
            let unmounted =
                blocking(move || mount.unmount().map_err(|cause| fuse_error(&cause))).await;
            if let Err(cause) = unmounted.and_then(|result| result) {
                tracing::error!("{}: {cause}", self.runtime_dir.display());
            }
        }
        let left = self.with_blocks(&mut state, |blocks| blocks.leftovers());
        if left.await.is_ok_and(|left| left.is_empty()) {
            self.remove_runtime_dir();
        }
    }

    /// Why a block device that can wait for the next daemon is not even tried to be taken away.
    fn reason_to_stay(
        &self,
        service: &PoolService,
        id: u32,
        attachment: &Attachment,
    ) -> Option<&'static str> {
        // The file system on it is there again when the next daemon is.
        if is_mounted(attachment.mountpoint.as_deref()) {
            return Some("it is mounted");
        }
        if queued_writes(service, id) > 0 {
            return Some("writes to it wait for data space");
        }
        if self.ends_when_empty.load(Ordering::Relaxed) {
            return None;
        }
        let persistent = service.dir.persistent().unwrap_or_default();
        let name = current_name(service, id, attachment);
        let is_persistent = persistent.iter().any(|other| other.name == name);
        is_persistent.then_some("it is persistent")
    }

    /// What is still in use stays; the next daemon takes it over.
    fn remove_runtime_dir(&self) {
        let removed = fs::remove_dir(self.runtime_dir.join("fuse"))
            .and_then(|()| fs::remove_file(self.runtime_dir.join(POOL_LINK)))
            .and_then(|()| fs::remove_dir(&self.runtime_dir));
        if let Err(cause) = removed {
            tracing::debug!("{} stays: {cause}", self.runtime_dir.display());
        }
    }

    /// Forgets block devices that were taken away without us, by `losetup` for example.
    async fn forget_gone(&self, state: &mut State) {
        let loops = state.attached.iter().filter_map(|(id, attached)| {
            let Backing::Loop(device) = &attached.backing else {
                return None;
            };
            Some((*id, device.clone()))
        });
        let loops: Vec<_> = loops.collect();
        let gone = blocking(move || loops::gone(loops)).await;
        for id in gone.unwrap_or_default() {
            if let Some(attached) = state.attached.remove(&id) {
                self.links.remove(&attached.attachment.device);
            }
        }
        let gone = state
            .attached
            .iter()
            .filter(|(_, attached)| match &attached.backing {
                Backing::Block(device) => !device.is_there(),
                Backing::Loop(_) => false,
            });
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(attached) = state.attached.remove(&id) else {
                continue;
            };
            let device = attached.attachment.device.clone();
            tracing::warn!("{}: somebody has taken it away", device.display());
            if let Err((attached, cause)) = self.take_away(state, attached).await {
                tracing::warn!("{}: {cause}", device.display());
                state.attached.insert(id, attached);
            }
        }
    }

    /// Does something with the pool's block devices, on a thread that may wait for their driver.
    async fn with_blocks<T: Send + 'static>(
        &self,
        state: &mut State,
        job: impl FnOnce(&mut BlockDevices) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let mut blocks = match state.block_devices.take() {
            Some(blocks) => blocks,
            None => BlockDevices::open(&self.runtime_dir)?,
        };
        let (blocks, result) = blocking(move || {
            let result = job(&mut blocks);
            (blocks, result)
        })
        .await?;
        state.block_devices = Some(blocks);
        Ok(result)
    }
}

/// Unmounts what others have mounted, as far as it lets go.
async fn unmount_all(device: &Path) {
    let path = device.to_owned();
    let unmounted = blocking(move || fuse_target::unmount_all(&path)).await;
    if let Ok(Err(cause)) = unmounted {
        tracing::debug!("{}: {cause}", device.display());
    }
}

/// The name of what is attached, which may have been renamed since.
fn current_name(service: &PoolService, id: u32, attachment: &Attachment) -> DeviceName {
    let mut devices = service.pool.devices().into_iter();
    let info = devices.find(|info| info.id == id);
    info.map_or_else(|| attachment.name.clone(), |info| info.name)
}

/// Takes out the options that devices of this kind do not have, which is said; it is refused when that kind
/// was asked for.
fn fit_options(
    request: &mut AttachRequest,
    transport: Transport,
) -> Result<Vec<String>, CallError> {
    let without_use = request.options.retain_for(transport).join(", ");
    if without_use.is_empty() {
        return Ok(Vec::new());
    }
    let note = format!(
        "{without_use}: not for devices attached through {}",
        transport.name()
    );
    if request.transport.is_some() {
        return Err(CallError::invalid(note));
    }
    Ok(vec![note])
}

/// What to say when a device has not as many queues as were asked for.
fn other_queues(attachment: &Attachment, asked: Option<u16>) -> Option<String> {
    let (asked, made) = (asked?, attachment.queues.count?);
    let transport = attachment.transport.name();
    (asked != made).then(|| {
        format!("{transport} has made {made} queues instead of {asked}: that is its limit here")
    })
}

/// What there is on a device before it is attached.
fn contents_of(info: &DeviceInfo, thin: &ThinDevice<FileHost>) -> Contents {
    Contents {
        read_only: thin.read_only(),
        is_blank: info.mapped_bytes == 0 && info.external_origin.is_none(),
    }
}

/// How many writes to a device wait for data space. Whoever syncs it would wait for them.
fn queued_writes(service: &PoolService, id: u32) -> u64 {
    let devices = service.pool.devices();
    let device = devices.iter().find(|device| device.id == id);
    device.map_or(0, |device| device.queued_writes)
}

/// Leaves a block device to the next daemon.
async fn leave(attached: Attached, cause: &CallError) {
    let device = attached.attachment.device.display().to_string();
    let Backing::Block(block) = attached.backing else {
        return;
    };
    match blocking(move || block.leave()).await {
        Ok(()) => tracing::warn!(
            "{device} is left to the next daemon, and its requests wait till then: {cause}"
        ),
        Err(error) => tracing::error!("{device}: {error}"),
    }
}

/// Runs what waits for child processes or a driver on a thread that serves no requests.
async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CallError> {
    tokio::task::spawn_blocking(job).await.map_err(|cause| {
        CallError::new(CallErrorKind::Other, format!("the daemon failed: {cause}"))
    })
}

fn prepare_runtime_dir(runtime_dir: &Path, pool_dir: &Path) -> io::Result<()> {
    // Not the mountpoint itself: one left by a dead daemon answers nothing, and its mount is
    // cleared away by whoever mounts.
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(runtime_dir)?;
    match DirBuilder::new()
        .mode(0o700)
        .create(runtime_dir.join("fuse"))
    {
        Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => return Err(cause),
        _ => {}
    }
    let link = runtime_dir.join(POOL_LINK);
    match fs::remove_file(&link) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        _ => {}
    }
    symlink(pool_dir, link)
}

/// Unmounts what we mounted and takes the block device away; mounts it again if that stays.
fn detach_device(
    attached: &mut Attached,
    blocks: Option<&mut BlockDevices>,
) -> Result<(), CallError> {
    let attachment = &attached.attachment;
    let mut unmounted = None;
    if let Some(mountpoint) = &attachment.mountpoint {
        match fuse_target::unmount(mountpoint) {
            Ok(()) => unmounted = Some(mountpoint),
            // Somebody has unmounted it already.
            Err(fuse_target::Error::BadPath { .. }) => {}
            Err(cause) => return Err(fuse_error(&cause)),
        }
    }
    let detached = match (&mut attached.backing, blocks) {
        (Backing::Loop(device), _) => match device.detach() {
            Ok(()) | Err(fuse_target::Error::NotAttached { .. }) => Ok(()),
            Err(cause) => Err(fuse_error(&cause)),
        },
        (Backing::Block(device), Some(blocks)) => detach_block(device, blocks),
        (Backing::Block(_), None) => unreachable!("a block device comes with its table"),
    };
    if detached.is_err()
        && let Some(mountpoint) = unmounted
        && let Err(error) = mount_device(&attachment.device, attachment.read_only, mountpoint)
    {
        tracing::warn!("{} stays unmounted: {error}", mountpoint.display());
    }
    detached
}

fn detach_block(device: &mut BlockDevice, blocks: &mut BlockDevices) -> Result<(), CallError> {
    let path = device.path();
    // Detaching sees mounts and claims; who merely has it open is to be spared too.
    if device.is_there()
        && let Some(holder) = fuse_target::holder_of(&path).map_err(|cause| fuse_error(&cause))?
    {
        let message = format!("{} is busy: {holder}", path.display());
        return Err(CallError::new(CallErrorKind::Busy, message));
    }
    blocks.detach(device)
}

/// Whether something is mounted at a directory of ours.
fn is_mounted(mountpoint: Option<&Path>) -> bool {
    mountpoint.is_some_and(|mountpoint| fuse_target::is_mountpoint(mountpoint).unwrap_or(true))
}

/// Before a mounted device is cut off: what its file system has in memory goes to the pool.
fn save_contents(mountpoint: Option<&Path>) {
    let Some(mountpoint) = mountpoint else { return };
    let status = Command::new("sync")
        .arg("--file-system")
        .arg(mountpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !status.is_ok_and(|status| status.success()) {
        tracing::error!("{}: what was not written yet is lost", mountpoint.display());
    }
}

/// An error of mounts and loop devices as a caller sees it.
pub fn fuse_error(cause: &fuse_target::Error) -> CallError {
    let kind = match cause {
        fuse_target::Error::BadPath { .. } => CallErrorKind::Invalid,
        fuse_target::Error::NotAttached { .. } => CallErrorKind::NotFound,
        fuse_target::Error::Io { source, .. } => CallError::io("", source).kind,
        _ if cause.is_busy() => CallErrorKind::Busy,
        _ => CallErrorKind::Other,
    };
    CallError::new(kind, cause.to_string())
}
