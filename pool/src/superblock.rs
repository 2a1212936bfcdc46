//! The superblock: metadata block 0.
//!
//! ```text
//! offset size field                      offset size field
//!      0    4 checksum                       64  128 data space map root (32 used)
//!      4    4 flags: bit 0 needs_check      192  128 metadata space map root (32 used)
//!      8    8 own block number, 0           320    8 mapping tree root
//!     16   16 uuid                          328    8 device details root
//!     32    8 magic                         336    4 data block size, sectors
//!     40    4 version                       340    4 metadata block size, sectors: 8
//!     44    4 time                          344    8 metadata blocks at format time
//!     48    8 transaction id                352    4 compat flags
//!     56    8 held root                     356    4 compat read-only flags
//!                                           360    4 incompat flags: bit 31 log, ours
//! ```
//!
//! Everything that ever changes lies in the first 512 bytes, so that a superblock torn at sector
//! granularity is either the old or the new one. What a commit does not change (`uuid`, unknown
//! flags, the tail) is kept as it was read.

use metadata_btree::{Block, BlockKind, BlockNr, SpaceMapRoot, SpaceMapRoots};

use crate::error::Error;
use crate::trees::TIME_MAX;
use crate::units::{BlockSize, SECTOR_SIZE};

const MAGIC: u64 = 27_022_010;
const VERSION: u32 = 2;
const METADATA_BLOCK_SECTORS: u32 = 8;
const NEEDS_CHECK: u32 = 1;

/// The incompat flag of ours: an intent log may hold changes that the metadata lacks. The kernel does
/// not know it, and refuses the pool.
pub const INCOMPAT_LOG: u32 = 1 << 31;

/// Where the superblock is.
pub(crate) const LOCATION: BlockNr = BlockNr(0);

/// A superblock, decoded.
#[derive(Clone)]
pub(crate) struct Superblock {
    /// The block as it was read, for the fields that never change.
    image: Block,
    pub(crate) flags: u32,
    pub(crate) time: u32,
    pub(crate) transaction_id: u64,
    pub(crate) held_root: u64,
    pub(crate) mapping_root: BlockNr,
    pub(crate) details_root: BlockNr,
    pub(crate) block_size: BlockSize,
    pub(crate) space_maps: SpaceMapRoots,
    /// Whether an intent log may hold changes that are not in the trees.
    pub(crate) has_log: bool,
}

impl Superblock {
    /// That of a pool to be formatted. The roots are filled in by the first commit.
    pub(crate) fn new(block_size: BlockSize, metadata_blocks: u64) -> Self {
        let mut image = Block::zeroed();
        put_u64(&mut image, 32, MAGIC);
        put_u32(&mut image, 40, VERSION);
        put_u32(&mut image, 340, METADATA_BLOCK_SECTORS);
        put_u64(&mut image, 344, metadata_blocks);
        let sectors = u32::try_from(block_size.sectors()).unwrap_or(u32::MAX);
        put_u32(&mut image, 336, sectors);
        let none = SpaceMapRoot {
            nr_blocks: 0,
            nr_allocated: 0,
            bitmap_root: LOCATION,
            ref_count_root: LOCATION,
        };
        Superblock {
            image,
            flags: 0,
            time: 0,
            transaction_id: 0,
            held_root: 0,
            mapping_root: LOCATION,
            details_root: LOCATION,
            block_size,
            space_maps: SpaceMapRoots {
                disk: none,
                metadata: none,
            },
            has_log: false,
        }
    }

    /// Understands block 0, or says why not.
    pub(crate) fn decode(image: &Block) -> Result<Self, Error> {
        if image.as_bytes().iter().all(|byte| *byte == 0) {
            return Err(wrong("block 0", "all zero".into(), "a formatted pool"));
        }
        expect("magic", get_u64(image, 32), MAGIC)?;
        BlockKind::Superblock.verify(image, LOCATION)?;
        expect("version", u64::from(get_u32(image, 40)), u64::from(VERSION))?;
        let metadata_sectors = u64::from(get_u32(image, 340));
        expect(
            "metadata block size",
            metadata_sectors,
            u64::from(METADATA_BLOCK_SECTORS),
        )?;
        let incompat = get_u32(image, 360);
        expect("incompat flags", u64::from(incompat & !INCOMPAT_LOG), 0)?;
        let block_sectors = u64::from(get_u32(image, 336));
        let Some(block_size) = BlockSize::new(block_sectors * SECTOR_SIZE) else {
            let allowed = "a multiple of 128 sectors, at most 2097152";
            return Err(wrong(
                "data block size",
                format!("{block_sectors} sectors"),
                allowed,
            ));
        };
        let time = get_u32(image, 44);
        if time > TIME_MAX {
            return Err(wrong("time", time.to_string(), "at most 16777215"));
        }
        Ok(Superblock {
            image: image.clone(),
            flags: get_u32(image, 4),
            time,
            transaction_id: get_u64(image, 48),
            held_root: get_u64(image, 56),
            mapping_root: BlockNr(get_u64(image, 320)),
            details_root: BlockNr(get_u64(image, 328)),
            block_size,
            space_maps: SpaceMapRoots {
                disk: SpaceMapRoot::decode(&image.as_bytes()[64..96]),
                metadata: SpaceMapRoot::decode(&image.as_bytes()[192..224]),
            },
            has_log: incompat & INCOMPAT_LOG != 0,
        })
    }

    /// The block to be written, with these space map roots. The checksum is the writer's business.
    pub(crate) fn encode(&self, space_maps: &SpaceMapRoots) -> Block {
        let mut block = self.image.clone();
        put_u32(&mut block, 4, self.flags);
        put_u32(&mut block, 44, self.time);
        put_u64(&mut block, 48, self.transaction_id);
        put_u64(&mut block, 56, self.held_root);
        block.as_bytes_mut()[64..320].fill(0);
        space_maps.disk.encode(&mut block.as_bytes_mut()[64..96]);
        space_maps
            .metadata
            .encode(&mut block.as_bytes_mut()[192..224]);
        put_u64(&mut block, 320, self.mapping_root.0);
        put_u64(&mut block, 328, self.details_root.0);
        put_u32(&mut block, 360, if self.has_log { INCOMPAT_LOG } else { 0 });
        block
    }

    /// Has an encoded superblock say that there is no log.
    pub(crate) fn clear_log(block: &mut Block) {
        let flags = get_u32(block, 360) & !INCOMPAT_LOG;
        put_u32(block, 360, flags);
    }

    /// The block that holds it.
    pub(crate) fn block(&self) -> Block {
        self.encode(&self.space_maps)
    }

    /// Whether a failed operation asks for a check before the metadata is changed again.
    pub(crate) fn needs_check(&self) -> bool {
        self.flags & NEEDS_CHECK != 0
    }

    /// Features that forbid changing the pool, none of which is known here.
    pub(crate) fn compat_read_only_flags(&self) -> u32 {
        get_u32(&self.image, 356)
    }
}

fn expect(what: &'static str, found: u64, expected: u64) -> Result<(), Error> {
    if found == expected {
        return Ok(());
    }
    Err(wrong(what, found.to_string(), &expected.to_string()))
}

fn wrong(what: &'static str, found: String, expected: &str) -> Error {
    Error::Superblock {
        what,
        found,
        expected: expected.to_owned(),
    }
}

fn get_u32(block: &Block, at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&block.as_bytes()[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn get_u64(block: &Block, at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block.as_bytes()[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn put_u32(block: &mut Block, at: usize, value: u32) {
    block.as_bytes_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(block: &mut Block, at: usize, value: u64) {
    block.as_bytes_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
