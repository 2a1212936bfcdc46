//! Opening a pool's stores and keeping others out.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::PoolDir;
use crate::protocol::{CallError, CallErrorKind};

/// What the stores are opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Reading, together with other readers.
    Read,
    /// Reading and writing, alone.
    Write,
}

/// A pool's stores, open and locked for as long as the files are open.
#[derive(Debug)]
pub struct StoreFiles {
    /// The metadata store.
    pub metadata: File,
    /// The data store.
    pub data: File,
}

impl PoolDir {
    /// Opens and locks both stores.
    ///
    /// # Errors
    /// `PoolHeld` when another process uses the pool; else what stopped the stores from being opened.
    pub fn open_stores(&self, access: Access) -> Result<StoreFiles, CallError> {
        let metadata = self.open_store(&self.metadata_path(), access)?;
        let data = self.open_store(&self.data_path(), access)?;
        Ok(StoreFiles { metadata, data })
    }

    fn open_store(&self, path: &Path, access: Access) -> Result<File, CallError> {
        open_locked(path, access).map_err(|error| match error.kind {
            CallErrorKind::Busy => self.busy(path),
            _ => error,
        })
    }

    /// The error for a pool that another process uses.
    fn busy(&self, store: &Path) -> CallError {
        let holder = match holder_of(store) {
            Some(pid) => format!(" (pid {pid})"),
            None => String::new(),
        };
        let message = format!(
            "pool {} is in use by another process{holder}: wait for it, or end it",
            self.path.display()
        );
        CallError::new(CallErrorKind::PoolHeld, message)
    }
}

/// Opens an existing store and locks it.
///
/// # Errors
/// `Busy` when it is locked already; else what stopped it from being opened.
pub fn open_locked(path: &Path, access: Access) -> Result<File, CallError> {
    let failed = |cause: &std::io::Error| CallError::io(path.display(), cause);
    let file_type = fs::metadata(path)
        .map_err(|cause| failed(&cause))?
        .file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        let message = format!("{}: neither a file nor a block device", path.display());
        return Err(CallError::invalid(message));
    }
    let exclusive = file_type.is_block_device() && access == Access::Write;
    let flags = if exclusive {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let file = File::options()
        .read(true)
        .write(access == Access::Write)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|cause| failed(&cause))?;
    lock(&file, path, access)?;
    Ok(file)
}

/// Locks an open store.
pub(super) fn lock(file: &File, path: &Path, access: Access) -> Result<(), CallError> {
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    match flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let message = format!("{} is in use by another process", path.display());
            Err(CallError::new(CallErrorKind::Busy, message))
        }
        Err(cause) => Err(CallError::io(path.display(), &cause.into())),
    }
}

/// The process that holds the lock on a store, as far as the kernel tells.
fn holder_of(path: &Path) -> Option<u32> {
    let inode = fs::metadata(path).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| holder_in(line, &inode))
}

/// `3: FLOCK  ADVISORY  WRITE 4711 08:01:131074 0 EOF`. The device numbers are left out of account:
/// on an overlay or a btrfs they are not those that `stat` tells.
fn holder_in(line: &str, inode: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let flock = fields.iter().position(|field| *field == "FLOCK")?;
    let place = fields.get(flock + 4)?;
    let pid = fields.get(flock + 3)?.parse().ok()?;
    (place.rsplit(':').next() == Some(inode)).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_found_by_inode() {
        let line = "3: FLOCK  ADVISORY  WRITE 4711 08:01:131074 0 EOF";
        assert_eq!(holder_in(line, "131074"), Some(4711));
        assert_eq!(holder_in(line, "31074"), None);
        assert_eq!(
            holder_in(
                "1: POSIX  ADVISORY  WRITE 4711 08:01:131074 0 EOF",
                "131074"
            ),
            None
        );
        assert_eq!(holder_in("3: FLOCK", "131074"), None);
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        fs::write(&path, "x").unwrap();
        let reader = open_locked(&path, Access::Read).unwrap();
        let second = open_locked(&path, Access::Read).unwrap();
        assert_eq!(
            open_locked(&path, Access::Write).unwrap_err().kind,
            CallErrorKind::Busy
        );
        drop((reader, second));
        let _writer = open_locked(&path, Access::Write).unwrap();
        assert_eq!(
            open_locked(&path, Access::Read).unwrap_err().kind,
            CallErrorKind::Busy
        );
    }

    #[test]
    fn a_directory_is_no_store() {
        let directory = tempfile::tempdir().unwrap();
        let error = open_locked(directory.path(), Access::Read).unwrap_err();
        assert_eq!(error.kind, CallErrorKind::Invalid);
    }
}
