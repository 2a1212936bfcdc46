//! `/dev/thin/POOL/VOL`, which leads to the block device of an attached volume or snapshot.
//!
//! POOL is the last component of the pool's directory. The links are a convenience: what cannot be
//! made is told in the log and nothing more, and a link that leads to somebody else's block device stays
//! as it is.

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use pool::DeviceName;

/// Where the links are, unless `THINPOOL_LINK_DIR` says otherwise.
const DEFAULT_LINK_DIR: &str = "/dev/thin";

/// The links of one pool.
pub struct Links {
    directory: PathBuf,
}

impl Links {
    /// The links of the pool with this label.
    pub fn of_pool(label: &str) -> Self {
        let root = env::var_os("THINPOOL_LINK_DIR");
        let root = root.map_or_else(|| DEFAULT_LINK_DIR.into(), PathBuf::from);
        Links {
            directory: root.join(label),
        }
    }

    /// Makes the device's name lead to its block device, and no other name of the pool. None when it
    /// cannot be.
    pub fn make(&self, name: &DeviceName, device: &Path) -> Option<PathBuf> {
        let link = self.directory.join(name.to_string());
        match self.try_make(&link, device) {
            Ok(()) => Some(link),
            Err(cause) => {
                tracing::warn!("{}: {cause}", link.display());
                None
            }
        }
    }

    fn try_make(&self, link: &Path, device: &Path) -> io::Result<()> {
        // Which may take the directory with it.
        self.remove(device);
        fs::create_dir_all(&self.directory)?;
        match fs::read_link(link) {
            Ok(other) if is_device(&other) => {
                let text = format!("it leads to {} already", other.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Ok(_) => fs::remove_file(link)?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        symlink(device, link)
    }

    /// Removes what leads to this block device, and the pool's directory with its last link.
    pub fn remove(&self, device: &Path) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let links = entries.filter_map(|entry| Some(entry.ok()?.path()));
        for link in links.filter(|link| fs::read_link(link).is_ok_and(|to| to == device)) {
            if let Err(cause) = fs::remove_file(&link) {
                tracing::warn!("{}: {cause}", link.display());
            }
        }
        // Not empty, most likely.
        let _ = fs::remove_dir(&self.directory);
    }

    /// Removes links to block devices that are no more, which a daemon that died has left.
    pub fn clear(&self) {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        for device in targets
            .filter(|device| !is_device(device))
            .collect::<Vec<_>>()
        {
            self.remove(&device);
        }
    }
}

/// Whether a block device is one: the nodes of loop and NBD devices stay when they are no more, without
/// a size.
fn is_device(device: &Path) -> bool {
    let size = device.file_name().and_then(|name| {
        let size = Path::new("/sys/block").join(name).join("size");
        fs::read_to_string(size).ok()
    });
    device.exists() && size.is_none_or(|size| size.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_and_go_with_their_devices() {
        let root = tempfile::tempdir().unwrap();
        let links = Links {
            directory: root.path().join("p"),
        };
        let device = |name: &str| {
            let path = root.path().join(name);
            fs::write(&path, "").unwrap();
            path
        };
        let (first, second) = (device("d0"), device("d1"));
        let name = |text: &str| text.parse::<DeviceName>().unwrap();
        let link = links.make(&name("vol"), &first).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), first);
        // Somebody else's.
        assert_eq!(links.make(&name("vol"), &second), None);
        assert_eq!(fs::read_link(&link).unwrap(), first);
        // Renamed.
        let renamed = links.make(&name("other@s"), &first).unwrap();
        assert!(fs::read_link(&link).is_err() && renamed.exists());
        links.make(&name("vol"), &second).unwrap();
        fs::remove_file(&first).unwrap();
        links.clear();
        assert!(fs::read_link(&renamed).is_err());
        // A link to what is no more gives way.
        fs::remove_file(&second).unwrap();
        let third = device("d2");
        assert!(links.make(&name("vol"), &third).is_some());
        links.remove(&third);
        assert!(!root.path().join("p").exists());
    }
}
