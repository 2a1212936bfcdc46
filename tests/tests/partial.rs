//! Blocks that are partly there: what happens when they cannot be filled in, or go while they are
//! read.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool::{DeviceName, Error, ErrorKind, Identity, Mode, NewDevice, Pool, ThinDevice};
use tests::Prng;
use tests::executor::{Task, block_on, block_on_thread};
use tests::image::expect_sound;
use tests::sim::{Fault, FaultKind, Geometry, Io, Machine, Shape, SimHost};

const BLOCK: usize = 65_536;
const SUB_BLOCK: usize = 4096;
const DATA_BLOCKS: u64 = 64;

fn name(name: &str) -> DeviceName {
    name.parse().unwrap()
}

fn new(name: DeviceName) -> NewDevice {
    let identity = Identity {
        uuid: format!("uuid of {name}"),
        created: String::new(),
    };
    NewDevice { name, identity }
}

fn machine() -> Machine {
    let geometry = Geometry {
        data_blocks: DATA_BLOCKS,
        metadata_blocks: 600,
    };
    Machine::new(geometry, Prng::new(1))
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
        let machine = machine();
        let pool = machine.open().unwrap();
        for volume in ["a", "b"] {
            block_on(pool.create_volume(new(name(volume)), 4 * BLOCK as u64, None)).unwrap();
        }
        let a = pool.open_device(&name("a")).unwrap();
        let b = pool.open_device(&name("b")).unwrap();
        block_on(a.write(0, &[1; BLOCK], false)).unwrap();
        block_on(pool.create_snapshots(vec![new(name("a@s"))])).unwrap();
        block_on(a.write(0, &[2; SUB_BLOCK], false)).unwrap();
        block_on(a.write(BLOCK as u64, &[2; SUB_BLOCK], false)).unwrap();
        assert_eq!(pool.status().partial_blocks, 2);
        machine.power.set_fault(Some(Fault {
            after: 0,
            io: Some(Io::DataRead),
            kind: FaultKind::Failed,
            is_sticky: true,
        }));
        let unreadable = Unreadable {
            machine,
            pool,
            a,
            b,
        };
        unreadable.expect_not_durable();
        unreadable
    }

    fn expect_not_durable(&self) {
        let flushed = block_on(self.a.flush());
        assert!(
            matches!(flushed, Err(Error::NotDurable { .. })),
            "{flushed:?}"
        );
        assert_eq!(self.pool.status().mode, Mode::Write);
    }

    /// What `a` holds once the power has gone and come back, and the data store can be read.
    fn survives(self) -> Vec<u8> {
        let survivor = self.machine.after_cut(Shape::Nothing, &mut Prng::new(7));
        let pool = survivor.open().unwrap();
        let mut bytes = vec![0; BLOCK];
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.read(0, &mut bytes)).unwrap();
        bytes
    }
}

#[test]
fn what_cannot_be_filled_in_harms_its_volume_alone() {
    let run = Unreadable::new();
    block_on(run.b.write(0, &[3; BLOCK], false)).unwrap();
    block_on(run.b.flush()).unwrap();
    block_on(run.pool.create_snapshots(vec![new(name("b@s"))])).unwrap();
    run.expect_not_durable();
    let snapshot = block_on(run.pool.create_snapshots(vec![new(name("a@t"))]));
    assert_eq!(snapshot.unwrap_err().kind(), ErrorKind::Io);
    let more = block_on(run.a.write(2 * BLOCK as u64, &[4; BLOCK], false));
    assert!(matches!(more, Err(Error::NotDurable { .. })), "{more:?}");
    let closed = block_on(run.pool.close());
    assert!(
        matches!(closed, Err(Error::NotDurable { .. })),
        "{closed:?}"
    );
    assert!(run.survives() == [1; BLOCK], "the last commit stands");
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
    let bytes = run.survives();
    assert!(bytes[..SUB_BLOCK] == [2; SUB_BLOCK]);
    assert!(bytes[SUB_BLOCK..] == [5; BLOCK - SUB_BLOCK]);
}

#[test]
fn discarding_cures_what_cannot_be_filled_in() {
    let run = Unreadable::new();
    block_on(run.a.discard(0, BLOCK as u64, false)).unwrap();
    assert_eq!(run.pool.status().partial_blocks, 1);
    block_on(run.a.flush()).unwrap();
    assert!(run.survives() == [0; BLOCK]);
}

