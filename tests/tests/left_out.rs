//! Volumes that commits leave out since a block cannot be filled in: what flushes, snapshots, resizing,
//! removal and the search for space make of them. What was flushed is durable nevertheless.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Debug;
use std::sync::Arc;

use pool::{CatalogStore, Error, ErrorKind, Mode, Pool, ThinDevice};
use tests::Prng;
use tests::executor::{Task, block_on, run};
use tests::runs::seeds;
use tests::setup::{expect_runs, expect_true_space, machine, name, new};
use tests::sim::{Fault, Io, Machine, Shape, SimHost};

const BLOCK: usize = 65_536;
const SUB_BLOCK: usize = 4096;

/// What a block of ones is after a write of twos to its first sub-block.
const TWOS_AND_ONES: &[(u8, usize)] = &[(2, SUB_BLOCK), (1, BLOCK - SUB_BLOCK)];

/// A pool with the volumes `a` and `b` of eight blocks, of which `a` holds one block of ones that its
/// snapshot `a@s` shares.
struct Scene {
    machine: Machine,
    pool: Arc<Pool<SimHost>>,
}

impl Scene {
    fn new(data_blocks: u64) -> Self {
        let machine = machine(data_blocks);
        let pool = machine.open().unwrap();
        for volume in ["a", "b"] {
            block_on(pool.create_volume(new(volume), 8 * BLOCK as u64, None)).unwrap();
        }
        let scene = Scene { machine, pool };
        block_on(scene.open("a").write(0, &[1; BLOCK], true)).unwrap();
        block_on(scene.pool.create_snapshots(vec![new("a@s")])).unwrap();
        scene
    }

    fn open(&self, volume: &str) -> ThinDevice<SimHost> {
        self.pool.open_device(&name(volume)).unwrap()
    }

    /// Makes the first block of `a` partial.
    fn write_twos(&self) {
        block_on(self.open("a").write(0, &[2; SUB_BLOCK], false)).unwrap();
        assert_eq!(self.pool.status().partial_blocks, 1);
    }

    fn make_unreadable(&self) {
        self.machine
            .power
            .set_faults([Fault::lasting(Io::DataRead)]);
    }

    fn cure(&self) {
        self.machine.power.set_faults([]);
    }

    fn after_cut(&self, shape: Shape) -> Machine {
        self.machine.after_cut(shape, &mut Prng::new(7))
    }

    /// Fails unless a volume begins so, now and after a power cut.
    fn expect_durable(&self, volume: &str, runs: &[(u8, usize)]) {
        expect_runs(&self.pool, &name(volume), runs);
        let survivor = self.after_cut(Shape::Nothing);
        expect_runs(&survivor.open().unwrap(), &name(volume), runs);
    }

    fn used_blocks(&self) -> u64 {
        self.pool.status().data_used_bytes / BLOCK as u64
    }
}

fn expect_not_committed<T: Debug>(outcome: Result<T, Error>) {
    assert!(
        matches!(outcome, Err(Error::NotCommitted { .. })),
        "{outcome:?}"
    );
}

/// A flush makes durable what commits leave out before, while and after it runs.
#[test]
fn what_was_flushed_is_durable_whatever_commits_leave_out() {
    let test = "what_was_flushed_is_durable_whatever_commits_leave_out";
    seeds(1, 1500, test, |mut prng| {
        let scene = Scene::new(64);
        let (a, b) = (scene.open("a"), scene.open("b"));
        scene.write_twos();
        let power = &scene.machine.power;
        power.set_faults(vec![Fault::once(Io::DataRead); 1 + prng.index(3)]);
        power.set_pauses(3);
        let mut survivor = None;
        let mut tasks: Vec<Task<'_>> = Vec::new();
        tasks.push(Box::pin(async {
            a.flush().await.unwrap();
            survivor = Some(scene.after_cut(Shape::Nothing));
        }));
        tasks.push(Box::pin(async {
            for block in 0..3 {
                let at = block * BLOCK as u64;
                b.write(at, &[5; BLOCK], true).await.unwrap();
            }
        }));
        for _ in 0..3 {
            tasks.push(Box::pin(async {
                for _ in 0..3 {
                    let committed = scene.pool.commit().await;
                    if committed.is_err() {
                        expect_not_committed(committed);
                    }
                }
            }));
        }
        run(tasks, &mut prng);
        for survivor in [survivor.unwrap(), scene.after_cut(Shape::Nothing)] {
            expect_runs(&survivor.open().unwrap(), &name("a"), TWOS_AND_ONES);
        }
    });
}

