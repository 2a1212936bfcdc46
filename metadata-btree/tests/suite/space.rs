//! Space maps: growth, counts of every size, free runs, and how full trees are packed.

use std::fs::OpenOptions;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{Block, BlockNr, BlockStore, FileStore, MemStore, SpaceMapRoot};

use crate::forest::{Forest, Rng};
use crate::guard::GuardStore;
use crate::recount::{recount, u32_at, u64_at};

#[test]
fn roots_take_32_bytes() {
    let root = SpaceMapRoot {
        nr_blocks: 1,
        nr_allocated: 0x0203,
        bitmap_root: BlockNr(4),
        ref_count_root: BlockNr(u64::MAX),
    };
    let mut bytes = [0xEE; 40];
    root.encode(&mut bytes);
    assert_eq!(bytes[8..10], [3, 2]);
    assert_eq!(bytes[32..], [0xEE; 8]);
    assert_eq!(SpaceMapRoot::decode(&bytes), root);
}

#[test]
fn both_devices_grow_across_bitmaps() {
    let store = MemStore::new(16_300);
    let guard = GuardStore::new(store.clone());
    let mut forest = Forest::format(Arc::new(guard.clone()), 10);
    forest.create(1).unwrap();
    forest.commit().unwrap();
    recount(&store.to_image());
    store.grow(40_000);
    forest.tx.grow_metadata(40_000).unwrap();
    forest.tx.grow_disk(50_000).unwrap();
    assert_eq!(
        (forest.tx.metadata_blocks(), forest.tx.disk_blocks()),
        (40_000, 50_000)
    );
    (0..2000).for_each(|key| forest.put(1, key, 49_999 - key, 0).unwrap());
    forest.commit().unwrap();
    let image = store.to_image();
    assert_eq!(recount(&image).trees[&1].len(), 2000);

    let mut again = Forest::open(Arc::new(guard)).unwrap();
    assert_eq!(
        (again.tx.metadata_blocks(), again.tx.disk_blocks()),
        (40_000, 50_000)
    );
    assert_eq!(again.tx.disk_allocated(), 2000);
    again.tx.grow_disk(50_001).unwrap();
    assert!(again.tx.has_changes());
    again.commit().unwrap();
    assert_eq!(
        Forest::open(Arc::new(store)).unwrap().tx.disk_blocks(),
        50_001
    );
}

#[test]
fn metadata_without_room_grows() {
    let store = MemStore::new(150);
    let mut forest = Forest::format(Arc::new(store.clone()), 100_000);
    forest.create(1).unwrap();
    let fitting = (0..100_000)
        .take_while(|&key| forest.put(1, key, key, 0).is_ok())
        .count();
    forest.tx.disk_dec(fitting as u64).unwrap();
    forest.commit().unwrap();
    store.grow(20_000);
    forest.tx.grow_metadata(20_000).unwrap();
    (0..50_000).for_each(|key| forest.put(1, 200_000 + key, key, 0).unwrap());
    forest.commit().unwrap();
    recount(&store.to_image());
}

#[test]
fn disk_counts_of_every_size_survive() {
    let store = MemStore::new(300);
    let mut forest = Forest::format(Arc::new(store.clone()), 33_000);
    let mut expected = vec![0u32; 33_000];
    let mut rng = Rng::new(21);
    for round in 0..12 {
        for _ in 0..4000 {
            // Few blocks, so that counts wander over the edge between bitmaps and overflow tree.
            let near = [0, 16_319 - 300, 32_000][usize::try_from(rng.below(3)).unwrap()];
            let block = near + rng.below(700);
            let count = &mut expected[usize::try_from(block).unwrap()];
            if rng.below(2) == 0 {
                forest.tx.disk_inc(block).unwrap();
                *count += 1;
            } else if *count > 0 {
                forest.tx.disk_dec(block).unwrap();
                *count -= 1;
            }
        }
        let allocated = expected.iter().filter(|&&count| count > 0).count() as u64;
        assert_eq!(forest.tx.disk_allocated(), allocated);
        forest.commit().unwrap();
        if round % 3 == 0 {
            forest = Forest::open(Arc::new(store.clone())).unwrap();
        }
        let view = forest.tx.view();
        for (block, &count) in expected.iter().enumerate() {
            assert_eq!(forest.tx.disk_count(block as u64).unwrap(), count);
            assert_eq!(view.disk_count(block as u64).unwrap(), count);
        }
        let mut free = vec![false; 33_000];
        let mut last_end = None;
        let mut mark = |run: std::ops::Range<u64>| {
            assert!(
                last_end.is_none_or(|end| end < run.start),
                "runs are maximal and ascend"
            );
            last_end = Some(run.end);
            run.for_each(|block| free[usize::try_from(block).unwrap()] = true);
        };
        forest.tx.for_each_free_disk_run(&mut mark).unwrap();
        assert!(
            free.iter()
                .zip(&expected)
                .all(|(&free, &count)| free == (count == 0))
        );
    }
}

#[test]
fn freed_disk_blocks_are_reported_once() {
    let store = MemStore::new(100);
    let mut forest = Forest::format(Arc::new(store), 100);
    for block in [5, 6, 7, 8, 8] {
        forest.tx.disk_inc(block).unwrap();
    }
    assert_eq!(forest.tx.take_freed(), []);
    for block in [7, 5, 6, 8] {
        forest.tx.disk_dec(block).unwrap();
    }
    forest.tx.disk_inc(6).unwrap();
    forest.commit().unwrap();
    assert_eq!(forest.tx.take_freed(), [5, 7]);
    assert_eq!(forest.tx.take_freed(), []);
}