#[test]
fn a_store_that_recovers_cures_what_could_not_be_filled_in() {
    let run = Unreadable::new();
    run.machine.power.set_fault(None);
    block_on(run.a.flush()).unwrap();
    let bytes = run.survives();
    assert!(bytes[..SUB_BLOCK] == [2; SUB_BLOCK]);
    assert!(bytes[SUB_BLOCK..] == [1; BLOCK - SUB_BLOCK]);
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
    block_on(pool.reclaim()).unwrap();
    block_on(pool.commit()).unwrap();
    let used = expect_sound(&machine.metadata.image(), DATA_BLOCKS);
    assert_eq!(used, 1, "the snapshot's block");
    assert_eq!(pool.status().data_used_bytes, BLOCK as u64);
}

/// 4 KiB of twos, then ones to the end of the block.
fn expect_twos_and_ones(device: &ThinDevice<SimHost>) {
    let mut bytes = vec![0; BLOCK];
    block_on(device.read(0, &mut bytes)).unwrap();
    assert!(bytes[..SUB_BLOCK] == [2; SUB_BLOCK], "what was written");
    assert!(bytes[SUB_BLOCK..] == [1; BLOCK - SUB_BLOCK], "around it");
}

/// The removal's commit has what the volume held, in whole blocks, also when the removal itself
/// fails.
#[test]
fn a_volume_that_could_not_be_removed_keeps_its_contents() {
    for rolls_back in [false, true] {
        let machine = machine();
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new(name("a")), 4 * BLOCK as u64, None)).unwrap();
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[1; BLOCK], false)).unwrap();
        block_on(pool.create_snapshots(vec![new(name("a@s"))])).unwrap();
        block_on(a.write(0, &[2; SUB_BLOCK], false)).unwrap();
        drop(a);
        machine.power.set_fault(Some(Fault {
            after: 0,
            io: Some(Io::CatalogWrite),
            kind: FaultKind::Failed,
            is_sticky: false,
        }));
        if rolls_back {
            let identity = new(name("a")).identity;
            block_on(pool.rollback(&name("a@s"), identity)).unwrap_err();
        } else {
            block_on(pool.remove(&name("a"))).unwrap_err();
        }
        let a = pool.open_device(&name("a")).unwrap();
        expect_twos_and_ones(&a);
        // What the failed operation has committed is whole.
        let survivor = machine.after_cut(Shape::Nothing, &mut Prng::new(3));
        let other = survivor.open().unwrap();
        expect_twos_and_ones(&other.open_device(&name("a")).unwrap());
        block_on(a.flush()).unwrap();
        drop(a);
        block_on(pool.commit()).unwrap();
        let used = expect_sound(&machine.metadata.image(), DATA_BLOCKS);
        assert_eq!(pool.status().data_used_bytes, used * BLOCK as u64);
    }
}

/// A block that is discarded while a commit gives up on filling another one in comes back.
#[test]
fn what_a_commit_has_left_out_and_nobody_maps_comes_back() {
    for seed in 0..100 {
        let run = Unreadable::new();
        run.machine.power.set_pauses(3);
        let discard = async {
            let second = BLOCK as u64;
            run.a.discard(second, BLOCK as u64, false).await.unwrap();
        };
        let flush = async {
            let _may_come_too_early = run.a.flush().await;
        };
        let tasks: Vec<Task<'_>> = vec![Box::pin(discard), Box::pin(flush)];
        tests::executor::run(tasks, &mut Prng::new(seed));
        assert_eq!(run.pool.status().partial_blocks, 1, "the first one");
        run.machine.power.set_fault(None);
        block_on(run.pool.commit()).unwrap();
        let used = expect_sound(&run.machine.metadata.image(), DATA_BLOCKS);
        let counted = run.pool.status().data_used_bytes;
        assert_eq!(counted, used * BLOCK as u64, "seed {seed}");
    }
}

/// A reader that has found a partial block, and looks for the note on it just when block and note
/// go, must not take the block for whole.
#[test]
fn a_block_may_go_while_it_is_read() {
    let machine = machine();
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new(name("a")), BLOCK as u64, None)).unwrap();
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
