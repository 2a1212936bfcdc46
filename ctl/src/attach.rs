//! Attachments: devices of a pool that are local block devices, kept by the daemon.
//!
//! All of a pool's files are in one FUSE mount, `RUNTIME/UUID/fuse`, made with the first attachment;
//! `RUNTIME/UUID/pool` leads back to the pool's directory. Loop devices and mounts are the work of
//! child processes, which end in requests to this very process; so they are awaited on threads that
//! serve none, and nothing here looks at a path below the mount.

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
use pool::{DeviceName, Pool};
use reactor::FileHost;
use tokio::sync::{Mutex, Notify};

use crate::pool_dir::PoolDir;
use crate::protocol::{AttachTarget, Attachment, CallError, CallErrorKind, Detached};
use crate::service::PoolService;

/// Where mounts are, unless `THINPOOL_RUNTIME_DIR` says otherwise.
const DEFAULT_RUNTIME_DIR: &str = "/run/thinpool";

/// How long the kernel may take to close the file of a loop device that is gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and how many times, a busy attachment is tried again when the daemon ends.
const SHUTDOWN_RETRY_INTERVAL: Duration = Duration::from_millis(250);
const SHUTDOWN_RETRIES_MAX: u32 = 20;

/// The link from a pool's runtime directory to the pool.
pub const POOL_LINK: &str = "pool";

/// Where the runtime things of a pool are.
pub fn runtime_dir(dir: &PoolDir) -> PathBuf {
    let root = env::var_os("THINPOOL_RUNTIME_DIR");
    let root = root.map_or_else(|| DEFAULT_RUNTIME_DIR.into(), PathBuf::from);
    // The kernel tells of a loop device's file without symbolic links; so must we.
    root.canonicalize().unwrap_or(root).join(&dir.config.uuid)
}

/// The file that shows a device, without asking the file system.
pub fn device_file(dir: &PoolDir, name: &DeviceName) -> PathBuf {
    runtime_dir(dir).join("fuse").join(name.to_string())
}

/// A pool's attachments.
pub struct Attachments {
    runtime_dir: PathBuf,
    pool_dir: PathBuf,
    /// Held through a whole attach or detach: they come one after the other.
    state: Mutex<State>,
    ends_when_empty: AtomicBool,
    /// Rung when an attach or detach left nothing attached.
    pub emptied: Notify,
}

#[derive(Default)]
struct State {
    mount: Option<FuseMount<FileHost>>,
    /// By thin id, which renaming does not change.
    attached: BTreeMap<u32, Attached>,
}

#[derive(Clone)]
struct Attached {
    device: LoopDevice,
    attachment: Attachment,
}

