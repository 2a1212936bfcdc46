//! Stores in memory for a pool, sparse and quick to copy.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use metadata_btree::{BLOCK_SIZE, Block, BlockNr, BlockStore};
use metadata_check::BlockSource;
use parking_lot::{Mutex, RwLock};
use pool::{CatalogStore, DataIo, Error, HistoryStore, LogStore, OpenOptions, Pool, Stores};

/// The bytes of a block.
pub type Bytes = [u8; BLOCK_SIZE];

/// Blocks by number; those that were never written are zero. Copies share them.
#[derive(Clone, Default)]
pub struct Image {
    pub blocks: BTreeMap<u64, Arc<Bytes>>,
    pub block_count: u64,
}

impl Image {
    /// The bytes of a block, to be changed.
    pub fn block_mut(&mut self, nr: u64) -> &mut Bytes {
        let block = self.blocks.entry(nr);
        Arc::make_mut(block.or_insert_with(|| Arc::new([0; BLOCK_SIZE])))
    }

    fn read(&self, nr: u64, into: &mut Bytes) -> io::Result<()> {
        if nr >= self.block_count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.blocks.get(&nr) {
            Some(block) => into.copy_from_slice(&**block),
            None => into.fill(0),
        }
        Ok(())
    }
}

impl BlockSource for Image {
    fn read_block(&self, nr: u64, block: &mut Bytes) -> io::Result<()> {
        self.read(nr, block)
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.block_count)
    }
}

/// A metadata store.
#[derive(Default)]
pub struct Metadata(pub RwLock<Image>);

impl BlockStore for Metadata {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        self.0.read().read(nr.0, block.as_bytes_mut())
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        let mut image = self.0.write();
        if nr.0 >= image.block_count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *image.block_mut(nr.0) = *block.as_bytes();
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.0.read().block_count)
    }
}

/// What a data store holds where nothing was written: something that no volume may ever show.
const FILLER: u8 = 0xa5;

/// A data store. Clones share its bytes.
#[derive(Clone)]
pub struct Data {
    pages: Arc<Mutex<BTreeMap<u64, Box<Bytes>>>>,
    size: u64,
}

impl Data {
    fn new(size: u64) -> Self {
        Data {
            pages: Arc::default(),
            size,
        }
    }

    /// Calls `on` with the bytes of each page that a range touches, and which bytes of the range they are.
    fn for_each_page(
        &self,
        at: u64,
        len: usize,
        mut on: impl FnMut(&mut [u8], std::ops::Range<usize>),
    ) -> io::Result<()> {
        let is_inside = at
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.size);
        assert!(is_inside, "data I/O beyond the end: {len} bytes at {at}");
        let mut pages = self.pages.lock();
        let mut done = 0;
        while done < len {
            let position = at + done as u64;
            let inside = usize::try_from(position % BLOCK_SIZE as u64).unwrap();
            let part = (BLOCK_SIZE - inside).min(len - done);
            let page = pages.entry(position / BLOCK_SIZE as u64);
            let page = page.or_insert_with(|| Box::new([FILLER; BLOCK_SIZE]));
            on(&mut page[inside..inside + part], done..done + part);
            done += part;
        }
        Ok(())
    }
}

impl DataIo for Data {
    async fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len();
        self.for_each_page(at, len, |page, part| buf[part].copy_from_slice(page))
    }

    async fn write(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.for_each_page(at, buf.len(), |page, part| page.copy_from_slice(&buf[part]))
    }

    async fn allocate(&self, _at: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    async fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.for_each_page(at, len, |page, _| page.fill(0))
    }

    async fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let end = at + len;
        let (first, end) = (at.div_ceil(BLOCK_SIZE as u64), end / BLOCK_SIZE as u64);
        if first < end {
            let mut pages = self.pages.lock();
            let mut tail = pages.split_off(&first);
            pages.append(&mut tail.split_off(&end));
        }
        Ok(())
    }

    async fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_at_opening(&self) -> io::Result<()> {
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.size)
    }
}

/// A catalog.
#[derive(Clone, Default)]
struct Catalog(Arc<Mutex<Vec<u8>>>);

impl CatalogStore for Catalog {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.lock().clone())
    }

    fn append(&self, len: u64, lines: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock();
        content.truncate(usize::try_from(len).unwrap());
        content.extend_from_slice(lines);
        Ok(())
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        *self.0.lock() = content.to_vec();
        Ok(())
    }
}

/// The machine's boot, and the disks below.
const INCARNATION: &str = "here";

/// An intent log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Option<Vec<u8>>>>);

impl LogStore for Log {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().clone())
    }

    fn create(&self, content: &[u8], len: u64) -> io::Result<()> {
        let mut bytes = content.to_vec();
        bytes.resize(bytes.len().max(usize::try_from(len).unwrap()), 0);
        *self.0.lock() = Some(bytes);
        Ok(())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock();
        let content = content.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(at).unwrap();
        let end = content.len().max(at + bytes.len());
        content.resize(end, 0);
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
        INCARNATION.to_owned()
    }
}

/// Keeps nothing.
struct NoHistory;

impl HistoryStore for NoHistory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn time(&self) -> u64 {
        0
    }
}

/// What a pool's stores hold, its data apart.
#[derive(Clone, Default)]
pub struct Contents {
    pub metadata: Image,
    pub catalog: Vec<u8>,
    pub log: Option<Vec<u8>>,
}

/// A host on which blocking work runs at once, and no time passes.
pub struct Host;

impl pool::Host for Host {
    type Data = Data;

    async fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        job()
    }

    fn open_origin(&self, _path: &Path) -> io::Result<Data> {
        Ok(Data::new(1 << 20))
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    async fn pause(&self, _time: Duration) {}
}

/// A machine with a pool's stores.
pub struct Machine {
    metadata: Arc<Metadata>,
    data: Data,
    catalog: Catalog,
    log: Log,
}

impl Machine {
    /// A machine whose data store is larger than any pool.
    pub fn new(contents: Contents) -> Self {
        Machine {
            metadata: Arc::new(Metadata(RwLock::new(contents.metadata))),
            data: Data::new(1 << 62),
            catalog: Catalog(Arc::new(Mutex::new(contents.catalog))),
            log: Log(Arc::new(Mutex::new(contents.log))),
        }
    }

    /// What the stores hold now.
    pub fn contents(&self) -> Contents {
        Contents {
            metadata: self.metadata.0.read().clone(),
            catalog: self.catalog.0.lock().clone(),
            log: self.log.0.lock().clone(),
        }
    }

    /// Opens the pool.
    pub fn open(&self) -> Result<Arc<Pool<Host>>, Error> {
        let stores = Stores {
            metadata: Arc::clone(&self.metadata) as _,
            data: self.data.clone(),
            catalog: Box::new(self.catalog.clone()),
            log: Box::new(self.log.clone()),
            history: Box::new(NoHistory),
        };
        Pool::open(Arc::new(Host), stores, OpenOptions::default())
    }

    /// The metadata store.
    pub fn metadata(&self) -> Arc<Metadata> {
        Arc::clone(&self.metadata)
    }
}
