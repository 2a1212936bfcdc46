//! Pools without data space: who waits, for how long, in which order, and what cures it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use pool::{Error, ErrorKind, Mode, NoSpaceOverride, NoSpacePolicy, Pool, ThinDevice};
use tests::Prng;
use tests::executor::{Task, block_on, run};
use tests::setup::{expect_runs, expect_true_space, machine, name, new, read_all};
use tests::sim::{Fault, Io, Machine, SimHost};

const BLOCK: u64 = 65_536;
const SEEDS: u64 = 100;

type SimPool = Arc<Pool<SimHost>>;
type Volume = ThinDevice<SimHost>;

/// A pool of so many data blocks whose writes wait, and a volume of 100 blocks that has mapped all of them.
fn full(data_blocks: u64) -> (Machine, SimPool, Volume) {
    let machine = machine(data_blocks);
    let pool = machine.open().unwrap();
    pool.set_no_space_policy(NoSpacePolicy::default());
    block_on(pool.create_volume(new("vol"), 100 * BLOCK, None)).unwrap();
    let volume = pool.open_device(&name("vol")).unwrap();
    for block in 0..data_blocks {
        block_on(write(&volume, block, 1)).unwrap();
    }
    (machine, pool, volume)
}

async fn write(volume: &Volume, block: u64, byte: u8) -> Result<(), Error> {
    volume.write(block * BLOCK, &[byte; 4096], false).await
}

