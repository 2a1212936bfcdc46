//! The superblock, and the copy of it that is a metadata snapshot.
//!
//! Fields end at byte 364; the rest of the block is zero. Each space map root is 128 bytes long of which
//! 32 have a meaning; the others may hold anything.

use crate::finding::{BlockKind, FindingKind, SpaceMap};
use crate::layout::{BLOCK_SIZE, Block, LoadError, le32, le64, load, verify};
use crate::source::BlockSource;

pub(crate) const MAGIC: u64 = 27_022_010;
pub(crate) const VERSION: u32 = 2;
pub(crate) const METADATA_BLOCK_SECTORS: u32 = 8;
const DATA_BLOCK_SECTORS_MIN: u32 = 128;
const DATA_BLOCK_SECTORS_MAX: u32 = 2_097_152;
const NEEDS_CHECK: u32 = 1;
pub(crate) const DATA_MAP: usize = 64;
pub(crate) const METADATA_MAP: usize = 192;
const MAP_ROOT_LEN: usize = 128;
const END: usize = 364;

/// A superblock whose checksum, own number and magic are right. Nothing else has been verified.
#[derive(Debug, Clone)]
pub(crate) struct Superblock {
    block: Box<Block>,
    pub(crate) flags: u32,
    pub(crate) version: u32,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) held_root: u64,
    pub(crate) data_map: MapRoot,
    pub(crate) metadata_map: MapRoot,
    pub(crate) mapping_root: u64,
    pub(crate) details_root: u64,
    pub(crate) data_block_size: u32,
    metadata_block_size: u32,
    metadata_nr_blocks: u64,
    compat_flags: u32,
    compat_ro_flags: u32,
    incompat_flags: u32,
}

/// The root of a space map.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapRoot {
    pub(crate) nr_blocks: u64,
    pub(crate) nr_allocated: u64,
    pub(crate) bitmap_root: u64,
    pub(crate) ref_count_root: u64,
}

impl Superblock {
    /// The pool's superblock: `pinned` if given, else block 0.
    pub(crate) fn load(
        source: &dyn BlockSource,
        pinned: Option<&Block>,
    ) -> Result<Self, LoadError> {
        let mut block = Box::new([0; BLOCK_SIZE]);
        match pinned {
            Some(pinned) => block.copy_from_slice(pinned),
            None => source.read_block(0, &mut block).map_err(LoadError::Read)?,
        }
        if block.iter().all(|byte| *byte == 0) {
            return Err(LoadError::Bad(FindingKind::NotFormatted));
        }
        verify(BlockKind::Superblock, 0, &block).map_err(LoadError::Bad)?;
        Self::decode(block).map_err(LoadError::Bad)
    }

    /// The metadata snapshot in block `number`.
    pub(crate) fn load_held(source: &dyn BlockSource, number: u64) -> Result<Self, LoadError> {
        let block = load(source, BlockKind::Superblock, number)?;
        Self::decode(block).map_err(LoadError::Bad)
    }

    pub(crate) fn needs_check(&self) -> bool {
        self.flags & NEEDS_CHECK != 0
    }

    /// Whether its fields mean what they do here.
    pub(crate) fn is_understood(&self, allowed_incompat: u32) -> bool {
        !self.faults(allowed_incompat).iter().any(Self::is_fatal)
    }

    /// Whether a fault leaves it open what the fields mean.
    pub(crate) fn is_fatal(fault: &FindingKind) -> bool {
        matches!(
            fault,
            FindingKind::BadVersion { .. }
                | FindingKind::BadMetadataBlockSize { .. }
                | FindingKind::BadDataBlockSize { .. }
                | FindingKind::UnknownFlags {
                    field: "incompat_flags",
                    ..
                }
        )
    }

