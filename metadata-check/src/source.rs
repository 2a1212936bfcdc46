//! Where metadata blocks come from.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;

use crate::layout::{BLOCK_SIZE, BLOCK_SIZE_U64, Block};

/// A metadata device to read from: an array of 4096-byte blocks.
pub trait BlockSource: Sync {
    /// Fills `block` with metadata block `nr`.
    ///
    /// # Errors
    ///
    /// Whatever stopped the read. A block at or beyond [`BlockSource::block_count`] is an error too.
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> io::Result<()>;

    /// How many whole blocks there are.
    ///
    /// # Errors
    ///
    /// Whatever stopped the size from being found out.
    fn block_count(&self) -> io::Result<u64>;

    /// Says that these blocks, in ascending order, will be read soon. It changes nothing but how long that takes.
    fn will_read(&self, _blocks: &[u64]) {}
}

/// A regular file or a block device.
impl BlockSource for File {
    fn read_block(&self, nr: u64, block: &mut Block) -> io::Result<()> {
        debug_assert_eq!(block.len(), BLOCK_SIZE);
        let offset = nr
            .checked_mul(BLOCK_SIZE_U64)
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        self.read_exact_at(block, offset)
    }

    fn block_count(&self) -> io::Result<u64> {
        // A block device reports length 0 in its inode; seeking to the end works for both. Reads are
        // positional, so the moved cursor disturbs nobody.
        let mut file: &File = self;
        Ok(io::Seek::seek(&mut file, io::SeekFrom::End(0))? / BLOCK_SIZE_U64)
    }

    fn will_read(&self, blocks: &[u64]) {
        for run in blocks.chunk_by(|block, next| block.checked_add(1) == Some(*next)) {
            let length = NonZero::new(run.len() as u64 * BLOCK_SIZE_U64);
            let offset = run[0].saturating_mul(BLOCK_SIZE_U64);
            // Advice that is not taken costs time and nothing else.
            let _ = rustix::fs::fadvise(self, offset, length, Advice::WillNeed);
        }
    }
}
