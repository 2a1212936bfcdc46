//! The mount of one pool: its beginning, its end, and the threads in between.

use std::ffi::CString;
use std::fs;
use std::io;
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use pool::{DeviceName, Host, Pool};
use reactor::Background;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::Error;
use crate::filesystem::ThinFiles;
use crate::handles::Handles;
use crate::holders;
use crate::loop_device::LoopDevice;
use crate::mount_table::is_mountpoint;
use crate::program::SESSION_THREAD_PREFIX;

/// The kernel's side of every FUSE mount.
const DEVICE: &str = "/dev/fuse";

/// Session threads at least, so that one that copies or waits for a page holds up no other file.
const THREADS_MIN: usize = 2;

/// Session threads at most; each keeps a buffer of 16 MiB of address space.
const THREADS_MAX: usize = 4;

/// A pool's devices as files in a directory, until unmounted or dropped.
///
/// Only the user who mounted may use the files. A file that is open counts as a use of its device:
/// the pool refuses to remove, shrink or roll it back.
pub struct FuseMount<H: Host> {
    mountpoint: PathBuf,
    handles: Arc<Handles<H>>,
    /// None once unmounted.
    session: Option<BackgroundSession>,
}

impl<H: Host> FuseMount<H> {
    /// Mounts the pool's devices at `mountpoint`, an existing directory where nothing is mounted.
    /// What a daemon that died left there is cleared away first, its loop devices too; while one
    /// of those is in use, mounted for example, this is [`Error::Busy`]. Needs `CAP_SYS_ADMIN`.
    ///
    /// Blocks, and so does every other method here that returns a result: call them on threads for
    /// blocking work.
    pub fn start(pool: Arc<Pool<H>>, mountpoint: &Path) -> Result<FuseMount<H>, Error> {
        let mountpoint = usable_mountpoint(mountpoint)?;
        let handles = Arc::new(Handles::default());
        let session = {
            let (mountpoint, handles) = (mountpoint.clone(), Arc::clone(&handles));
            // The mark that the threads need is inherited, and nobody else's threads may have it.
            let starter = thread::Builder::new()
                .name("fuse-start".to_owned())
                .spawn(move || start_session(pool, handles, &mountpoint))
                .map_err(Error::io("cannot start a thread"))?;
            let Ok(session) = starter.join() else {
                unreachable!("starting a session panicked")
            };
            session?
        };
        Ok(FuseMount {
            mountpoint,
            handles,
            session: Some(session),
        })
    }

    /// Where the files are: as given to [`FuseMount::start`], but without symbolic links.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// The path of a device's file, whether or not there is such a device.
    pub fn file(&self, name: &DeviceName) -> PathBuf {
        self.mountpoint.join(name.to_string())
    }

    /// Waits until the device's file is open no more; false when it still is after `timeout`.
    ///
    /// The kernel tells us of a closed file some time after `close` returned, and so after a loop
    /// device was detached: who wants to remove the device next, waits here first.
    pub fn wait_closed(&self, name: &DeviceName, timeout: Duration) -> bool {
        self.handles.wait_closed(name, timeout)
    }

    /// Has writes to files that are open now wait no longer for data space, so that they fail.
    pub fn end_waiting(&self) {
        self.handles.end_waiting();
    }

    /// Unmounts and ends the threads. With a file still open it is [`Error::Busy`], and everything
    /// goes on as before. Idempotent.
    pub fn unmount(&mut self) -> Result<(), Error> {
        if self.session.is_none() {
            return Ok(());
        }
        unmount_unused(&self.mountpoint)?;
        let Some(session) = self.session.take() else {
            unreachable!("it was there above")
        };
        session.umount_and_join().map_err(Error::io(format!(
            "serving {} failed",
            self.mountpoint.display()
        )))
    }
}

impl<H: Host> Drop for FuseMount<H> {
    /// Unmounts. Where that cannot be, the threads go on to serve as long as the process lives.
    /// With files open in processes, the directory is freed at once; with loop devices attached it
    /// stays mounted, since they are found again by their path only.
    fn drop(&mut self) {
        let Err(error) = self.unmount() else { return };
        if holders::loops_on(&self.mountpoint).is_empty() {
            tracing::warn!("unmounting by force: {error}");
            if let Err(error) = unmount(&self.mountpoint, UnmountFlags::DETACH) {
                tracing::warn!("it is left mounted: {error}");
            }
        } else {
            tracing::warn!("it is left mounted: {error}");
        }
    }
}