impl Attachments {
    /// None so far.
    pub fn new(dir: &PoolDir) -> Self {
        Attachments {
            runtime_dir: runtime_dir(dir),
            pool_dir: dir.path.clone(),
            state: Mutex::default(),
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
        name: &DeviceName,
        mountpoint: Option<PathBuf>,
    ) -> Result<Attachment, CallError> {
        let mut state = self.state.lock().await;
        forget_gone(&mut state).await;
        let result = self
            .attach_with(&mut state, service, name, mountpoint)
            .await;
        if state.attached.is_empty() {
            self.emptied.notify_one();
        }
        result
    }

    async fn attach_with(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        name: &DeviceName,
        mountpoint: Option<PathBuf>,
    ) -> Result<Attachment, CallError> {
        let info = service
            .pool
            .info(name)
            .map_err(|cause| service.failed(&cause))?;
        if let Some(present) = state.attached.get(&info.id) {
            let message = format!(
                "{}/{name}: already attached as {}",
                self.pool_dir.display(),
                present.attachment.device.display()
            );
            return Err(CallError::new(CallErrorKind::Exists, message));
        }
        if state.mount.is_none() {
            state.mount = Some(self.start_mount(Arc::clone(&service.pool)).await?);
        }
        let Some(mount) = &state.mount else {
            unreachable!("it was made above")
        };
        let file = mount.file(name);
        let read_only = service.open_device(name)?.read_only();
        let name = name.clone();
        let attached = blocking(move || attach_file(name, file, read_only, mountpoint)).await??;
        let attachment = attached.attachment.clone();
        state.attached.insert(info.id, attached);
        Ok(attachment)
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
        service: &PoolService,
        target: &AttachTarget,
    ) -> Result<Detached, CallError> {
        let mut state = self.state.lock().await;
        let found = match target {
            AttachTarget::Name(name) => {
                let info = service
                    .pool
                    .info(name)
                    .map_err(|cause| service.failed(&cause))?;
                state.attached.get_key_value(&info.id)
            }
            AttachTarget::Device(device) => state
                .attached
                .iter()
                .find(|(_, attached)| attached.attachment.device == *device),
        };
        let Some((id, attached)) = found.map(|(id, attached)| (*id, attached.clone())) else {
            let what = match target {
                AttachTarget::Name(name) => format!("{}/{name}", self.pool_dir.display()),
                AttachTarget::Device(device) => device.display().to_string(),
            };
            return Err(CallError::new(
                CallErrorKind::NotFound,
                format!("{what}: not attached"),
            ));
        };
        let attachment = attached.attachment.clone();
        blocking(move || detach_device(&attached)).await??;
        state.attached.remove(&id);
        self.wait_closed(&mut state, &attachment.name).await?;
        let is_empty = state.attached.is_empty();
        if is_empty {
            self.emptied.notify_one();
        }
        let daemon_ends = is_empty && self.ends_when_empty.load(Ordering::Relaxed);
        Ok(Detached {
            name: attachment.name,
            device: attachment.device,
            daemon_ends,
        })
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

    /// Whether nothing is attached.
    pub async fn is_empty(&self) -> bool {
        let mut state = self.state.lock().await;
        forget_gone(&mut state).await;
        state.attached.is_empty()
    }

    /// Detaches everything, as far as it lets go, and takes the mount away.
    pub async fn shut_down(&self) {
        let mut state = self.state.lock().await;
        let mut tries_left = SHUTDOWN_RETRIES_MAX;
        while let Some((id, attached)) = state.attached.pop_first() {
            let again = attached.clone();
            match blocking(move || detach_device(&again))
                .await
                .and_then(|result| result)
            {
                Ok(()) => {}
                Err(cause) if cause.kind == CallErrorKind::Busy && tries_left > 0 => {
                    if tries_left == SHUTDOWN_RETRIES_MAX {
                        tracing::warn!(
                            "waiting for {}: {cause}",
                            attached.attachment.device.display()
                        );
                    }
                    tries_left -= 1;
                    state.attached.insert(id, attached);
                    tokio::time::sleep(SHUTDOWN_RETRY_INTERVAL).await;
                }
                Err(cause) => {
                    tracing::error!(
                        "{} is cut off: {cause}",
                        attached.attachment.device.display()
                    );
                    let mountpoint = attached.attachment.mountpoint;
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
            self.remove_runtime_dir();
        }
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
}

/// Forgets block devices that were taken away without us, by `losetup` for example.
async fn forget_gone(state: &mut State) {
    let present = state.attached.clone();
    let still_there = move || {
        let is_there = |attached: &Attached| {
            let found = LoopDevice::find(attached.device.file());
            // Where that cannot be seen, it is taken to be there.
            found.map_or(true, |found| found.as_ref() == Some(&attached.device))
        };
        present
            .into_iter()
            .filter(|(_, attached)| is_there(attached))
            .collect()
    };
    if let Ok(attached) = blocking(still_there).await {
        state.attached = attached;
    }
}

/// Runs what waits for child processes on a thread that serves no requests.
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

fn attach_file(
    name: DeviceName,
    file: PathBuf,
    read_only: bool,
    mountpoint: Option<PathBuf>,
) -> Result<Attached, CallError> {
    let device = LoopDevice::attach(&file, read_only).map_err(|cause| fuse_error(&cause))?;
    if let Some(mountpoint) = &mountpoint
        && let Err(error) = mount_device(&device, mountpoint)
    {
        if let Err(cause) = device.detach() {
            tracing::warn!("{} is left attached: {cause}", device.path().display());
        }
        return Err(error);
    }
    let attachment = Attachment {
        name,
        device: device.path().to_owned(),
        transport: "fuse".to_owned(),
        file,
        mountpoint,
        read_only,
        direct_io: device.direct_io(),
    };
    Ok(Attached { device, attachment })
}

fn mount_device(device: &LoopDevice, mountpoint: &Path) -> Result<(), CallError> {
    let options: &[&str] = if device.read_only() { &["ro"] } else { &[] };
    fuse_target::mount(device.path(), mountpoint, options).map_err(|cause| {
        let error = fuse_error(&cause);
        if device.read_only() && error.kind != CallErrorKind::Busy {
            // Most often a journal that wants to be replayed.
            let message = format!(
                "{error}; a clone of it can be mounted even when its journal must be replayed"
            );
            return CallError::new(error.kind, message);
        }
        error
    })
}

fn detach_device(attached: &Attached) -> Result<(), CallError> {
    let mut unmounted = None;
    if let Some(mountpoint) = &attached.attachment.mountpoint {
        match fuse_target::unmount(mountpoint) {
            Ok(()) => unmounted = Some(mountpoint),
            // Somebody has unmounted it already.
            Err(fuse_target::Error::BadPath { .. }) => {}
            Err(cause) => return Err(fuse_error(&cause)),
        }
    }
    match attached.device.detach() {
        Ok(()) | Err(fuse_target::Error::NotAttached { .. }) => Ok(()),
        Err(cause) => {
            if let Some(mountpoint) = unmounted
                && let Err(error) = mount_device(&attached.device, mountpoint)
            {
                tracing::warn!("{} stays unmounted: {error}", mountpoint.display());
            }
            Err(fuse_error(&cause))
        }
    }
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
