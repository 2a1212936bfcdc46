//! Threads that own a ring, as a front end does, and data I/O on them.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use pool::DataIo;
use rustix::fs::Advice;

use super::*;
use crate::{BlockingPool, FileIo};

pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Runs the tasks on a thread with a ring, as a front end would; returns how many operations went
/// through the ring.
pub(crate) fn run_with_ring(make: impl FnOnce() -> Vec<Task> + Send + 'static) -> u64 {
    thread::spawn(move || {
        let mut ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(8)
            .unwrap();
        let mut executor = Executor::new().unwrap();
        let ring_io = RingIo::new(&executor);
        make().into_iter().for_each(|task| executor.spawn(task));
        let mut operations = 0;
        loop {
            executor.run_ready();
            if executor.is_empty() && ring_io.in_flight() == 0 {
                return operations;
            }
            ring_io.enter(&executor, &mut ring).unwrap();
            let completions: Vec<_> = ring.completion().collect();
            for completion in completions {
                operations += u64::from(completion.user_data() != DOORBELL);
                // SAFETY: it comes from the ring that `enter` was given, once.
                unsafe { ring_io.complete(completion.user_data(), completion.result()) };
            }
        }
    })
    .join()
    .unwrap()
}

fn store(len: u64) -> (tempfile::NamedTempFile, Arc<FileIo>) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(len).unwrap();
    let io = FileIo::open(file.path(), false, BlockingPool::new(2)).unwrap();
    (file, Arc::new(io))
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).unwrap() ^ seed)
        .collect()
}

fn evict(file: &tempfile::NamedTempFile) {
    file.as_file().sync_all().unwrap();
    rustix::fs::fadvise(file.as_file(), 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn cold_reads_go_through_the_ring_many_at_a_time() {
    let (file, io) = store(4 << 20);
    let bytes = pattern(4 << 20, 7);
    crate::block_on(io.write(0, &bytes)).unwrap();
    evict(&file);
    let operations = run_with_ring(move || {
        let read = |at: usize| -> Task {
            let (io, expected) = (Arc::clone(&io), bytes[at..at + 5000].to_vec());
            Box::pin(async move {
                let mut read = vec![0; 5000];
                io.read(at as u64, &mut read).await.unwrap();
                assert!(read == expected, "at {at}");
            })
        };
        // More than the ring has room for at a time.
        (0..100).map(|n| read(n * 40_000)).collect()
    });
    // Where the file system is memory, nothing is ever cold.
    if !is_in_memory(&file) {
        assert!(operations > 0);
    }
}

fn is_in_memory(file: &tempfile::NamedTempFile) -> bool {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file.as_file()).unwrap().f_type == TMPFS_MAGIC
}

#[test]
fn every_kind_of_request_is_carried_out() {
    let (file, io) = store(1 << 20);
    let theirs = Arc::clone(&io);
    let operations = run_with_ring(move || {
        let all = async move {
            let io = theirs;
            io.write(0, &vec![0xff; 1 << 20]).await.unwrap();
            io.sync().await.unwrap();
            io.zero(1000, 70_000).await.unwrap();
            io.punch(131_072, 65_536).await.unwrap();
            io.zero(0, 0).await.unwrap();
            io.sync().await.unwrap();
        };
        vec![Box::pin(all)]
    });
    // Two syncs, a zeroing and a punch at least.
    assert!(operations >= 4, "{operations}");
    let contents = std::fs::read(file.path()).unwrap();
    for (i, &byte) in contents.iter().enumerate() {
        let zero = (1000..71_000).contains(&i) || (131_072..196_608).contains(&i);
        assert_eq!(byte, if zero { 0 } else { 0xff }, "byte {i}");
    }
}

#[test]
fn writes_that_must_wait_go_through_the_ring() {
    let (file, io) = store(1 << 20);
    let bytes = pattern(300_000, 3);
    let (theirs, expected) = (Arc::clone(&io), bytes.clone());
    let operations = run_with_ring(move || {
        vec![Box::pin(async move {
            theirs.write_waiting(77, &bytes).await.unwrap();
        })]
    });
    assert!(operations > 0);
    assert!(std::fs::read(file.path()).unwrap()[77..][..300_000] == expected);
}

#[test]
fn errors_are_those_of_the_file() {
    let (_file, io) = store(4096);
    run_with_ring(move || {
        vec![Box::pin(async move {
            let mut buffer = [0; 100];
            let beyond = io.read(4000, &mut buffer).await.unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
            let through = Request::Read {
                at: 1 << 40,
                buffer: Pages::zeroed(1),
            };
            let finished = io.through_ring(through).await.ok().unwrap();
            assert_eq!(finished.result.unwrap(), 0);
        })]
    });
    let full = File::options().write(true).open("/dev/full").unwrap();
    let full = FileIo::new(full, BlockingPool::new(1));
    run_with_ring(move || {
        vec![Box::pin(async move {
            let refused = full.write_waiting(0, b"x").await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
            assert_eq!(
                full.write(0, b"x").await.unwrap_err().kind(),
                io::ErrorKind::StorageFull
            );
        })]
    });
}

/// Wake-ups from other threads must end the wait in the ring. A lost one hangs the test.
#[test]
fn the_doorbell_is_heard_in_the_ring() {
    let threads = BlockingPool::new(2);
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    run_with_ring(move || {
        let rounds = |_| -> Task {
            let (threads, count) = (threads.clone(), Arc::clone(&counted));
            Box::pin(async move {
                for round in 0..5000 {
                    let spin = move || (0..round % 64).for_each(|_| std::hint::spin_loop());
                    threads.offload(spin).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        (0..3).map(rounds).collect()
    });
    assert_eq!(count.load(Ordering::Relaxed), 15_000);
}

/// A task that only yields must not be starved by the ring's wait, nor the ring by the task.
#[test]
fn ready_tasks_keep_the_ring_from_sleeping() {
    run_with_ring(|| {
        vec![Box::pin(async {
            for _ in 0..1000 {
                crate::yield_now().await;
            }
        })]
    });
}

#[test]
fn a_future_that_is_dropped_takes_no_memory_from_the_kernel() {
    let (file, io) = store(1 << 20);
    crate::block_on(io.write(0, &pattern(1 << 20, 5))).unwrap();
    let theirs = Arc::clone(&io);
    run_with_ring(move || {
        vec![Box::pin(async move {
            for at in (0..1 << 20).step_by(1 << 16) {
                let request = Request::Read {
                    at,
                    buffer: Pages::zeroed(1 << 16),
                };
                let reading = std::pin::pin!(theirs.through_ring(request));
                let polled = poll_once(reading);
                assert!(polled, "it is under way");
            }
            // The loop goes on until all of them have ended.
        })]
    });
    assert!(std::fs::read(file.path()).unwrap() == pattern(1 << 20, 5));
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    future.poll(&mut context).is_pending()
}

#[test]
fn what_is_left_when_a_ring_ends_fails() {
    let (_file, io) = store(4096);
    let failed = thread::spawn(move || {
        let executor = Executor::<Task>::new().unwrap();
        let ring_io = RingIo::new(&executor);
        let request = Request::SyncData;
        let mut sync = std::pin::pin!(io.through_ring(request));
        assert!(poll_once(sync.as_mut()));
        assert_eq!(ring_io.in_flight(), 1);
        drop(ring_io);
        assert!(!is_here());
        crate::block_on(sync).ok().unwrap().result
    });
    let cause = failed.join().unwrap().unwrap_err();
    assert_eq!(Errno::from_io_error(&cause), Some(Errno::CANCELED));
}
