//! Views: stable while later transactions commit, from several threads, and exact about counts.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use metadata_btree::{BlockNr, Btree, MemStore, View};

use crate::forest::{DiskRef, Forest, Rng, TreeRef};
use crate::guard::GuardStore;
use crate::recount::recount;

fn sum(view: &View, top: Btree<TreeRef>) -> u64 {
    let mut roots = Vec::new();
    top.for_each(view, .., &mut |_, root| {
        roots.push(root.0);
        ControlFlow::Continue(())
    })
    .unwrap();
    let mut sum = 0u64;
    for root in roots {
        let mut add = |key: u64, value: DiskRef| {
            sum = sum
                .wrapping_mul(31)
                .wrapping_add(key ^ value.block << 20 ^ value.note << 40);
            ControlFlow::Continue(())
        };
        Btree::<DiskRef>::from_root(root)
            .for_each(view, .., &mut add)
            .unwrap();
    }
    sum
}

#[test]
fn views_stay_as_they_were_while_blocks_are_reused() {
    // Enough for all views at once, should no reader get the processor; written over more than once.
    let store = MemStore::new(2000);
    let mut forest = Forest::format(Arc::new(store), 5000);
    forest.tx.set_dirty_nodes_max(8);
    forest.create(1).unwrap();
    forest.create(2).unwrap();
    forest.commit().unwrap();
    let mut rng = Rng::new(5);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut readers = Vec::new();
        for round in 0..60 {
            for _ in 0..100 {
                let (name, key) = (1 + rng.below(2), rng.below(3000));
                let block = rng.below(5000);
                forest.put(name, key, block, round).unwrap();
            }
            forest.commit().unwrap();
            let (view, top) = (forest.tx.view(), forest.top);
            if round % 6 == 0 {
                let stop = &stop;
                readers.push(scope.spawn(move || {
                    let expected = sum(&view, top);
                    for turn in 0.. {
                        assert_eq!(sum(&view, top), expected);
                        if turn > 20 || stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }));
            }
        }
        stop.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .for_each(|reader| reader.join().unwrap());
    });
}

#[test]
fn freed_blocks_wait_for_the_commit_and_for_views() {
    let store = GuardStore::new(MemStore::new(300));
    let mut forest = Forest::format(Arc::new(store.clone()), 5000);
    forest.create(1).unwrap();
    (0..5000).for_each(|key| forest.put(1, key, key, 0).unwrap());
    forest.commit().unwrap();
    let view = forest.tx.view();
    let top = forest.top;
    let expected = sum(&view, top);
    store.protect(recount(&store.memory().to_image()).counts.keys().copied());
    for round in 0..12 {
        forest.put(1, round, 4000, 1).unwrap();
        forest.commit().unwrap();
    }
    assert_eq!(sum(&view, top), expected);
    // Copies of the view hold on to the same blocks; with the last one gone more fits.
    store.protect([]);
    let before = view.clone();
    drop(view);
    let full = fill(&mut forest, 2);
    drop(before);
    let rest = fill(&mut forest, 3);
    assert!(
        rest > 0,
        "nothing more fits after {full} and the end of the last view"
    );
}

/// A view, and the blocks it reaches.
struct Other {
    view: View,
    top: Btree<TreeRef>,
    reached: Vec<u64>,
}

/// A view that lives through far more changes than there are blocks, beside shorter ones.
#[test]
fn a_view_keeps_what_it_reaches_and_no_more() {
    let store = GuardStore::new(MemStore::new(600));
    let mut forest = Forest::format(Arc::new(store.clone()), 5000);
    forest.create(1).unwrap();
    (0..5000).for_each(|key| forest.put(1, key, key, 0).unwrap());
    forest.commit().unwrap();
    let (view, top) = (forest.tx.view(), forest.top);
    let expected = sum(&view, top);
    let image = store.memory().to_image();
    let reached: Vec<u64> = recount(&image).counts.into_keys().collect();
    let mut rng = Rng::new(3);
    let mut others = Vec::new();
    for round in 0..600 {
        let also = others.iter().flat_map(|other: &Other| &other.reached);
        store.protect(reached.iter().chain(also).copied());
        let key = rng.below(5000);
        forest.put(1, key, key, 1 + round).unwrap();
        forest.commit().unwrap();
        if round % 7 == 0 {
            let image = store.memory().to_image();
            others.push(Other {
                view: forest.tx.view(),
                top: forest.top,
                reached: recount(&image).counts.into_keys().collect(),
            });
        }
        // Not the oldest first, now and then.
        if others.len() > 3 {
            let index = rng.below(4).try_into().unwrap();
            let other = others.swap_remove(index);
            sum(&other.view, other.top);
        }
    }
    assert_eq!(sum(&view, top), expected);
}

