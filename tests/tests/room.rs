//! The most metadata a commit can need, against what commits do need.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use tests::Prng;
use tests::executor::block_on;
use tests::image::expect_sound;
use tests::setup::{geometry, name, new};
use tests::sim::{Geometry, Machine};

const BLOCK: u64 = 65_536;
/// Two chunks of mappings.
const BLOCKS: u64 = 1024;
const DATA_BLOCKS: u64 = 6000;

/// Volumes whose leaves are shared and whose data blocks lie anywhere: the changes of two chunks
/// stay below what `pool/src/room.rs` allows them, which is 64 blocks a chunk, a fiftieth of the data
/// blocks in use for overflow counts, 64 whatever changes, and the bitmap.
#[test]
fn a_commit_needs_no_more_than_its_changes_are_granted() {
    let geometry = Geometry {
        metadata_blocks: 2000,
        ..geometry(DATA_BLOCKS)
    };
    let machine = Machine::new(geometry, Prng::new(1));
    let pool = machine.open().unwrap();
    let mut prng = Prng::new(2);
    block_on(pool.create_volume(new("v0"), BLOCKS * BLOCK, None)).unwrap();
    let mut most = 0;
    for round in 0..8 {
        let name = name(&format!("v{round}"));
        let volume = pool.open_device(&name).unwrap();
        let mut blocks: Vec<u64> = (0..BLOCKS).collect();
        for index in 0..blocks.len() {
            let other = prng.index(blocks.len());
            blocks.swap(index, other);
        }
        // All at first, in no order, so that leaves split everywhere; later a part.
        let count = if round == 0 { blocks.len() } else { 400 };
        for block in &blocks[..count] {
            block_on(volume.write(block * BLOCK, &[1; 4096], false)).unwrap();
        }
        let before = machine.metadata.writes();
        block_on(volume.flush()).unwrap();
        let used = pool.status().data_used_bytes / BLOCK;
        let granted = 2 * 64 + (254 * count as u64).min(used / 50) + 64 + 1;
        let needed = machine.metadata.writes() - before;
        assert!(
            needed <= granted,
            "round {round}: {needed}, granted {granted}"
        );
        most = most.max(needed);
        let next = format!("v{}", round + 1);
        block_on(pool.create_snapshots(vec![new(format!("v{round}@s"))])).unwrap();
        block_on(pool.clone_device(&name, new(next))).unwrap();
    }
    expect_sound(&machine.metadata.image(), DATA_BLOCKS);
    eprintln!("{most} metadata blocks written by the largest commit");
}
