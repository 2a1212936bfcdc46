//! The mount of one pool: its beginning, its end, and the threads in between.

use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{BackgroundSession, Config, MountOption, Session};
use pool::{DeviceName, Host, Pool};
use reactor::Background;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;
use crate::filesystem::ThinFiles;
use crate::handles::Handles;
use crate::holders;
use crate::mount_table::is_mountpoint;
use crate::program::{FUSERMOUNT, SESSION_THREAD_PREFIX, run};

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
    /// What a daemon that died left mounted there is cleared away first.
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

    /// Unmounts and ends the threads. With a file still open it is [`Error::Busy`], and everything
    /// goes on as before. Idempotent.
    pub fn unmount(&mut self) -> Result<(), Error> {
        if self.session.is_none() {
            return Ok(());
        }
        match unmount(&self.mountpoint, UnmountFlags::empty()) {
            Ok(()) => {}
            Err(error) => {
                let Some(holder) = holders::of_mount(&self.mountpoint) else {
                    return Err(error);
                };
                return Err(Error::Busy {
                    what: self.mountpoint.clone(),
                    holder,
                });
            }
        }
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
    /// Unmounts. With files still open, the directory is freed at once, and the threads go on to
    /// serve those files until the last one is closed.
    fn drop(&mut self) {
        let Err(error) = self.unmount() else { return };
        tracing::warn!("unmounting by force: {error}");
        if let Err(error) = unmount(&self.mountpoint, UnmountFlags::DETACH) {
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
    let failed = || format!("cannot mount at {}", mountpoint.display());
    let session = Session::new(files, mountpoint, &config()).map_err(Error::io(failed()))?;
    session.spawn().map_err(Error::io(failed()))
}

fn config() -> Config {
    let threads = thread::available_parallelism().map_or(THREADS_MIN, NonZero::get);
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("thinpool".to_owned()),
        MountOption::Subtype("thinpool".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
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
    let resolve = || mountpoint.canonicalize();
    let found = match resolve() {
        Err(error) if is_dead(&error) => {
            unmount(mountpoint, UnmountFlags::DETACH)?;
            tracing::info!("{}: cleared a dead mount away", mountpoint.display());
            resolve()
        }
        found => found,
    };
    let path = found.map_err(Error::io(format!("cannot use {}", mountpoint.display())))?;
    if !path.is_dir() {
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

/// Whether a path leads to a FUSE mount that nobody serves any more.
fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

/// Unmounts, through the program that may when we may not.
fn unmount(mountpoint: &Path, flags: UnmountFlags) -> Result<(), Error> {
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => {
            let mut arguments = vec![Path::new("-u")];
            if flags.contains(UnmountFlags::DETACH) {
                arguments.push(Path::new("-z"));
            }
            arguments.extend([Path::new("--"), mountpoint]);
            run(FUSERMOUNT, &arguments).map(drop)
        }
        Err(errno) => Err(Error::io(format!(
            "cannot unmount {}",
            mountpoint.display()
        ))(errno.into())),
    }
}
