//! Who uses a block device or a mount, so that "busy" can be answered with a name.
//!
//! Everything is read from `/proc` and `/sys`: no device is opened and no file system asked. What
//! belongs to other users or namespaces may stay unseen, hence finding no holder proves nothing.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::mount_table::{mounts_of, own_mounts};

/// How long a process may have a device open without counting as its user: udev, blkid and other
/// calls of losetup look at every block device there is.
pub(crate) const GLANCE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often such a process is looked for meanwhile.
pub(crate) const GLANCE_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Who uses the block device `/dev/NAME`: a mount, a device stacked on it, swap, or a process that
/// has it open for longer than a glance takes.
pub fn of_block_device(device: &Path) -> Result<Option<String>, Error> {
    let deadline = Instant::now() + GLANCE_TIMEOUT;
    loop {
        if let Some(holder) = for_good(device)? {
            return Ok(Some(holder));
        }
        match opener(|target| target == device) {
            None => return Ok(None),
            Some(process) if Instant::now() > deadline => {
                return Ok(Some(format!("open in {process}")));
            }
            Some(_) => thread::sleep(GLANCE_POLL_INTERVAL),
        }
    }
}

/// Where this process sees the block device mounted, the last mount first.
pub(crate) fn mountpoints_of(device: &Path) -> Result<Vec<PathBuf>, Error> {
    let number = device_number(&sys_directory(device)?)?;
    let mut mounts = own_mounts()?;
    mounts.retain(|entry| entry.device_number == number);
    Ok(mounts
        .into_iter()
        .rev()
        .map(|entry| entry.mountpoint)
        .collect())
}

fn sys_directory(device: &Path) -> Result<PathBuf, Error> {
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else {
        return Err(Error::BadPath {
            path: device.to_owned(),
            reason: "it is no block device",
        });
    };
    Ok(Path::new("/sys/class/block").join(name))
}

fn device_number(sys: &Path) -> Result<String, Error> {
    let path = sys.join("dev");
    let number =
        fs::read_to_string(&path).map_err(Error::io(format!("cannot read {}", path.display())))?;
    Ok(number.trim().to_owned())
}

/// A user of a block device that does not leave by itself.
fn for_good(device: &Path) -> Result<Option<String>, Error> {
    let sys = sys_directory(device)?;
    let number = device_number(&sys)?;
    let mounted = own_mounts()?
        .into_iter()
        .find(|entry| entry.device_number == number);
    if let Some(entry) = mounted {
        return Ok(Some(format!("mounted at {}", entry.mountpoint.display())));
    }
    if let Some(stacked) = first_entry(&sys.join("holders")) {
        return Ok(Some(format!("used by block device {stacked}")));
    }
    // The kernel does not list a loop device among the holders.
    let mut loops = loop_backings().into_iter();
    if let Some((above, _)) = loops.find(|(_, below)| below == device) {
        return Ok(Some(format!("used by block device {}", above.display())));
    }
    if is_swap(device) {
        return Ok(Some("used as swap space".to_owned()));
    }
    Ok(mount_elsewhere(&number))
}

/// Who holds a file in the mount at `directory` open: a loop device or a process.
pub(crate) fn of_mount(directory: &Path) -> Option<String> {
    if let Some((device, file)) = loops_on(directory).first() {
        return Some(format!(
            "{} is attached as {}",
            file.display(),
            device.display()
        ));
    }
    let inside = |target: &Path| target.starts_with(directory);
    opener(inside).map(|process| format!("open in {process}"))
}

/// The loop devices attached to files in the mount at `directory`, each with its file.
pub(crate) fn loops_on(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = loop_backings();
    found.retain(|(_, file)| file.starts_with(directory));
    found
}

/// Every attached loop device and the file below it, sorted by device.
pub(crate) fn loop_backings() -> Vec<(PathBuf, PathBuf)> {
    let mut found: Vec<_> = names_in(Path::new("/sys/block"))
        .into_iter()
        .filter(|name| name.starts_with("loop"))
        .filter_map(|name| Some((Path::new("/dev").join(&name), loop_backing(&name)?)))
        .collect();
    found.sort();
    found
}

/// The file below the loop device of this name, `loop0`; none when it is not attached.
pub(crate) fn loop_backing(name: &str) -> Option<PathBuf> {
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let text = fs::read_to_string(backing).ok()?;
    Some(PathBuf::from(text.strip_suffix('\n').unwrap_or(&text)))
}

fn names_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn first_entry(directory: &Path) -> Option<String> {
    names_in(directory).into_iter().min()
}

fn is_swap(device: &Path) -> bool {
    let Ok(swaps) = fs::read_to_string("/proc/swaps") else {
        return false;
    };
    swaps
        .lines()
        .any(|line| line.split_whitespace().next().map(Path::new) == Some(device))
}

/// The first process with an open file, working directory or root for which `wanted` holds.
fn opener(wanted: impl Fn(&Path) -> bool) -> Option<String> {
    processes().into_iter().find_map(|process| {
        let mut links = vec![process.join("cwd"), process.join("root")];
        let open = process.join("fd");
        links.extend(names_in(&open).into_iter().map(|fd| open.join(fd)));
        let holds = links
            .iter()
            .any(|link| fs::read_link(link).is_ok_and(|to| wanted(&to)));
        holds.then(|| describe(&process))
    })
}

/// Where a device is mounted in another process's mount namespace.
fn mount_elsewhere(number: &str) -> Option<String> {
    let mut seen = HashSet::new();
    processes().into_iter().find_map(|process| {
        let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
        if !seen.insert(namespace) {
            return None;
        }
        let mounts = mounts_of(&process.join("mountinfo")).ok()?;
        let entry = mounts
            .into_iter()
            .find(|entry| entry.device_number == number)?;
        let place = entry.mountpoint.display();
        Some(format!(
            "mounted at {place} in the mount namespace of {}",
            describe(&process)
        ))
    })
}

fn processes() -> Vec<PathBuf> {
    let names = names_in(Path::new("/proc"));
    let numbers = names
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    numbers.map(|name| Path::new("/proc").join(name)).collect()
}

fn describe(process: &Path) -> String {
    let id = process
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    format!("process {id} ({})", name.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_names_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        assert_eq!(of_mount(&path), None);
        let file = fs::File::create(path.join("held")).unwrap();
        let holder = of_mount(&path).unwrap();
        assert!(
            holder.contains(&format!("process {}", std::process::id())),
            "{holder}"
        );
        drop(file);
        assert_eq!(of_mount(&path), None);
    }

    #[test]
    fn a_missing_device_is_an_error() {
        assert!(of_block_device(Path::new("/dev/no-such-device")).is_err());
        assert_eq!(loop_backing("no-such-device"), None);
    }
}