/// A block that becomes partial while a snapshot is taken, and cannot be filled in, fails the
/// snapshot at most: no commit leaves the volume out, and none fails.
#[test]
fn a_snapshot_meets_a_write_that_cannot_be_filled_in() {
    let (mut made, mut refused) = (0, 0);
    let test = "a_snapshot_meets_a_write_that_cannot_be_filled_in";
    let ran_all = seeds(1, 500, test, |mut prng| {
        let scene = Scene::new(64);
        let a = scene.open("a");
        scene.make_unreadable();
        scene.machine.power.set_pauses(3);
        let mut outcome = None;
        let write = async { a.write(0, &[2; SUB_BLOCK], false).await.unwrap() };
        let snapshot = async {
            outcome = Some(scene.pool.create_snapshots(vec![new("a@t")]).await);
        };
        let tasks: Vec<Task<'_>> = vec![Box::pin(write), Box::pin(snapshot)];
        run(tasks, &mut prng);
        let status = scene.pool.status();
        assert_eq!(status.mode, Mode::Write, "{}", status.mode_reason);
        // A volume that was left out would get no new block.
        block_on(a.write(BLOCK as u64, &[3; SUB_BLOCK], false)).unwrap();
        scene.cure();
        block_on(a.flush()).unwrap();
        scene.expect_durable("a", &[TWOS_AND_ONES, &[(3, SUB_BLOCK)]].concat());
        match outcome.unwrap() {
            Ok(_) => {
                made += 1;
                scene.expect_durable("a@t", &[(1, BLOCK)]);
            }
            Err(cause) => {
                refused += 1;
                assert_eq!(cause.kind(), ErrorKind::Io, "{cause}");
            }
        }
        expect_true_space(&scene.machine, &scene.pool);
    });
    assert!(
        !ran_all || (made > 0 && refused > 0),
        "{made} made, {refused} refused"
    );
}

/// The zeros in the tail of a volume that was made shorter, and the size that shows them, become
/// durable together or not at all.
#[test]
fn a_volume_is_not_enlarged_without_the_zeros_in_its_tail() {
    for shape in [Shape::Nothing, Shape::All] {
        let scene = Scene::new(64);
        let a = name("a");
        let (short, long) = (SUB_BLOCK as u64, BLOCK as u64);
        block_on(scene.pool.resize(&a, short)).unwrap();
        scene.make_unreadable();
        let refused = block_on(scene.pool.resize(&a, long)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Io, "{refused}");
        assert_eq!(scene.pool.info(&a).unwrap().size, short);
        let survivor = scene.after_cut(shape).open().unwrap();
        assert_eq!(survivor.info(&a).unwrap().size, short);
        block_on(survivor.resize(&a, long)).unwrap();
        expect_runs(&survivor, &a, &[(1, SUB_BLOCK)]);
        scene.cure();
        block_on(scene.pool.resize(&a, long)).unwrap();
        let survivor = scene.after_cut(shape).open().unwrap();
        assert_eq!(survivor.info(&a).unwrap().size, long);
        expect_runs(&survivor, &a, &[(1, SUB_BLOCK)]);
        expect_true_space(&scene.machine, &scene.pool);
    }
}

/// Enlarging writes zeros to a volume that may be removed meanwhile: one of the two is refused.
#[test]
fn a_volume_is_enlarged_or_removed() {
    let (mut enlarged, mut removed) = (0, 0);
    let test = "a_volume_is_enlarged_or_removed";
    let ran_all = seeds(1, 500, test, |mut prng| {
        let scene = Scene::new(64);
        let a = name("a");
        block_on(scene.pool.resize(&a, SUB_BLOCK as u64)).unwrap();
        scene.machine.power.set_pauses(3);
        let (mut resizing, mut removal) = (None, None);
        let tasks: Vec<Task<'_>> = vec![
            Box::pin(async { resizing = Some(scene.pool.resize(&a, BLOCK as u64).await) }),
            Box::pin(async { removal = Some(scene.pool.remove(&a).await) }),
        ];
        run(tasks, &mut prng);
        match (resizing.unwrap(), removal.unwrap()) {
            (Ok(info), Err(Error::InUse(_))) => {
                enlarged += 1;
                assert_eq!(info.size, BLOCK as u64);
                scene.expect_durable("a", &[(1, SUB_BLOCK)]);
            }
            (Ok(_) | Err(Error::InUse(_) | Error::NotFound(_)), Ok(())) => {
                removed += 1;
                let found = scene.pool.info(&a);
                assert!(matches!(found, Err(Error::NotFound(_))), "{found:?}");
            }
            other => panic!("{other:?}"),
        }
        expect_true_space(&scene.machine, &scene.pool);
        assert_eq!(scene.pool.status().partial_blocks, 0);
    });
    assert!(
        !ran_all || (enlarged > 0 && removed > 0),
        "{enlarged} enlarged, {removed} removed"
    );
}

