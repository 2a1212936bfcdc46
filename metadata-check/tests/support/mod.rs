//! Kernel-made pools in memory, and an editor that damages them.

#![allow(dead_code, reason = "not every test binary uses all of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test, as it should"
)]

pub mod cases;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};

use metadata_check::{BlockSource, CheckOptions, Report, check};

/// All fixtures.
pub const POOLS: [&str; 8] = [
    "1-empty",
    "2-single",
    "3-snapshots",
    "4-deep",
    "5-many-devices",
    "6-grown-held-origin",
    "7-data-full",
    "8-needs-check",
];

/// The pool with the most sharing in it.
pub const SNAPSHOTS: &str = "3-snapshots";
/// The pool with a metadata snapshot.
pub const HELD: &str = "6-grown-held-origin";

pub type Block = [u8; 4096];

/// Which checksum a block carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Superblock,
    Node,
    Bitmap,
    Index,
}

/// Unpacks a file of a fixture.
pub fn unpack(pool: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/kernel-pools")
        .join(pool)
        .join(file);
    let output = Command::new("zstd")
        .args(["-dc", "--long=27"])
        .arg(&path)
        .output();
    let output = output.expect("the zstd program is needed to unpack the fixtures");
    assert!(output.status.success(), "zstd failed on {}", path.display());
    output.stdout
}

/// A metadata image with changes on top, which remembers what was read.
#[derive(Clone)]
pub struct Image {
    base: Arc<Vec<u8>>,
    blocks: u64,
    changed: BTreeMap<u64, Block>,
    read: Arc<Mutex<BTreeMap<u64, u32>>>,
}

impl Image {
    pub fn of(pool: &str) -> Self {
        let base = unpack(pool, "metadata.bin.zst");
        let blocks = u64::try_from(base.len() / 4096).unwrap();
        Self {
            base: Arc::new(base),
            blocks,
            changed: BTreeMap::new(),
            read: Arc::default(),
        }
    }

    /// The same metadata, cut off or extended with zeroes.
    pub fn resized(&self, blocks: u64) -> Self {
        Self {
            blocks,
            ..self.clone()
        }
    }

    pub fn check(&self) -> Report {
        check(self, &CheckOptions::default())
    }

    /// How often each block was read since the last call.
    pub fn take_reads(&self) -> BTreeMap<u64, u32> {
        std::mem::take(&mut *self.read.lock().unwrap())
    }

    pub fn block(&self, nr: u64) -> Block {
        if let Some(block) = self.changed.get(&nr) {
            return *block;
        }
        let start = usize::try_from(nr * 4096).unwrap();
        self.base
            .get(start..start + 4096)
            .map_or([0; 4096], |bytes| bytes.try_into().unwrap())
    }

    pub fn u32(&self, nr: u64, offset: usize) -> u32 {
        u32::from_le_bytes(self.block(nr)[offset..offset + 4].try_into().unwrap())
    }

    pub fn u64(&self, nr: u64, offset: usize) -> u64 {
        u64::from_le_bytes(self.block(nr)[offset..offset + 8].try_into().unwrap())
    }

    /// Replaces bytes and leaves the checksum as it is.
    pub fn put_raw(&mut self, nr: u64, offset: usize, bytes: &[u8]) {
        let mut block = self.block(nr);
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.changed.insert(nr, block);
    }

    /// Replaces bytes and makes the checksum right again, for the kind the block has.
    pub fn put(&mut self, nr: u64, offset: usize, bytes: &[u8]) {
        let kind = self.kind(nr).expect("the block has a checksum");
        self.put_raw(nr, offset, bytes);
        self.seal(nr, kind);
    }

    pub fn put32(&mut self, nr: u64, offset: usize, value: u32) {
        self.put(nr, offset, &value.to_le_bytes());
    }

    pub fn put64(&mut self, nr: u64, offset: usize, value: u64) {
        self.put(nr, offset, &value.to_le_bytes());
    }

    pub fn write(&mut self, nr: u64, block: Block, kind: Kind) {
        self.changed.insert(nr, block);
        self.seal(nr, kind);
    }

    pub fn seal(&mut self, nr: u64, kind: Kind) {
        let mut block = self.block(nr);
        let csum = !crc32c::crc32c(&block[4..]) ^ mask(kind);
        block[..4].copy_from_slice(&csum.to_le_bytes());
        self.changed.insert(nr, block);
    }

    pub fn kind(&self, nr: u64) -> Option<Kind> {
        let block = self.block(nr);
        let crc = !crc32c::crc32c(&block[4..]);
        let found = u32::from_le_bytes(block[..4].try_into().unwrap());
        [Kind::Superblock, Kind::Node, Kind::Bitmap, Kind::Index]
            .into_iter()
            .find(|kind| crc ^ mask(*kind) == found)
    }

    /// Sets the two bits of `entry` in bitmap block `nr`, as a count 0 to 3.
    pub fn put_count(&mut self, nr: u64, entry: usize, count: u8) {
        let raw = [0, 2, 1, 3][usize::from(count)];
        let offset = 16 + entry / 4;
        let shift = 2 * (entry % 4);
        let byte = self.block(nr)[offset] & !(3 << shift) | raw << shift;
        self.put(nr, offset, &[byte]);
    }

    pub fn count(&self, nr: u64, entry: usize) -> u8 {
        let raw = self.block(nr)[16 + entry / 4] >> (2 * (entry % 4)) & 3;
        [0, 2, 1, 3][usize::from(raw)]
    }
}

impl BlockSource for Image {
    fn read_block(&self, nr: u64, block: &mut Block) -> io::Result<()> {
        if nr >= self.blocks {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *self.read.lock().unwrap().entry(nr).or_default() += 1;
        *block = self.block(nr);
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(self.blocks)
    }
}

fn mask(kind: Kind) -> u32 {
    match kind {
        Kind::Superblock => 160_774,
        Kind::Node => 121_107,
        Kind::Bitmap => 240_779,
        Kind::Index => 160_478,
    }
}
