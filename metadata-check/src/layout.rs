//! The block level of the format: sizes, little-endian fields, checksums, own block numbers.
//!
//! Every block starts with a checksum at offset 0 and holds its own number at offset 8. The checksum
//! is CRC-32C without the final inversion, over all but its own four bytes, XORed with a constant that
//! belongs to the kind of block; so a right checksum also proves the kind.

use std::io;

use crate::finding::{BlockKind, FindingKind};
use crate::source::BlockSource;

/// Bytes in a metadata block.
pub(crate) const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for offsets.
pub(crate) const BLOCK_SIZE_U64: u64 = 4096;
/// Counts in one bitmap block.
pub(crate) const BITMAP_ENTRIES: usize = 16320;
/// [`BITMAP_ENTRIES`] for block numbers.
pub(crate) const BITMAP_ENTRIES_U64: u64 = 16320;
/// Entries in the metadata index block, hence bitmaps of the metadata space map.
pub(crate) const METADATA_BITMAPS_MAX: usize = 255;
/// The largest metadata device, in blocks.
pub(crate) const METADATA_BLOCKS_MAX: u64 = 255 * BITMAP_ENTRIES_U64;
/// Offset of the payload of bitmap and metadata index blocks.
pub(crate) const PAYLOAD: usize = 16;
/// Device ids are below this.
pub(crate) const DEVICE_IDS: u64 = 1 << 24;

const _: () = assert!(PAYLOAD + BITMAP_ENTRIES / 4 == BLOCK_SIZE);
const _: () = assert!(PAYLOAD + METADATA_BITMAPS_MAX * 16 == BLOCK_SIZE);

/// One metadata block.
pub(crate) type Block = [u8; BLOCK_SIZE];

const CSUM: usize = 0;
const OWN_NUMBER: usize = 8;
const KINDS: [BlockKind; 4] = [
    BlockKind::Superblock,
    BlockKind::Node,
    BlockKind::Bitmap,
    BlockKind::MetadataIndex,
];

/// Why a block cannot be used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// The source could not deliver it.
    Read(io::Error),
    /// It was read but is not what it should be.
    Bad(FindingKind),
}

impl From<LoadError> for FindingKind {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Read(cause) => FindingKind::Unreadable {
                cause: cause.kind(),
            },
            LoadError::Bad(kind) => kind,
        }
    }
}

/// The 32-bit field at `offset` of `bytes`.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(field)
}

/// The 64-bit field at `offset` of `bytes`.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

/// Reads block `number` and proves that it is of `kind` and belongs there.
pub(crate) fn load(
    source: &dyn BlockSource,
    kind: BlockKind,
    number: u64,
) -> Result<Box<Block>, LoadError> {
    let mut block = Box::new([0; BLOCK_SIZE]);
    source
        .read_block(number, &mut block)
        .map_err(LoadError::Read)?;
    verify(kind, number, &block).map_err(LoadError::Bad)?;
    Ok(block)
}

/// Verifies checksum (hence kind) and own block number.
pub(crate) fn verify(kind: BlockKind, number: u64, block: &Block) -> Result<(), FindingKind> {
    let found = le32(block, CSUM);
    let crc = crc(block);
    let expected = crc ^ mask(kind);
    if found != expected {
        return Err(match sealed_as(crc, found) {
            Some(actual) => FindingKind::WrongKind {
                expected: kind,
                found: actual,
            },
            None => FindingKind::BadChecksum {
                kind,
                expected,
                found,
            },
        });
    }
    let own = le64(block, OWN_NUMBER);
    if own != number {
        return Err(FindingKind::WrongOwnNumber { kind, found: own });
    }
    Ok(())
}

fn crc(block: &Block) -> u32 {
    !crc32c::crc32c(&block[CSUM + 4..])
}

/// The kind whose checksum this is.
fn sealed_as(crc: u32, found: u32) -> Option<BlockKind> {
    KINDS.into_iter().find(|kind| crc ^ mask(*kind) == found)
}

/// Gives a block the checksum of its kind.
pub(crate) fn seal(kind: BlockKind, block: &mut Block) {
    let checksum = crc(block) ^ mask(kind);
    block[CSUM..CSUM + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// The kind of block `number`, if it is sound.
pub(crate) fn kind_of(number: u64, block: &Block) -> Option<BlockKind> {
    let is_own = le64(block, OWN_NUMBER) == number;
    sealed_as(crc(block), le32(block, CSUM)).filter(|_| is_own)
}

fn mask(kind: BlockKind) -> u32 {
    match kind {
        BlockKind::Superblock => 160_774,
        BlockKind::Node => 121_107,
        BlockKind::Bitmap => 240_779,
        BlockKind::MetadataIndex => 160_478,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_uninverted_crc_of_all_but_itself() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
        let mut block = [0; BLOCK_SIZE];
        let expected = match verify(BlockKind::Node, 0, &block) {
            Err(FindingKind::BadChecksum {
                expected, found: 0, ..
            }) => expected,
            other => panic!("{other:?}"),
        };
        block[..4].copy_from_slice(&expected.to_le_bytes());
        assert_eq!(verify(BlockKind::Node, 0, &block), Ok(()));
        assert_eq!(
            verify(BlockKind::Bitmap, 0, &block),
            Err(FindingKind::WrongKind {
                expected: BlockKind::Bitmap,
                found: BlockKind::Node
            })
        );
        assert_eq!(
            verify(BlockKind::Node, 7, &block),
            Err(FindingKind::WrongOwnNumber {
                kind: BlockKind::Node,
                found: 0
            })
        );
    }
}
