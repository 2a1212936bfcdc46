//! What is salvaged from pools that the kernel made.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ops::ControlFlow;

use metadata_check::{Salvage, SalvageOptions, SalvagedMapping};
use support::{Image, POOLS};

/// All mappings, and how many ranges are missing.
fn salvaged(image: &Image) -> (Vec<(u32, SalvagedMapping)>, usize) {
    let salvage = Salvage::begin(image, &SalvageOptions::default()).unwrap();
    let mut mappings = Vec::new();
    let mut missing = 0;
    for device in salvage.devices() {
        missing += salvage
            .mappings(device, &mut |mapping| {
                mappings.push((device.id, mapping));
                ControlFlow::Continue(())
            })
            .len();
    }
    assert_eq!((salvage.orphans().len(), salvage.doubted_nodes()), (0, 0));
    (mappings, missing)
}

#[test]
fn of_an_intact_pool_everything_is_salvaged() {
    for pool in POOLS {
        let image = Image::of(pool);
        let (mappings, missing) = salvaged(&image);
        let report = image.check();
        let counts = report.devices.iter().map(|device| device.mapped_blocks);
        assert_eq!(
            (mappings.len() as u64, missing),
            (counts.sum(), 0),
            "{pool}"
        );
    }
}

/// A pool that was closed is whole without its superblock, if its last commits map the same.
#[test]
fn without_a_superblock_the_last_commit_is_found_or_refused() {
    for pool in POOLS {
        let mut image = Image::of(pool);
        let expected = salvaged(&image).0;
        image.put_raw(0, 0, &[0; 4096]);
        let options = SalvageOptions {
            data_block_size: Some(128),
            ..SalvageOptions::default()
        };
        match Salvage::begin(&image, &options) {
            Ok(salvage) => {
                let mut mappings = Vec::new();
                for device in salvage.devices() {
                    let missing = salvage.mappings(device, &mut |mapping| {
                        mappings.push((device.id, mapping));
                        ControlFlow::Continue(())
                    });
                    assert!(missing.is_empty(), "{pool}");
                }
                println!("{pool}: found");
                assert!(mappings == expected, "{pool}");
            }
            Err(cause) => println!("{pool}: {cause}"),
        }
    }
}