/// Lets others go on until it is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    poll_fn(|context| {
        if is_so() {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn until_queued(pool: &SimPool, count: u64) {
    until(|| pool.status().queued_writes == count).await;
}

fn run_all(tasks: Vec<Task<'_>>) {
    run(tasks, &mut Prng::new(1));
}

/// Runs a write of block 50 that has to wait, and what is to happen meanwhile.
fn while_queued(
    pool: &SimPool,
    volume: &Volume,
    meanwhile: impl Future<Output = ()>,
) -> Result<(), Error> {
    let mut result = None;
    {
        let waits = async { result = Some(write(volume, 50, 9).await) };
        let acts = async {
            until_queued(pool, 1).await;
            // Meanwhile it finds out that nothing can be freed.
            let mut turns = 100;
            until(|| {
                turns -= 1;
                turns == 0
            })
            .await;
            meanwhile.await;
        };
        run_all(vec![Box::pin(waits), Box::pin(acts)]);
    }
    assert_eq!(pool.status().queued_writes, 0);
    result.unwrap()
}

#[test]
fn queued_writes_go_on_in_order_when_the_pool_grows() {
    for seed in 0..SEEDS {
        let (machine, pool, volume) = full(4);
        machine.power.set_pauses(3);
        let done = RefCell::new(Vec::new());
        let mut tasks: Vec<Task<'_>> = Vec::new();
        for number in 0..6 {
            let (pool, volume, done) = (&pool, &volume, &done);
            tasks.push(Box::pin(async move {
                until_queued(pool, number).await;
                // Each lies in two blocks.
                let at = (11 + 2 * number) * BLOCK - 4096;
                volume.write(at, &[7; 8192], false).await.unwrap();
                done.borrow_mut().push(number);
            }));
        }
        tasks.push(Box::pin(async {
            until_queued(&pool, 6).await;
            machine.data.grow(32 * BLOCK);
            pool.grow_data(32 * BLOCK).await.unwrap();
            // Who comes now waits behind the others, if they have not all been served.
            write(&volume, 60, 8).await.unwrap();
            done.borrow_mut().push(6);
        }));
        run(tasks, &mut Prng::new(seed));
        assert_eq!(done.into_inner(), [0, 1, 2, 3, 4, 5, 6], "seed {seed}");
        drop(volume);
        let bytes = read_all(&pool, &name("vol"));
        for number in 0..6 {
            let at = usize::try_from((11 + 2 * number) * BLOCK - 4096).unwrap();
            assert!(bytes[at..at + 8192].iter().all(|byte| *byte == 7));
        }
        assert_eq!(pool.status().mode, Mode::Write);
        expect_true_space(&machine, &pool);
    }
}

#[test]
fn only_writes_that_need_a_block_wait() {
    let (machine, pool, volume) = full(4);
    let waited = while_queued(&pool, &volume, async {
        assert_eq!(pool.status().mode, Mode::OutOfDataSpace);
        write(&volume, 0, 2).await.unwrap();
        let mut bytes = [0; 4096];
        volume.read(BLOCK, &mut bytes).await.unwrap();
        volume.flush().await.unwrap();
        volume
            .write_zeroes(0, 4096, pool::Zeroing::KeepMapped, false)
            .await
            .unwrap();
        pool.create_snapshots(vec![new("vol@s")]).await.unwrap();
        pool.remove(&name("vol@s")).await.unwrap();
        pool.reclaim().await.unwrap();
        assert_eq!(pool.status().queued_writes, 1);
        volume.discard(BLOCK, BLOCK, false).await.unwrap();
        // As the daemon's timer does.
        pool.commit().await.unwrap();
    });
    waited.unwrap();
    assert_eq!(
        pool.status().mode,
        Mode::OutOfDataSpace,
        "the last block is taken"
    );
    expect_true_space(&machine, &pool);
}

#[test]
fn what_is_deleted_serves_who_waits() {
    let (_machine, pool, volume) = full(4);
    block_on(pool.create_volume(new("other"), BLOCK, None)).unwrap();
    block_on(volume.discard(0, BLOCK, false)).unwrap();
    let other = pool.open_device(&name("other")).unwrap();
    block_on(write(&other, 0, 3)).unwrap();
    drop(other);
    let waited = while_queued(&pool, &volume, async {
        pool.remove(&name("other")).await.unwrap();
        pool.reclaim().await.unwrap();
    });
    waited.unwrap();
}

#[test]
fn who_has_waited_for_too_long_fails_and_so_do_later_ones_until_there_is_space() {
    let (_machine, pool, volume) = full(4);
    let waited = while_queued(&pool, &volume, async {
        volume.host().advance(Duration::from_secs(59));
        pool.look_for_space().await;
        until_queued(&pool, 1).await;
        assert!(pool.status().queues_without_space);
        volume.host().advance(Duration::from_secs(1));
        pool.look_for_space().await;
    });
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(!pool.status().queues_without_space);
    // It would be a deadlock if this waited.
    let refused = block_on(write(&volume, 51, 9)).unwrap_err();
    assert_eq!(refused.errno(), 28, "{refused}");
    block_on(volume.discard(0, BLOCK, false)).unwrap();
    block_on(write(&volume, 51, 9)).unwrap();
    assert!(pool.status().queues_without_space, "the clock begins anew");
    let waited = while_queued(&pool, &volume, async {
        volume.discard(BLOCK, BLOCK, false).await.unwrap();
        pool.commit().await.unwrap();
    });
    waited.unwrap();
}

#[test]
fn a_volume_can_have_its_own_policy_which_outlives_the_pool() {
    let (machine, pool, volume) = full(4);
    block_on(pool.create_volume(new("eager"), 8 * BLOCK, None)).unwrap();
    let errors = NoSpaceOverride {
        error_if_no_space: Some(true),
        no_space_timeout: None,
    };
    let info = block_on(pool.set_no_space(&name("eager"), errors)).unwrap();
    assert_eq!(info.no_space, errors);
    let refused = block_on(pool.set_no_space(&name("gone"), errors)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    let eager = pool.open_device(&name("eager")).unwrap();
    let waited = while_queued(&pool, &volume, async {
        let refused = write(&eager, 0, 5).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        // It need not stand behind those that wait, either.
        volume.discard(0, 2 * BLOCK, false).await.unwrap();
        write(&eager, 0, 5).await.unwrap();
    });
    waited.unwrap();
    drop((eager, volume));
    block_on(pool.close()).unwrap();
    let pool = machine.open().unwrap();
    assert_eq!(pool.info(&name("eager")).unwrap().no_space, errors);
    assert_eq!(
        pool.info(&name("vol")).unwrap().no_space,
        NoSpaceOverride::default()
    );
}

#[test]
fn a_volume_of_a_pool_that_refuses_can_wait_for_ever() {
    let (_machine, pool, volume) = full(4);
    pool.set_no_space_policy(NoSpacePolicy {
        error_if_no_space: true,
        no_space_timeout: 60,
    });
    let refused = block_on(write(&volume, 50, 9)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
    let waits = NoSpaceOverride {
        error_if_no_space: Some(false),
        no_space_timeout: Some(0),
    };
    block_on(pool.set_no_space(&name("vol"), waits)).unwrap();
    let waited = while_queued(&pool, &volume, async {
        volume.host().advance(Duration::from_secs(1_000_000));
        pool.look_for_space().await;
        volume.discard(0, BLOCK, false).await.unwrap();
        pool.commit().await.unwrap();
    });
    waited.unwrap();
}

#[test]
fn a_change_of_policy_reaches_who_waits() {
    let (_machine, pool, volume) = full(4);
    let waited = while_queued(&pool, &volume, async {
        pool.set_no_space_policy(NoSpacePolicy {
            error_if_no_space: true,
            no_space_timeout: 60,
        });
    });
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn nobody_waits_in_a_pool_that_stops() {
    let (machine, pool, volume) = full(4);
    let waited = while_queued(&pool, &volume, async {
        machine.power.set_faults([Fault::once(Io::MetadataFlush)]);
        pool.create_snapshots(vec![new("vol@s")]).await.unwrap_err();
    });
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn nobody_waits_on_a_volume_that_is_frozen() {
    let (_machine, pool, volume) = full(4);
    let waited = while_queued(&pool, &volume, async {
        pool.freeze(&name("vol")).await.unwrap();
        pool.look_for_space().await;
    });
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn a_front_end_that_ends_waits_no_more_but_others_do() {
    let (_machine, pool, volume) = full(4);
    let other = volume.another_handle();
    let waited = while_queued(&pool, &volume, async {
        let refused = RefCell::new(None);
        let waits = async {
            *refused.borrow_mut() = Some(write(&other, 51, 3).await.unwrap_err());
        };
        let ends = async {
            until_queued(&pool, 2).await;
            other.end_waiting();
            until_queued(&pool, 1).await;
        };
        let mut tasks: Vec<Task<'_>> = vec![Box::pin(waits), Box::pin(ends)];
        poll_fn(|context| {
            tasks.retain_mut(|task| task.as_mut().poll(context).is_pending());
            if tasks.is_empty() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        drop(tasks);
        assert_eq!(refused.into_inner().unwrap().kind(), ErrorKind::NoSpace);
        volume.discard(0, BLOCK, false).await.unwrap();
        pool.commit().await.unwrap();
    });
    waited.unwrap();
}

#[test]
fn nobody_waits_where_nobody_can_give_space() {
    let machine = machine(2);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("vol"), 100 * BLOCK, None)).unwrap();
    let waits = NoSpaceOverride {
        error_if_no_space: Some(false),
        no_space_timeout: Some(0),
    };
    block_on(pool.set_no_space(&name("vol"), waits)).unwrap();
    let volume = pool.open_device(&name("vol")).unwrap();
    block_on(write(&volume, 0, 1)).unwrap();
    block_on(write(&volume, 1, 1)).unwrap();
    let refused = block_on(write(&volume, 2, 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSpace);
}

/// Below the pool, space is missing at each kind of I/O that may need some; later there is some again.
#[test]
fn writes_wait_for_the_file_system_below() {
    for io in [Io::DataAllocate, Io::DataWrite, Io::LogWrite] {
        let machine = machine(16);
        let pool = machine.open().unwrap();
        pool.set_no_space_policy(NoSpacePolicy::default());
        block_on(pool.create_volume(new("vol"), 100 * BLOCK, None)).unwrap();
        let volume = pool.open_device(&name("vol")).unwrap();
        block_on(write(&volume, 0, 1)).unwrap();
        block_on(pool.commit()).unwrap();
        // What has been allocated already is used up.
        for block in 1..16 {
            block_on(write(&volume, block, 1)).unwrap();
        }
        block_on(volume.discard(8 * BLOCK, 8 * BLOCK, false)).unwrap();
        block_on(pool.commit()).unwrap();
        machine.power.set_faults([Fault::full(io)]);
        let waited = while_queued(&pool, &volume, async {
            assert_eq!(pool.status().mode, Mode::OutOfDataSpace, "{io:?}");
            pool.look_for_space().await;
            until_queued(&pool, 1).await;
            machine.power.set_faults([]);
            pool.look_for_space().await;
        });
        waited.unwrap();
        assert_eq!(pool.status().mode, Mode::Write, "{io:?}");
        block_on(volume.flush()).unwrap();
        drop(volume);
        let block = usize::try_from(BLOCK).unwrap();
        let mut runs = Vec::new();
        for _ in 0..8 {
            runs.extend([(1, 4096), (0, block - 4096)]);
        }
        runs.extend([(0, 42 * block), (9, 4096)]);
        expect_runs(&pool, &name("vol"), &runs);
        expect_true_space(&machine, &pool);
    }
}

/// Where nobody waits, space that came below the pool is noticed all the same; if only a write can tell, by that.
#[test]
fn the_mode_follows_the_file_system_below() {
    for io in [Io::DataAllocate, Io::DataWrite, Io::LogCreate] {
        let machine = machine(16);
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new("vol"), 100 * BLOCK, None)).unwrap();
        let volume = pool.open_device(&name("vol")).unwrap();
        machine.power.set_faults([Fault::full(io)]);
        for _ in 0..3 {
            let refused = block_on(write(&volume, 0, 1)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NoSpace);
            block_on(pool.look_for_space());
            assert_eq!(pool.status().mode, Mode::OutOfDataSpace, "{io:?}");
        }
        machine.power.set_faults([]);
        block_on(pool.look_for_space());
        if io == Io::DataAllocate {
            assert_eq!(pool.status().mode, Mode::Write);
        }
        block_on(write(&volume, 0, 1)).unwrap();
        assert_eq!(pool.status().mode, Mode::Write, "{io:?}");
    }
}

/// A store that is full below free blocks keeps writes waiting as long as one whose pool has none.
#[test]
fn the_clock_runs_on_while_the_store_below_is_full() {
    for io in [Io::DataAllocate, Io::DataWrite, Io::LogCreate] {
        let machine = machine(16);
        let pool = machine.open().unwrap();
        pool.set_no_space_policy(NoSpacePolicy::default());
        block_on(pool.create_volume(new("vol"), 100 * BLOCK, None)).unwrap();
        block_on(pool.create_volume(new("eager"), 8 * BLOCK, None)).unwrap();
        let errors = NoSpaceOverride {
            error_if_no_space: Some(true),
            no_space_timeout: None,
        };
        block_on(pool.set_no_space(&name("eager"), errors)).unwrap();
        let volume = pool.open_device(&name("vol")).unwrap();
        let eager = pool.open_device(&name("eager")).unwrap();
        machine.power.set_faults([Fault::full(io)]);
        let waited = while_queued(&pool, &volume, async {
            for _ in 0..61 {
                write(&eager, 0, 5).await.unwrap_err();
                volume.host().advance(Duration::from_secs(1));
                pool.look_for_space().await;
            }
        });
        assert_eq!(waited.unwrap_err().kind(), ErrorKind::NoSpace, "{io:?}");
        assert!(!pool.status().queues_without_space, "{io:?}");
        // It would be a deadlock if this waited.
        block_on(write(&volume, 51, 9)).unwrap_err();
    }
}
