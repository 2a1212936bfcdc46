//! Repaired pools are opened and used, with what their intent log holds.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use metadata_btree::{Block, BlockKind, BlockNr, FileStore};
use metadata_check::{BlockSource, CheckOptions, DumpOptions, check, dump};
use metadata_restore::Repaired;
use pool::{KnownBy, LeakedBlocks, Leaks, Mode, Pool, hand_over_log, known_superblocks};
use tests::executor::block_on;
use tests::setup::name;

use crate::stores::{History, Idle, Image, Memory};
use crate::subject::{BLOCK, SMALL, Subject, write};
use crate::sweep;
use crate::truth::{Role, Truth, at, u64_at};

fn repaired(image: &Image, path: &Path) -> Repaired {
    sweep::repaired(image, &image.0[0], path).unwrap()
}

fn image_of(path: &Path) -> Image {
    let file = File::open(path).unwrap();
    let blocks = (0..file.block_count().unwrap()).map(|nr| {
        let mut block = [0; 4096];
        file.read_block(nr, &mut block).unwrap();
        block
    });
    Image(blocks.collect())
}

fn dump_of(image: &Image) -> String {
    let mut text = Vec::new();
    dump(image, &DumpOptions::default(), &mut text).unwrap();
    String::from_utf8(text).unwrap()
}

/// The first block of a kind.
fn block_of(truth: &Truth, role: Role) -> u64 {
    let mut roles = truth.roles.iter();
    *roles.find(|(_, found)| **found == role).unwrap().0
}

fn mapped(pool: &Arc<Pool<Idle>>, volume: &str) -> u64 {
    pool.info(&name(volume)).unwrap().mapped_bytes / BLOCK
}

#[test]
fn what_is_intact_or_repaired_stays_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let intact = Subject::closed(SMALL).metadata.image();
    assert!(repaired(&intact, &path("same")).is_complete());
    assert!(dump_of(&image_of(&path("same"))) == dump_of(&intact));

    let mut damaged = intact.clone();
    damaged.0[at(block_of(&Truth::of(&intact), Role::Leaf))].fill(7);
    assert!(!repaired(&damaged, &path("once")).is_complete());
    let once = image_of(&path("once"));
    repaired(&once, &path("twice"));
    assert!(dump_of(&once) == dump_of(&image_of(&path("twice"))));
    assert!(dump_of(&once) != dump_of(&intact));
}

#[test]
fn a_repaired_pool_serves_what_was_salvaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let subject = Subject::closed(SMALL);
    let intact = subject.metadata.image();
    let mut damaged = intact.clone();
    damaged.0[at(block_of(&Truth::of(&intact), Role::Leaf))].fill(7);
    let report = repaired(&damaged, &path);

    let metadata = History::of(image_of(&path));
    let pool = subject.open_on(Arc::clone(&metadata)).unwrap();
    assert_eq!(pool.devices().len(), report.devices.len());
    let mut incomplete = 0;
    for (info, device) in pool.devices().into_iter().map(|info| {
        let mut devices = report.devices.iter();
        let device = devices.find(|device| device.id == info.id).unwrap();
        (info, device)
    }) {
        assert_eq!(info.mapped_bytes, device.mappings * BLOCK, "{}", info.name);
        incomplete += usize::from(!device.is_complete());
    }
    assert!(incomplete > 0);
    write(&pool, "a", 0..64);
    block_on(pool.close()).unwrap();
    assert!(check(&metadata.image(), &CheckOptions::default()).is_sound());
}

/// A pool that was not closed: what its log holds is not lost with the old metadata.
#[test]
fn the_log_goes_over_to_the_repaired_pool() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let subject = Subject::formatted(SMALL);
    let pool = subject.open().unwrap();
    subject.fill(&pool);
    let device_c = pool.info(&name("c")).unwrap().id;
    let device = pool.open_device(&name("c")).unwrap();
    let unmapped = 4 * SMALL.mapped - 1;
    block_on(device.discard(unmapped * BLOCK, BLOCK, true)).unwrap();
    block_on(pool.commit()).unwrap();
    let committed = mapped(&pool, "c");
    block_on(device.write(unmapped * BLOCK, &[5; 4096], true)).unwrap();
    assert_eq!(mapped(&pool, "c"), committed + 1);
    drop((device, pool));

    let intact = subject.metadata.image();
    let truth = Truth::of(&intact);
    let others = truth
        .devices
        .iter()
        .filter(|(id, _)| **id != u64::from(device_c));
    let lost = others
        .flat_map(|(_, leaves)| leaves)
        .map(|leaf| leaf.block)
        .find(|block| {
            let of_c = &truth.devices[&u64::from(device_c)];
            of_c.iter().all(|leaf| leaf.block != *block)
        });
    let mut damaged = intact.clone();
    damaged.0[at(lost.unwrap())].fill(7);
    repaired(&damaged, &path);

    let known = known_superblocks(&subject.log, &Memory::default()).unwrap();
    assert_eq!(known[0].0[8..512], intact.0[0][8..512]);
    assert_eq!(known[0].1, KnownBy::Log);
    let store = || FileStore::new(File::options().read(true).write(true).open(&path).unwrap());
    // Another transaction id.
    let mut foreign = intact.0[0];
    foreign[48] ^= 1;
    assert!(hand_over_log(&subject.log, &foreign, &store().unwrap()).is_err());

    assert_eq!(
        hand_over_log(&subject.log, &intact.0[0], &store().unwrap()).unwrap(),
        1
    );
    // It belongs to both now.
    for metadata in [intact, image_of(&path)] {
        let subject = Subject {
            size: subject.size,
            metadata: Arc::clone(&subject.metadata),
            catalog: subject.catalog.copy(),
            log: subject.log.copy(),
        };
        let pool = subject.open_on(History::of(metadata)).unwrap();
        assert_eq!(
            (pool.replayed_records(), mapped(&pool, "c")),
            (1, committed + 1)
        );
        block_on(pool.close()).unwrap();
    }
}

