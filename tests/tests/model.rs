//! Random operations on a pool, compared with a model after each.

use tests::runs::Family;

const CALM: Family = Family {
    test: "",
    first_seed: 1,
    seeds: 12,
    operations: 1500,
    data_blocks: (24, 400),
    metadata_blocks: (600, 900),
    cuts: 0,
};

#[test]
fn small_pools_run_full() {
    Family {
        test: "small_pools_run_full",
        seeds: 24,
        data_blocks: (24, 60),
        ..CALM
    }
    .run();
}

#[test]
fn larger_pools() {
    Family {
        test: "larger_pools",
        first_seed: 1000,
        data_blocks: (100, 400),
        ..CALM
    }
    .run();
}

#[test]
fn power_cuts() {
    Family {
        test: "power_cuts",
        first_seed: 2000,
        seeds: 36,
        cuts: 6,
        ..CALM
    }
    .run();
}
