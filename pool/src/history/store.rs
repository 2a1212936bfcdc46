//! Where the history's bytes are.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::catalog::load_bounded;

/// The largest history that is read.
const HISTORY_SIZE_MAX: u64 = 1024 * 1024;

/// A small file, any part of which may get lost. Calls may block.
pub trait HistoryStore: Send + Sync + 'static {
    /// The whole content; empty when there is none.
    fn load(&self) -> io::Result<Vec<u8>>;

    /// Writes at a position, and makes the file if there is none. What lies between reads as zeros.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;

    /// Seconds since 1970, by which people know a commit; 0 if nobody can tell.
    fn time(&self) -> u64;
}

/// A history in an ordinary file.
pub struct FileHistory {
    path: PathBuf,
}

impl FileHistory {
    /// The history at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileHistory { path: path.into() }
    }
}

impl HistoryStore for FileHistory {
    fn load(&self) -> io::Result<Vec<u8>> {
        load_bounded(&self.path, HISTORY_SIZE_MAX)
    }

    // Opened each time: once a second is seldom, and a file that somebody removed comes back.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(&self.path)?.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_data()
    }

    fn time(&self) -> u64 {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
        elapsed.map_or(0, |elapsed| elapsed.as_secs())
    }
}