/// What cures a block that could not be filled in.
#[derive(Clone, Copy)]
enum Cure {
    /// The store can be read again.
    Store,
    /// The rest of the block is overwritten.
    Overwriting,
}

/// A discard in a volume that is left out frees its block with the first commit that covers it:
/// whoever needs space makes that commit, although nothing has changed since the last.
fn space_is_found_after(cure: Cure) {
    let scene = Scene::new(4);
    let (a, b) = (scene.open("a"), scene.open("b"));
    let second = BLOCK as u64;
    block_on(a.write(second, &[1; BLOCK], false)).unwrap();
    block_on(scene.pool.commit()).unwrap();
    scene.write_twos();
    scene.make_unreadable();
    block_on(a.discard(second, BLOCK as u64, false)).unwrap();
    block_on(b.write(0, &[3; BLOCK], false)).unwrap();
    expect_not_committed(block_on(scene.pool.commit()));
    let full = block_on(b.write(second, &[3; BLOCK], false)).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
    let mut expected = TWOS_AND_ONES.to_vec();
    match cure {
        Cure::Store => scene.cure(),
        Cure::Overwriting => {
            let rest = [4; BLOCK - SUB_BLOCK];
            block_on(a.write(SUB_BLOCK as u64, &rest, false)).unwrap();
            expected[1].0 = 4;
        }
    }
    block_on(b.write(second, &[3; BLOCK], true)).unwrap();
    block_on(a.flush()).unwrap();
    scene.cure();
    scene.expect_durable("a", &expected);
    scene.expect_durable("b", &[(3, 2 * BLOCK)]);
    expect_true_space(&scene.machine, &scene.pool);
}

#[test]
fn space_is_found_after_the_store_recovered() {
    space_is_found_after(Cure::Store);
}

#[test]
fn space_is_found_after_overwriting() {
    space_is_found_after(Cure::Overwriting);
}

/// The commit on the timer fails as long as a volume is left out, and still gives back what others
/// have freed.
#[test]
fn the_timer_gives_space_back_while_a_volume_is_left_out() {
    let scene = Scene::new(64);
    let b = scene.open("b");
    scene.write_twos();
    scene.make_unreadable();
    expect_not_committed(block_on(scene.pool.commit()));
    block_on(b.write(0, &[1; 8 * BLOCK], true)).unwrap();
    let of_a = 2;
    assert_eq!(scene.used_blocks(), of_a + 8);
    block_on(b.discard(0, 8 * BLOCK as u64, true)).unwrap();
    assert_eq!(scene.used_blocks(), of_a + 8, "no flush waits for it");
    expect_not_committed(block_on(scene.pool.commit()));
    assert_eq!(scene.used_blocks(), of_a);
    scene.cure();
    expect_true_space(&scene.machine, &scene.pool);
}

/// Until its blocks are reclaimed, a removed volume is found by whoever has lost the catalog, with all
/// it held: in the metadata if that could be filled in, else in the intent log.
fn a_removed_volume_is_whole(is_readable: bool) {
    let scene = Scene::new(64);
    let a = name("a");
    scene.write_twos();
    let second = BLOCK as u64;
    block_on(scene.open("a").write(second, &[2; SUB_BLOCK], false)).unwrap();
    if !is_readable {
        scene.make_unreadable();
    }
    let id = scene.pool.info(&a).unwrap().id;
    block_on(scene.pool.remove(&a)).unwrap();
    assert_eq!(scene.pool.status().partial_blocks, 0);
    let survivor = scene.after_cut(Shape::Nothing);
    survivor.catalog.replace(&[]).unwrap();
    let found = name(&format!("thin-{id}"));
    let expected = [TWOS_AND_ONES, &[(2, SUB_BLOCK)]].concat();
    expect_runs(&survivor.open().unwrap(), &found, &expected);
}

