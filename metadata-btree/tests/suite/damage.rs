//! Damaged blocks: every read notices, names the place, and nothing panics.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{Block, BlockCheck, BlockKind, BlockNr, Btree, Error, MemStore, Transaction};

use crate::forest::{DiskRef, Forest, Rng};
use crate::recount::{recount, u32_at, u64_at};

fn image() -> Vec<u8> {
    let store = MemStore::new(400);
    let mut forest = Forest::format(Arc::new(store.clone()), 40_000);
    for name in 1..4 {
        forest.create(name).unwrap();
        (0..700).for_each(|key| forest.put(name, key * 2, key % 300, name).unwrap());
    }
    (0..5).for_each(|copy| forest.snapshot(1, 10 + copy).unwrap());
    forest.commit().unwrap();
    (0..90).for_each(|key| forest.put(11, key * 16, 20_000 + key, 0).unwrap());
    forest.commit().unwrap();
    let image = store.to_image();
    recount(&image);
    image
}

/// The kind of each block that the last commit reaches, found by its checksum.
fn kinds(image: &[u8]) -> BTreeMap<u64, BlockKind> {
    let all = [
        BlockKind::Superblock,
        BlockKind::Node,
        BlockKind::Bitmap,
        BlockKind::Index,
    ];
    let kind = |nr| {
        let block = block_of(image, nr);
        all.into_iter()
            .find(|kind| kind.verify(&block, BlockNr(nr)).is_ok())
            .unwrap()
    };
    recount(image)
        .counts
        .keys()
        .map(|&nr| (nr, kind(nr)))
        .collect()
}

fn block_of(image: &[u8], nr: u64) -> Block {
    let at = usize::try_from(nr).unwrap() * 4096;
    let mut block = Block::zeroed();
    block.as_bytes_mut().copy_from_slice(&image[at..at + 4096]);
    block
}

/// Gives a block a checksum that fits its contents, whatever they are.
fn reseal(image: &mut [u8], nr: u64, kind: BlockKind) {
    let mask = match kind {
        BlockKind::Superblock => 160_774,
        BlockKind::Node => 121_107,
        BlockKind::Bitmap => 240_779,
        BlockKind::Index => 160_478,
    };
    let block = &mut image[usize::try_from(nr).unwrap() * 4096..][..4096];
    let checksum = crc32c::crc32c(&block[4..]) ^ 0xFFFF_FFFF ^ mask;
    block[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads and changes everything there is, and returns the first error.
fn use_all(image: Vec<u8>) -> Result<(), Error> {
    let mut forest = Forest::open(Arc::new(MemStore::from_image(image)))?;
    let view = forest.tx.view();
    let mut names = Vec::new();
    forest.top.for_each(&view, .., &mut |name, root| {
        names.push((name, root.0));
        ControlFlow::Continue(())
    })?;
    for &(_, root) in &names {
        let tree = Btree::<DiskRef>::from_root(root);
        tree.for_each(&view, .., &mut |_, _| ControlFlow::Continue(()))?;
        tree.for_each_exclusive(&view, .., &mut |_, _| ControlFlow::Continue(()))?;
    }
    for nr in 0..forest.tx.metadata_blocks() {
        assert_eq!(view.count(BlockNr(nr))?, forest.tx.count(BlockNr(nr))?);
    }
    for block in (0..forest.tx.disk_blocks()).step_by(10) {
        assert_eq!(view.disk_count(block)?, forest.tx.disk_count(block)?);
    }
    change_all(&mut forest, &names)
}

fn change_all(forest: &mut Forest, names: &[(u64, BlockNr)]) -> Result<(), Error> {
    forest.tx.for_each_free_disk_run(&mut |_| {})?;
    for (index, &(name, _)) in names.iter().enumerate() {
        let start = 100 * index as u64;
        for key in 0..40 {
            let value = DiskRef {
                block: 30_000 + key,
                note: 0,
            };
            forest.tx.disk_inc(value.block)?;
            let put = forest.change(name, |tree, tx| tree.insert(tx, key * 37, value))?;
            let _ = put;
        }
        forest.change(name, |tree, tx| tree.remove(tx, 100))?;
        forest.change(name, |tree, tx| tree.remove_range(tx, start..start + 800))?;
    }
    forest.commit()?;
    for &(name, _) in names {
        if forest.top.lookup(&forest.tx, name)?.is_some() {
            forest.delete(name)?;
        }
    }
    forest.commit()
}

#[test]
fn sound_image_is_usable() {
    use_all(image()).unwrap();
}

#[test]
fn a_flipped_bit_in_any_kind_is_named() {
    let image = image();
    let mut found = [0; 4];
    for (&nr, &kind) in kinds(&image)
        .iter()
        .filter(|(_, kind)| **kind != BlockKind::Superblock)
    {
        for byte in [0, 3, 4, 9, 16, 33, 2049, 4095] {
            let mut damaged = image.clone();
            damaged[usize::try_from(nr).unwrap() * 4096 + byte] ^= 0x10;
            let error = use_all(damaged).unwrap_err();
            let Error::BadBlock {
                nr: named,
                kind: named_kind,
                check,
            } = &error
            else {
                unreachable!("block {nr}: {error}");
            };
            assert_eq!((named.0, *named_kind), (nr, kind), "{error}");
            assert!(matches!(check, BlockCheck::Checksum { .. }), "{error}");
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("metadata block {nr} ({kind}): bad"))
            );
        }
        found[kind as usize] += 1;
    }
    assert!(
        found[1..].iter().all(|&count| count > 0),
        "all kinds were damaged: {found:?}"
    );
}

