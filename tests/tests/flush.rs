//! What a flush has promised is there after a power cut, although no commit has it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Range;
use std::task::{Context, Waker};

use pool::ErrorKind;
use tests::Prng;
use tests::executor::{Task, block_on, run};
use tests::runs::seeds;
use tests::scene::{BLOCK_BYTES, BLOCKS, Scene, block, churn, run_load, sub_block};
use tests::setup::{expect_true_space, name, new, read_all};
use tests::sim::{Fault, Geometry, Io, Machine, Shape};
use tests::truth::{BLOCK, Kept, Truth, Volume};

/// A change that one flush makes durable.
type Change = (&'static str, fn(&Scene));

fn write(scene: &Scene, sectors: Range<usize>) {
    block_on(scene.a().write(sectors)).unwrap();
}

const CHANGES: &[Change] = &[
    ("an unmapped block", |scene| write(scene, block(3))),
    ("4 KiB of an unmapped block", |scene| {
        write(scene, sub_block(2, 3))
    }),
    ("a sector of an unmapped block", |scene| {
        write(scene, 3 * BLOCK + 5..3 * BLOCK + 6)
    }),
    ("4 KiB of a shared block", |scene| {
        write(scene, sub_block(2, 0))
    }),
    ("a sector of a shared block", |scene| write(scene, 5..6)),
    ("across shared and unmapped blocks", |scene| {
        write(scene, BLOCK + 7..2 * BLOCK + 9)
    }),
    ("a discard", |scene| {
        block_on(scene.a().discard(1..2)).unwrap();
    }),
    ("a write over a discard", |scene| {
        block_on(scene.a().discard(1..2)).unwrap();
        write(scene, sub_block(1, 1));
    }),
    ("a discard of what was flushed", |scene| {
        write(scene, sub_block(0, 0));
        scene.flush_a();
        block_on(scene.a().discard(0..1)).unwrap();
    }),
    ("another sub-block of a partial block", |scene| {
        write(scene, sub_block(0, 0));
        scene.flush_a();
        write(scene, sub_block(3, 0));
    }),
    ("in place, to a block that was filled in", |scene| {
        write(scene, sub_block(0, 0));
        scene.flush_a();
        block_on(scene.pool.commit()).unwrap();
        write(scene, sub_block(3, 0));
    }),
    ("in place and elsewhere", |scene| {
        write(scene, block(4));
        scene.flush_a();
        write(scene, sub_block(3, 4));
        write(scene, sub_block(3, 5));
    }),
];

/// Every kind of change is durable once flushed, without a commit and without a write to the metadata;
/// whatever a power cut leaves of what came later.
#[test]
fn a_flushed_change_outlives_the_power() {
    for ((who, change), holes) in CHANGES.iter().flat_map(|case| [(case, 0), (case, 100)]) {
        let scene = Scene::new(64, Prng::new(1));
        scene.machine.power.set_holes(holes);
        change(&scene);
        scene.flush_a();
        scene.expect_durable(who);
        // Not flushed: all of it may be there or not.
        block_on(scene.b().write(block(0))).unwrap();
        block_on(scene.a().write(sub_block(5, 0))).unwrap();
        block_on(scene.a().discard(1..2)).unwrap();
        block_on(scene.a().write(sub_block(6, 1))).unwrap();
        scene.expect_durable(&format!("{who}, and more"));
        block_on(scene.pool.commit()).unwrap();
        scene.contents.a.note_all_flushed();
        scene.expect_durable(&format!("{who}, and a commit"));
    }
}

/// A write that asks to be durable is, the same way.
#[test]
fn a_durable_write_outlives_the_power() {
    let cases = [
        block(3),
        sub_block(1, 3),
        sub_block(1, 0),
        sub_block(4, 2),
        5..6,
        100..300,
    ];
    for (sectors, holes) in cases
        .into_iter()
        .flat_map(|case| [(case.clone(), 0), (case, 100)])
    {
        let scene = Scene::new(64, Prng::new(1));
        scene.machine.power.set_holes(holes);
        let commits = scene.pool.status().commits;
        block_on(scene.a().write_durably(sectors.clone())).unwrap();
        assert_eq!(scene.pool.status().commits, commits, "a commit");
        scene.expect_durable(&format!("{sectors:?}"));
        block_on(scene.a().write_durably(sectors.clone())).unwrap();
        scene.expect_durable(&format!("{sectors:?} again"));
    }
}

/// In a pool that is nearly full, blocks that a flush has named are discarded and the others written round
/// and round: none of the former is reused before a commit has ended what names it.
#[test]
fn what_a_flush_names_is_not_reused() {
    let scene = Scene::new(9, Prng::new(1));
    block_on(scene.a().write(block(2))).unwrap();
    block_on(scene.a().write(sub_block(0, 0))).unwrap();
    scene.flush_a();
    block_on(scene.a().discard(0..3)).unwrap();
    let commits = scene.pool.status().commits;
    for round in 0..24 {
        let (at, before) = (round % BLOCKS, (round + BLOCKS - 2) % BLOCKS);
        block_on(scene.b().write(block(at))).unwrap();
        block_on(scene.b().discard(before..before + 1)).unwrap();
        let mut prng = Prng::new(round as u64);
        for shape in [Shape::Nothing, Shape::All, Shape::any(&mut prng)] {
            let survivor = scene.machine.after_cut(shape, &mut prng);
            let who = format!("round {round}, {shape:?}");
            scene.contents.examine(&who, &survivor, Kept::Flushed);
        }
    }
    assert!(scene.pool.status().commits > commits, "there was space");
}

/// Two volumes share a pool that is nearly full, commits run side by side with flushes, and the power goes
/// anywhere, round after round: what was flushed is there, and nothing foreign.
#[test]
fn flushes_beside_commits_of_a_full_pool_hold() {
    let test = "flushes_beside_commits_of_a_full_pool_hold";
    seeds(1, 400, test, |mut prng| {
        let blocks = 8 + prng.below(9);
        let mut scene = Scene::new(blocks, prng.fork());
        for _ in 0..3 {
            let power = &scene.machine.power;
            power.set_pauses(prng.below(4));
            power.set_holes(50);
            power.cut_at(Some(power.changes() + prng.below(250)));
            run_load(&scene, &mut prng, 20);
            scene.restart_after_cut(&mut prng);
        }
        expect_true_space(&scene.machine, &scene.pool);
        scene
            .contents
            .expect("in the end", &scene.pool, Kept::Acknowledged);
    });
}

/// A commit is under way, of blocks that have to be filled in, while others are written and flushed; the
/// power goes, or the daemon is killed first, at every change that the two make.
#[test]
fn a_flush_while_a_commit_runs_holds_wherever_the_power_goes() {
    let mut flushed_and_cut = 0;
    for change in 0.. {
        let mut was_cut = false;
        for seed in 0..12 {
            let mut prng = Prng::new(seed);
            let mut scene = Scene::new(64, prng.fork());
            block_on(scene.a().write(sub_block(0, 0))).unwrap();
            block_on(scene.b().write(block(1))).unwrap();
            let power = &scene.machine.power;
            power.set_pauses(2);
            power.set_kill(seed % 3 == 0);
            power.cut_at(Some(power.changes() + change));
            let mut is_flushed = false;
            {
                let (a, b) = (scene.a(), scene.b());
                let changes = async {
                    a.write(sub_block(1, 0)).await?;
                    a.write(sub_block(1, 1)).await?;
                    a.flush().await?;
                    b.discard(1..2).await?;
                    b.write(sub_block(2, 2)).await?;
                    b.flush().await?;
                    is_flushed = true;
                    b.discard(2..3).await?;
                    a.write(block(4)).await
                };
                let tasks: Vec<Task<'_>> = vec![
                    Box::pin(async { drop(scene.pool.commit().await) }),
                    Box::pin(async { drop(changes.await) }),
                ];
                run(tasks, &mut prng);
            }
            was_cut |= scene.machine.power.is_off();
            flushed_and_cut += u64::from(is_flushed && scene.machine.power.is_off());
            if scene.machine.power.is_kill() {
                scene.restart_after_kill(&mut prng);
            }
            scene.restart_after_cut(&mut prng);
            expect_true_space(&scene.machine, &scene.pool);
        }
        if !was_cut {
            break;
        }
    }
    assert!(flushed_and_cut > 0, "no flush was done before the cut");
}

