//! What is salvaged from pools that the kernel made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use metadata_check::{Salvage, SalvageError, SalvageOptions, Start};
use support::{Image, POOLS, SNAPSHOTS};

/// A device, a virtual block, a data block and a time.
type Mapping = (u32, u64, u64, u32);

/// All mappings, and how many ranges are missing.
fn mappings(salvage: &Salvage<'_>) -> (BTreeSet<Mapping>, usize) {
    let mut found = BTreeSet::new();
    let mut missing = 0;
    for device in salvage.devices() {
        let ranges = salvage.leaves(device, &mut |leaf| {
            for mapping in leaf.mappings {
                found.insert((
                    device.id,
                    mapping.virtual_block,
                    mapping.data_block,
                    mapping.time,
                ));
            }
            ControlFlow::Continue(())
        });
        missing += ranges.len();
    }
    (found, missing)
}

fn salvaged(image: &Image) -> (BTreeSet<Mapping>, usize) {
    mappings(&Salvage::begin(image, &SalvageOptions::default()).unwrap())
}

/// The nodes of any version of any tree that have children.
fn inner_nodes(image: &Image, blocks: u64) -> Vec<u64> {
    let is_inner = |nr: &u64| image.u64(*nr, 8) == *nr && image.u32(*nr, 4) == 1;
    (1..blocks).filter(is_inner).collect()
}

/// A few of many, from all over.
fn some_of<T: Copy>(all: &[T]) -> Vec<T> {
    all.iter().copied().step_by(1 + all.len() / 10).collect()
}

fn blocks(image: &Image) -> u64 {
    metadata_check::BlockSource::block_count(image).unwrap()
}

#[test]
fn of_an_intact_pool_everything_is_salvaged() {
    for pool in POOLS {
        let image = Image::of(pool);
        let salvage = Salvage::begin(&image, &SalvageOptions::default()).unwrap();
        assert_eq!((salvage.orphans().len(), salvage.doubted_nodes()), (0, 0));
        let (found, missing) = mappings(&salvage);
        let report = image.check();
        let counts = report.devices.iter().map(|device| device.mapped_blocks);
        assert_eq!((found.len() as u64, missing), (counts.sum(), 0), "{pool}");
    }
}

/// Below an inner node are whole trees. Other versions of one, that nothing leads to, make no difference.
#[test]
fn an_inner_node_that_is_lost_costs_nothing() {
    for pool in [SNAPSHOTS, "4-deep"] {
        let image = Image::of(pool);
        let expected = salvaged(&image);
        let inner = inner_nodes(&image, blocks(&image));
        assert!(inner.len() > 1, "{pool}");
        for block in some_of(&inner) {
            let mut damaged = image.clone();
            damaged.put_raw(block, 100, &[0xff; 8]);
            assert!(salvaged(&damaged) == expected, "{pool}, block {block}");
        }
    }
}

/// With two of them lost, it is not always certain whose their children are.
#[test]
fn of_two_inner_nodes_nothing_wrong_is_given() {
    let image = Image::of(SNAPSHOTS);
    let (expected, _) = salvaged(&image);
    let inner = inner_nodes(&image, blocks(&image));
    let pairs: Vec<[u64; 2]> = inner.windows(2).map(|pair| [pair[0], pair[1]]).collect();
    for pair in some_of(&pairs) {
        let mut damaged = image.clone();
        for block in pair {
            damaged.put_raw(block, 100, &[0xff; 8]);
        }
        let (found, _) = salvaged(&damaged);
        assert!(found.is_subset(&expected), "blocks {pair:?}");
    }
}

#[test]
fn a_lost_superblock_is_not_guessed() {
    for pool in POOLS {
        let image = Image::of(pool);
        let expected = salvaged(&image);
        let mut damaged = image.clone();
        damaged.put_raw(0, 0, &[0; 4096]);
        let without = SalvageOptions {
            data_block_size: Some(128),
            ..SalvageOptions::default()
        };
        // One that leads nowhere is of no use.
        let mut elsewhere = image.block(0);
        elsewhere[320..336].fill(0xff);
        let with = |copy| SalvageOptions {
            superblock: Some(copy),
            ..without
        };
        for options in [without, with(&elsewhere)] {
            match Salvage::begin(&damaged, &options) {
                Ok(salvage) => assert!(mappings(&salvage) == expected, "{pool}"),
                Err(cause) => assert!(matches!(cause, SalvageError::Ambiguous), "{pool}: {cause}"),
            }
        }
        let copy = image.block(0);
        let salvage = Salvage::begin(&damaged, &with(&copy)).unwrap();
        assert_eq!(salvage.pool().start, Start::Copy);
        assert!(mappings(&salvage) == expected, "{pool}");
    }
}
