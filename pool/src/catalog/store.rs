//! Where the catalog's bytes are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

/// The largest catalog that is read: far more than 2^24 devices need.
const CATALOG_SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// The space behind the last line that is taken already: enough for some hundred deletions.
const RESERVE: u64 = 64 * 1024;

/// For the owner alone, whatever the umask.
const MODE: u32 = 0o600;

/// A file of lines, appended to and now and then replaced. Calls may block.
pub trait CatalogStore: Send + Sync + 'static {
    /// The whole content; empty when there is none yet.
    fn load(&self) -> io::Result<Vec<u8>>;

    /// Cuts off what lies behind the first `len` bytes, and when that is durable, adds lines there and makes them
    /// durable. After a failure it is undefined what lies behind the first `len` bytes.
    fn append(&self, len: u64, lines: &[u8]) -> io::Result<()>;

    /// Replaces the whole content, durably, all or nothing; nothing if there is no space for it.
    fn replace(&self, content: &[u8]) -> io::Result<()>;
}

/// What a file holds, up to `len_max`; nothing if there is none.
pub(crate) fn load_bounded(path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(cause) => return Err(cause),
    };
    let mut content = Vec::new();
    file.take(len_max).read_to_end(&mut content)?;
    Ok(content)
}

/// A catalog in an ordinary file.
pub struct FileCatalog {
    path: PathBuf,
}

impl FileCatalog {
    /// The catalog at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileCatalog { path: path.into() }
    }
}

impl CatalogStore for FileCatalog {
    fn load(&self) -> io::Result<Vec<u8>> {
        load_bounded(&self.path, CATALOG_SIZE_MAX)
    }

    fn append(&self, len: u64, lines: &[u8]) -> io::Result<()> {
        let is_new = !self.path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(MODE)
            .open(&self.path)?;
        if file.metadata()?.len() > len {
            file.set_len(len)?;
            file.sync_all()?;
        }
        file.write_all(lines)?;
        file.sync_all()?;
        reserve(&file);
        if is_new {
            sync_directory_of(&self.path)?;
        }
        Ok(())
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        written(&temporary, content)
            .and_then(|()| std::fs::rename(&temporary, &self.path))
            .inspect_err(|_| drop(std::fs::remove_file(&temporary)))?;
        sync_directory_of(&self.path)
    }
}

/// Makes a file with this content durable.
fn written(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(MODE)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()?;
    reserve(&file);
    Ok(())
}

/// Takes the space for lines to come, so that something can be deleted when the file system is full. Where that is
/// not possible, or not now, the next line tries its luck.
fn reserve(file: &File) {
    let Ok(metadata) = file.metadata() else {
        return;
    };
    // The lines that are there are good without it.
    let _ = fallocate(file, FallocateFlags::KEEP_SIZE, metadata.len(), RESERVE);
}

/// Makes a new or renamed entry of a directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
