//! Reads, writes, holes and flushes, against a plain array of bytes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::mpsc;
use std::thread;

use pool::Operation;
use reactor::block_on;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::rig::{BLOCK, Dice, MIB, PATIENCE, Rig, have_fuse, name, read_write};

const HOLE: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;

/// What the file should hold.
struct Model {
    bytes: Vec<u8>,
    dice: Dice,
}

impl Model {
    fn size(&self) -> u64 {
        u64::try_from(self.bytes.len()).unwrap()
    }

    /// A range within the file, of any alignment, now and then a large one.
    fn range(&mut self) -> (u64, u64) {
        let offset = self.dice.roll(self.size());
        let len_max = if self.dice.roll(8) == 0 {
            3 * MIB
        } else {
            9000
        };
        let len = 1 + self.dice.roll(len_max.min(self.size() - offset));
        (offset, len)
    }

    fn part(&mut self, offset: u64, len: u64) -> &mut [u8] {
        let begin = usize::try_from(offset).unwrap();
        &mut self.bytes[begin..][..usize::try_from(len).unwrap()]
    }

    fn step(&mut self, file: &File) {
        let (offset, len) = self.range();
        match self.dice.roll(8) {
            0..=2 => {
                let bytes = self.dice.bytes(len);
                file.write_all_at(&bytes, offset).unwrap();
                self.part(offset, len).copy_from_slice(&bytes);
            }
            3 => {
                fallocate(file, HOLE, offset, len).unwrap();
                self.part(offset, len).fill(0);
            }
            4 => {
                fallocate(file, ZERO, offset, len).unwrap();
                self.part(offset, len).fill(0);
            }
            5 => file.sync_all().unwrap(),
            _ => {
                let mut found = vec![0xaa; usize::try_from(len).unwrap()];
                file.read_exact_at(&mut found, offset).unwrap();
                assert!(found == self.part(offset, len), "at {offset}, {len} bytes");
            }
        }
    }

    fn check(&self, file: &File) {
        let mut found = vec![0xaa; self.bytes.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == self.bytes, "the contents differ");
    }
}

#[test]
fn a_file_is_an_array_of_bytes() {
    if !have_fuse() {
        return;
    }
    for seed in 1..=3 {
        let rig = Rig::new();
        let size = 5 * MIB + 512;
        let path = rig.volume("vol", size);
        let bytes = vec![0; usize::try_from(size).unwrap()];
        let mut model = Model {
            bytes,
            dice: Dice(seed),
        };
        let file = read_write(&path);
        let mut snapshots = Vec::new();
        for round in 0..5 {
            for _ in 0..60 {
                model.step(&file);
            }
            model.check(&file);
            snapshots.push((rig.snapshot(&format!("vol@{round}")), model.bytes.clone()));
        }
        for (path, bytes) in &snapshots {
            let frozen = Model {
                bytes: bytes.clone(),
                dice: Dice(1),
            };
            frozen.check(&File::open(path).unwrap());
        }
        file.sync_all().unwrap();
        drop(file);
        let rig = rig.reopen(false);
        model.check(&File::open(rig.mount.file(&name("vol"))).unwrap());
    }
}

