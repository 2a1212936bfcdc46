//! The data store and the metadata store.

use std::io;
use std::sync::Arc;

use metadata_btree::{Block, BlockNr, BlockStore};
use parking_lot::Mutex;
use pool::DataIo;

use super::image::{Image, SECTOR, to_usize};
use super::power::{Io, Power, Verdict};

/// What punched ranges read as.
const PUNCHED: u8 = 0xdb;

/// A data store. Clones share the same bytes.
#[derive(Clone)]
pub struct SimDisk {
    power: Arc<Power>,
    image: Arc<Mutex<Image>>,
}

impl SimDisk {
    pub(super) fn new(power: Arc<Power>, image: Image) -> Self {
        SimDisk {
            power,
            image: Arc::new(Mutex::new(image)),
        }
    }

    /// Its bytes now.
    pub fn image(&self) -> Image {
        self.image.lock().clone()
    }

    /// Makes it larger.
    pub fn grow(&self, bytes: u64) {
        self.image.lock().grow(bytes);
    }

    /// How much of a request its first step does: up to a boundary between sectors.
    fn half_way(&self, at: u64, len: u64) -> u64 {
        let sectors = self.power.up_to(len / SECTOR);
        let boundary = (at / SECTOR + sectors) * SECTOR;
        boundary.saturating_sub(at).min(len)
    }

    async fn change(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        assert!(
            at + buf.len() as u64 <= self.image.lock().len(),
            "{} bytes at {at} lie beyond the data store",
            buf.len()
        );
        self.power.pause().await;
        self.power.trace_write(at, buf);
        // Two steps, so that others see it half done.
        let half = self.half_way(at, buf.len() as u64);
        let (first, second) = buf.split_at(to_usize(half));
        let verdict = self.power.begin(Io::DataWrite);
        self.image.lock().write(at, first);
        if let Verdict::Fail(cause) = verdict {
            return Err(cause);
        }
        self.power.pause().await;
        self.power.check()?;
        self.image.lock().write(at + half, second);
        Ok(())
    }
}

impl DataIo for SimDisk {
    async fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.power.pause().await;
        if let Verdict::Fail(cause) = self.power.begin(Io::DataRead) {
            return Err(cause);
        }
        assert!(
            at + buf.len() as u64 <= self.image.lock().len(),
            "{} bytes at {at} lie beyond the data store",
            buf.len()
        );
        let half = self.half_way(at, buf.len() as u64);
        let (first, second) = buf.split_at_mut(to_usize(half));
        self.image.lock().read(at, first);
        self.power.pause().await;
        self.image.lock().read(at + half, second);
        Ok(())
    }

    async fn write(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        self.change(at, buf).await
    }

    async fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        assert!(
            at + len <= self.image.lock().len(),
            "{len} bytes at {at} lie beyond the data store"
        );
        self.power.pause().await;
        if let Verdict::Fail(cause) = self.power.begin(Io::DataAllocate) {
            return Err(cause);
        }
        let is_zero = self.power.is_hole();
        if is_zero {
            self.image.lock().write(at, &vec![0; to_usize(len)]);
            self.power.pause().await;
            self.power.check()?;
        }
        Ok(is_zero)
    }

    async fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        self.change(at, &vec![0; to_usize(len)]).await
    }

    async fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.change(at, &vec![PUNCHED; to_usize(len)]).await
    }

    async fn sync(&self) -> io::Result<()> {
        let covered = self.image.lock().writes();
        self.power.pause().await;
        if let Verdict::Fail(cause) = self.power.begin(Io::DataSync) {
            // The end of the daemon is no failure of the store.
            if !self.power.is_off() {
                self.image.lock().lose(covered, &mut self.power.fork());
            }
            return Err(cause);
        }
        self.power.pause().await;
        self.power.check()?;
        self.image.lock().sync(covered);
        Ok(())
    }

    fn sync_at_opening(&self) -> io::Result<()> {
        let mut image = self.image.lock();
        let covered = image.writes();
        if let Verdict::Fail(cause) = self.power.begin(Io::DataSync) {
            if !self.power.is_off() {
                image.lose(covered, &mut self.power.fork());
            }
            return Err(cause);
        }
        image.sync(covered);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.image.lock().len())
    }
}

/// A metadata store.
pub struct SimMetadata {
    power: Arc<Power>,
    image: Mutex<Image>,
}

impl SimMetadata {
    pub(super) fn new(power: Arc<Power>, image: Image) -> Self {
        SimMetadata {
            power,
            image: Mutex::new(image),
        }
    }

    /// Its bytes now.
    pub fn image(&self) -> Image {
        self.image.lock().clone()
    }

    /// Damages a block, in its first sector.
    pub fn damage(&self, nr: u64) {
        let mut image = self.image.lock();
        let mut sector = vec![0; to_usize(SECTOR)];
        image.read(nr * 4096, &mut sector);
        let damaged = sector.iter_mut().skip(100).step_by(7);
        damaged.for_each(|byte| *byte ^= 0x5a);
        image.write(nr * 4096, &sector);
    }

    /// Puts a block in its place, durably.
    pub fn put(&self, nr: u64, block: &[u8; 4096]) {
        let mut image = self.image.lock();
        image.write(nr * 4096, block);
        let written = image.writes();
        image.sync(written);
    }

    /// Damages the superblock.
    pub fn lose_superblock(&self) {
        self.damage(0);
    }

    /// How many blocks have been written so far, the same block perhaps more than once.
    pub fn writes(&self) -> u64 {
        self.image.lock().writes()
    }

    /// Makes it larger.
    pub fn grow(&self, blocks: u64) {
        self.image.lock().grow(blocks * 4096);
    }

    fn position(&self, nr: BlockNr) -> io::Result<u64> {
        let at =
            nr.0.checked_mul(4096)
                .filter(|at| *at < self.image.lock().len());
        at.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl BlockStore for SimMetadata {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        let at = self.position(nr)?;
        match self.power.begin(Io::MetadataRead) {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => {
                self.image.lock().read(at, block.as_bytes_mut());
                Ok(())
            }
        }
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        let at = self.position(nr)?;
        self.power.trace_write(at, block.as_bytes());
        match self.power.begin(Io::MetadataWrite) {
            Verdict::Fail(cause) => {
                let sectors = match self.power.is_kill() {
                    true => self.power.up_to(1) * 4096 / SECTOR,
                    false => self.power.up_to(4096 / SECTOR),
                };
                let part = to_usize(sectors * SECTOR);
                self.image.lock().write(at, &block.as_bytes()[..part]);
                Err(cause)
            }
            Verdict::Go => {
                self.image.lock().write(at, block.as_bytes());
                Ok(())
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        let mut image = self.image.lock();
        let covered = image.writes();
        match self.power.begin(Io::MetadataFlush) {
            Verdict::Fail(cause) => {
                if !self.power.is_off() {
                    image.lose(covered, &mut self.power.fork());
                }
                Err(cause)
            }
            Verdict::Go => {
                image.sync(covered);
                Ok(())
            }
        }
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.image.lock().len() / 4096)
    }
}
