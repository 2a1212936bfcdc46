//! A whole metadata image, changed in a few places: check, dump, open and use.

use metadata_btree::{BLOCK_SIZE, BlockKind};

use crate::exercise::{Trust, checked, dumped, expect_mappings, use_and_close};
use crate::machine::{Contents, Image, Machine};
use crate::mutate::{Field, Random, value_at, vary};
use crate::patch::{Patch, Patches};
use crate::pools::{self, RealPool};

/// How a patched block is sealed, when not as what it was before.
const AS_IT_IS: u8 = 1;
const KINDS: [(u8, BlockKind); 4] = [
    (2, BlockKind::Superblock),
    (3, BlockKind::Node),
    (4, BlockKind::Bitmap),
    (5, BlockKind::Index),
];
/// It first becomes a copy of the block that the patch names, and stays of that block's kind.
const AS_COPY: u8 = 6;

fn real_pool(patches: &Patches) -> &'static RealPool {
    let all = pools::all();
    &all[usize::from(patches.pool) % all.len()]
}

pub fn run(input: &[u8]) {
    judge(contents_of(input));
}

/// The pool that an input makes.
pub fn contents_of(input: &[u8]) -> Contents {
    let patches = Patches::decode(input);
    let real = real_pool(&patches);
    let mut contents = real.contents.clone();
    for patch in &patches.list {
        apply(patch, real, &mut contents.metadata);
    }
    contents
}

fn apply(patch: &Patch, real: &RealPool, image: &mut Image) {
    let nr = u64::from(patch.unit) % image.block_count;
    let mut kind = real.kinds.get(&nr).copied();
    let mut bytes = patch.bytes.as_slice();
    if patch.seal == AS_COPY
        && let Some((source, rest)) = bytes.split_first_chunk()
    {
        let source = u64::from(u16::from_le_bytes(*source)) % image.block_count;
        let copied = image
            .blocks
            .get(&source)
            .map_or([0; BLOCK_SIZE], |block| **block);
        *image.block_mut(nr) = copied;
        kind = real.kinds.get(&source).copied();
        bytes = rest;
    }
    let block = image.block_mut(nr);
    let len = bytes.len().min(BLOCK_SIZE - patch.at);
    block[patch.at..patch.at + len].copy_from_slice(&bytes[..len]);
    let asked = KINDS.iter().find(|(seal, _)| *seal == patch.seal);
    let kind = asked.map_or(kind, |(_, kind)| Some(*kind));
    if let Some(kind) = kind.filter(|_| patch.seal != AS_IT_IS) {
        seal(kind, block, nr);
    }
}

/// Gives a block its number and checksum, whatever else is wrong with it.
pub fn seal(kind: BlockKind, bytes: &mut [u8; BLOCK_SIZE], nr: u64) {
    let mask = match kind {
        BlockKind::Superblock => 160_774,
        BlockKind::Node => 121_107,
        BlockKind::Bitmap => 240_779,
        BlockKind::Index => 160_478,
    };
    bytes[8..16].copy_from_slice(&nr.to_le_bytes());
    let checksum = !crc32c::crc32c(&bytes[4..]) ^ mask;
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks, dumps, opens and uses a pool. What the check says must be so.
pub fn judge(contents: Contents) {
    let report = checked(&contents.metadata);
    let text = dumped(&contents.metadata);
    let has_log_flag = contents
        .metadata
        .blocks
        .get(&0)
        .is_some_and(|block| block[363] != 0);
    let trust = if report.is_sound() && !has_log_flag {
        Trust::Sound
    } else {
        Trust::Damaged
    };
    if trust == Trust::Sound {
        assert!(text.is_some(), "sound metadata, and it cannot be dumped");
    }
    let machine = Machine::new(contents);
    let Some(pool) = trust.expect("opening", machine.open()) else {
        return;
    };
    if let (Trust::Sound, Some(text)) = (trust, &text) {
        expect_mappings(&pool, text);
    }
    use_and_close(&machine, &pool, trust);
}

/// Changes a field of a block that is in use.
pub fn mutate(patches: &mut Patches, random: &mut Random) {
    let real = real_pool(patches);
    let image = &real.contents.metadata;
    let used: Vec<u64> = real.kinds.keys().copied().collect();
    let mut likely = vec![random.pick(&used), random.pick(&used), image.block_count];
    let (from, at) = (random.pick(&used), 4 * random.below(BLOCK_SIZE / 4 - 1));
    likely.push(value_at(&image.blocks[&from][..], at, 8));
    vary(patches, random, |random| field(real, random), &likely);
}

/// A field that means something: in a superblock, or a node's header, keys and values in use, or counts.
fn field(real: &RealPool, random: &mut Random) -> Field {
    const SUPERBLOCK: [(usize, usize); 20] = [
        (4, 4),
        (32, 8),
        (40, 4),
        (44, 4),
        (48, 8),
        (56, 8),
        (64, 8),
        (72, 8),
        (80, 8),
        (88, 8),
        (192, 8),
        (200, 8),
        (208, 8),
        (216, 8),
        (320, 8),
        (328, 8),
        (336, 4),
        (344, 8),
        (356, 4),
        (360, 4),
    ];
    let used: Vec<u64> = real.kinds.keys().copied().collect();
    // The superblock is the root of all, and one of many.
    let nr = if random.below(6) == 0 {
        0
    } else {
        random.pick(&used)
    };
    let bytes = &real.contents.metadata.blocks[&nr][..];
    let (at, len) = match real.kinds[&nr] {
        BlockKind::Superblock => random.pick(&SUPERBLOCK),
        BlockKind::Node if random.below(3) == 0 => (random.pick(&[4, 16, 20, 24]), 4),
        BlockKind::Node => {
            let number = |at| usize::try_from(value_at(bytes, at, 4)).unwrap();
            let (entries, capacity, size) = (number(16).max(1), number(20), number(24));
            let entry = random.below(entries);
            match random.below(2) {
                0 => (32 + 8 * entry, 8),
                _ => (
                    32 + 8 * capacity + size * entry + random.below(size) / 4 * 4,
                    size.min(4),
                ),
            }
        }
        BlockKind::Bitmap => (16 + random.below(16), 1),
        BlockKind::Index => (16 + random.pick(&[0, 8, 12]), 4),
    };
    Field {
        unit: u16::try_from(nr).unwrap_or(0),
        at,
        len,
        value: value_at(bytes, at, len),
    }
}
