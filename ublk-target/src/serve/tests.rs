//! Descriptors carried out on a volume of a pool in temporary files.

use std::fs::OpenOptions;
use std::sync::Arc;

use metadata_btree::{BlockStore, FileStore};
use pool::{BlockSize, DeviceName, FileCatalog, Identity, NewDevice, Pool, Stores};
use reactor::{FileHost, FileLog, block_on};

use super::*;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
const BUFFER: usize = 512 * 1024;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const DISCARD: u32 = 3;
const WRITE_ZEROES: u32 = 5;
const FUA: u32 = 1 << 13;
const NO_UNMAP: u32 = 1 << 15;

struct Rig {
    _directory: tempfile::TempDir,
    pool: Arc<Pool<FileHost>>,
    volume: ThinDevice<FileHost>,
}

fn new_device(name: &str) -> NewDevice {
    NewDevice {
        name: name.parse().unwrap(),
        identity: Identity {
            uuid: format!("uuid of {name}"),
            created: "2024-01-01T00:00:00Z".to_owned(),
        },
    }
}

fn rig(data_size: u64) -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let file = |name: &str, size: u64| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path(name))
            .unwrap();
        file.set_len(size).unwrap();
        file
    };
    let host = Arc::new(FileHost::new());
    let metadata: Arc<dyn BlockStore> =
        Arc::new(FileStore::new(file("metadata", 8 * MIB)).unwrap());
    drop(file("data", data_size));
    let blocks = data_size / BlockSize::DEFAULT.bytes();
    Pool::<FileHost>::format(Arc::clone(&metadata), BlockSize::DEFAULT, 2048, blocks).unwrap();
    let stores = Stores {
        metadata,
        data: host.open_data(&path("data"), false).unwrap(),
        catalog: Box::new(FileCatalog::new(path("catalog"))),
        log: Box::new(FileLog::new(path("log"), &[]).unwrap()),
        history: Box::new(pool::FileHistory::new(path("superblocks"))),
    };
    let pool = Pool::open(host, stores, pool::OpenOptions::default()).unwrap();
    block_on(pool.create_volume(new_device("vol"), SIZE, None)).unwrap();
    let volume = pool.open_device(&name("vol")).unwrap();
    Rig {
        _directory: directory,
        pool,
        volume,
    }
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

impl Rig {
    fn ask(&self, op_flags: u32, offset: u64, len: u64, buffer: &mut [u8]) -> i32 {
        let descriptor = Descriptor {
            op_flags,
            sectors: u32::try_from(len / 512).unwrap(),
            start_sector: offset / 512,
        };
        block_on(carry_out(&self.volume, descriptor, buffer))
    }

    fn mapped(&self) -> u64 {
        self.pool.info(&name("vol")).unwrap().mapped_bytes
    }
}

#[test]
fn what_was_written_is_read_and_holes_are_zeros() {
    let rig = rig(64 * MIB);
    let mut buffer = vec![0xaa; BUFFER];
    buffer[..8192].fill(7);
    assert_eq!(rig.ask(WRITE, 4096, 8192, &mut buffer), 8192);
    assert_eq!(rig.ask(WRITE | FUA, 20 * MIB, 4096, &mut buffer), 4096);
    assert_eq!(rig.ask(FLUSH, 0, 0, &mut buffer), 0);
    buffer.fill(0xaa);
    assert_eq!(rig.ask(READ, 0, 131_072, &mut buffer), 131_072);
    for (i, &byte) in buffer[..131_072].iter().enumerate() {
        let expected = if (4096..12_288).contains(&i) { 7 } else { 0 };
        assert_eq!(byte, expected, "byte {i}");
    }
    assert!(buffer[131_072..].iter().all(|byte| *byte == 0xaa));
    buffer.fill(0xaa);
    assert_eq!(
        rig.ask(READ, 200 * MIB, BUFFER as u64, &mut buffer),
        524_288
    );
    assert!(buffer.iter().all(|byte| *byte == 0));
}

