//! Units: the kinds of block and the arithmetic between them.
//!
//! A virtual block, a data block and a metadata block are three types, so that the compiler
//! refuses to mix them. Bytes appear only at the edges of the crate.

use std::fmt;

/// Bytes in a sector, the unit of the superblock and of block devices.
pub const SECTOR_SIZE: u64 = 512;

/// The smallest data block the format allows: 64 KiB.
pub const BLOCK_SIZE_MIN: u64 = 64 * 1024;

/// The largest data block the format allows: 1 GiB.
pub const BLOCK_SIZE_MAX: u64 = 1024 * 1024 * 1024;

/// The largest thin device: the virtual block number stays below 2^40 at the smallest block.
pub const DEVICE_SIZE_MAX: u64 = 1 << 56;

/// A thin device's number in the metadata: 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ThinId(u32);

impl ThinId {
    /// The largest number the format allows.
    pub const MAX: ThinId = ThinId(0x00ff_ffff);

    /// The id with this number, or none when it does not fit 24 bits.
    pub fn new(id: u32) -> Option<Self> {
        (id <= Self::MAX.0).then_some(ThinId(id))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number as a key of the top-level trees.
    pub(crate) fn key(self) -> u64 {
        u64::from(self.0)
    }
}

impl fmt::Display for ThinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block-sized piece of a thin device, by index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct VirtualBlock(pub u64);

impl VirtualBlock {
    /// One more than the largest there can be, in a device of the largest size.
    pub(crate) const LIMIT: u64 = DEVICE_SIZE_MAX / BLOCK_SIZE_MIN;
}

/// A block-sized piece of the data store, by index: at most 40 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct DataBlock(pub u64);

impl DataBlock {
    /// One more than the largest data block a mapping can name.
    pub(crate) const LIMIT: u64 = 1 << 40;
}

/// The data block size of a pool, in bytes: a multiple of 64 KiB up to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockSize(u64);

impl BlockSize {
    /// 64 KiB, what every pool uses unless told otherwise.
    pub const DEFAULT: BlockSize = BlockSize(BLOCK_SIZE_MIN);

    /// The size of this many bytes, or none when the format does not allow it.
    pub fn new(bytes: u64) -> Option<Self> {
        let allowed = (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&bytes)
            && bytes.is_multiple_of(BLOCK_SIZE_MIN);
        allowed.then_some(BlockSize(bytes))
    }

    /// In bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// In sectors, as the superblock holds it.
    pub(crate) fn sectors(self) -> u64 {
        self.0 / SECTOR_SIZE
    }

    /// Where a data block begins on the data store, in bytes.
    pub(crate) fn position(self, block: DataBlock) -> u64 {
        debug_assert!(block.0 < DataBlock::LIMIT);
        block.0 * self.0
    }

    /// The virtual block that holds the byte at `offset`.
    pub(crate) fn block_of(self, offset: u64) -> VirtualBlock {
        VirtualBlock(offset / self.0)
    }

    /// Where a virtual block begins on its device, in bytes.
    pub(crate) fn start_of(self, block: VirtualBlock) -> u64 {
        block.0 * self.0
    }

    /// How many blocks hold `bytes`, the last one perhaps in part.
    pub(crate) fn blocks_covering(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.0)
    }
}