/// A snapshot that is under way lets a write move off a block that only the log knows of. The power goes
/// before the snapshot is there, and after the write was flushed: the block below is nobody else's, also when
/// the next commit leaves the volume out.
#[test]
fn what_a_flushed_write_was_made_over_is_kept() {
    let test = "what_a_flushed_write_was_made_over_is_kept";
    let mut over_two = 0;
    let ran_all = seeds(1, 400, test, |mut prng| {
        let mut scene = Scene::new(40, prng.fork());
        block_on(scene.a().write(block(3))).unwrap();
        let power = &scene.machine.power;
        power.set_pauses(3);
        power.cut_at(Some(power.changes() + prng.below(40)));
        let a = scene.a();
        let reads = prng.below(6);
        let snapshot = async { drop(scene.pool.create_snapshots(vec![new("a@t")]).await) };
        let write = async {
            for _ in 0..reads {
                let _may_be_cut = a.flush().await;
            }
            let _may_be_cut = a.write(sub_block(5, 3)).await;
            let _may_be_cut = a.flush().await;
        };
        run(vec![Box::pin(snapshot), Box::pin(write)], &mut prng.fork());
        drop(a);
        scene.restart_after_cut(&mut prng);
        let is_made = scene.pool.info(&name("a@t")).is_ok();
        over_two += u64::from(!is_made && scene.pool.status().partial_blocks > 0);
        if prng.chance(50) {
            // Of the two mappings the log's next generation has the second alone.
            let power = &scene.machine.power;
            power.set_faults([Fault::lasting(Io::DataRead)]);
            let _is_left_out = block_on(scene.pool.commit());
            scene.restart_after_cut(&mut prng);
        }
        block_on(scene.b().write(0..BLOCKS * BLOCK)).unwrap();
        let kept = Kept::Acknowledged;
        scene.contents.expect("after reuse", &scene.pool, kept);
        scene.restart_after_cut(&mut prng);
        expect_true_space(&scene.machine, &scene.pool);
    });
    assert!(!ran_all || over_two > 0, "no such cut");
}