/// A pool in which the last data block counts as used, and nobody maps it.
fn leaking(mut image: Image) -> Image {
    let index = u64_at(&image.0[0], 64 + 16);
    let entry = 32 + 8 * 168;
    let bitmap = u64_at(&image.0[at(index)], entry);
    let last = at(SMALL.data_blocks) - 1;
    let counts = &mut image.0[at(bitmap)][16 + last / 4];
    let bit = 2 << (2 * (last % 4));
    assert_eq!(
        *counts & (bit | bit >> 1),
        0,
        "the last data block is in use"
    );
    *counts |= bit;
    image.0[at(index)][entry + 8] -= 1;
    image.0[0][64 + 8] += 1;
    for (kind, nr) in [
        (BlockKind::Bitmap, bitmap),
        (BlockKind::Node, index),
        (BlockKind::Superblock, 0),
    ] {
        let mut block = Block::zeroed();
        block.as_bytes_mut().copy_from_slice(&image.0[at(nr)]);
        kind.seal(&mut block, BlockNr(nr));
        image.0[at(nr)] = *block.as_bytes();
    }
    image
}

/// In a transaction like any other: until the superblock is written, the commit before it stands.
#[test]
fn leaks_are_reclaimed_or_left_as_they_were() {
    let subject = Subject::closed(SMALL);
    let before = leaking(subject.metadata.image());
    let metadata = History::of(before.clone());
    let pool = subject.open_on(Arc::clone(&metadata)).unwrap();
    let last = SMALL.data_blocks - 1;
    let leaks = |count| Leaks {
        data: vec![LeakedBlocks {
            first: last,
            last,
            count,
            references: 0,
        }],
        metadata: Vec::new(),
    };
    // What was found in a commit is not corrected in another.
    let reclaimed = block_on(pool.reclaim_leaks(&subject.metadata.image().0[0], leaks(1)));
    assert!(reclaimed.is_err() && metadata.image().0 == before.0);
    let used = pool.status().data_used_bytes;
    block_on(pool.reclaim_leaks(&before.0[0], leaks(1))).unwrap();
    assert_eq!(pool.status().data_used_bytes, used - BLOCK);
    let after = metadata.image();
    assert!(check(&after, &CheckOptions::default()).is_sound());
    let mut cut = after.clone();
    cut.0[0] = before.0[0];
    let report = check(&cut, &CheckOptions::default());
    assert_eq!((report.leak_count, report.damage_count), (1, 0));
    // The block is given to whoever writes next, once.
    write(&pool, "a", 0..64);
    block_on(pool.close()).unwrap();
    assert!(check(&metadata.image(), &CheckOptions::default()).is_sound());
    // What is not as it was found stops the pool before anything is written.
    let metadata = History::of(before.clone());
    let pool = subject.open_on(Arc::clone(&metadata)).unwrap();
    assert!(block_on(pool.reclaim_leaks(&before.0[0], leaks(2))).is_err());
    assert!(metadata.image().0 == before.0);
}

/// They are no reason to refuse a pool.
#[test]
fn leaks_are_given_back_by_a_repair() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let subject = Subject::closed(SMALL);
    let leaking = leaking(subject.metadata.image());
    let report = check(&leaking, &CheckOptions::default());
    assert_eq!((report.leak_count, report.damage_count), (1, 0));
    let pool = subject.open_on(History::of(leaking.clone())).unwrap();
    assert_eq!(pool.status().mode, Mode::Write);
    assert!(repaired(&leaking, &path).is_complete());
    let report = check(&image_of(&path), &CheckOptions::default());
    assert!(report.is_sound(), "{:?}", report.findings);
}
