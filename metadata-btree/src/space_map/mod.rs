//! Reference counts: one space map for the metadata's own blocks, one for another device's.
//!
//! Both keep two bits for each block in bitmaps, and counts of three or more in an overflow tree.
//! The records that describe them on disk are here; the maps themselves in the two submodules.

mod bitmap;
mod block_set;
mod disk;
mod metadata;

pub(crate) use bitmap::{Bitmap, COUNTS_PER_BITMAP};
pub(crate) use disk::DiskMap;
pub use metadata::METADATA_BLOCKS_MAX;
pub(crate) use metadata::{MetadataMap, index_entry};

use crate::block::BlockNr;
use crate::codec::{Value, get_u32, get_u64, put_u32, put_u64};
use crate::error::Error;

/// Where a space map is on disk, and how large: the first 32 bytes of its place in the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceMapRoot {
    /// Blocks counted.
    pub nr_blocks: u64,
    /// Blocks whose count is not 0.
    pub nr_allocated: u64,
    /// Disk map: root of the bitmap index tree. Metadata map: the index block.
    pub bitmap_root: BlockNr,
    /// Root of the overflow tree.
    pub ref_count_root: BlockNr,
}

impl SpaceMapRoot {
    /// Reads the first 32 bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn decode(bytes: &[u8]) -> Self {
        Self {
            nr_blocks: get_u64(bytes, 0),
            nr_allocated: get_u64(bytes, 8),
            bitmap_root: BlockNr(get_u64(bytes, 16)),
            ref_count_root: BlockNr(get_u64(bytes, 24)),
        }
    }

    /// Writes the first 32 bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn encode(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.nr_blocks);
        put_u64(bytes, 8, self.nr_allocated);
        put_u64(bytes, 16, self.bitmap_root.0);
        put_u64(bytes, 24, self.ref_count_root.0);
    }
}

/// The two space maps of one commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceMapRoots {
    /// Counts of the other device's blocks.
    pub disk: SpaceMapRoot,
    /// Counts of the metadata's own blocks.
    pub metadata: SpaceMapRoot,
}

/// What an index says of one bitmap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexEntry {
    pub(crate) bitmap: BlockNr,
    /// Zero counts among all positions of the bitmap, also those beyond the device's end.
    pub(crate) nr_free: u32,
    /// All positions below this are in use. May be too low, never too high.
    pub(crate) none_free_before: u32,
}

impl Value for IndexEntry {
    const SIZE: usize = 16;

    fn decode(bytes: &[u8]) -> Self {
        Self {
            bitmap: BlockNr(get_u64(bytes, 0)),
            nr_free: get_u32(bytes, 8),
            none_free_before: get_u32(bytes, 12),
        }
    }

    fn encode(&self, bytes: &mut [u8]) {
        put_u64(bytes, 0, self.bitmap.0);
        put_u32(bytes, 8, self.nr_free);
        put_u32(bytes, 12, self.none_free_before);
    }
}

/// A count of three or more, in an overflow tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OverflowCount(pub(crate) u32);

impl OverflowCount {
    /// The count of a block whose bitmap says that there is one of three or more.
    pub(crate) fn check(found: Option<Self>, root: BlockNr, block: u64) -> Result<u32, Error> {
        match found {
            Some(Self(count)) if count >= bitmap::MANY => Ok(count),
            _ => Err(Error::NoOverflowCount { root, block }),
        }
    }
}

impl Value for OverflowCount {
    const SIZE: usize = 4;

    fn decode(bytes: &[u8]) -> Self {
        Self(get_u32(bytes, 0))
    }

    fn encode(&self, bytes: &mut [u8]) {
        put_u32(bytes, 0, self.0);
    }
}