/// A volume whose block cannot be filled in is flushed, and stays flushed through the commits of others that
/// leave it out, and further flushes of its own.
#[test]
fn a_volume_that_is_left_out_stays_flushed() {
    let scene = Scene::new(64, Prng::new(1));
    scene.leave_a_out();
    scene.expect_durable("flushed");
    for round in 0..3 {
        block_on(scene.b().write_durably(block(round))).unwrap();
        scene.expect_left_out();
        scene.expect_durable(&format!("after commit {round}"));
        // In a block that is partial already.
        block_on(scene.a().write(sub_block(4 + round, 0))).unwrap();
        scene.flush_a();
        scene.expect_durable(&format!("flushed after commit {round}"));
    }
    // Nothing else has changed any more.
    scene.expect_left_out();
    scene.expect_left_out();
    scene.expect_durable("after commits of nothing");
    scene.machine.power.set_faults([]);
    block_on(scene.pool.commit()).unwrap();
    scene.contents.a.note_all_flushed();
    scene.expect_durable("filled in");
    expect_true_space(&scene.machine, &scene.pool);
}

/// The same, with the power going at every change of those commits.
#[test]
fn a_volume_that_is_being_left_out_stays_flushed() {
    for change in 0.. {
        let mut prng = Prng::new(change);
        let mut scene = Scene::new(64, prng.fork());
        scene.leave_a_out();
        let power = &scene.machine.power;
        power.cut_at(Some(power.changes() + change));
        for round in 0..3 {
            let _may_be_cut = block_on(scene.b().write_durably(block(round)));
            let _is_left_out = block_on(scene.pool.commit());
            let _may_be_cut = block_on(scene.a().write(sub_block(3 + round, 0)));
            let _may_be_cut = block_on(scene.a().flush());
        }
        if !scene.machine.power.is_off() {
            break;
        }
        for shape in Shape::ALL {
            let survivor = scene.machine.after_cut(shape, &mut prng);
            let who = format!("change {change}, {shape:?}");
            scene.contents.examine(&who, &survivor, Kept::Flushed);
        }
        scene.restart_after_cut(&mut prng);
        expect_true_space(&scene.machine, &scene.pool);
    }
}

/// A removal or a rollback of a volume that cannot be filled in is refused by the catalog: what was flushed
/// is still there.
#[test]
fn a_volume_that_was_nearly_removed_stays_flushed() {
    for is_rollback in [false, true] {
        let scene = Scene::new(64, Prng::new(1));
        scene.leave_a_out();
        let faults = [Fault::once(Io::CatalogWrite), Fault::lasting(Io::DataRead)];
        scene.machine.power.set_faults(faults);
        let refused = match is_rollback {
            true => block_on(scene.pool.rollback(&name("a@s"), new("a").identity)).map(|_| ()),
            false => block_on(scene.pool.remove(&name("a"))),
        };
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Io);
        scene.expect_durable("refused");
        for round in 0..2 {
            block_on(scene.b().write_durably(block(round))).unwrap();
            scene.expect_left_out();
            scene.expect_durable(&format!("after commit {round}"));
        }
    }
}

