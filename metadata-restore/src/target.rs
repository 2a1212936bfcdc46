//! Where the new metadata goes: a file that has its name only when it is whole, or a block device.
//!
//! A file is written as `NAME.restoring` beside its place, and renamed when it is synced and has passed the
//! check. A block device has no other name: until the commit its first block stays zero, and it is made zero
//! again if the check fails. Whatever is not finished is taken back.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use metadata_btree::METADATA_BLOCKS_MAX;
use rustix::fs::{
    CWD, FallocateFlags, FlockOperation, OFlags, RenameFlags, fallocate, flock, renameat_with,
};
use rustix::io::Errno;

use crate::error::Error;

/// Bytes of a metadata block.
pub(crate) const BLOCK_SIZE: u64 = metadata_btree::BLOCK_SIZE as u64;

/// How much of a block device must be zero for it to be taken as unused.
const UNUSED_LEN: usize = 64 * 1024;

/// The file or block device that is written; dropped before it is finished, it is taken back.
pub(crate) struct Target {
    path: PathBuf,
    file: File,
    kind: Kind,
    finished: bool,
}

enum Kind {
    File { temporary: PathBuf },
    Device { blocks: u64 },
}

impl Target {
    pub(crate) fn create(path: &Path) -> Result<Self, Error> {
        match fs::metadata(path) {
            Ok(there) if there.file_type().is_block_device() => Self::open_device(path),
            Ok(_) => Err(exists(
                path,
                "there is something already; name what does not exist",
            )),
            // A link that leads nowhere is there, too.
            Err(_) if path.symlink_metadata().is_ok() => Err(exists(
                path,
                "there is a link already; name what does not exist",
            )),
            Err(_) => Self::create_file(path),
        }
    }

    fn create_file(path: &Path) -> Result<Self, Error> {
        let Some(name) = path.file_name() else {
            return Err(exists(path, "that is a directory; name a file in it"));
        };
        let mut temporary = OsString::from(name);
        temporary.push(".restoring");
        let temporary = path.with_file_name(temporary);
        let created = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary);
        let file = match created {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
                let reason =
                    "another restore is writing it, or one was killed: remove it if none runs";
                return Err(exists(&temporary, reason));
            }
            Err(cause) => return Err(failed(path, "make it", cause)),
        };
        Ok(Target {
            path: path.to_owned(),
            file,
            kind: Kind::File { temporary },
            finished: false,
        })
    }

    fn open_device(path: &Path) -> Result<Self, Error> {
        // Exclusively: not while it is mounted, or under another device.
        let opened = File::options()
            .read(true)
            .write(true)
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => {
                return Err(Error::InUse(path.to_owned()));
            }
            Err(cause) => return Err(failed(path, "open it", cause)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::InUse(path.to_owned())),
            Err(cause) => return Err(failed(path, "lock it", cause.into())),
        }
        let mut start = vec![0; UNUSED_LEN];
        let size = (&file)
            .seek(SeekFrom::End(0))
            .and_then(|size| {
                start.truncate(usize::try_from(size).unwrap_or(UNUSED_LEN));
                file.read_exact_at(&mut start, 0)?;
                Ok(size)
            })
            .map_err(|cause| failed(path, "read its beginning", cause))?;
        if start.iter().any(|byte| *byte != 0) {
            let reason = "not empty: wipe its first 65536 bytes if its contents are not needed";
            return Err(exists(path, reason));
        }
        let blocks = (size / BLOCK_SIZE).min(METADATA_BLOCKS_MAX);
        Ok(Target {
            path: path.to_owned(),
            file,
            kind: Kind::Device { blocks },
            finished: false,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn try_clone(&self) -> Result<File, Error> {
        let cloned = self.file.try_clone();
        cloned.map_err(|cause| self.io("open it again", cause))
    }

    /// How long it is, if it is a block device.
    pub(crate) fn device_blocks(&self) -> Option<u64> {
        match self.kind {
            Kind::File { .. } => None,
            Kind::Device { blocks } => Some(blocks),
        }
    }

    /// Makes a file this long, with its space reserved where the file system can.
    pub(crate) fn extend(&self, blocks: u64) -> Result<(), Error> {
        if let Kind::Device { .. } = self.kind {
            return Ok(());
        }
        let bytes = blocks.saturating_mul(BLOCK_SIZE);
        let extended = match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP) => self.file.set_len(bytes),
            Err(cause) => Err(cause.into()),
        };
        extended.map_err(|cause| self.io("make room for it", cause))
    }

    /// An error of the file.
    pub(crate) fn io(&self, op: &'static str, cause: io::Error) -> Error {
        failed(&self.path, op, cause)
    }

    /// Gives a file its name. What it holds is durable, and is right.
    pub(crate) fn finish(mut self) -> Result<(), Error> {
        let synced = self.file.sync_all();
        synced.map_err(|cause| self.io("sync it", cause))?;
        if let Kind::File { temporary } = &self.kind {
            rename_to_new(temporary, &self.path).map_err(|cause| match cause.kind() {
                io::ErrorKind::AlreadyExists => exists(
                    &self.path,
                    "it was made by somebody else meanwhile; name what does not exist",
                ),
                _ => self.io("give it its name", cause),
            })?;
            self.finished = true;
            if let Err(cause) = sync_parent(&self.path) {
                // The name may not last, so there is none. Another failure would change nothing.
                let _ = fs::remove_file(&self.path);
                return Err(self.io("sync its directory", cause));
            }
        }
        self.finished = true;
        Ok(())
    }
}

impl Drop for Target {
    /// Failures are of no interest here: another one is being reported already.
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        match &self.kind {
            Kind::File { temporary } => {
                let _ = fs::remove_file(temporary);
            }
            Kind::Device { .. } => {
                // As it was found, so that the next restore takes it.
                let _ = self.file.write_all_at(&[0; UNUSED_LEN], 0);
                let _ = self.file.sync_all();
            }
        }
    }
}

/// Renames, unless there is something of the new name.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system cannot tell; a hard link does not replace anything either.
        Err(Errno::INVAL) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => Ok(result?),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn exists(path: &Path, reason: &str) -> Error {
    Error::Exists {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

fn failed(path: &Path, op: &'static str, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        op,
        source,
    }
}