fn start_session<H: Host>(
    pool: Arc<Pool<H>>,
    handles: Arc<Handles<H>>,
    mountpoint: &Path,
) -> Result<BackgroundSession, Error> {
    if let Err(error) = rustix::process::configure_io_flusher_behavior(true) {
        tracing::warn!("file systems on top may lock up when memory is short: {error}");
    }
    let background =
        Background::start("fuse-background").map_err(Error::io("cannot start a thread"))?;
    let files = ThinFiles::new(pool, handles, background);
    let connection = mount(mountpoint)?;
    let session = Session::from_fd(files, connection, SessionACL::Owner, config());
    session.and_then(Session::spawn).map_err(|source| {
        if let Err(error) = unmount(mountpoint, UnmountFlags::DETACH) {
            tracing::warn!("it is left mounted: {error}");
        }
        Error::io(format!("cannot serve {}", mountpoint.display()))(source)
    })
}

/// Mounts a new connection to the kernel, to be served.
///
/// The session does not do this for us, since it would also unmount, once more, when its last
/// thread ends: by path, and so perhaps a mount that somebody made there in the meantime.
fn mount(mountpoint: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let connection = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|errno| {
        let what = format!("cannot open {DEVICE} (is the kernel module fuse loaded?)");
        Error::io(what)(errno.into())
    })?;
    let options = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        connection.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let Ok(options) = CString::new(options) else {
        unreachable!("numbers contain no zero byte")
    };
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NOATIME;
    rustix::mount::mount(
        "thinpool",
        mountpoint,
        "fuse.thinpool",
        flags,
        options.as_c_str(),
    )
    .map_err(|errno| {
        Error::io(format!("cannot mount at {}", mountpoint.display()))(errno.into())
    })?;
    Ok(connection)
}

fn config() -> Config {
    let threads = thread::available_parallelism().map_or(THREADS_MIN, NonZero::get);
    let mut config = Config::default();
    config.n_threads = Some(threads.clamp(THREADS_MIN, THREADS_MAX));
    config.clone_fd = true;
    config
}

/// The directory without symbolic links, after clearing away a dead mount.
fn usable_mountpoint(mountpoint: &Path) -> Result<PathBuf, Error> {
    debug_assert!(
        !thread::current()
            .name()
            .is_some_and(|name| name.starts_with(SESSION_THREAD_PREFIX)),
        "a session thread would wait for itself"
    );
    // Resolving a path asks a mount nothing, hence does not notice that it is dead.
    let look = || fs::metadata(mountpoint);
    let found = match look() {
        Err(error) if is_dead(&error) => {
            clear_dead_mount(mountpoint)?;
            look()
        }
        found => found,
    };
    let failed = || Error::io(format!("cannot use {}", mountpoint.display()));
    let metadata = found.map_err(failed())?;
    let path = mountpoint.canonicalize().map_err(failed())?;
    if !metadata.is_dir() {
        return Err(Error::BadPath {
            path,
            reason: "it is not a directory",
        });
    }
    if is_mountpoint(&path)? {
        let holder = "something is mounted there already".to_owned();
        return Err(Error::Busy { what: path, holder });
    }
    Ok(path)
}

/// Unmounts what nobody serves any more. Loop devices on its files report errors for good, and
/// would lose the path by which to find them, so they go first; one that is in use stops it all.
fn clear_dead_mount(mountpoint: &Path) -> Result<(), Error> {
    let failed = Error::io(format!("cannot use {}", mountpoint.display()));
    let path = mountpoint.canonicalize().map_err(failed)?;
    for (_, file) in holders::loops_on(&path) {
        if let Some(device) = LoopDevice::find(&file)? {
            device.detach()?;
            tracing::info!("{}: detached, its daemon had died", device.path().display());
        }
    }
    unmount(&path, UnmountFlags::DETACH)?;
    tracing::info!("{}: cleared a dead mount away", path.display());
    Ok(())
}

/// Whether a path leads to a FUSE mount that nobody serves any more.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

/// Unmounts what is not in use; a file that is open for no longer than a glance takes is waited
/// for. Such is also every file of ours in a child between its `fork` and its `exec`.
fn unmount_unused(mountpoint: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + holders::GLANCE_TIMEOUT;
    loop {
        let Err(error) = unmount(mountpoint, UnmountFlags::empty()) else {
            return Ok(());
        };
        let passing = is_busy(&error) && holders::loops_on(mountpoint).is_empty();
        if !passing || Instant::now() > deadline {
            let Some(holder) = holders::of_mount(mountpoint) else {
                return Err(error);
            };
            return Err(Error::Busy {
                what: mountpoint.to_owned(),
                holder,
            });
        }
        thread::sleep(holders::GLANCE_POLL_INTERVAL);
    }
}

fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
}

fn unmount(mountpoint: &Path, flags: UnmountFlags) -> Result<(), Error> {
    rustix::mount::unmount(mountpoint, flags).map_err(|errno| {
        Error::io(format!("cannot unmount {}", mountpoint.display()))(errno.into())
    })
}