/// A short workload with flushes and commits, some of which fail.
fn workload(scene: &Scene) {
    let pool = &scene.pool;
    let steps = async || {
        let (a, b) = (scene.a(), scene.b());
        let _may_fail = a.write(sub_block(0, 0)).await;
        let _may_fail = a.flush().await;
        let _may_fail = b.write(block(0)).await;
        let _may_fail = b.write(sub_block(0, 1)).await;
        let _may_fail = b.flush().await;
        let _may_fail = a.write(sub_block(1, 0)).await;
        let _may_fail = pool.commit().await;
        let _may_fail = a.write(sub_block(2, 0)).await;
        let _may_fail = b.write(block(2)).await;
        let _may_fail = a.flush().await;
        let _may_fail = b.discard(0..1).await;
        let _may_fail = b.write(block(3)).await;
        let _may_fail = b.flush().await;
        let _may_fail = pool.commit().await;
        let _may_fail = a.write(sub_block(7, 4)).await;
        let _may_fail = a.flush().await;
    };
    block_on(steps());
}

/// Each sync of the log, of the data and of the metadata fails once. Of what it covered some is lost, though
/// it stays visible. What flushes have promised before is there after a power cut, after a kill, and
/// after a kill, a flush of what is visible then, and a power cut.
#[test]
fn a_failed_sync_takes_nothing_that_was_flushed() {
    for io in [Io::LogSync, Io::DataSync, Io::MetadataFlush] {
        for after in 0.. {
            let mut has_failed = false;
            for seed in 0..8 {
                let mut prng = Prng::new(seed);
                let scene = Scene::new(64, prng.fork());
                let fault = Fault {
                    after,
                    ..Fault::once(io)
                };
                scene.machine.power.set_faults([fault]);
                workload(&scene);
                has_failed |= scene.machine.power.fault_hit();
                let who = format!("{io:?} {after} failed, seed {seed}");
                scene.expect_durable(&who);
                scene.machine.power.cut();
                let next = scene.machine.after_kill(&mut prng);
                let pool = next.open().unwrap();
                scene.contents.expect(&who, &pool, Kept::Flushed);
                let cut = next.after_cut(Shape::any(&mut prng), &mut prng);
                scene.contents.examine(&who, &cut, Kept::Flushed);
                for (volume, truth) in scene.contents.all() {
                    let device = pool.open_device(&name(volume)).unwrap();
                    block_on(Volume::new(device, truth).flush_again()).unwrap();
                }
                let cut = next.after_cut(Shape::any(&mut prng), &mut prng);
                scene.contents.examine(&who, &cut, Kept::Flushed);
            }
            if !has_failed {
                assert!(after > 0, "no {io:?} at all");
                break;
            }
        }
    }
}

/// A sync that fails while a pool is opened after a kill: the opening fails at most, the next one succeeds,
/// and what was flushed is there then, and after a power cut.
#[test]
fn a_failed_sync_at_the_opening_takes_nothing_that_was_flushed() {
    for io in [Io::LogSync, Io::DataSync, Io::MetadataFlush, Io::LogWrite] {
        for (after, seed) in (0..3).flat_map(|after| (0..8).map(move |seed| (after, seed))) {
            let mut prng = Prng::new(seed);
            let scene = Scene::new(64, prng.fork());
            workload(&scene);
            block_on(scene.b().write(sub_block(0, 5))).unwrap();
            scene.machine.power.cut();
            let next = scene.machine.after_kill(&mut prng);
            let fault = Fault {
                after,
                ..Fault::once(io)
            };
            next.power.set_faults([fault]);
            drop(next.open());
            next.power.cut();
            let who = format!("{io:?} {after} failed at the opening, seed {seed}");
            let cut = next.after_cut(Shape::any(&mut prng), &mut prng);
            scene.contents.examine(&who, &cut, Kept::Flushed);
            let last = next.after_kill(&mut prng);
            let pool = last.open().unwrap();
            scene.contents.expect(&who, &pool, Kept::Flushed);
            let cut = last.after_cut(Shape::any(&mut prng), &mut prng);
            scene.contents.examine(&who, &cut, Kept::Flushed);
        }
    }
}