#[test]
fn holes_read_as_zeros_to_the_byte_and_give_back_whole_blocks() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let file = read_write(&rig.volume("vol", 16 * BLOCK));
    file.write_all_at(&vec![9; 10 << 16], 0).unwrap();
    assert_eq!(rig.info("vol").mapped_bytes, 10 * BLOCK);
    fallocate(&file, HOLE, BLOCK + 1, 3 * BLOCK).unwrap();
    assert_eq!(rig.info("vol").mapped_bytes, 8 * BLOCK);
    let mut found = vec![0xaa; 10 << 16];
    file.read_exact_at(&mut found, 0).unwrap();
    let hole = (1 << 16) + 1..(4 << 16) + 1;
    let expected = |index| if hole.contains(&index) { 0 } else { 9 };
    assert!((0..10 << 16).all(|index| found[index] == expected(index)));

    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(2 * BLOCK));
    assert_eq!(seek(&file, SeekFrom::Data(2 * BLOCK)), Ok(4 * BLOCK));
    assert_eq!(seek(&file, SeekFrom::Data(3 * BLOCK + 77)), Ok(4 * BLOCK));
    assert_eq!(seek(&file, SeekFrom::Data(5)), Ok(5));
    assert_eq!(seek(&file, SeekFrom::Hole(4 * BLOCK)), Ok(10 * BLOCK));
    assert_eq!(seek(&file, SeekFrom::Data(10 * BLOCK)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(16 * BLOCK)), Err(Errno::NXIO));
    file.write_all_at(&[1], 16 * BLOCK - 1).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(15 * BLOCK)), Ok(16 * BLOCK));

    // Zeros keep their space, holes that reach beyond the end stop there.
    fallocate(&file, ZERO, 11 * BLOCK, 2 * BLOCK).unwrap();
    assert_eq!(rig.info("vol").mapped_bytes, 11 * BLOCK);
    fallocate(&file, HOLE, 0, 99 * BLOCK).unwrap();
    assert_eq!(rig.info("vol").mapped_bytes, 0);
    assert_eq!(fallocate(&file, ZERO, 0, 99 * BLOCK), Err(Errno::PERM));
    assert_eq!(
        fallocate(&file, FallocateFlags::empty(), 0, BLOCK),
        Err(Errno::OPNOTSUPP)
    );
    assert_eq!(
        fallocate(&file, FallocateFlags::COLLAPSE_RANGE, 0, BLOCK),
        Err(Errno::OPNOTSUPP)
    );
}

#[test]
fn large_holes_are_made_in_pieces() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let size = 1 << 40;
    let file = read_write(&rig.volume("vol", size));
    for at in [0, 40 * MIB, 100 * MIB, size - BLOCK] {
        file.write_all_at(&[1; 1 << 16], at).unwrap();
    }
    assert_eq!(seek(&file, SeekFrom::Data(101 * MIB)), Ok(size - BLOCK));
    fallocate(&file, HOLE, 1, 200 * MIB).unwrap();
    assert_eq!(rig.info("vol").mapped_bytes, 2 * BLOCK);
    let mut found = [0; 2];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [1, 0]);
}

#[test]
fn requests_end_with_the_file() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let file = read_write(&rig.volume("vol", BLOCK + 512));
    assert_eq!(file.write_at(&[3; 4096], BLOCK).unwrap(), 512);
    let error = file.write_at(&[3; 1], BLOCK + 512).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let mut found = [0xaa; 4096];
    assert_eq!(file.read_at(&mut found, BLOCK).unwrap(), 512);
    assert!(found[..512] == [3; 512] && found[512..] == [0xaa; 4096 - 512]);
    assert_eq!(file.read_at(&mut found, BLOCK + 512).unwrap(), 0);
    assert_eq!(file.read_at(&mut found, 1 << 50).unwrap(), 0);
}

#[test]
fn a_full_pool_says_so() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::with_data(2 * MIB);
    let file = read_write(&rig.volume("vol", 16 * MIB));
    let written = (0..).find_map(|at| file.write_all_at(&[5; 1 << 16], at * BLOCK).err());
    assert_eq!(written.unwrap().kind(), io::ErrorKind::StorageFull);
    let mut found = [0; 1 << 16];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == [5; 1 << 16]);
    fallocate(&file, HOLE, 0, 2 * MIB).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&[6; 1 << 16], 8 * MIB).unwrap();
}

#[test]
fn what_fsync_answered_is_on_the_stores_and_close_is_free() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", 4 * MIB);
    let flushes = || rig.pool.status().flushes;
    let mut before = flushes();
    let file = read_write(&path);
    file.write_all_at(b"kept", 0).unwrap();
    file.sync_data().unwrap();
    assert!(flushes() > before, "fsync did not flush");

    before = flushes();
    file.write_all_at(b"here", MIB).unwrap();
    drop(file);
    assert!(rig.mount.wait_closed(&name("vol"), PATIENCE));
    assert_eq!(flushes(), before, "close flushed");

    let synchronous = |flags: OFlags| {
        let flags = i32::try_from(flags.bits()).unwrap();
        OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(&path)
            .unwrap()
    };
    let read = |rig: &Rig, at| {
        let mut found = [0; 4];
        let file = File::open(rig.mount.file(&name("vol"))).unwrap();
        file.read_exact_at(&mut found, at).unwrap();
        found
    };
    for (flags, content, at) in [
        (OFlags::DSYNC, b"dsyn", 2 * MIB),
        (OFlags::SYNC, b"sync", 3 * MIB),
    ] {
        before = flushes();
        synchronous(flags).write_all_at(content, at).unwrap();
        assert!(flushes() > before, "{flags:?} did not flush");
    }
    let copy = tempfile::tempdir().unwrap();
    let other = Rig::of(
        tempfile::tempdir().unwrap(),
        rig.files.copy_to(copy.path()),
        false,
    );
    assert_eq!(&read(&other, 0), b"kept");
    assert_eq!(&read(&other, MIB), b"here");
    assert_eq!(&read(&other, 2 * MIB), b"dsyn");
    assert_eq!(&read(&other, 3 * MIB), b"sync");
}

