//! Random operations on a pool, compared with a model after each.

use tests::episode::{Conditions, Mixture};
use tests::runs::Family;

const CALM: Family = Family {
    test: "",
    first_seed: 1,
    seeds: 12,
    conditions: Conditions {
        operations: (1500, 1500),
        data_blocks: (24, 400),
        metadata_blocks: (600, 900),
        crashes: 0,
        faults: 0,
        mixture: Mixture::All,
        is_tight: false,
    },
};

#[test]
fn small_pools_run_full() {
    Family {
        test: "small_pools_run_full",
        seeds: 24,
        conditions: Conditions {
            data_blocks: (24, 60),
            ..CALM.conditions
        },
        ..CALM
    }
    .run();
}

#[test]
fn larger_pools() {
    Family {
        test: "larger_pools",
        first_seed: 1000,
        conditions: Conditions {
            data_blocks: (100, 400),
            ..CALM.conditions
        },
        ..CALM
    }
    .run();
}

#[test]
fn crashes() {
    Family {
        test: "crashes",
        first_seed: 2000,
        seeds: 36,
        conditions: Conditions {
            crashes: 6,
            ..CALM.conditions
        },
    }
    .run();
}
