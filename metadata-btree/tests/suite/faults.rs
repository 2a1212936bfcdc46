//! What happens when the store fails or the metadata is full: the last commit stays, and the
//! transaction either goes on or says that it cannot.

use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{Block, BlockNr, Btree, Error, MemStore, SpaceMapRoots, Transaction};

use crate::forest::{DiskRef, Forest, Plain};
use crate::guard::GuardStore;
use crate::recount::recount;

const BLOCKS: u64 = 1000;

/// A forest with one commit: trees 1 and 2 share their nodes.
fn forest(store: &GuardStore) -> Forest {
    let mut forest = Forest::format(Arc::new(store.clone()), 20_000);
    forest.tx.set_dirty_nodes_max(4);
    forest.create(1).unwrap();
    (0..2000).for_each(|key| forest.put(1, key, key, 1).unwrap());
    forest.snapshot(1, 2).unwrap();
    forest.commit().unwrap();
    store.protect(recount(&store.memory().to_image()).counts.keys().copied());
    forest
}

fn change(forest: &mut Forest) -> Result<(), Error> {
    for key in 0..400 {
        forest.put(2, key * 5, 10_000 + key, 2)?;
    }
    forest.change(1, |tree, tx| tree.remove_range(tx, 100..1500))?;
    forest.commit()
}

#[test]
fn every_failing_write_or_flush_leaves_the_last_commit() {
    let store = GuardStore::new(MemStore::new(BLOCKS));
    let mut whole = forest(&store);
    let before = store.changes();
    change(&mut whole).unwrap();
    let changes = store.changes() - before;
    assert!(
        changes > 15,
        "{changes} early writes, commit writes and flushes"
    );
    let new_trees = recount(&store.memory().to_image()).trees;

    for good in 0..changes {
        let store = GuardStore::new(MemStore::new(BLOCKS));
        let mut forest = forest(&store);
        let (view, top) = (forest.tx.view(), forest.top);
        let old_trees = recount(&store.memory().to_image()).trees;
        store.fail_changes_after(good);
        let error = change(&mut forest).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    op: "write" | "flush",
                    ..
                }
            ),
            "{error}"
        );
        store.fail_changes_after(u64::MAX);

        let written = store.changes();
        assert_poisoned(&mut forest);
        let root = top.lookup(&view, 2).unwrap().unwrap().0;
        let value = Btree::<DiskRef>::from_root(root).lookup(&view, 5).unwrap();
        assert_eq!(value, Some(DiskRef { block: 5, note: 1 }));
        assert_eq!(
            written,
            store.changes(),
            "a poisoned transaction writes nothing"
        );

        let superblock_written = good + 1 == changes;
        let expected = if superblock_written {
            &new_trees
        } else {
            &old_trees
        };
        assert_eq!(&recount(&store.memory().to_image()).trees, expected);
        // What the view reaches stays protected, whichever superblock the store has now.
        let mut again = forest.reopen().unwrap();
        for key in 0..20 {
            again.put(1, key * 90, 19_999, 0).unwrap();
            again.commit().unwrap();
        }
        let value = Btree::<DiskRef>::from_root(root).lookup(&view, 5).unwrap();
        assert_eq!(value, Some(DiskRef { block: 5, note: 1 }));
        drop(view);
        again.put(1, 7, 19_999, 0).unwrap();
        store.protect(recount(&store.memory().to_image()).counts.keys().copied());
        again.commit().unwrap();
    }
}

fn assert_poisoned(forest: &mut Forest) {
    let mut tree = Btree::<DiskRef>::from_root(BlockNr(1));
    let tx = &mut forest.tx;
    let value = DiskRef { block: 1, note: 0 };
    let results = [
        tree.insert(tx, 1, value).map(drop),
        tree.replace(tx, 1, value).map(drop),
        tree.remove(tx, 1).map(drop),
        tree.remove_range(tx, ..).map(drop),
        tree.drop_tree(tx),
        Btree::<DiskRef>::empty(tx).map(drop),
        tx.inc(BlockNr(0)),
        tx.disk_inc(1),
        tx.disk_dec(1),
        tx.grow_disk(30_000),
        tx.grow_metadata(BLOCKS),
        tx.commit(|_| unreachable!("a poisoned transaction asks for no superblock")),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::Poisoned)),
            "change {index}: {result:?}"
        );
    }
}

#[test]
fn failing_reads_poison_only_changes() {
    let store = GuardStore::new(MemStore::new(BLOCKS));
    drop(forest(&store));
    for good in 0..40 {
        let mut forest = Forest::open(Arc::new(store.clone())).unwrap();
        store.fail_reads_after(good);
        let result = forest.change(2, |tree, tx| tree.remove_range(tx, 300..1700));
        store.fail_reads_after(u64::MAX);
        match result {
            Ok(removed) => assert_eq!(removed, 1400),
            Err(error) => assert!(matches!(error, Error::Io { op: "read", .. }), "{error}"),
        }
        // Either the change is complete or it cannot be committed; nothing in between.
        if forest.commit().is_ok() {
            let image = store.memory().to_image();
            let left = recount(&image).trees[&2].len();
            assert!(left == 600 || left == 2000, "{left}");
            if left == 600 {
                return;
            }
        }
        store.protect(recount(&store.memory().to_image()).counts.keys().copied());
    }
    unreachable!("forty reads are enough");
}

