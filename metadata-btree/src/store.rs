//! The two stores this crate brings along: a file or block device, and memory.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::block::{BLOCK_SIZE, Block, BlockNr, BlockStore};
use crate::num::to_usize;

const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// A regular file or a block device, read and written in place.
#[derive(Debug)]
pub struct FileStore {
    file: File,
}

impl FileStore {
    /// Takes a file opened for reading, and for writing unless only views will use it.
    ///
    /// # Errors
    /// When the length of the file cannot be determined.
    pub fn new(file: File) -> io::Result<Self> {
        let store = Self { file };
        store.block_count()?;
        Ok(store)
    }
}

fn byte_offset(nr: BlockNr) -> io::Result<u64> {
    nr.0.checked_mul(BLOCK_BYTES)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "block number too large"))
}

impl BlockStore for FileStore {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        self.file
            .read_exact_at(block.as_bytes_mut(), byte_offset(nr)?)
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        self.file.write_all_at(block.as_bytes(), byte_offset(nr)?)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn block_count(&self) -> io::Result<u64> {
        // The length in the file's status is 0 for block devices; seeking works for both. The
        // file position itself is not used by anything here.
        let length = (&self.file).seek(SeekFrom::End(0))?;
        Ok(length / BLOCK_BYTES)
    }
}

/// Blocks in memory, for tests and tools. Clones share the same blocks.
#[derive(Clone, Debug)]
pub struct MemStore {
    bytes: Arc<RwLock<Vec<u8>>>,
}

impl MemStore {
    /// A store of `blocks` blocks of zeroes.
    pub fn new(blocks: u64) -> Self {
        Self::from_image(vec![0; to_usize(blocks) * BLOCK_SIZE])
    }

    /// A store with the given contents; a partial block at the end is not part of it.
    pub fn from_image(image: Vec<u8>) -> Self {
        Self {
            bytes: Arc::new(RwLock::new(image)),
        }
    }

    /// A copy of the present contents.
    pub fn to_image(&self) -> Vec<u8> {
        self.bytes.read().clone()
    }

    /// Makes the store `blocks` blocks long if it is shorter, with zeroes.
    pub fn grow(&self, blocks: u64) {
        let mut bytes = self.bytes.write();
        let length = to_usize(blocks) * BLOCK_SIZE;
        if length > bytes.len() {
            bytes.resize(length, 0);
        }
    }
}

fn byte_range(nr: BlockNr, length: usize) -> io::Result<std::ops::Range<usize>> {
    let start = to_usize(byte_offset(nr)?);
    match start.checked_add(BLOCK_SIZE) {
        Some(end) if end <= length => Ok(start..end),
        _ => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "block beyond the end of the store",
        )),
    }
}

impl BlockStore for MemStore {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        let bytes = self.bytes.read();
        let range = byte_range(nr, bytes.len())?;
        block.as_bytes_mut().copy_from_slice(&bytes[range]);
        Ok(())
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        let mut bytes = self.bytes.write();
        let range = byte_range(nr, bytes.len())?;
        bytes[range].copy_from_slice(block.as_bytes());
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok((self.bytes.read().len() / BLOCK_SIZE) as u64)
    }
}
