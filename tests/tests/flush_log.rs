//! What becomes of flushed changes when the intent log is damaged, is another, or is not there.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pool::Error;
use tests::Prng;
use tests::executor::block_on;
use tests::runs::seeds;
use tests::scene::{Scene, block, run_load, sub_block};
use tests::setup::{expect_true_space, name, read_all};
use tests::sim::{Machine, Shape};
use tests::truth::Kept;

const PAGE: usize = 4096;

/// A pool whose log has markers, entries of two commits, and records of two generations; some of them
/// were never flushed. `a` is left out by the last commits, so that flushes rest on an entry, too.
fn busy_log(data_blocks: u64) -> Scene {
    let scene = Scene::new(data_blocks, Prng::new(1));
    for at in 0..3 {
        block_on(scene.b().write(block(at))).unwrap();
        scene.flush_a();
        block_on(scene.b().flush()).unwrap();
        block_on(scene.pool.commit()).unwrap();
    }
    scene.leave_a_out();
    scene.expect_left_out();
    scene.expect_left_out();
    block_on(scene.b().write(block(3))).unwrap();
    block_on(scene.b().flush()).unwrap();
    block_on(scene.a().write(sub_block(1, 0))).unwrap();
    block_on(scene.b().write(block(4))).unwrap();
    scene
}

/// Opens a machine whose log is not what it was. It is refused, or everything is there.
fn expect_refused_or_whole(scene: &Scene, who: &str, machine: &Machine, kept: Kept) {
    match machine.open() {
        Ok(pool) => scene.contents.expect(who, &pool, kept),
        Err(Error::Log { .. }) => {}
        Err(cause) => panic!("{who}: {cause}"),
    }
}

/// Damages single bytes of the log, seen after a power cut and after a kill.
fn damage(scene: &Scene, bytes: impl IntoIterator<Item = usize>) {
    let mut prng = Prng::new(5);
    let power_cut = scene.machine.after_cut(Shape::All, &mut prng);
    let content = power_cut.log.content().unwrap();
    for at in bytes {
        let mut damaged = content.clone();
        damaged[at] ^= 0x41;
        for is_kill in [false, true] {
            let (machine, kept) = match is_kill {
                false => (
                    scene.machine.after_cut(Shape::All, &mut prng),
                    Kept::Flushed,
                ),
                true => (scene.machine.after_kill(&mut prng), Kept::Acknowledged),
            };
            machine.log.set_content(Some(damaged.clone()));
            let who = format!("byte {at} damaged, kill: {is_kill}");
            expect_refused_or_whole(scene, &who, &machine, kept);
        }
    }
}

/// The bytes of a page that mean something, and a few of the others.
fn bytes_of_page(page: usize) -> impl Iterator<Item = usize> {
    let rest = (1024..PAGE).step_by(331);
    (0..1024).chain(rest).map(move |at| page * PAGE + at)
}

/// Damage to an entry does not go unnoticed.
#[test]
fn a_damaged_entry_loses_nothing_silently() {
    damage(&busy_log(64), (0..2).flat_map(bytes_of_page));
}

/// A page where there might be a note that the log is void is not taken for one.
#[test]
fn a_damaged_note_loses_nothing_silently() {
    damage(&busy_log(64), bytes_of_page(4).step_by(7));
}

/// Damage to a marker does not go unnoticed.
#[test]
fn a_damaged_marker_loses_nothing_silently() {
    let pages = [2, 3].into_iter();
    damage(
        &busy_log(64),
        pages.flat_map(|page| page * PAGE..page * PAGE + 64),
    );
}

/// Damage to a record does not go unnoticed.
#[test]
fn a_damaged_record_loses_nothing_silently() {
    let scene = busy_log(64);
    let content = scene.machine.log.content().unwrap();
    let is_full = |at: &usize| content[*at..at + 64].iter().any(|byte| *byte != 0);
    let full = (5 * PAGE..content.len()).step_by(64).filter(is_full);
    let records: Vec<_> = full.collect();
    assert!(records.len() > 4);
    damage(
        &scene,
        records.iter().flat_map(|at| (*at..at + 64).step_by(5)),
    );
}