#[test]
fn ascending_keys_fill_leaves() {
    let store = MemStore::new(1000);
    let mut forest = Forest::format(Arc::new(store.clone()), 100_000);
    forest.create(1).unwrap();
    for key in 0..60_000 {
        forest.put(1, key, key, 0).unwrap();
        if key % 9000 == 0 {
            forest.commit().unwrap();
        }
    }
    forest.commit().unwrap();
    let image = store.to_image();
    let (entries, leaves) = recount(&image).leaf_fill;
    assert_eq!(entries, 60_000);
    assert!(leaves <= 60_000 / 252 + 3, "{leaves} leaves");
}

#[test]
fn removing_a_covered_range_touches_only_edges() {
    let store = GuardStore::new(MemStore::new(3000));
    let mut forest = Forest::format(Arc::new(store.clone()), 300_000);
    forest.create(1).unwrap();
    (0..200_000).for_each(|key| forest.put(1, key, key, 0).unwrap());
    forest.snapshot(1, 2).unwrap();
    forest.commit().unwrap();
    let before = store.changes();
    let removed = forest
        .change(2, |tree, tx| tree.remove_range(tx, 70_000..190_000))
        .unwrap();
    assert_eq!(removed, 120_000);
    forest.commit().unwrap();
    let writes = store.changes() - before;
    assert!(writes < 40, "{writes} writes for two edges");
    let image = store.memory().to_image();
    assert_eq!(recount(&image).trees[&2].len(), 80_000);
}

#[test]
fn tall_trees_stay_balanced_whatever_is_removed() {
    for seed in 1..=12 {
        let store = MemStore::new(2000);
        let mut forest = Forest::format(Arc::new(store.clone()), 100);
        forest.create(1).unwrap();
        let mut rng = Rng::new(seed);
        let mut keys: Vec<u64> = (0..90_000).collect();
        if seed % 2 == 0 {
            (1..keys.len() as u64).for_each(|index| {
                keys.swap(
                    usize::try_from(index).unwrap(),
                    usize::try_from(rng.below(index)).unwrap(),
                );
            });
        }
        keys.into_iter()
            .for_each(|key| forest.put(1, key, key % 100, 0).unwrap());
        for _ in 0..8 {
            let (start, len) = (rng.below(90_000), 1 + rng.below(50_000));
            forest
                .change(1, |tree, tx| tree.remove_range(tx, start..start + len))
                .unwrap();
            forest.commit().unwrap();
            recount(&store.to_image());
            for key in start..start + 200 {
                forest.put(1, key, 7, 0).unwrap();
            }
        }
    }
}

/// A node that keeps one child, itself too empty, can be mended only after it got siblings for it.
#[test]
fn an_only_child_is_mended_after_its_parent() {
    let store = MemStore::new(2000);
    let mut forest = Forest::format(Arc::new(store.clone()), 100);
    forest.create(1).unwrap();
    (0..130_000).for_each(|key| forest.put(1, key, key % 100, 0).unwrap());
    forest.commit().unwrap();
    let image = store.to_image();
    let block = |nr: u64| &image[usize::try_from(nr).unwrap() * 4096..][..4096];
    let root = block(u64_at(block(u64_at(&image, 320)), 2048));
    let child = block(u64_at(root, 2048 + 8));
    assert_eq!([u32_at(root, 4), u32_at(child, 4)], [1, 1], "three levels");
    let second_child_from = u64_at(root, 32 + 8);
    assert_eq!(u32_at(root, 16), 3, "three nodes above the leaves");
    let third_child_from = u64_at(root, 32 + 16);
    let ranges = [
        // Only the low edge is in trouble, and the high edge is elsewhere and does not help.
        (second_child_from + 5, third_child_from + 300),
        (second_child_from + 5, 130_000),
        (0, second_child_from - 5),
        (second_child_from + 5, 129_999),
        (second_child_from - 245, second_child_from + 130_000),
        (1, second_child_from - 5),
    ];
    for (start, end) in ranges {
        let copy = MemStore::from_image(image.clone());
        let mut forest = Forest::open(Arc::new(copy.clone())).unwrap();
        let removed = forest
            .change(1, |tree, tx| tree.remove_range(tx, start..end))
            .unwrap();
        assert_eq!(removed, end.min(130_000) - start);
        forest.commit().unwrap();
        recount(&copy.to_image());
    }
}

#[test]
fn a_file_holds_what_memory_holds() {
    let path = std::env::temp_dir().join(format!("metadata-btree-test-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let file = options.open(&path).unwrap();
    file.set_len(500 * 4096 + 17).unwrap();
    let store = Arc::new(FileStore::new(file).unwrap());
    assert_eq!(store.block_count().unwrap(), 500);
    let mut forest = Forest::format(store.clone(), 1000);
    forest.create(1).unwrap();
    (0..1000).for_each(|key| forest.put(1, key, key, 0).unwrap());
    forest.commit().unwrap();
    drop(forest);
    let mut forest = Forest::open(store.clone()).unwrap();
    let mut keys = 0;
    forest
        .tree(1)
        .for_each(&forest.tx, 10..20, &mut |key, value| {
            assert_eq!(key, value.block);
            keys += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(keys, 10);
    forest.commit().unwrap();
    recount(&std::fs::read(&path).unwrap());
    assert!(store.read(BlockNr(501), &mut Block::zeroed()).is_err());
    std::fs::remove_file(&path).unwrap();
}
