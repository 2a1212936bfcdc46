//! Trees that are built of ascending entries, with and without leaves in common.

use std::sync::Arc;

use metadata_btree::{BlockNr, MemStore, TreeBuilder};

use crate::forest::{DiskRef, Forest, TreeRef};
use crate::recount::{Recount, recount};

const LEAF_MAX: usize = TreeBuilder::<DiskRef>::LEAF_MAX;
const LEAF_MIN: usize = TreeBuilder::<DiskRef>::LEAF_MIN;

const METADATA_BLOCKS: u64 = 4096;
const DISK_BLOCKS: u64 = 1 << 17;

fn new_forest() -> (MemStore, Forest) {
    let store = MemStore::new(METADATA_BLOCKS);
    let forest = Forest::format(Arc::new(store.clone()), DISK_BLOCKS);
    (store, forest)
}

fn entry(key: usize) -> (u64, DiskRef) {
    let key = key as u64;
    let value = DiskRef {
        block: key * 7919 % DISK_BLOCKS,
        note: key % 5,
    };
    (key, value)
}

/// Adds entries one by one.
fn push(forest: &mut Forest, builder: &mut TreeBuilder<DiskRef>, keys: std::ops::Range<usize>) {
    for (key, value) in keys.map(entry) {
        builder.push(&mut forest.tx, key, value).unwrap();
        forest.tx.disk_inc(value.block).unwrap();
    }
}

/// Adds a leaf that was not there before.
fn add_leaf(
    forest: &mut Forest,
    builder: &mut TreeBuilder<DiskRef>,
    keys: std::ops::Range<usize>,
) -> BlockNr {
    let entries: Vec<_> = keys.map(entry).collect();
    for (_, value) in &entries {
        forest.tx.disk_inc(value.block).unwrap();
    }
    builder.add_leaf(&mut forest.tx, &entries).unwrap()
}

fn finish(forest: &mut Forest, builder: &mut TreeBuilder<DiskRef>, name: u64) {
    let root = builder.finish(&mut forest.tx).unwrap().root();
    let top = &mut forest.top;
    top.insert(&mut forest.tx, name, TreeRef(root)).unwrap();
}

fn assert_has(found: &Recount<'_>, name: u64, keys: impl Iterator<Item = usize>) {
    let expected: Vec<_> = keys
        .map(entry)
        .map(|(key, value)| (key, value.block, value.note))
        .collect();
    assert!(found.trees[&name] == expected, "tree {name}");
}

#[test]
fn trees_of_every_size_are_sound() {
    let around = |size: usize| size.saturating_sub(1)..=size + 1;
    let sizes = [0, LEAF_MIN, LEAF_MAX, LEAF_MAX + LEAF_MIN, 2 * LEAF_MAX];
    let sizes = sizes.into_iter().flat_map(around);
    for size in sizes.chain([LEAF_MAX * LEAF_MAX + 1, 100_000]) {
        let (store, mut forest) = new_forest();
        let mut builder = TreeBuilder::default();
        push(&mut forest, &mut builder, 0..size);
        finish(&mut forest, &mut builder, 1);
        forest.commit().unwrap();
        assert_has(&recount(&store.to_image()), 1, 0..size);
    }
}

#[test]
fn shared_leaves_are_counted_once() {
    let (store, mut forest) = new_forest();
    let leaf = |number: usize| number * LEAF_MAX..(number + 1) * LEAF_MAX;
    let mut builder = TreeBuilder::default();
    let leaves: Vec<BlockNr> = (0..300)
        .map(|number| add_leaf(&mut forest, &mut builder, leaf(number)))
        .collect();
    finish(&mut forest, &mut builder, 1);
    for name in 2..=5 {
        let mut builder = TreeBuilder::default();
        for (number, shared) in leaves.iter().enumerate() {
            let first_key = (number * LEAF_MAX) as u64;
            builder
                .share_leaf(&mut forest.tx, first_key, *shared)
                .unwrap();
        }
        finish(&mut forest, &mut builder, name);
    }
    forest.commit().unwrap();
    let image = store.to_image();
    let found = recount(&image);
    for name in 1..=5 {
        assert_has(&found, name, 0..300 * LEAF_MAX);
    }
    assert_eq!(found.counts[&leaves[0].0], 5);
    assert!(found.counts.len() < 350, "{} blocks", found.counts.len());
}

/// What comes between shared leaves, and behind the last one, is however little.
#[test]
fn entries_around_shared_leaves_find_their_place() {
    for gap in [1, LEAF_MIN - 1, LEAF_MIN, LEAF_MAX, LEAF_MAX + LEAF_MIN] {
        let (store, mut forest) = new_forest();
        let shared = 1000..1000 + LEAF_MAX;
        let mut first = TreeBuilder::default();
        let leaf = add_leaf(&mut forest, &mut first, shared.clone());
        push(&mut forest, &mut first, 5000..5000 + gap);
        let mut second = TreeBuilder::default();
        push(&mut forest, &mut second, 0..gap);
        assert_eq!(second.can_share(LEAF_MAX), gap >= LEAF_MIN);
        assert!(!second.can_share(LEAF_MIN - 1));
        if second.can_share(LEAF_MAX) {
            second.share_leaf(&mut forest.tx, 1000, leaf).unwrap();
        } else {
            push(&mut forest, &mut second, shared.clone());
        }
        push(&mut forest, &mut second, 6000..6000 + gap);
        finish(&mut forest, &mut first, 1);
        finish(&mut forest, &mut second, 2);
        forest.commit().unwrap();
        let image = store.to_image();
        let found = recount(&image);
        assert_has(&found, 1, shared.clone().chain(5000..5000 + gap));
        let keys = (0..gap).chain(shared).chain(6000..6000 + gap);
        assert_has(&found, 2, keys);
    }
}

#[test]
fn without_room_nothing_changes() {
    let store = MemStore::new(120);
    let mut forest = Forest::format(Arc::new(store.clone()), DISK_BLOCKS);
    let mut builder = TreeBuilder::default();
    let mut size = 0;
    loop {
        let (key, value) = entry(size);
        match builder.push(&mut forest.tx, key, value) {
            Ok(()) => forest.tx.disk_inc(value.block).unwrap(),
            Err(_) => break,
        }
        size += 1;
    }
    store.grow(METADATA_BLOCKS);
    forest.tx.grow_metadata(METADATA_BLOCKS).unwrap();
    push(&mut forest, &mut builder, size..size + 1000);
    finish(&mut forest, &mut builder, 1);
    forest.commit().unwrap();
    assert!(size > LEAF_MAX, "{size} entries");
    assert_has(&recount(&store.to_image()), 1, 0..size + 1000);
}