/// Inserts into a tree until the metadata is full, commits, and returns how many entries fit.
fn fill(forest: &mut Forest, name: u64) -> u64 {
    forest.create(name).unwrap();
    let fitting = (0..5000 * 252).take_while(|key| {
        let value = DiskRef { block: 1, note: 0 };
        let put = forest.change(name, |tree, tx| tree.insert(tx, key * 2, value));
        put.is_ok()
    });
    let count = fitting.count() as u64;
    for _ in 0..count {
        forest.tx.disk_inc(1).unwrap();
    }
    forest.commit().unwrap();
    count
}

#[test]
fn view_counts_are_those_of_its_commit() {
    let store = MemStore::new(500);
    let mut forest = Forest::format(Arc::new(store.clone()), 20_000);
    forest.create(1).unwrap();
    (0..1000).for_each(|key| forest.put(1, key, 16_300 + key % 200, 0).unwrap());
    (2..7).for_each(|name| forest.snapshot(1, name).unwrap());
    let empty = forest.tx.view();
    forest.commit().unwrap();
    let view = forest.tx.view();
    let image = store.to_image();
    let counts = recount(&image).counts;
    (0..500).for_each(|key| forest.put(3, key, key, 0).unwrap());
    forest.commit().unwrap();
    for nr in 0..500 {
        assert_eq!(
            view.count(BlockNr(nr)).unwrap(),
            counts.get(&nr).copied().unwrap_or(0)
        );
    }
    for block in 0..20_000 {
        let expected = if (16_300..16_500).contains(&block) {
            5
        } else {
            0
        };
        assert_eq!(
            view.disk_count(block).unwrap(),
            expected,
            "disk block {block}"
        );
    }
    assert!(view.disk_count(20_000).is_err());
    assert!(
        empty.count(BlockNr(0)).is_err(),
        "nothing was committed then"
    );
}

#[test]
fn exclusive_entries_are_what_a_drop_gives_up() {
    let mut rng = Rng::new(3);
    for round in 0..20 {
        let store = MemStore::new(600);
        let mut forest = Forest::format(Arc::new(store), 3000);
        forest.create(1).unwrap();
        (0..1500).for_each(|key| forest.put(1, key, key, 0).unwrap());
        forest.snapshot(1, 2).unwrap();
        for _ in 0..rng.below(12) {
            let (name, key) = (1 + rng.below(2), rng.below(1500));
            forest.put(name, key, 2000 + rng.below(1000), 1).unwrap();
        }
        if round % 3 == 0 {
            forest.snapshot(2, 3).unwrap();
        }
        forest.commit().unwrap();
        let view = forest.tx.view();
        let mut exclusive = BTreeMap::<u64, u32>::new();
        let mut add = |_, value: DiskRef| {
            *exclusive.entry(value.block).or_default() += 1;
            ControlFlow::Continue(())
        };
        // In two parts, which must be the whole.
        let tree = forest.tree(2);
        tree.for_each_exclusive(&view, ..700, &mut add).unwrap();
        tree.for_each_exclusive(&view, 700.., &mut add).unwrap();
        let before: Vec<_> = (0..3000)
            .map(|b| forest.tx.disk_count(b).unwrap())
            .collect();
        forest.delete(2).unwrap();
        let lost = (0..3000u64).zip(before).filter_map(|(block, before)| {
            let lost = before - forest.tx.disk_count(block).unwrap();
            (lost > 0).then_some((block, lost))
        });
        assert_eq!(lost.collect::<BTreeMap<_, _>>(), exclusive);
    }
}
