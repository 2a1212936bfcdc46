//! Where the catalog's bytes are.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The largest catalog that is read: far more than 2^24 devices need.
const CATALOG_SIZE_MAX: u64 = 16 * 1024 * 1024 * 1024;

/// For the owner alone, whatever the umask.
const MODE: u32 = 0o600;

/// A file of lines, appended to and now and then replaced. Calls may block.
pub trait CatalogStore: Send + Sync + 'static {
    /// The whole content; empty when there is none yet.
    fn load(&self) -> io::Result<Vec<u8>>;

    /// Adds lines at the end and makes them durable. After a failure the end of the file is
    /// undefined, and the next change must be a [`CatalogStore::replace`].
    fn append(&self, lines: &[u8]) -> io::Result<()>;

    /// Replaces the whole content, durably, all or nothing.
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

    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let is_new = !self.path.exists();
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(MODE)
            .open(&self.path)?;
        file.write_all(lines)?;
        file.sync_all()?;
        if is_new {
            sync_directory_of(&self.path)?;
        }
        Ok(())
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(MODE)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)?;
        sync_directory_of(&self.path)
    }
}

/// Makes a new or renamed entry of a directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