/// Power cuts and kills in any order, during requests and while the pool is opened, mostly without any
/// commit between them.
#[test]
fn cuts_and_kills_in_a_row_lose_nothing() {
    seeds(
        1,
        300,
        "cuts_and_kills_in_a_row_lose_nothing",
        |mut prng| {
            let mut scene = Scene::new(10 + prng.below(40), prng.fork());
            for _ in 0..6 {
                let is_kill = prng.chance(40);
                let power = &scene.machine.power;
                power.set_pauses(prng.below(3));
                power.set_kill(is_kill);
                power.cut_at(Some(power.changes() + prng.below(60)));
                let of_a = churn(scene.a(), prng.fork(), 4);
                let of_b = churn(scene.b(), prng.fork(), 4);
                let tasks: Vec<Task<'_>> = vec![
                    Box::pin(async { drop(of_a.await) }),
                    Box::pin(async { drop(of_b.await) }),
                ];
                run(tasks, &mut prng.fork());
                scene.machine.power.cut();
                if is_kill {
                    let opening = scene.machine.after_kill(&mut prng);
                    opening.power.set_kill(true);
                    opening.power.cut_at(Some(prng.below(6)));
                    drop(opening.open());
                    scene.machine = opening;
                    scene.restart_after_kill(&mut prng);
                } else {
                    let opening = scene.machine.after_cut(Shape::any(&mut prng), &mut prng);
                    opening.power.cut_at(Some(prng.below(6)));
                    drop(opening.open());
                    scene.machine = opening;
                    scene.restart_after_cut(&mut prng);
                }
            }
            expect_true_space(&scene.machine, &scene.pool);
            scene
                .contents
                .expect("in the end", &scene.pool, Kept::Acknowledged);
        },
    );
}

/// Runs tasks side by side, each a step in turn.
fn run_in_turn(mut tasks: Vec<Task<'_>>) {
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..10_000 {
        tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        if tasks.is_empty() {
            return;
        }
    }
    panic!("{} tasks wait for ever", tasks.len());
}

/// How many syncs of the data, the log and the metadata there were.
fn syncs(machine: &Machine) -> [u64; 3] {
    [Io::DataSync, Io::LogSync, Io::MetadataFlush].map(|io| machine.power.count(io))
}

fn syncs_since(machine: &Machine, before: [u64; 3]) -> [u64; 3] {
    let now = syncs(machine);
    [0, 1, 2].map(|index| now[index] - before[index])
}

/// A flush syncs data and log once each, and of what the log has already, the data alone.
#[test]
fn a_flush_takes_two_syncs_at_most() {
    let scene = Scene::new(64, Prng::new(1));
    for (sectors, expected) in [
        (block(3), [1, 1, 0]),
        (sub_block(0, 0), [1, 1, 0]),
        (sub_block(1, 0), [1, 1, 0]),
        // In place.
        (sub_block(1, 3), [1, 0, 0]),
    ] {
        write(&scene, sectors.clone());
        let before = syncs(&scene.machine);
        scene.flush_a();
        assert_eq!(syncs_since(&scene.machine, before), expected, "{sectors:?}");
    }
}

/// Flushes that arrive while one runs share the next one's syncs, whichever volume they are of.
#[test]
fn flushes_share_their_syncs() {
    const WRITERS: usize = 16;
    let geometry = Geometry {
        data_blocks: 200,
        metadata_blocks: 4000,
    };
    let machine = Machine::new(geometry, Prng::new(1));
    let pool = machine.open().unwrap();
    let names: Vec<_> = (0..WRITERS).map(|index| format!("v{index}")).collect();
    for volume in &names {
        block_on(pool.create_volume(new(volume), BLOCKS as u64 * BLOCK_BYTES, None)).unwrap();
    }
    let truths: Vec<_> = (1..)
        .zip(&names)
        .map(|(tag, name)| Truth::new(name, tag, BLOCKS))
        .collect();
    let volume =
        |(at, truth): (&String, _)| Volume::new(pool.open_device(&name(at)).unwrap(), truth);
    let volumes: Vec<_> = names.iter().zip(&truths).map(volume).collect();
    block_on(volumes[0].write_durably(block(0))).unwrap();
    machine.power.set_pauses(3);
    let commits = pool.status().commits;
    for round in 1..BLOCKS {
        for volume in &volumes {
            block_on(volume.write(sub_block(round, round))).unwrap();
        }
        let before = syncs(&machine);
        let flush =
            |volume| -> Task<'_> { Box::pin(async move { Volume::flush(volume).await.unwrap() }) };
        run_in_turn(volumes.iter().map(flush).collect());
        let [data, log, metadata] = syncs_since(&machine, before);
        let most = WRITERS as u64 / 8;
        assert!(
            data <= most && log <= most,
            "{data} and {log} syncs, round {round}"
        );
        assert_eq!(metadata, 0);
    }
    assert_eq!(pool.status().commits, commits, "a commit");
    let survivor = machine.after_cut(Shape::Nothing, &mut Prng::new(1));
    let pool = survivor.open().unwrap();
    for (volume, truth) in names.iter().zip(&truths) {
        truth.expect(
            "after a cut",
            &read_all(&pool, &name(volume)),
            Kept::Flushed,
        );
    }
}

