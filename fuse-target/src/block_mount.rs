//! File systems on block devices, through the programs `mount` and `umount`.
//!
//! Both block until the program ends, and the program's requests may come to this process: see
//! the crate's page on which threads may call them. The directory itself is never asked anything
//! here, since it may lie on a file system of ours.

use std::ffi::OsStr;
use std::path::Path;

use crate::error::Error;
use crate::holders;
use crate::mount_table::is_mountpoint;
use crate::program::{MOUNT, UMOUNT, run};

/// Mounts the file system on `device` at `directory`, which must exist; the kernel finds out its
/// type. `options` are those of `mount -o`, such as `ro`. Refused with [`Error::Busy`] when
/// something is mounted at the directory, or the device is mounted or stacked upon.
///
/// A snapshot of a mounted ext4 needs its journal replayed, which a read-only device cannot:
/// either mount a clone of it, or pass `ro` and `norecovery` and see it as it was on disk.
pub fn mount(device: &Path, directory: &Path, options: &[&str]) -> Result<(), Error> {
    check_directory(directory)?;
    if is_mountpoint(directory)? {
        let holder = "something is mounted there already".to_owned();
        return Err(Error::Busy {
            what: directory.to_owned(),
            holder,
        });
    }
    if let Some(holder) = holders::of_block_device(device)? {
        return Err(Error::Busy {
            what: device.to_owned(),
            holder,
        });
    }
    let options = options.join(",");
    let mut arguments: Vec<&OsStr> = Vec::new();
    if !options.is_empty() {
        arguments.push("-o".as_ref());
        arguments.push(options.as_ref());
    }
    arguments.push(device.as_ref());
    arguments.push(directory.as_ref());
    run(MOUNT, &arguments).map(drop)
}

/// Unmounts what is mounted at `directory`. Refused when it is in use; nothing is ever detached
/// lazily, as the device below would stay busy unseen.
pub fn unmount(directory: &Path) -> Result<(), Error> {
    check_directory(directory)?;
    if !is_mountpoint(directory)? {
        let reason = "nothing is mounted there";
        return Err(Error::BadPath {
            path: directory.to_owned(),
            reason,
        });
    }
    match run(UMOUNT, &[directory]) {
        Ok(_) => Ok(()),
        Err(error) => match holders::of_mount(directory) {
            Some(holder) => Err(Error::Busy {
                what: directory.to_owned(),
                holder,
            }),
            None => Err(error),
        },
    }
}

/// Unmounts a block device wherever it is mounted; refused as [`unmount`] is.
pub fn unmount_all(device: &Path) -> Result<(), Error> {
    for mountpoint in holders::mountpoints_of(device)? {
        unmount(&mountpoint)?;
    }
    Ok(())
}

fn check_directory(directory: &Path) -> Result<(), Error> {
    if directory.is_absolute() {
        return Ok(());
    }
    Err(Error::BadPath {
        path: directory.to_owned(),
        reason: "it is not absolute",
    })
}