    /// Faults of single fields that a pool's superblock and a metadata snapshot can both have.
    /// `allowed_incompat` are the incompat flags that may be set.
    pub(crate) fn faults(&self, allowed_incompat: u32) -> Vec<FindingKind> {
        let mut faults = Vec::new();
        if self.version != VERSION {
            faults.push(FindingKind::BadVersion {
                found: self.version,
            });
        }
        if self.metadata_block_size != METADATA_BLOCK_SECTORS {
            faults.push(FindingKind::BadMetadataBlockSize {
                found: self.metadata_block_size,
            });
        }
        let size = self.data_block_size;
        if !(DATA_BLOCK_SECTORS_MIN..=DATA_BLOCK_SECTORS_MAX).contains(&size)
            || !size.is_multiple_of(DATA_BLOCK_SECTORS_MIN)
        {
            faults.push(FindingKind::BadDataBlockSize { found: size });
        }
        let max = self.metadata_map.nr_blocks;
        for (field, bits) in [
            ("flags", self.flags & !NEEDS_CHECK),
            ("compat_flags", self.compat_flags),
            ("compat_ro_flags", self.compat_ro_flags),
            ("incompat_flags", self.incompat_flags & !allowed_incompat),
        ] {
            if bits != 0 {
                faults.push(FindingKind::UnknownFlags { field, bits });
            }
        }
        // A metadata snapshot has no space map to compare with.
        if max != 0 && !(1..=max).contains(&self.metadata_nr_blocks) {
            let found = self.metadata_nr_blocks;
            faults.push(FindingKind::BadFormatSize {
                found,
                nr_blocks: max,
            });
        }
        if let Some(offset) = (END..BLOCK_SIZE).find(|offset| self.block[*offset] != 0) {
            faults.push(FindingKind::SuperblockTail {
                offset,
                found: self.block[offset],
            });
        }
        faults
    }

    /// What is wrong with `self` as a metadata snapshot of `pool`.
    pub(crate) fn snapshot_faults(&self, pool: &Self, allowed_incompat: u32) -> Vec<FindingKind> {
        let mut faults = self.faults(allowed_incompat);
        if self.held_root != 0 {
            faults.push(FindingKind::NestedSnapshot {
                held_root: self.held_root,
            });
        }
        for (map, offset) in [
            (SpaceMap::Data, DATA_MAP),
            (SpaceMap::Metadata, METADATA_MAP),
        ] {
            if self.block[offset..offset + MAP_ROOT_LEN]
                .iter()
                .any(|byte| *byte != 0)
            {
                faults.push(FindingKind::SnapshotSpaceMap { map });
            }
        }
        if self.time > pool.time {
            faults.push(FindingKind::SnapshotTime {
                found: self.time,
                pool_time: pool.time,
            });
        }
        let sizes = [
            (
                "data_block_size",
                u64::from(self.data_block_size),
                u64::from(pool.data_block_size),
            ),
            (
                "metadata_nr_blocks",
                self.metadata_nr_blocks,
                pool.metadata_nr_blocks,
            ),
        ];
        for (field, found, expected) in sizes {
            if found != expected {
                faults.push(FindingKind::SnapshotDiffers {
                    field,
                    found,
                    expected,
                });
            }
        }
        faults
    }

    fn decode(block: Box<Block>) -> Result<Self, FindingKind> {
        let magic = le64(&*block, 32);
        if magic != MAGIC {
            return Err(FindingKind::BadMagic { found: magic });
        }
        Ok(Self {
            flags: le32(&*block, 4),
            version: le32(&*block, 40),
            time: le32(&*block, 44),
            transaction_id: le64(&*block, 48),
            held_root: le64(&*block, 56),
            data_map: MapRoot::decode(&block, DATA_MAP),
            metadata_map: MapRoot::decode(&block, METADATA_MAP),
            mapping_root: le64(&*block, 320),
            details_root: le64(&*block, 328),
            data_block_size: le32(&*block, 336),
            metadata_block_size: le32(&*block, 340),
            metadata_nr_blocks: le64(&*block, 344),
            compat_flags: le32(&*block, 352),
            compat_ro_flags: le32(&*block, 356),
            incompat_flags: le32(&*block, 360),
            block,
        })
    }
}

impl MapRoot {
    fn decode(block: &Block, offset: usize) -> Self {
        Self {
            nr_blocks: le64(block, offset),
            nr_allocated: le64(block, offset + 8),
            bitmap_root: le64(block, offset + 16),
            ref_count_root: le64(block, offset + 24),
        }
    }
}
