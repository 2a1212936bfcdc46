//! A file as a block device, through the kernel's loop driver and the program `losetup`.
//!
//! A [`LoopDevice`] is a fact, not a guard: dropping it leaves the device attached, since a device
//! handed to a user outlives the request that made it. An attach that fails leaves none behind.
//!
//! `losetup -d` answers success for a busy device and only marks it to go with its last user.
//! [`LoopDevice::detach`] therefore looks for users first, and afterwards for the device itself.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::Error;
use crate::holders;
use crate::program::{LOSETUP, STAT, run};

/// How long a device may take to go away: something like udev may have it open for a moment.
const DETACH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked for meanwhile.
const DETACH_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Held while a device is looked for and then attached, so that two calls do not both find none.
static ATTACHING: Mutex<()> = Mutex::new(());

/// How to attach a file.
#[derive(Clone, Copy, Debug)]
pub struct LoopOptions {
    /// Refuse writes. Required for files that cannot be written.
    pub read_only: bool,
    /// Logical sector size in bytes: 512, 1024, 2048 or 4096. A file system made on a device with
    /// larger sectors needs at least as large ones.
    pub sector_size: u32,
}

impl Default for LoopOptions {
    fn default() -> Self {
        LoopOptions {
            read_only: false,
            sector_size: 512,
        }
    }
}

/// An attached loop device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
    direct_io: bool,
    read_only: bool,
}

impl LoopDevice {
    /// Attaches `file`, an absolute path without symbolic links, with 512-byte sectors. Fails with
    /// [`Error::Attached`] when it is attached already: two devices on one file would each cache
    /// it and destroy each other's file system.
    pub fn attach(file: &Path, read_only: bool) -> Result<LoopDevice, Error> {
        Self::attach_with(
            file,
            LoopOptions {
                read_only,
                ..LoopOptions::default()
            },
        )
    }

    /// As [`LoopDevice::attach`], with options.
    pub fn attach_with(file: &Path, options: LoopOptions) -> Result<LoopDevice, Error> {
        if !file.is_absolute() {
            return Err(Error::BadPath {
                path: file.to_owned(),
                reason: "it is not absolute",
            });
        }
        let _attaching = ATTACHING.lock();
        if let Some(device) = Self::find(file)? {
            return Err(Error::Attached {
                file: file.to_owned(),
                device: device.path,
            });
        }
        let result = match losetup(file, options, true) {
            Err(Error::Program { .. }) => losetup(file, options, false),
            other => other,
        };
        result
            .and_then(|path| Self::verify(path, file, options))
            .inspect_err(|_| discard(file))
    }

    /// Checks that the new device is what was asked for.
    fn verify(path: PathBuf, file: &Path, options: LoopOptions) -> Result<LoopDevice, Error> {
        let found = Self::find(file)?;
        let Some(device) = found.filter(|device| device.path == path) else {
            return Err(Error::NotAttached {
                device: path,
                file: file.to_owned(),
            });
        };
        if device.read_only != options.read_only {
            let reason = "it was attached, but may not be written as asked";
            return Err(Error::BadPath {
                path: file.to_owned(),
                reason,
            });
        }
        Ok(device)
    }

    /// The device `file` is attached as. The file is not looked at, so it may belong to a mount
    /// whose daemon has died.
    pub fn find(file: &Path) -> Result<Option<LoopDevice>, Error> {
        let backings = holders::loop_backings();
        let Some((path, _)) = backings.into_iter().find(|(_, backing)| backing == file) else {
            return Ok(None);
        };
        let sys = sys_folder(&path)?;
        let direct_io = read_flag(&sys.join("loop/dio"))?;
        let read_only = read_flag(&sys.join("ro"))?;
        Ok(Some(LoopDevice {
            path,
            file: file.to_owned(),
            direct_io,
            read_only,
        }))
    }

    /// Detaches it, and returns once it is gone. [`Error::Busy`] when something uses it; it stays
    /// attached then. A user that came during the call keeps the device until it leaves, which is
    /// [`Error::Busy`] too.
    pub fn detach(&self) -> Result<(), Error> {
        if !self.is_attached() {
            let (device, file) = (self.path.clone(), self.file.clone());
            return Err(Error::NotAttached { device, file });
        }
        if let Some(holder) = holders::of_block_device(&self.path)? {
            return Err(Error::Busy {
                what: self.path.clone(),
                holder,
            });
        }
        run(LOSETUP, &[Path::new("--detach"), &self.path])?;
        let deadline = Instant::now() + DETACH_TIMEOUT;
        while self.is_attached() {
            if Instant::now() > deadline {
                let holder = holders::of_block_device(&self.path)?;
                let holder = holder.unwrap_or_else(|| "its user cannot be seen".to_owned());
                return Err(Error::Busy {
                    what: self.path.clone(),
                    holder,
                });
            }
            thread::sleep(DETACH_POLL_INTERVAL);
        }
        Ok(())
    }

    /// Gives it the size that its file has now.
    pub fn follow_size(&self) -> Result<(), Error> {
        // The driver goes by the size that the kernel remembers of the file; to be asked for it, it asks us.
        let file = [OsStr::new("--format=%s"), self.file.as_os_str()];
        run(STAT, &file)?;
        run(LOSETUP, &[Path::new("--set-capacity"), &self.path])?;
        Ok(())
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file below it.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it passes the page cache of the file by. If not, the kernel refused direct I/O:
    /// everything works, but twice the memory is used.
    pub fn direct_io(&self) -> bool {
        self.direct_io
    }

    /// Whether it refuses writes.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    fn is_attached(&self) -> bool {
        let name = self.path.file_name().and_then(|name| name.to_str());
        name.and_then(holders::loop_backing)
            .is_some_and(|backing| backing == self.file)
    }
}

/// Runs `losetup` and returns the path of the device it made.
fn losetup(file: &Path, options: LoopOptions, direct_io: bool) -> Result<PathBuf, Error> {
    let sector_size = format!("--sector-size={}", options.sector_size);
    let mut arguments: Vec<&OsStr> = vec!["--find".as_ref(), "--show".as_ref()];
    arguments.push(sector_size.as_ref());
    if direct_io {
        arguments.push("--direct-io=on".as_ref());
    }
    if options.read_only {
        arguments.push("--read-only".as_ref());
    }
    arguments.push(file.as_ref());
    let printed = run(LOSETUP, &arguments)?;
    Ok(PathBuf::from(printed.trim_end_matches('\n')))
}

/// Detaches what a failed attach may have left. The attach's own error matters more.
fn discard(file: &Path) {
    match LoopDevice::find(file) {
        Ok(None) => {}
        Ok(Some(device)) => {
            if let Err(error) = device.detach() {
                tracing::warn!("{} was left attached: {error}", device.path.display());
            }
        }
        Err(error) => tracing::warn!("cannot look for loop devices: {error}"),
    }
}

fn sys_folder(device: &Path) -> Result<PathBuf, Error> {
    match device.file_name() {
        Some(name) => Ok(Path::new("/sys/block").join(name)),
        None => Err(Error::BadPath {
            path: device.to_owned(),
            reason: "it is no block device",
        }),
    }
}

fn read_flag(path: &Path) -> Result<bool, Error> {
    let text =
        fs::read_to_string(path).map_err(Error::io(format!("cannot read {}", path.display())))?;
    Ok(text.trim() == "1")
}
