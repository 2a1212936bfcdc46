//! Faults that were found and mended, each by the shortest way to it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use tests::Prng;
use tests::driver::Script;
use tests::episode::replay;
use tests::executor::block_on;
use tests::setup::{machine, name, new};
use tests::sim::{Fault, Io, Shape};

const BLOCK: u64 = 65_536;

/// The catalog line that a deletion is complete could not be written. The deleted device's id was
/// given to the next one, which was then deleted in its place.
#[test]
fn an_id_is_not_given_anew_while_its_deletion_is_noted() {
    let machine = machine(12);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("old"), 2 * BLOCK, None)).unwrap();
    block_on(pool.remove(&name("old"))).unwrap();
    machine.power.set_faults([Fault::once(Io::CatalogWrite)]);
    assert!(
        block_on(pool.reclaim()).is_err(),
        "the catalog could not be written"
    );
    block_on(pool.create_volume(new("young"), 2 * BLOCK, None)).unwrap();
    let device = pool.open_device(&name("young")).unwrap();
    block_on(device.write(0, &[7; 4096], true)).unwrap();
    block_on(pool.reclaim()).unwrap();
    drop((device, pool));
    let pool = machine
        .after_cut(Shape::Nothing, &mut Prng::new(2))
        .open()
        .unwrap();
    let device = pool.open_device(&name("young")).unwrap();
    let mut bytes = [0; 4096];
    block_on(device.read(0, &mut bytes)).unwrap();
    assert_eq!(bytes, [7; 4096]);
}

/// A commit of the pool with nothing mapped since the last one did not sync what was written in
/// place.
#[test]
fn a_commit_covers_writes_in_place() {
    let machine = machine(12);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("v"), 2 * BLOCK, None)).unwrap();
    let device = pool.open_device(&name("v")).unwrap();
    block_on(device.write(0, &[1; 4096], true)).unwrap();
    block_on(device.write(0, &[2; 4096], false)).unwrap();
    block_on(pool.commit()).unwrap();
    let survivor = machine
        .after_cut(Shape::Nothing, &mut Prng::new(2))
        .open()
        .unwrap();
    let device = survivor.open_device(&name("v")).unwrap();
    let mut bytes = [0; 4096];
    block_on(device.read(0, &mut bytes)).unwrap();
    assert_eq!(bytes, [2; 4096]);
}

/// The simulator found these, and made them as short as they are. What each is about is its name.
#[test]
fn scripts_that_failed_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut scripts = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let script: Script = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        if let Err(failure) = replay(&script) {
            panic!(
                "{}: {}\n{}",
                path.display(),
                failure.history,
                failure.message
            );
        }
        scripts += 1;
    }
    assert!(scripts > 0, "no scripts in {}", folder.display());
}
