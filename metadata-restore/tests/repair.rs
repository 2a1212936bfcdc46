//! What devices share of their trees stays shared when metadata is written anew.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test, as it should"
)]

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use metadata_btree::FileStore;
use metadata_check::{CheckOptions, DumpOptions, check, dump};
use metadata_restore::{Hints, MetadataSize, Options, repair};
use pool::{BlockSize, DeviceRecord, MappingRecord, PoolRecord, Restore, ThinId};
use tempfile::TempDir;

const LEAVES: u64 = 300;
const LEAF_LEN: u64 = 200;
const DEVICES: u32 = 6;

/// Devices with the same mappings, in the same leaves but for one, which each has for itself.
fn make_shared(path: &Path) {
    let file = File::create_new(path).unwrap();
    file.set_len(4 << 20).unwrap();
    let record = PoolRecord {
        time: 6,
        transaction_id: 6,
        block_size: BlockSize::new(65536).unwrap(),
        data_blocks: 1 << 20,
    };
    let store = FileStore::new(File::options().read(true).write(true).open(path).unwrap());
    let mut restore = Restore::begin(Arc::new(store.unwrap()), record, 1024).unwrap();
    for id in 0..DEVICES {
        let device = DeviceRecord {
            id: ThinId::new(id).unwrap(),
            transaction_id: 0,
            creation_time: id,
            snapshotted_time: 6,
        };
        restore.begin_device(device).unwrap();
        for leaf in 0..LEAVES {
            let is_own = leaf == u64::from(id) * 10;
            let own = if is_own {
                500_000 * u64::from(id) / 5
            } else {
                0
            };
            let mappings: Vec<MappingRecord> = (leaf * LEAF_LEN..(leaf + 1) * LEAF_LEN)
                .map(|block| MappingRecord {
                    virtual_block: block,
                    data_block: block + own,
                    time: if is_own { id } else { 0 },
                })
                .collect();
            let number = leaf + if is_own { 1000 } else { 0 };
            assert!(restore.map_leaf(number, &mappings).unwrap());
        }
        restore.end_device().unwrap();
    }
    restore.commit().unwrap();
}

fn dump_of(metadata: &File) -> Vec<u8> {
    let mut text = Vec::new();
    dump(metadata, &DumpOptions::default(), &mut text).unwrap();
    text
}

#[test]
fn leaves_stay_shared() {
    let directory = TempDir::new().unwrap();
    let (shared, new) = (
        directory.path().join("shared"),
        directory.path().join("new"),
    );
    make_shared(&shared);
    let shared = File::open(shared).unwrap();
    let before = check(&shared, &CheckOptions::default());
    assert!(before.is_sound(), "{:?}", before.findings);
    let options = Options {
        size: MetadataSize::ForDataBlocks(&|_| 4 << 20),
        watch: &|_| ControlFlow::Continue(()),
    };
    let repaired = repair(&shared, &new, &Hints::default(), &options).unwrap();
    assert!(repaired.is_complete());
    let mappings = u64::from(DEVICES) * LEAVES * LEAF_LEN;
    assert_eq!(repaired.restored.mappings, mappings);
    let used = before.superblock.unwrap().metadata_blocks_used;
    assert!(used < LEAVES + 150, "the leaves were shared before");
    assert_eq!(repaired.restored.metadata_blocks_used, used);
    assert!(dump_of(&File::open(new).unwrap()) == dump_of(&shared));
}
