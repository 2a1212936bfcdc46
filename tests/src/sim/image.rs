//! The bytes of a store: what would survive, what is visible, and the way from one to the other.

use std::ops::Range;
use std::sync::Arc;

use super::survivors::Survivors;
use crate::prng::Prng;

/// What a power cut leaves intact.
pub const SECTOR: u64 = 512;

const PAGE: u64 = 4096;

/// A write since the last sync: whole sectors.
#[derive(Clone)]
struct Entry {
    at: u64,
    bytes: Vec<u8>,
    /// A failed sync has dropped it.
    is_lost: bool,
}

#[derive(Clone)]
struct Pages {
    pages: Vec<Option<Arc<[u8]>>>,
    filler: u8,
}

impl Pages {
    fn split(range: Range<u64>) -> impl Iterator<Item = (usize, Range<usize>)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at == range.end {
                return None;
            }
            let end = range.end.min((at / PAGE + 1) * PAGE);
            let inside = to_usize(at % PAGE)..to_usize(at % PAGE + end - at);
            let page = to_usize(at / PAGE);
            at = end;
            Some((page, inside))
        })
    }

    fn read(&self, at: u64, mut buf: &mut [u8]) {
        for (page, inside) in Self::split(at..at + buf.len() as u64) {
            let (piece, rest) = buf.split_at_mut(inside.len());
            match &self.pages[page] {
                Some(bytes) => piece.copy_from_slice(&bytes[inside]),
                None => piece.fill(self.filler),
            }
            buf = rest;
        }
    }

    fn write(&mut self, at: u64, mut buf: &[u8]) {
        for (page, inside) in Self::split(at..at + buf.len() as u64) {
            let (piece, rest) = buf.split_at(inside.len());
            let filler = self.filler;
            let bytes = self.pages[page].get_or_insert_with(|| vec![filler; to_usize(PAGE)].into());
            Arc::make_mut(bytes)[inside].copy_from_slice(piece);
            buf = rest;
        }
    }
}

/// A store's bytes.
#[derive(Clone)]
pub struct Image {
    durable: Pages,
    current: Pages,
    unsynced: Vec<Entry>,
    /// How many writes have been synced and taken off `unsynced`.
    synced: u64,
}

impl Image {
    /// A store of `bytes` bytes, never written, of which all read as `filler`.
    pub fn new(bytes: u64, filler: u8) -> Self {
        let pages = Pages {
            pages: vec![None; to_usize(bytes.div_ceil(PAGE))],
            filler,
        };
        Image {
            durable: pages.clone(),
            current: pages,
            unsynced: Vec::new(),
            synced: 0,
        }
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.current.pages.len() as u64 * PAGE
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.current.pages.is_empty()
    }

    /// Makes it larger, durably.
    pub fn grow(&mut self, bytes: u64) {
        let pages = to_usize(bytes.div_ceil(PAGE)).max(self.current.pages.len());
        self.durable.pages.resize(pages, None);
        self.current.pages.resize(pages, None);
    }

    /// What is visible from `at` on.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        self.current.read(at, buf);
    }

    /// All that is visible.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(self.len())];
        self.read(0, &mut bytes);
        bytes
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.current.write(at, bytes);
        // What reaches the medium is whole sectors, as they are visible now.
        let start = at / SECTOR * SECTOR;
        let end = (at + bytes.len() as u64).div_ceil(SECTOR) * SECTOR;
        let mut sectors = vec![0; to_usize(end - start)];
        self.current.read(start, &mut sectors);
        self.unsynced.push(Entry {
            at: start,
            bytes: sectors,
            is_lost: false,
        });
    }

    /// The number of writes so far.
    pub(crate) fn writes(&self) -> u64 {
        self.synced + self.unsynced.len() as u64
    }

    /// Makes the first `writes` writes durable.
    pub(crate) fn sync(&mut self, writes: u64) {
        let covered = to_usize(writes.saturating_sub(self.synced));
        for entry in self.unsynced.drain(..covered) {
            if !entry.is_lost {
                self.durable.write(entry.at, &entry.bytes);
            }
        }
        self.synced = self.synced.max(writes);
    }

    /// Forgets for good some of the first `writes` writes; they stay visible.
    pub(crate) fn lose(&mut self, writes: u64, prng: &mut Prng) {
        let covered = to_usize(writes.saturating_sub(self.synced));
        for entry in &mut self.unsynced[..covered] {
            entry.is_lost |= prng.chance(50);
        }
    }

    /// Shows what was lost as lost: it is visible no more.
    pub(crate) fn evict(&mut self) {
        self.current = self.durable.clone();
        for entry in self.unsynced.iter().filter(|entry| !entry.is_lost) {
            self.current.write(entry.at, &entry.bytes);
        }
    }

    /// How many writes a power cut may lose.
    pub(super) fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// The store after a power cut.
    pub(crate) fn after_cut(&self, survivors: &mut Survivors, is_metadata: bool) -> Image {
        let mut survivor = self.durable.clone();
        survivors.enter(self.unsynced.len(), is_metadata);
        for (index, entry) in self.unsynced.iter().enumerate() {
            let count = entry.bytes.len() as u64 / SECTOR;
            let kept = survivors.of_write(index, entry.at / SECTOR, count);
            let sectors = entry.bytes.chunks(to_usize(SECTOR)).zip(kept);
            for (number, (sector, survives)) in (0..).zip(sectors) {
                if survives && !entry.is_lost {
                    survivor.write(entry.at + number * SECTOR, sector);
                }
            }
        }
        Image {
            durable: survivor.clone(),
            current: survivor,
            unsynced: Vec::new(),
            synced: 0,
        }
    }
}

impl metadata_check::BlockSource for Image {
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> std::io::Result<()> {
        if nr >= self.len() / 4096 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.read(nr * 4096, block);
        Ok(())
    }

    fn block_count(&self) -> std::io::Result<u64> {
        Ok(self.len() / 4096)
    }
}

/// For sizes of what is in memory.
pub(crate) fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
