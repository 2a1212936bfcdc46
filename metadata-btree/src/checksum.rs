//! The four kinds of metadata block, and what makes a block valid as one of them.
//!
//! Every kind begins alike: a checksum over the rest of the block at offset 0, and the block's own
//! number at offset 8. The checksum is CRC-32C without its final inversion, combined with a
//! constant by kind, so a right checksum also proves the kind.

use std::fmt;

use crate::block::{Block, BlockNr};
use crate::codec::{get_u32, get_u64, put_u32, put_u64};
use crate::error::{BlockCheck, Error};
use crate::node;

const CHECKSUM_AT: usize = 0;
const LOCATION_AT: usize = 8;

/// What a metadata block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockKind {
    /// Block 0, from which everything else is reached.
    Superblock,
    /// A node of any tree.
    Node,
    /// 16320 reference counts of 2 bits.
    Bitmap,
    /// The list of the metadata space map's bitmaps.
    Index,
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Node => "btree node",
            Self::Bitmap => "bitmap",
            Self::Index => "metadata index",
        })
    }
}

impl BlockKind {
    const fn mask(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
            Self::Bitmap => 240_779,
            Self::Index => 160_478,
        }
    }

    fn checksum(self, block: &Block) -> u32 {
        !crc32c::crc32c(&block.as_bytes()[LOCATION_AT - 4..]) ^ self.mask()
    }

    /// Fills in the block's own number and its checksum. The last thing done before a write.
    pub fn seal(self, block: &mut Block, nr: BlockNr) {
        put_u64(block.as_bytes_mut(), LOCATION_AT, nr.0);
        let checksum = self.checksum(block);
        put_u32(block.as_bytes_mut(), CHECKSUM_AT, checksum);
        debug_assert!(
            self.verify(block, nr).is_ok(),
            "sealed an invalid {self} {nr}"
        );
    }

    /// Checks a block just read from `nr`: checksum, own number, and for a node its header and
    /// the order of its keys. The first thing done after a read.
    ///
    /// # Errors
    /// [`Error::BadBlock`] with the check that failed.
    pub fn verify(self, block: &Block, nr: BlockNr) -> Result<(), Error> {
        self.find_fault(block, nr).map_err(|check| Error::BadBlock {
            nr,
            kind: self,
            check,
        })
    }

    fn find_fault(self, block: &Block, nr: BlockNr) -> Result<(), BlockCheck> {
        let found = get_u32(block.as_bytes(), CHECKSUM_AT);
        let expected = self.checksum(block);
        if found != expected {
            return Err(BlockCheck::Checksum { expected, found });
        }
        let found = BlockNr(get_u64(block.as_bytes(), LOCATION_AT));
        if found != nr {
            return Err(BlockCheck::Location {
                expected: nr,
                found,
            });
        }
        if self == Self::Node {
            node::verify(block)
        } else {
            Ok(())
        }
    }
}