/// A log that has lost its end is not taken for one with fewer records.
#[test]
fn a_log_that_was_cut_short_loses_nothing_silently() {
    let scene = busy_log(64);
    let mut prng = Prng::new(5);
    let content = scene.machine.log.content().unwrap();
    for len in (PAGE..content.len()).step_by(PAGE) {
        let machine = scene.machine.after_cut(Shape::All, &mut prng);
        machine.log.set_content(Some(content[..len].to_vec()));
        let who = format!("{len} bytes of the log");
        expect_refused_or_whole(&scene, &who, &machine, Kept::Flushed);
    }
}

/// While the superblock says that there is a log, a pool does not open without it, nor with one of zeros or
/// of another time or pool; an empty one is how an operator says to go on without.
#[test]
fn only_the_log_that_belongs_to_the_metadata_will_do() {
    let scene = Scene::new(64, Prng::new(1));
    let early = scene.machine.log.content().unwrap();
    let early_machine = scene.machine.after_cut(Shape::All, &mut Prng::new(2));
    for at in 0..3 {
        block_on(scene.b().write(block(at))).unwrap();
        block_on(scene.pool.commit()).unwrap();
    }
    scene.contents.b.note_all_flushed();
    let committed = read_all(&scene.pool, &name("a"));
    block_on(scene.a().write(block(3))).unwrap();
    block_on(scene.a().write(sub_block(0, 0))).unwrap();
    scene.flush_a();
    let late = scene.machine.log.content().unwrap();
    let other = busy_log(48).machine.log.content().unwrap();
    let cut = || scene.machine.after_cut(Shape::All, &mut Prng::new(2));
    let zeros = vec![0; late.len()];
    for content in [None, Some(early), Some(other), Some(zeros), Some(vec![0])] {
        let machine = cut();
        machine.log.set_content(content);
        let opened = machine.open();
        assert!(matches!(opened, Err(Error::Log { .. })));
        let opened = machine.open_read_only();
        assert!(matches!(opened, Err(Error::Log { .. })));
    }
    early_machine.log.set_content(Some(late));
    assert!(matches!(early_machine.open(), Err(Error::Log { .. })));
    let machine = cut();
    machine.log.set_content(Some(Vec::new()));
    let pool = machine.open().unwrap();
    assert!(pool.has_cut_log());
    assert!(read_all(&pool, &name("a")) == committed);
    assert_eq!(pool.replayed_records(), 0);
    expect_true_space(&machine, &pool);
}

/// The log of a pool that was closed may be there again after a power cut. It is not replayed, and harms
/// neither what was there nor what is flushed from then on.
#[test]
fn a_removed_log_that_comes_back_harms_nothing() {
    let test = "a_removed_log_that_comes_back_harms_nothing";
    let mut came_back = 0;
    let ran_all = seeds(1, 60, test, |mut prng| {
        let mut scene = Scene::new(12 + prng.below(30), prng.fork());
        run_load(&scene, &mut prng, 12);
        block_on(scene.pool.close()).unwrap();
        for (_, truth) in scene.contents.all() {
            truth.note_all_flushed();
        }
        assert!(scene.machine.log.content().is_none());
        for _ in 0..2 {
            scene.cut_power(&mut prng);
            came_back += u64::from(scene.machine.log.content().is_some());
            scene.start_after_cut();
            assert!(scene.machine.log.content().is_none());
            assert_eq!(scene.pool.replayed_records(), 0);
        }
        let power = &scene.machine.power;
        power.cut_at(Some(power.changes() + prng.below(40)));
        run_load(&scene, &mut prng, 6);
        if prng.chance(50) {
            scene.restart_after_kill(&mut prng);
        }
        scene.restart_after_cut(&mut prng);
        expect_true_space(&scene.machine, &scene.pool);
    });
    assert!(!ran_all || came_back > 0, "no log came back");
}
