use std::fs::OpenOptions;

use super::*;
use crate::block_on;

fn store(len: u64) -> (tempfile::NamedTempFile, FileIo) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    let io = FileIo::open(file.path(), false, BlockingPool::new(2)).unwrap();
    (file, io)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).unwrap() ^ seed)
        .collect()
}

#[test]
fn what_was_written_is_read() {
    let (_file, io) = store(1 << 20);
    let bytes = pattern(100_000, 3);
    block_on(io.write(77, &bytes)).unwrap();
    block_on(io.write(300_000, &bytes[..999])).unwrap();
    let mut read = vec![0; bytes.len()];
    block_on(io.read(77, &mut read)).unwrap();
    assert_eq!(read, bytes);
    block_on(io.read(300_000, &mut read[..999])).unwrap();
    assert_eq!(read[..999], bytes[..999]);
    block_on(io.sync()).unwrap();
    assert_eq!(io.size().unwrap(), 1 << 20);
}

#[test]
fn cold_pages_are_read_by_a_thread_that_may_wait() {
    let (_file, io) = store(1 << 20);
    let bytes = pattern(1 << 20, 9);
    block_on(io.write(0, &bytes)).unwrap();
    rustix::fs::fadvise(&io.file, 0, None, Advice::DontNeed).unwrap();
    let mut read = vec![0; bytes.len()];
    block_on(io.read(0, &mut read)).unwrap();
    assert_eq!(read, bytes);
}

/// A file system that does not know RWF_NOWAIT: the flag is asked for once and never again.
#[test]
fn without_nowait_every_read_waits_elsewhere() {
    let (_file, io) = store(1 << 16);
    let bytes = pattern(1 << 16, 1);
    block_on(io.write(0, &bytes)).unwrap();
    io.nowait_reads_known.store(false, Ordering::Relaxed);
    let mut read = vec![0; 5000];
    assert_eq!(io.read_warm(11, &mut read).unwrap(), 0);
    block_on(io.read(11, &mut read)).unwrap();
    assert_eq!(read, bytes[11..5011]);
}

/// procfs files refuse the flag, as old file systems do.
#[test]
fn an_unknown_nowait_is_remembered() {
    let file = File::open("/proc/self/status").unwrap();
    let io = FileIo::new(file, BlockingPool::new(1));
    let mut read = [0; 5];
    block_on(io.read(0, &mut read)).unwrap();
    assert_eq!(&read, b"Name:");
    assert!(!io.nowait_reads_known.load(Ordering::Relaxed));
}

#[test]
fn reading_beyond_the_end_fails() {
    let (_file, io) = store(4096);
    let mut read = [0; 100];
    for at in [4000, 4096, 1 << 40] {
        let failed = block_on(io.read(at, &mut read)).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::UnexpectedEof);
        io.nowait_reads_known.store(at == 4000, Ordering::Relaxed);
    }
}

#[test]
fn a_full_store_says_so() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let io = FileIo::new(full, BlockingPool::new(1));
    let failed = block_on(io.write(0, b"x")).unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn zeroed_and_punched_ranges_read_as_zeros() {
    let (_file, io) = store(1 << 20);
    block_on(io.write(0, &vec![0xff; 1 << 20])).unwrap();
    block_on(io.zero(1000, 70_000)).unwrap();
    block_on(io.punch(131_072, 65_536)).unwrap();
    write_zeros(&io.file, 300_000, 12_345).unwrap();
    let mut read = vec![0; 1 << 20];
    block_on(io.read(0, &mut read)).unwrap();
    let zero = |i: usize| {
        (1000..71_000).contains(&i)
            || (131_072..196_608).contains(&i)
            || (300_000..312_345).contains(&i)
    };
    for (i, &byte) in read.iter().enumerate() {
        assert_eq!(byte, if zero(i) { 0 } else { 0xff }, "byte {i}");
    }
}

#[test]
fn zeroing_beyond_the_end_keeps_the_size() {
    let (_file, io) = store(4096);
    block_on(io.zero(0, 4096)).unwrap();
    block_on(io.zero(0, 0)).unwrap();
    block_on(io.punch(0, 0)).unwrap();
    assert_eq!(io.size().unwrap(), 4096);
}

#[test]
fn allocated_ranges_have_their_space_and_keep_what_they_hold() {
    use std::os::unix::fs::MetadataExt;

    let (file, io) = store(1 << 20);
    let bytes = pattern(4096, 5);
    block_on(io.write(8192, &bytes)).unwrap();
    let is_zero = block_on(io.allocate(0, 1 << 18)).unwrap();
    assert!(!is_zero);
    let metadata = file.as_file().metadata().unwrap();
    assert!(metadata.blocks() * 512 >= 1 << 18);
    assert_eq!(metadata.len(), 1 << 20);
    let mut read = vec![0; 4096];
    block_on(io.read(8192, &mut read)).unwrap();
    assert_eq!(read, bytes);
    block_on(io.read(0, &mut read)).unwrap();
    assert_eq!(read, [0; 4096]);
}

#[test]
fn what_was_never_written_or_given_back_is_known_to_be_zeros() {
    let (file, io) = store(1 << 20);
    if file_system(file.as_file()).is_none_or(|magic| !KNOWS_HOLES_MAGIC.contains(&magic)) {
        assert!(
            !block_on(io.allocate(0, 1 << 20)).unwrap(),
            "it is not to be believed"
        );
        return;
    }
    let is_zero = |at, len| block_on(io.allocate(at, len)).unwrap();
    assert!(is_zero(0, 1 << 20));
    assert!(is_zero(0, 1 << 20), "space alone is no data");
    block_on(io.write(1 << 18, &pattern(4096, 5))).unwrap();
    assert!(is_zero(0, 1 << 18));
    assert!(!is_zero(0, (1 << 18) + 4096));
    assert!(is_zero((1 << 18) + 4096, 1 << 18));
    assert!(is_zero(3 << 18, 1 << 18), "up to the end");
    block_on(io.punch(1 << 18, 4096)).unwrap();
    assert!(is_zero(0, 1 << 20));
}

/// Not every file has space to promise.
#[test]
fn what_cannot_promise_space_is_used_without() {
    let io = FileIo::open(Path::new("/dev/null"), false, BlockingPool::new(1)).unwrap();
    assert!(
        !block_on(io.allocate(0, 4096)).unwrap(),
        "a device tells nothing of its contents"
    );
}