#[test]
fn full_metadata_can_be_committed_and_recovers() {
    let store = GuardStore::new(MemStore::new(200));
    let mut forest = Forest::format(Arc::new(store.clone()), 100_000);
    forest.create(1).unwrap();
    let mut keys = 0;
    let error = loop {
        match forest.put(1, keys * 3, keys, 0) {
            Ok(()) => keys += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::OutOfMetadataSpace { .. }), "{error}");
    assert!(keys > 25_000, "{keys} entries fit");
    // The reference made for the entry that did not fit is given back.
    forest.tx.disk_dec(keys).unwrap();
    assert_eq!(forest.tx.take_freed(), [keys]);
    forest.commit().unwrap();
    let image = store.memory().to_image();
    assert_eq!(recount(&image).trees[&1].len() as u64, keys);
    let mut freed = forest.change(1, |tree, tx| tree.remove_range(tx, ..keys));
    if let Err(error) = freed {
        unreachable!("removal needs little room: {error}");
    }
    forest.commit().unwrap();
    freed = forest.change(1, |tree, tx| tree.remove_range(tx, ..));
    assert!(freed.unwrap() > 0);
    forest.commit().unwrap();
    assert!(recount(&store.memory().to_image()).trees[&1].is_empty());
    (0..20_000).for_each(|key| forest.put(1, key, key, 0).unwrap());
    forest.commit().unwrap();
    recount(&store.memory().to_image());
}

#[test]
fn sizes_are_checked() {
    let store = || Arc::new(MemStore::new(100));
    let error = Transaction::format(store(), 101, 0).map(drop).unwrap_err();
    assert_eq!(error.to_string(), "metadata: 101 blocks, expected 1 to 100");
    assert!(matches!(
        Transaction::format(store(), 0, 0),
        Err(Error::BadSize { .. })
    ));
    let error = Transaction::format(store(), 5, 0).map(drop).unwrap_err();
    assert!(matches!(error, Error::OutOfMetadataSpace { .. }), "{error}");
    let error = Transaction::format(store(), 100, 16_320 * 100)
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, Error::OutOfMetadataSpace { .. }), "{error}");

    let mut tx = Transaction::format(store(), 100, 50).unwrap();
    assert!(matches!(
        tx.grow_metadata(99),
        Err(Error::BadSize { min: 100, .. })
    ));
    assert!(matches!(
        tx.grow_metadata(101),
        Err(Error::BadSize { max: 100, .. })
    ));
    assert!(matches!(
        tx.grow_disk(49),
        Err(Error::BadSize { min: 50, .. })
    ));
    assert!(matches!(
        tx.disk_inc(50),
        Err(Error::DiskBlockOutOfRange {
            block: 50,
            blocks: 50
        })
    ));
    assert!(matches!(
        tx.disk_dec(0),
        Err(Error::BadDiskCount {
            block: 0,
            found: 0,
            ..
        })
    ));
    assert!(matches!(
        tx.inc(BlockNr(99)),
        Err(Error::BadCount {
            nr: BlockNr(99),
            ..
        })
    ));
    assert!(matches!(
        tx.count(BlockNr(100)),
        Err(Error::BadBlock {
            nr: BlockNr(100),
            ..
        })
    ));
}

#[test]
fn roots_that_make_no_sense_are_refused() {
    let mut tx = Transaction::format(Arc::new(MemStore::new(100)), 100, 50).unwrap();
    let mut roots = None;
    tx.commit(|r| {
        roots = Some(*r);
        Ok(Block::zeroed())
    })
    .unwrap();
    let good: SpaceMapRoots = roots.unwrap();
    let store = Arc::clone(tx.store());
    let nonsense = |spoil: fn(&mut SpaceMapRoots)| {
        let mut roots = good;
        spoil(&mut roots);
        Transaction::open(Arc::clone(&store), roots)
            .map(drop)
            .unwrap_err()
    };
    nonsense(|roots| roots.metadata.nr_blocks = 101);
    nonsense(|roots| roots.metadata.nr_blocks = u64::MAX);
    nonsense(|roots| roots.disk.nr_blocks = u64::MAX);
    nonsense(|roots| roots.metadata.bitmap_root = BlockNr(100));
    nonsense(|roots| roots.metadata.bitmap_root = roots.disk.bitmap_root);
    nonsense(|roots| roots.metadata.ref_count_root = roots.disk.bitmap_root);
    nonsense(|roots| std::mem::swap(&mut roots.disk, &mut roots.metadata));
}

#[test]
fn changing_nothing_writes_only_the_superblock() {
    let store = GuardStore::new(MemStore::new(BLOCKS));
    let mut forest = forest(&store);
    assert!(!forest.tx.has_changes());
    let before = store.changes();
    forest.commit().unwrap();
    assert_eq!(store.changes() - before, 3, "flush, superblock, flush");
    let mut tree = forest.tree(1);
    assert_eq!(tree.remove(&mut forest.tx, 9999).unwrap(), None);
    assert_eq!(tree.remove_range(&mut forest.tx, 5000..6000).unwrap(), 0);
    assert!(!forest.tx.has_changes(), "removing nothing changes nothing");
}

#[test]
fn trees_without_entries_can_be_walked_and_dropped() {
    let mut tx = Transaction::format(Arc::new(MemStore::new(100)), 100, 0).unwrap();
    let used = tx.free_metadata_blocks();
    let tree = Btree::<Plain<24>>::empty(&mut tx).unwrap();
    assert_eq!(tree.lookup(&tx, 0).unwrap(), None);
    tree.for_each(&tx, .., &mut |_, _| unreachable!("no entries"))
        .unwrap();
    let mut entries = 0;
    let mut tree = tree;
    tree.insert(&mut tx, u64::MAX, Plain(1)).unwrap();
    tree.for_each(&tx, u64::MAX.., &mut |_, _| {
        entries += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(entries, 1);
    tree.drop_tree(&mut tx).unwrap();
    assert_eq!(tx.free_metadata_blocks(), used);
}
