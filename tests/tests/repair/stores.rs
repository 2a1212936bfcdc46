//! Stores of a pool of which only the metadata is of interest: all that was ever written to it is kept, and
//! data goes nowhere.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metadata_btree::{Block, BlockNr, BlockStore};
use metadata_check::BlockSource;
use parking_lot::Mutex;
use pool::{CatalogStore, DataIo, HistoryStore, Host, LogStore};

/// A metadata image.
#[derive(Clone)]
pub struct Image(pub Vec<[u8; 4096]>);

impl Image {
    pub fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

impl BlockSource for Image {
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> io::Result<()> {
        let found = usize::try_from(nr).ok().and_then(|nr| self.0.get(nr));
        block.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }
}

/// Each version of each block, the last one last.
pub struct History(Mutex<Vec<Vec<[u8; 4096]>>>);

impl History {
    pub fn of(image: Image) -> Arc<Self> {
        let versions = image.0.into_iter().map(|block| vec![block]).collect();
        Arc::new(History(Mutex::new(versions)))
    }

    pub fn image(&self) -> Image {
        let versions = self.0.lock();
        Image(versions.iter().map(|all| all[all.len() - 1]).collect())
    }

    /// What a block held before, latest first, and never what it holds.
    pub fn older(&self, nr: usize) -> Vec<[u8; 4096]> {
        let versions = &self.0.lock()[nr];
        let mut older: Vec<[u8; 4096]> = Vec::new();
        for version in versions.iter().rev() {
            let is_empty = version.iter().all(|byte| *byte == 0);
            if !is_empty && *version != versions[versions.len() - 1] && !older.contains(version) {
                older.push(*version);
            }
        }
        older
    }
}

fn place(nr: BlockNr) -> usize {
    usize::try_from(nr.0).unwrap_or(usize::MAX)
}

impl BlockStore for History {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        let versions = self.0.lock();
        let found = versions.get(place(nr)).and_then(|all| all.last());
        let found = found.ok_or(io::ErrorKind::UnexpectedEof)?;
        block.as_bytes_mut().copy_from_slice(found);
        Ok(())
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        self.0.lock()[place(nr)].push(*block.as_bytes());
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
}

/// A data store of so many bytes, which forgets them.
pub struct NoData(pub u64);

impl DataIo for NoData {
    async fn read(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    async fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    async fn allocate(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(true)
    }
    async fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    async fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_at_opening(&self) -> io::Result<()> {
        Ok(())
    }
    fn size(&self) -> io::Result<u64> {
        Ok(self.0)
    }
}

/// Does everything at once.
pub struct Idle;

impl Host for Idle {
    type Data = NoData;

    async fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        job()
    }
    fn open_origin(&self, _: &Path) -> io::Result<NoData> {
        Err(io::ErrorKind::NotFound.into())
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    async fn pause(&self, _: Duration) {}
}

/// A small file in memory. Clones share it.
#[derive(Clone, Default)]
pub struct Memory(Arc<Mutex<Option<Vec<u8>>>>);

impl Memory {
    /// A file of its own with the same content.
    pub fn copy(&self) -> Self {
        Memory(Arc::new(Mutex::new(self.0.lock().clone())))
    }
}

impl CatalogStore for Memory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().clone().unwrap_or_default())
    }
    fn append(&self, len: u64, lines: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock();
        let content = content.get_or_insert_default();
        content.truncate(usize::try_from(len).unwrap_or(usize::MAX));
        content.extend_from_slice(lines);
        Ok(())
    }
    fn replace(&self, content: &[u8]) -> io::Result<()> {
        *self.0.lock() = Some(content.to_vec());
        Ok(())
    }
}

impl LogStore for Memory {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().clone())
    }
    fn create(&self, content: &[u8], len: u64) -> io::Result<()> {
        let mut content = content.to_vec();
        content.resize(usize::try_from(len).unwrap_or(0), 0);
        *self.0.lock() = Some(content);
        Ok(())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let mut content = self.0.lock();
        let content = content.as_mut().ok_or(io::ErrorKind::NotFound)?;
        content[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self) -> io::Result<()> {
        *self.0.lock() = None;
        Ok(())
    }
    fn incarnation(&self) -> String {
        "always".to_owned()
    }
}

impl HistoryStore for Memory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().clone().unwrap_or_default())
    }
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let mut content = self.0.lock();
        let content = content.get_or_insert_default();
        content.resize(content.len().max(at + bytes.len()), 0);
        content[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn time(&self) -> u64 {
        0
    }
}