#[test]
fn wrong_headers_with_right_checksums_are_named() {
    let image = image();
    let top = u64_at(&image, 320);
    let node = usize::try_from(top).unwrap() * 4096;
    let leaf_root = u64_at(&image[node..], 2048);
    let inner = usize::try_from(leaf_root).unwrap() * 4096;
    assert_eq!(
        (u32_at(&image[node..], 4), u32_at(&image[inner..], 4)),
        (2, 1)
    );
    type Is = fn(&BlockCheck) -> bool;
    let cases: [(u64, usize, u64, Is); 11] = [
        (leaf_root, 4, 3, |c| {
            matches!(c, BlockCheck::Flags { found: 3 })
        }),
        (leaf_root, 4, 0, |c| {
            matches!(c, BlockCheck::Flags { found: 0 })
        }),
        (leaf_root, 8, 3, |c| {
            matches!(c, BlockCheck::Location { .. })
        }),
        (leaf_root, 16, 0, |c| {
            matches!(c, BlockCheck::EntryCount { found: 0, .. })
        }),
        (leaf_root, 16, 253, |c| {
            matches!(c, BlockCheck::EntryCount { found: 253, .. })
        }),
        (leaf_root, 20, 254, |c| {
            matches!(c, BlockCheck::MaxEntries { found: 254, .. })
        }),
        (leaf_root, 24, 24, |c| {
            matches!(c, BlockCheck::ValueSize { found: 24, .. })
        }),
        (leaf_root, 40, 0, |c| {
            matches!(c, BlockCheck::KeyOrder { index: 1 })
        }),
        (leaf_root, 40, 5, |c| {
            matches!(c, BlockCheck::KeyBounds { high: 4, .. })
        }),
        (top, 24, 5, |c| {
            matches!(c, BlockCheck::ValueSize { found: 5, .. })
        }),
        (leaf_root, 2048, 400, |c| {
            matches!(c, BlockCheck::OutOfRange { blocks: 400 })
        }),
    ];
    for (nr, at, value, is_expected) in cases {
        let mut damaged = image.clone();
        let at = usize::try_from(nr).unwrap() * 4096 + at;
        let width = if matches!(at % 4096, 4 | 16 | 20 | 24) {
            4
        } else {
            8
        };
        damaged[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        reseal(&mut damaged, nr, BlockKind::Node);
        match use_all(damaged).unwrap_err() {
            Error::BadBlock { check, .. } if is_expected(&check) => {}
            error => unreachable!("offset {} = {value}: {error}", at % 4096),
        }
    }
}

#[test]
fn a_node_that_is_its_own_child_ends() {
    let mut image = image();
    let node = usize::try_from(u64_at(&image, 320)).unwrap() * 4096;
    let root = u64_at(&image[node..], 2048);
    let at = usize::try_from(root).unwrap() * 4096;
    image[at + 16..at + 20].copy_from_slice(&1u32.to_le_bytes());
    image[at + 2048..at + 2056].copy_from_slice(&root.to_le_bytes());
    reseal(&mut image, root, BlockKind::Node);
    let error = use_all(image).unwrap_err();
    let Error::BadBlock {
        check: BlockCheck::TooDeep { .. },
        ..
    } = error
    else {
        unreachable!("{error}");
    };
}

#[test]
fn a_leaf_beside_an_internal_node_is_not_merged_with_it() {
    let mut image = image();
    let top = usize::try_from(u64_at(&image, 320)).unwrap() * 4096;
    let root = usize::try_from(u64_at(&image[top..], 2048 + 8)).unwrap() * 4096;
    let (second_from, second) = (u64_at(&image[root..], 40), u64_at(&image[root..], 2056));
    image[usize::try_from(second).unwrap() * 4096 + 4] = 1;
    reseal(&mut image, second, BlockKind::Node);
    let mut forest = Forest::open(Arc::new(MemStore::from_image(image))).unwrap();
    let removed = forest.change(2, |tree, tx| tree.remove_range(tx, ..second_from - 4));
    let error = removed.unwrap_err();
    let Error::BadBlock {
        check: BlockCheck::Depth,
        ..
    } = error
    else {
        unreachable!("{error}")
    };
    assert!(matches!(forest.commit(), Err(Error::Poisoned)));
}

#[test]
fn random_damage_with_right_checksums_never_panics() {
    let image = image();
    let kinds: Vec<_> = kinds(&image)
        .into_iter()
        .filter(|&(nr, _)| nr != 0)
        .collect();
    let mut rng = Rng::new(11);
    let mut errors = 0;
    for _ in 0..1500 {
        let mut damaged = image.clone();
        for _ in 0..=rng.below(3) {
            let pick = usize::try_from(rng.below(kinds.len() as u64)).unwrap();
            let (nr, kind) = kinds[pick];
            // Headers, the first keys and the first values are where it hurts.
            let near = [
                rng.below(48),
                16 + rng.below(600),
                2048 + rng.below(600),
                rng.below(4096),
            ];
            let at = usize::try_from(near[usize::try_from(rng.below(4)).unwrap()]).unwrap();
            let at = usize::try_from(nr).unwrap() * 4096 + at;
            damaged[at] = match rng.below(3) {
                0 => 0,
                1 => damaged[at] ^ 1 << rng.below(8),
                _ => u8::try_from(rng.below(256)).unwrap(),
            };
            reseal(&mut damaged, nr, kind);
        }
        errors += u32::from(touch(damaged).is_err());
    }
    assert!(errors > 300, "most damage is noticed: {errors}");
}

/// Like [`use_all`], without expecting views and transaction to agree on what is damaged.
fn touch(image: Vec<u8>) -> Result<(), Error> {
    let mut forest = Forest::open(Arc::new(MemStore::from_image(image)))?;
    let view = forest.tx.view();
    let mut names = Vec::new();
    let walked = forest.top.for_each(&view, .., &mut |name, root| {
        names.push((name, root.0));
        ControlFlow::Continue(())
    });
    for &(_, root) in &names {
        let tree = Btree::<DiskRef>::from_root(root);
        let _ = tree.for_each_exclusive(&view, .., &mut |_, _| ControlFlow::Continue(()));
        let _ = tree.lookup(&view, 77);
    }
    let _ = (view.disk_count(7), view.count(BlockNr(7)));
    change_all(&mut forest, &names)?;
    walked
}

#[test]
fn block_0_counted_free_is_refused() {
    let mut image = image();
    let index = usize::try_from(u64_at(&image, 208)).unwrap() * 4096;
    let bitmap = u64_at(&image[index..], 16);
    image[usize::try_from(bitmap).unwrap() * 4096 + 16] &= !3;
    reseal(&mut image, bitmap, BlockKind::Bitmap);
    let error = Forest::open(Arc::new(MemStore::from_image(image)))
        .map(drop)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "metadata block 0: reference count 0, expected at least 1"
    );
}