/// A commit that leaves everything out writes an entry for the superblock that is on disk already. Whatever
/// of it the power cut in its sync leaves, what was flushed is there.
#[test]
fn an_entry_that_was_not_synced_takes_nothing() {
    for (shape, number) in Shape::ALL.into_iter().zip(1..) {
        for change in 0..6 {
            for seed in 0..20 {
                let scene = Scene::new(64, Prng::new(seed));
                scene.leave_a_out();
                let power = &scene.machine.power;
                power.cut_at(Some(power.changes() + change));
                let _may_be_cut = block_on(scene.pool.commit());
                power.cut();
                let survivor = scene
                    .machine
                    .after_cut(shape, &mut Prng::new(number + 8 * seed));
                let who = format!("{shape:?}, change {change}, seed {seed}");
                scene.contents.examine(&who, &survivor, Kept::Flushed);
            }
        }
    }
}

/// After a commit that left everything out, two entries are about one superblock; and the next commit, and
/// flushes beside it, may be cut anywhere.
#[test]
fn two_entries_of_a_superblock_lose_nothing() {
    seeds(
        1,
        600,
        "two_entries_of_a_superblock_lose_nothing",
        |mut prng| {
            let scene = Scene::new(64, prng.fork());
            scene.leave_a_out();
            scene.expect_left_out();
            block_on(scene.b().write(block(0))).unwrap();
            let power = &scene.machine.power;
            power.set_pauses(3);
            power.cut_at(Some(power.changes() + prng.below(60)));
            let (a, b) = (scene.a(), scene.b());
            let changes = async {
                b.write(block(1)).await?;
                b.flush().await?;
                b.write(block(2)).await?;
                a.write(sub_block(3, 0)).await?;
                a.flush().await?;
                b.write(block(3)).await?;
                b.flush().await
            };
            let tasks: Vec<Task<'_>> = vec![
                Box::pin(async { drop(scene.pool.commit().await) }),
                Box::pin(async { drop(changes.await) }),
            ];
            run(tasks, &mut prng);
            scene.machine.power.cut();
            for shape in Shape::ALL {
                let survivor = scene.machine.after_cut(shape, &mut prng);
                let pool = survivor.open().unwrap();
                let who = format!("{shape:?}");
                scene.contents.expect(&who, &pool, Kept::Flushed);
            }
        },
    );
}

/// A durable write whose sync fails takes other volumes' data with it: what they have not flushed is not
/// called durable by the next daemon.
#[test]
fn a_durable_write_that_fails_is_not_forgotten_by_a_restart() {
    seeds(
        1,
        30,
        "a_durable_write_that_fails_is_not_forgotten_by_a_restart",
        |mut prng| {
            let scene = Scene::new(64, prng.fork());
            block_on(scene.b().write(block(0))).unwrap();
            block_on(scene.pool.commit()).unwrap();
            block_on(scene.a().write(block(3))).unwrap();
            scene.machine.power.set_faults([Fault::once(Io::DataSync)]);
            block_on(scene.b().write_durably(sub_block(2, 0))).unwrap_err();
            let next = scene.machine.after_kill(&mut prng);
            let pool = next.open().unwrap();
            assert!(pool.has_cut_log());
            let device = pool.open_device(&name("a")).unwrap();
            block_on(device.flush()).unwrap();
            let last = next.after_cut(Shape::Nothing, &mut prng);
            scene
                .contents
                .expect("after it all", &last.open().unwrap(), Kept::Flushed);
        },
    );
}
