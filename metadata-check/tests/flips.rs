//! Random damage: nothing makes a check panic or run away, and no bit that a checksum covers can change
//! unnoticed. Each failure names its seed.

#![allow(clippy::unwrap_used, reason = "a panic fails the test, as it should")]

mod support;

use std::io;

use metadata_check::{BlockSource, CheckOptions, DumpOptions, check, dump};
use support::{Block, HELD, Image, Kind};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }
}

/// The small pools with the most in them, and the blocks that a check of each reads.
fn pools() -> Vec<(&'static str, Image, Vec<u64>)> {
    [
        "2-single",
        "3-snapshots",
        "5-many-devices",
        "6-grown-held-origin",
    ]
    .into_iter()
    .map(|pool| {
        let image = Image::of(pool);
        assert!(image.check().is_sound());
        let reads = image.take_reads().into_keys().collect();
        (pool, image, reads)
    })
    .collect()
}

#[test]
fn every_flip_without_a_new_checksum_is_found_at_its_block() {
    for (pool, image, reachable) in pools() {
        for seed in 0..500 {
            let mut random = Random(seed);
            let block = reachable[random.below(reachable.len())];
            let offset = random.below(4096);
            let mut damaged = image.clone();
            let byte = damaged.block(block)[offset] ^ 1 << random.below(8);
            damaged.put_raw(block, offset, &[byte]);
            let report = damaged.check();
            let named = report
                .findings
                .iter()
                .any(|finding| finding.block == Some(block));
            assert!(
                named && report.is_damaged(),
                "{pool} seed {seed}: block {block} byte {offset}"
            );
        }
    }
}

#[test]
fn flips_with_a_new_checksum_never_break_the_check() {
    for (pool, image, reachable) in pools() {
        let (mut found, mut missed_headers) = (0, Vec::new());
        for seed in 0..700 {
            let mut random = Random(seed + 1_000_000);
            let mut damaged = image.clone();
            let mut last = (0, 0);
            for _ in 0..=random.below(3) {
                let block = reachable[random.below(reachable.len())];
                // Most of a node is unused; headers and the first entries are where it matters.
                let reach = [64, 512, 4096][random.below(3)];
                let offset = 4 + random.below(reach - 4);
                let byte = damaged.block(block)[offset] ^ random.next().to_le_bytes()[0];
                damaged.put(block, offset, &[byte]);
                last = (block, offset);
            }
            let report = damaged.check();
            found += usize::from(!report.is_sound());
            if report.is_sound() && (8..16).contains(&last.1) {
                missed_headers.push((seed, last));
            }
            // Refusing is as good as dumping here; only a panic or a hang is wrong.
            let _ = dump(&damaged, &DumpOptions::default(), &mut io::sink());
        }
        assert!(
            found > 200,
            "{pool}: only {found} of 700 changes were found"
        );
        // A flip by zero changes nothing; any other in the own block number shows.
        assert!(missed_headers.len() < 5, "{pool}: {missed_headers:?}");
    }
}

#[test]
fn wild_fields_never_break_the_check() {
    const WILD: [u64; 8] = [0, 1, 252, 16320, 1 << 24, 1 << 40, u64::MAX / 2, u64::MAX];
    for (pool, image, reachable) in pools() {
        for seed in 0..400 {
            let mut random = Random(seed + 2_000_000);
            let mut damaged = image.clone();
            for _ in 0..=random.below(4) {
                let block = if random.below(4) == 0 {
                    0
                } else {
                    reachable[random.below(reachable.len())]
                };
                let slot = 8 * random.below(if block == 0 { 46 } else { 512 });
                let mut value = WILD[random.below(WILD.len())];
                if random.below(2) == 0 {
                    value = reachable[random.below(reachable.len())];
                }
                damaged.put64(block, slot.max(8), value);
            }
            let report = damaged.check();
            assert!(report.findings.len() <= 1000, "{pool} seed {seed}");
            // Refusing is as good as dumping here; only a panic or a hang is wrong.
            let _ = dump(&damaged, &DumpOptions::default(), &mut io::sink());
        }
    }
}

#[test]
fn the_last_block_numbers_do_not_overflow() {
    let mut image = Image::of("3-snapshots");
    image.put64(0, 64, u64::MAX);
    image.put64(153, 32, u64::MAX / 16320);
    image.put64(108, 2048, u64::MAX);
    image.put64(150, 40, u64::MAX);
    image.put64(143, 32 + 8 * 291, u64::MAX);
    assert!(image.check().is_damaged());
}

/// A node has values of the size of its own tree.
#[test]
fn a_tree_in_the_place_of_another_is_found() {
    const ROOTS: [usize; 5] = [80, 88, 216, 320, 328];
    for pool in ["3-snapshots", HELD] {
        let image = Image::of(pool);
        for (from, to) in ROOTS
            .into_iter()
            .flat_map(|from| ROOTS.map(|to| (from, to)))
        {
            let mut damaged = image.clone();
            damaged.put64(0, to, image.u64(0, from));
            let report = damaged.check();
            assert_eq!(report.is_damaged(), from != to, "{pool}: {from} at {to}");
        }
    }
}

#[test]
fn truncated_stores_are_found() {
    for (pool, image, reachable) in pools() {
        let end = reachable.iter().max().unwrap() + 1;
        for blocks in (0..end)
            .step_by(usize::try_from(end / 40 + 1).unwrap())
            .chain([1, end - 1])
        {
            let report = image.resized(blocks).check();
            assert!(report.is_damaged(), "{pool} cut to {blocks} blocks");
        }
        // More room than the map covers is how a pool looks before it is grown.
        assert!(image.resized(1 << 22).check().is_sound(), "{pool}");
    }
}

/// Every block is an internal node full of pointers to the blocks that follow it.
struct Maze;

impl BlockSource for Maze {
    fn read_block(&self, nr: u64, block: &mut Block) -> io::Result<()> {
        if nr == 0 {
            *block = Image::of("1-empty").block(0);
            let fields: [(usize, u64); 6] = [
                (192, 3000),
                (80, 10),
                (88, 20),
                (216, 30),
                (320, 40),
                (328, 50),
            ];
            for (offset, value) in fields {
                block[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            }
            seal(block, 160_774);
            return Ok(());
        }
        *block = [0; 4096];
        block[4] = 1;
        block[8..16].copy_from_slice(&nr.to_le_bytes());
        block[16] = 252;
        block[20] = 252;
        block[24] = 8;
        for (slot, key) in (0..252).zip(0_u64..) {
            block[32 + 8 * slot..][..8].copy_from_slice(&key.to_le_bytes());
            let target = (nr + 1 + key % 7) % 3000;
            block[2048 + 8 * slot..][..8].copy_from_slice(&target.to_le_bytes());
        }
        seal(block, 121_107);
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

fn seal(block: &mut Block, mask: u32) {
    let csum = !crc32c::crc32c(&block[4..]) ^ mask;
    block[..4].copy_from_slice(&csum.to_le_bytes());
}

#[test]
fn a_maze_of_pointers_ends() {
    let report = check(&Maze, &CheckOptions::default());
    assert!(report.is_damaged());
    assert!(report.findings_dropped > 0);
    assert!(dump(&Maze, &DumpOptions::default(), &mut io::sink()).is_err());
}

#[test]
fn the_editor_keeps_the_kind() {
    let mut image = Image::of("1-empty");
    image.put32(11, 24, 5);
    assert_eq!(image.kind(11), Some(Kind::Index));
}