#[test]
fn discards_and_zeroings_of_any_length() {
    let rig = rig(128 * MIB);
    let mut buffer = vec![7; BUFFER];
    for offset in (0..80 * MIB).step_by(BUFFER) {
        assert_eq!(rig.ask(WRITE, offset, BUFFER as u64, &mut buffer), 524_288);
    }
    assert_eq!(rig.mapped(), 80 * MIB);
    // Across slices, and ending within blocks, which stay.
    assert_eq!(rig.ask(DISCARD, 4096, 70 * MIB, &mut buffer), 0);
    assert_eq!(rig.mapped(), 80 * MIB - 70 * MIB + 65_536);
    // Zeroed are the parts of blocks too.
    assert_eq!(
        rig.ask(WRITE_ZEROES, 70 * MIB, 2 * MIB + 4096, &mut buffer),
        0
    );
    assert_eq!(rig.ask(READ, 72 * MIB, 8192, &mut buffer), 8192);
    assert!(buffer[..4096].iter().all(|byte| *byte == 0));
    assert!(buffer[4096..8192].iter().all(|byte| *byte == 7));
    let before = rig.mapped();
    let kept = WRITE_ZEROES | NO_UNMAP;
    assert_eq!(rig.ask(kept, 74 * MIB, MIB, &mut buffer), 0);
    assert_eq!(rig.mapped(), before);
    assert_eq!(rig.ask(READ, 74 * MIB, 4096, &mut buffer), 4096);
    assert!(buffer[..4096].iter().all(|byte| *byte == 0));
    // The whole device, in one request.
    assert_eq!(rig.ask(DISCARD | FUA, 0, SIZE, &mut buffer), 0);
    assert_eq!(rig.mapped(), 0);
}

#[test]
fn errors_are_the_block_layers() {
    let rig = rig(MIB);
    let mut buffer = vec![7; BUFFER];
    assert_eq!(rig.ask(WRITE, 0, BUFFER as u64, &mut buffer), 524_288);
    assert_eq!(
        rig.ask(WRITE, BUFFER as u64, BUFFER as u64, &mut buffer),
        524_288
    );
    assert_eq!(rig.ask(WRITE, MIB, 4096, &mut buffer), -28, "no space");
    assert_eq!(rig.ask(READ, MIB, 4096, &mut buffer), 4096);
    assert_eq!(
        rig.ask(READ, SIZE, 4096, &mut buffer),
        -22,
        "beyond the end"
    );
    assert_eq!(rig.ask(4, 0, 4096, &mut buffer), -95);
    block_on(rig.pool.create_snapshots(vec![new_device("vol@s")])).unwrap();
    let snapshot = rig.pool.open_device(&name("vol@s")).unwrap();
    let write = Descriptor {
        op_flags: WRITE,
        sectors: 8,
        start_sector: 0,
    };
    assert_eq!(block_on(carry_out(&snapshot, write, &mut buffer)), -5);
}

#[test]
fn requests_are_counted() {
    let rig = rig(MIB);
    let mut buffer = vec![7; BUFFER];
    rig.ask(WRITE, 0, 4096, &mut buffer);
    rig.ask(READ, 0, 8192, &mut buffer);
    let stats = rig.volume.stats();
    assert_eq!(stats.get(Operation::Write).bytes(), 4096);
    assert_eq!(stats.get(Operation::Read).bytes(), 8192);
}

#[test]
fn slices_cover_a_range_and_end_at_blocks() {
    for block_size in [65_536, 3 * 65_536, 1 << 30] {
        for (offset, len) in [
            (0, 0),
            (0, 1),
            (4096, 200_704),
            (4096, 4_294_966_784),
            (SLICE_BYTES - 1, 2),
            (u64::MAX - 5000, 10_000),
        ] {
            let all: Vec<_> = slices(offset, len, block_size).collect();
            let end = offset.saturating_add(len);
            let mut at = offset;
            for slice in &all {
                assert_eq!(slice.offset, at);
                at += slice.len;
                assert_eq!(slice.is_last, at == end);
                assert!(slice.is_last || at.is_multiple_of(block_size));
            }
            assert_eq!(at, end);
            assert!(all.len() as u64 <= len / SLICE_BYTES + 2);
        }
    }
}
