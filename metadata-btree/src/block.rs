//! Metadata blocks, and the seam to whatever holds them.
//!
//! A metadata block is 4096 bytes, known by its number. All I/O is whole blocks.

use std::fmt;
use std::io;

/// Bytes of a metadata block.
pub const BLOCK_SIZE: usize = 4096;

/// The number of a metadata block on its device, counted from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockNr(pub u64);

impl fmt::Display for BlockNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The contents of one metadata block.
#[derive(Clone, PartialEq, Eq)]
pub struct Block(Box<[u8; BLOCK_SIZE]>);

impl Block {
    /// A block of zeroes.
    pub fn zeroed() -> Self {
        Self(Box::new([0; BLOCK_SIZE]))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; BLOCK_SIZE] {
        &self.0
    }

    /// The bytes, to be changed.
    pub fn as_bytes_mut(&mut self) -> &mut [u8; BLOCK_SIZE] {
        &mut self.0
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({:02x?}..)", &self.0[..32])
    }
}

/// What holds metadata blocks: a file, a block device, memory.
///
/// Methods are called from several threads at once. A block is never read and written at the same
/// time, except block 0, which nothing in this crate reads.
pub trait BlockStore: Send + Sync + 'static {
    /// Fills `block` with the whole contents of block `nr`, or fails. A block never written
    /// before may read as anything; a block beyond the end must fail.
    ///
    /// # Errors
    /// Any I/O error; the block's contents are then unspecified.
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()>;

    /// Makes later reads of block `nr` return `block`. It need not be durable before the next
    /// [`flush`](BlockStore::flush); writes may reach the medium in any order until then.
    ///
    /// # Errors
    /// Any I/O error; the block's contents are then unspecified.
    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()>;

    /// Returns only when every write that returned before the call is durable.
    ///
    /// # Errors
    /// Any I/O error; it must not be reported once and then forgotten: the caller gives up.
    fn flush(&self) -> io::Result<()>;

    /// Whole 4 KiB blocks the store holds now. May grow while in use, must not shrink.
    ///
    /// # Errors
    /// Any I/O error.
    fn block_count(&self) -> io::Result<u64>;
}
