//! One metadata block, in each place in which its decoders look for one.

use metadata_btree::{BLOCK_SIZE, Block, BlockKind, BlockNr};

use crate::image::{judge, seal};
use crate::pools;

/// The first byte says in whose place the block comes; the rest is the block, zeros behind it.
pub fn run(input: &[u8]) {
    let Some((place, content)) = input.split_first() else {
        return;
    };
    let mut bytes = [0; BLOCK_SIZE];
    let len = content.len().min(BLOCK_SIZE);
    bytes[..len].copy_from_slice(&content[..len]);
    for kind in [
        BlockKind::Superblock,
        BlockKind::Node,
        BlockKind::Bitmap,
        BlockKind::Index,
    ] {
        seal(kind, &mut bytes, 7);
        let mut block = Block::zeroed();
        *block.as_bytes_mut() = bytes;
        // As a node it may be wrong in itself; that is told, and not panicked about.
        let verified = kind.verify(&block, BlockNr(7));
        assert!(kind == BlockKind::Node || verified.is_ok(), "{verified:?}");
        assert!(
            kind.verify(&block, BlockNr(8)).is_err(),
            "a misplaced {kind}"
        );
    }
    let real = &pools::all()[1];
    let Some((nr, kind)) = real
        .kinds
        .iter()
        .nth(usize::from(*place) % real.kinds.len())
    else {
        return;
    };
    seal(*kind, &mut bytes, *nr);
    let mut contents = real.contents.clone();
    *contents.metadata.block_mut(*nr) = bytes;
    judge(contents);
}
