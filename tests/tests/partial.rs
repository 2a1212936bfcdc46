//! Blocks that are partly there: what happens when they cannot be filled in, or go while they are
//! read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool::{Error, ErrorKind, Mode, Pool, ThinDevice};
use tests::Prng;
use tests::executor::{Task, block_on, block_on_thread};
use tests::runs::seeds;
use tests::setup::{expect_runs, expect_true_space, machine, name, new, read_all};
use tests::sim::{Fault, Io, Machine, ORIGIN_PATH, Shape, SimHost};

const BLOCK: usize = 65_536;
const SUB_BLOCK: usize = 4096;
const DATA_BLOCKS: u64 = 64;

/// A small write to a block that nothing was written to takes a hole of the data store as it is. Other blocks
/// have more to show than zeros.
#[test]
fn a_hole_is_not_filled_in() {
    let machine = machine(DATA_BLOCKS);
    machine.power.set_holes(100);
    let pool = machine.open().unwrap();
    let origin = Some(PathBuf::from(ORIGIN_PATH));
    for (volume, origin) in [("plain", None), ("over", origin)] {
        block_on(pool.create_volume(new(volume), 4 * BLOCK as u64, origin)).unwrap();
    }
    let write = |volume, at| {
        let device = pool.open_device(&name(volume)).unwrap();
        block_on(device.write(at, &[1; SUB_BLOCK / 2], false)).unwrap();
        pool.status().partial_blocks
    };
    assert_eq!(write("plain", 0), 0);
    assert_eq!(write("plain", BLOCK as u64 + 3 * 512), 0);
    let mut expected = vec![0; 4 * BLOCK];
    expected[..SUB_BLOCK / 2].fill(1);
    expected[BLOCK + 3 * 512..][..SUB_BLOCK / 2].fill(1);
    assert!(read_all(&pool, &name("plain")) == expected);
    block_on(pool.create_snapshots(vec![new("plain@s")])).unwrap();
    assert_eq!(write("plain", 8192), 1, "shared");
    assert_eq!(write("over", 0), 2, "over another store");
}

/// A pool with the volumes `a` and `b` of four blocks, of which `a` holds 64 KiB of ones and has a
/// snapshot; the first 4 KiB of its first two blocks are twos since, and no read of the data store
/// succeeds any more.
struct Unreadable {
    machine: Machine,
    pool: Arc<Pool<SimHost>>,
    a: ThinDevice<SimHost>,
    b: ThinDevice<SimHost>,
}