#[test]
fn a_removed_volume_that_was_filled_in_is_found_whole() {
    a_removed_volume_is_whole(true);
}

#[test]
fn a_removed_volume_that_was_left_out_is_found_whole() {
    a_removed_volume_is_whole(false);
}

/// An operation that ends a volume.
#[derive(Clone, Copy)]
enum Ending {
    Removal,
    Rollback,
}

impl Ending {
    fn attempt(self, pool: &Arc<Pool<SimHost>>) -> Result<(), Error> {
        match self {
            Ending::Removal => block_on(pool.remove(&name("a"))),
            Ending::Rollback => {
                let identity = new("a").identity;
                block_on(pool.rollback(&name("a@s"), identity)).map(|_| ())
            }
        }
    }
}

/// An ending that the catalog refuses, of a volume with a partial block: the volume stays, and loses
/// nothing.
fn a_refused_ending_harms_nothing(ending: Ending, is_readable: bool) {
    let scene = Scene::new(8);
    if matches!(ending, Ending::Removal) {
        // The old block is the volume's alone then, and goes with the commit that replaces it.
        block_on(scene.pool.remove(&name("a@s"))).unwrap();
        block_on(scene.pool.reclaim()).unwrap();
    }
    scene.write_twos();
    let refused = Fault::once(Io::CatalogWrite);
    let unreadable = Fault::lasting(Io::DataRead);
    let faults = [refused, unreadable].into_iter();
    let power = &scene.machine.power;
    power.set_faults(faults.take(if is_readable { 1 } else { 2 }));
    let failed = ending.attempt(&scene.pool).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Io, "{failed}");
    assert_eq!(scene.pool.status().mode, Mode::Write);
    let restarted = scene.machine.after_kill(&mut Prng::new(5)).open().unwrap();
    expect_runs(&restarted, &name("a"), TWOS_AND_ONES);
    let (a, b) = (scene.open("a"), scene.open("b"));
    let survivor = scene.after_cut(Shape::Nothing).open().unwrap();
    expect_runs(&survivor, &name("a"), TWOS_AND_ONES);
    block_on(a.flush()).unwrap();
    if !is_readable {
        expect_not_committed(block_on(scene.pool.commit()));
    }
    // Neither the new block nor the old one is anybody else's.
    block_on(b.write(0, &[77; 6 * BLOCK], true)).unwrap();
    scene.cure();
    block_on(a.flush()).unwrap();
    scene.expect_durable("a", TWOS_AND_ONES);
    scene.expect_durable("b", &[(77, 6 * BLOCK)]);
    expect_true_space(&scene.machine, &scene.pool);
    goes_on(&scene, &a);
}

/// Mappings come and go as ever, and the pool counts them.
fn goes_on(scene: &Scene, a: &ThinDevice<SimHost>) {
    for _ in 0..40 {
        block_on(a.discard(0, BLOCK as u64, true)).unwrap();
        block_on(scene.pool.commit()).unwrap();
        block_on(a.write(0, &[3; SUB_BLOCK], false)).unwrap();
        block_on(scene.pool.commit()).unwrap();
    }
    assert_eq!(scene.pool.status().partial_blocks, 0);
    scene.expect_durable("a", &[(3, SUB_BLOCK)]);
    expect_true_space(&scene.machine, &scene.pool);
}

#[test]
fn a_refused_removal_harms_nothing() {
    a_refused_ending_harms_nothing(Ending::Removal, true);
}

#[test]
fn a_refused_removal_of_what_cannot_be_filled_in_harms_nothing() {
    a_refused_ending_harms_nothing(Ending::Removal, false);
}

#[test]
fn a_refused_rollback_harms_nothing() {
    a_refused_ending_harms_nothing(Ending::Rollback, true);
}

#[test]
fn a_refused_rollback_of_what_cannot_be_filled_in_harms_nothing() {
    a_refused_ending_harms_nothing(Ending::Rollback, false);
}
