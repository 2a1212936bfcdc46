//! The intent log in a file.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use pool::LogStore;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// What is another after every boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The largest log that is read.
const LOG_SIZE_MAX: u64 = 4 * 1024 * 1024 * 1024;

/// An intent log in an ordinary file.
pub struct FileLog {
    path: PathBuf,
    incarnation: String,
    file: RwLock<Option<Arc<File>>>,
}

impl FileLog {
    /// The log at `path`, which need not exist yet, of a pool with these stores.
    ///
    /// # Errors
    /// When it cannot be told which boot this is.
    pub fn new(path: impl Into<PathBuf>, stores: &[&Path]) -> io::Result<Self> {
        let path = path.into();
        let mut incarnation = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let directory = path.parent().unwrap_or(Path::new("/"));
        for place in [directory].iter().chain(stores) {
            incarnation += &format!(" {}", disk_sequence(place).unwrap_or_default());
        }
        Ok(FileLog {
            path,
            incarnation,
            file: RwLock::default(),
        })
    }
}

/// What the kernel counts up whenever a disk comes or goes: that of the disk which holds a file, or is
/// it. A disk that was pulled out and put back has lost what was not synced. None where there is no disk
/// below, or the kernel (before 5.15) does not tell.
fn disk_sequence(path: &Path) -> Option<String> {
    let found = fs::metadata(path).ok()?;
    let number = if found.file_type().is_block_device() {
        found.rdev()
    } else {
        found.dev()
    };
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    // A partition's is that of the disk around it.
    let sequence = fs::read_to_string(device.join("diskseq"));
    let sequence = sequence.or_else(|_| fs::read_to_string(device.join("../diskseq")));
    Some(sequence.ok()?.trim().to_owned())
}

impl FileLog {
    /// The log that was created last, or else the one there is.
    fn file(&self) -> io::Result<Arc<File>> {
        if let Some(file) = &*self.file.read() {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::options().write(true).open(&self.path)?);
        *self.file.write() = Some(Arc::clone(&file));
        Ok(file)
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl LogStore for FileLog {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(cause),
        };
        let mut content = Vec::new();
        file.take(LOG_SIZE_MAX).read_to_end(&mut content)?;
        Ok(Some(content))
    }

    fn create(&self, content: &[u8], len: u64) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let file = written(&temporary, content, len)
            .and_then(|file| allocate(&file, len).map(|()| file))
            .and_then(|file| file.sync_all().map(|()| file))
            .and_then(|file| fs::rename(&temporary, &self.path).map(|()| file))
            .and_then(|file| self.sync_directory().map(|()| file))
            .inspect_err(|_| drop(fs::remove_file(&temporary)))?;
        *self.file.write() = Some(Arc::new(file));
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file()?.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.file()?.sync_data()
    }

    fn remove(&self) -> io::Result<()> {
        *self.file.write() = None;
        match fs::remove_file(&self.path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(cause),
            _ => Ok(()),
        }
    }

    fn incarnation(&self) -> String {
        self.incarnation.clone()
    }
}

fn written(path: &Path, content: &[u8], len: u64) -> io::Result<File> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.set_len(len)?;
    file.write_all_at(content, 0)?;
    Ok(file)
}

/// Takes the space for a file, where its file system can.
fn allocate(file: &File, len: u64) -> io::Result<()> {
    let allocate = || rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len);
    match rustix::io::retry_on_intr(allocate) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        allocated => Ok(allocated?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_log_is_found_as_it_was_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = FileLog::new(&path, &[directory.path()]).unwrap();
        assert_eq!(log.load().unwrap(), None);
        assert!(log.write(0, b"early").is_err());
        log.create(b"first", 100).unwrap();
        log.create(b"second", 100).unwrap();
        log.write(90, b"end").unwrap();
        log.sync().unwrap();
        let next = FileLog::new(&path, &[directory.path()]).unwrap();
        let content = next.load().unwrap().unwrap();
        assert_eq!((content.len(), &content[..6]), (100, &b"second"[..]));
        assert_eq!(&content[88..94], b"\0\0end\0");
        next.write(0, b"S").unwrap();
        assert_eq!(&log.load().unwrap().unwrap()[..6], b"Second");
        assert_eq!(next.incarnation(), log.incarnation());
        assert!(log.incarnation().len() >= 36 && log.incarnation().len() <= 128);
        log.remove().unwrap();
        log.remove().unwrap();
        assert_eq!(log.load().unwrap(), None);
        assert!(!directory.path().join("log.new").exists());
    }
}