impl Unreadable {
    fn new() -> Self {
        let machine = machine(DATA_BLOCKS);
        let pool = machine.open().unwrap();
        for volume in ["a", "b"] {
            block_on(pool.create_volume(new(volume), 4 * BLOCK as u64, None)).unwrap();
        }
        let a = pool.open_device(&name("a")).unwrap();
        let b = pool.open_device(&name("b")).unwrap();
        block_on(a.write(0, &[1; BLOCK], false)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        block_on(a.write(0, &[2; SUB_BLOCK], false)).unwrap();
        block_on(a.write(BLOCK as u64, &[2; SUB_BLOCK], false)).unwrap();
        assert_eq!(pool.status().partial_blocks, 2);
        machine.power.set_faults([Fault::lasting(Io::DataRead)]);
        let unreadable = Unreadable {
            machine,
            pool,
            a,
            b,
        };
        unreadable.expect_not_committed();
        unreadable
    }

    fn expect_not_committed(&self) {
        let committed = block_on(self.pool.commit());
        assert!(
            matches!(committed, Err(Error::NotCommitted { .. })),
            "{committed:?}"
        );
        assert_eq!(self.pool.status().mode, Mode::Write);
    }

    /// Fails unless `a` begins so once the power has gone and come back, and the data store can be
    /// read.
    fn expect_survives(self, runs: &[(u8, usize)]) {
        let survivor = self.machine.after_cut(Shape::Nothing, &mut Prng::new(7));
        expect_runs(&survivor.open().unwrap(), &name("a"), runs);
    }
}

#[test]
fn what_cannot_be_filled_in_harms_its_volume_alone() {
    let run = Unreadable::new();
    block_on(run.b.write(0, &[3; BLOCK], false)).unwrap();
    block_on(run.b.flush()).unwrap();
    block_on(run.pool.create_snapshots(vec![new("b@s")])).unwrap();
    block_on(run.a.flush()).unwrap();
    run.expect_not_committed();
    let snapshot = block_on(run.pool.create_snapshots(vec![new("a@t")]));
    assert_eq!(snapshot.unwrap_err().kind(), ErrorKind::Io);
    let more = block_on(run.a.write(2 * BLOCK as u64, &[4; BLOCK], false));
    assert!(matches!(more, Err(Error::NotCommitted { .. })), "{more:?}");
    let closed = block_on(run.pool.close());
    assert!(
        matches!(closed, Err(Error::NotCommitted { .. })),
        "{closed:?}"
    );
    // The log has what the last commit lacks.
    run.expect_survives(&[(2, SUB_BLOCK), (1, BLOCK - SUB_BLOCK), (2, SUB_BLOCK)]);
}

#[test]
fn overwriting_cures_what_cannot_be_filled_in() {
    let run = Unreadable::new();
    block_on(
        run.a
            .write(SUB_BLOCK as u64, &[5; BLOCK - SUB_BLOCK], false),
    )
    .unwrap();
    block_on(run.a.flush()).unwrap();
    block_on(run.a.write(BLOCK as u64, &[4; BLOCK], true)).unwrap();
    run.expect_survives(&[(2, SUB_BLOCK), (5, BLOCK - SUB_BLOCK), (4, BLOCK)]);
}

#[test]
fn discarding_cures_what_cannot_be_filled_in() {
    let run = Unreadable::new();
    block_on(run.a.discard(0, BLOCK as u64, false)).unwrap();
    assert_eq!(run.pool.status().partial_blocks, 1);
    block_on(run.a.flush()).unwrap();
    run.expect_survives(&[(0, BLOCK), (2, SUB_BLOCK)]);
}

#[test]
fn a_store_that_recovers_cures_what_could_not_be_filled_in() {
    let run = Unreadable::new();
    run.machine.power.set_faults([]);
    block_on(run.a.flush()).unwrap();
    run.expect_survives(&[(2, SUB_BLOCK), (1, BLOCK - SUB_BLOCK), (2, SUB_BLOCK)]);
}

#[test]
fn a_volume_that_cannot_be_filled_in_can_be_removed() {
    let Unreadable {
        machine,
        pool,
        a,
        b,
    } = Unreadable::new();
    drop((a, b));
    block_on(pool.remove(&name("a"))).unwrap();
    assert_eq!(pool.status().partial_blocks, 0);
    expect_true_space(&machine, &pool);
    let used = pool.status().data_used_bytes;
    assert_eq!(used, BLOCK as u64, "the snapshot's block");
}

/// A block that is discarded while a commit gives up on filling another one in comes back.
#[test]
fn what_a_commit_has_left_out_and_nobody_maps_comes_back() {
    let test = "what_a_commit_has_left_out_and_nobody_maps_comes_back";
    seeds(1, 100, test, |mut prng| {
        let run = Unreadable::new();
        run.machine.power.set_pauses(3);
        let discard = async {
            let second = BLOCK as u64;
            run.a.discard(second, BLOCK as u64, false).await.unwrap();
        };
        let commit = async {
            let _may_come_too_early = run.pool.commit().await;
        };
        let tasks: Vec<Task<'_>> = vec![Box::pin(discard), Box::pin(commit)];
        tests::executor::run(tasks, &mut prng);
        assert_eq!(run.pool.status().partial_blocks, 1, "the first one");
        run.machine.power.set_faults([]);
        expect_true_space(&run.machine, &run.pool);
    });
}

/// A reader that has found a partial block, and looks for the note on it just when block and note
/// go, must not take the block for whole.
#[test]
fn a_block_may_go_while_it_is_read() {
    let machine = machine(DATA_BLOCKS);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), BLOCK as u64, None)).unwrap();
    let a = pool.open_device(&name("a")).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..20_000 {
                block_on_thread(a.write(0, &[1; SUB_BLOCK], false)).unwrap();
                block_on_thread(a.discard(0, BLOCK as u64, false)).unwrap();
                block_on_thread(pool.commit()).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            let mut bytes = [9; SUB_BLOCK];
            block_on_thread(a.read(8 * SUB_BLOCK as u64, &mut bytes)).unwrap();
            assert!(bytes == [0; SUB_BLOCK], "nobody has written here");
        }
    });
}