#[test]
fn a_flush_that_waits_holds_up_nobody() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let flushed: Vec<_> = (0..8)
        .map(|i| rig.volume(&format!("flushed{i}"), MIB))
        .collect();
    let other = read_write(&rig.volume("other", MIB));
    other.write_all_at(b"there", 1000).unwrap();
    block_on(rig.pool.commit()).unwrap();
    rig.gate.shut();
    let (done, results) = mpsc::channel();
    for path in flushed {
        let done = done.clone();
        let file = read_write(&path);
        file.write_all_at(b"x", 0).unwrap();
        thread::spawn(move || done.send(file.sync_all().is_ok()).unwrap());
    }
    while rig.gate.waiting() == 0 {
        thread::yield_now();
    }
    let (read, found) = mpsc::channel();
    let reader = other.try_clone().unwrap();
    thread::spawn(move || {
        let mut bytes = [0; 5];
        reader.read_exact_at(&mut bytes, 1000).unwrap();
        reader.write_all_at(b"THERE", 1000).unwrap();
        read.send(bytes).unwrap();
    });
    assert_eq!(
        &found
            .recv_timeout(PATIENCE)
            .expect("a read waits for a flush"),
        b"there"
    );
    assert!(
        results.try_recv().is_err(),
        "a flush was answered before it was done"
    );
    rig.gate.open();
    for _ in 0..8 {
        assert!(results.recv_timeout(PATIENCE).unwrap());
    }
}

#[test]
fn many_threads_at_once() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", 16 * MIB);
    thread::scope(|scope| {
        for index in 0..16_u8 {
            let path = &path;
            scope.spawn(move || {
                let file = read_write(path);
                let mut dice = Dice(u64::from(index) + 1);
                let begin = u64::from(index) * MIB;
                for _ in 0..60 {
                    let at = begin + dice.roll(MIB - 5000);
                    let bytes = dice.bytes(5000);
                    file.write_all_at(&bytes, at).unwrap();
                    let mut found = vec![0; 5000];
                    file.read_exact_at(&mut found, at).unwrap();
                    assert!(found == bytes);
                    if dice.roll(20) == 0 {
                        file.sync_data().unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn requests_are_counted() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let file = read_write(&rig.volume("vol", 8 * MIB));
    file.write_all_at(&vec![1; 3 << 20], 0).unwrap();
    file.read_exact_at(&mut vec![0; 2 << 20], 0).unwrap();
    file.sync_all().unwrap();
    fallocate(&file, HOLE, 0, MIB).unwrap();
    fallocate(&file, ZERO, 0, 5000).unwrap();
    let stats = rig.pool.device_stats(&name("vol")).unwrap();
    let counted = |operation| {
        let stats = stats.get(operation);
        (stats.latency().counts().iter().sum::<u64>(), stats.bytes())
    };
    // Up to 1 MiB at once, or a page less when the caller's buffer is not aligned.
    let (writes, written) = counted(Operation::Write);
    assert!(
        (3..=4).contains(&writes) && written == 3 * MIB,
        "{writes} writes, {written} bytes"
    );
    let (reads, read) = counted(Operation::Read);
    assert!(
        (2..=3).contains(&reads) && read == 2 * MIB,
        "{reads} reads, {read} bytes"
    );
    assert_eq!(counted(Operation::Flush), (1, 0));
    assert_eq!(counted(Operation::Discard), (1, MIB));
    assert_eq!(counted(Operation::WriteZeroes), (1, 5000));
}