#[test]
fn missing_overflow_counts_are_named() {
    let mut image = image();
    let root = u64_at(&image, 88);
    let node = usize::try_from(root).unwrap() * 4096;
    assert!(u32_at(&image[node..], 16) > 0);
    let block = u64_at(&image[node..], 32);
    image[node + 2720] = 2;
    reseal(&mut image, root, BlockKind::Node);
    let mut forest = Forest::open(Arc::new(MemStore::from_image(image))).unwrap();
    let is_named =
        |error: Error| matches!(error, Error::NoOverflowCount { block: b, .. } if b == block);
    assert!(is_named(forest.tx.view().disk_count(block).unwrap_err()));
    assert!(is_named(forest.tx.disk_count(block).unwrap_err()));
}

#[test]
fn blocks_of_another_place_or_kind_are_refused() {
    let mut block = Block::zeroed();
    BlockKind::Bitmap.seal(&mut block, BlockNr(5));
    BlockKind::Bitmap.verify(&block, BlockNr(5)).unwrap();
    let error = BlockKind::Bitmap.verify(&block, BlockNr(6)).unwrap_err();
    let expected = "metadata block 6 (bitmap): bad own block number 5, expected 6";
    assert_eq!(error.to_string(), expected);
    assert!(BlockKind::Index.verify(&block, BlockNr(5)).is_err());
    let store = Arc::new(MemStore::new(100));
    let mut tx = Transaction::format(store, 100, 10).unwrap();
    let tree = Btree::<DiskRef>::empty(&mut tx).unwrap();
    let other = Btree::<crate::forest::Plain<4>>::from_root(tree.root());
    let error = other.lookup(&tx, 0).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("(btree node): bad value size 8, expected 4"),
        "{error}"
    );
}
