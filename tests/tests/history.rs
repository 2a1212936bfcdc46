//! Pools whose superblock is damaged: what log and history know of it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use metadata_check::compare;
use pool::{ErrorKind, INCOMPAT_LOG, KnownBy, Mode, Pool, kept_superblocks};
use tests::Prng;
use tests::executor::block_on;
use tests::image::dumped;
use tests::scene::Scene;
use tests::setup::{expect_runs, geometry, name, new};
use tests::sim::{Fault, Io, Machine, Shape, SimHost};
use tests::truth::Kept;

const BLOCK: usize = 65_536;

/// A pool with the volume `a` of eight blocks, of which the first is written.
fn pool_on(machine: &Machine) -> Arc<Pool<SimHost>> {
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    write(&pool, 0, 1);
    pool
}

fn write(pool: &Arc<Pool<SimHost>>, block: usize, byte: u8) {
    let volume = pool.open_device(&name("a")).unwrap();
    let at = (block * BLOCK) as u64;
    block_on(volume.write(at, &[byte; BLOCK], true)).unwrap();
}

fn superblock(machine: &Machine) -> [u8; 4096] {
    let mut block = [0; 4096];
    machine.metadata.image().read(0, &mut block);
    block
}

/// At each step of a commit, killed or without power: the log knows the superblock, and nothing flushed is lost.
#[test]
fn a_superblock_that_is_lost_in_a_crash_is_in_the_log() {
    for is_kill in [false, true] {
        for step in 0.. {
            let scene = Scene::new(32, Prng::new(step));
            block_on(scene.a().write(tests::scene::block(3))).unwrap();
            scene.machine.power.set_kill(is_kill);
            let first = scene.machine.power.changes();
            scene.machine.power.cut_at(Some(first + step));
            let committed = block_on(scene.pool.commit());
            scene.machine.power.cut();
            let machine = match is_kill {
                true => scene.machine.after_kill(&mut Prng::new(step)),
                false => scene
                    .machine
                    .after_cut(Shape::any(&mut Prng::new(step)), &mut Prng::new(step)),
            };
            let kept = if is_kill {
                Kept::Acknowledged
            } else {
                Kept::Flushed
            };
            let who = format!("kill {is_kill}, step {step}");
            machine.metadata.lose_superblock();
            let pool = machine.open().unwrap();
            assert_eq!(pool.superblock_known_by(), Some(KnownBy::Log), "{who}");
            assert_eq!(pool.status().mode, Mode::ReadOnly, "{who}");
            scene.contents.expect(&who, &pool, kept);
            drop(pool);
            machine.rewind();
            scene.contents.examine(&who, &machine, kept);
            if committed.is_ok() {
                assert!(step > 5, "{who}: a commit has more steps");
                break;
            }
        }
    }
}

/// The history knows it, and cannot be sure: the pool is read, and nothing is written.
#[test]
fn a_closed_pool_without_superblock_can_be_read() {
    let machine = Machine::new(geometry(32), Prng::new(1));
    let pool = pool_on(&machine);
    block_on(pool.close()).unwrap();
    // The close has made it durable.
    let after_cut = machine.after_cut(Shape::Nothing, &mut Prng::new(2));
    expect_read_only(&after_cut);
    let after_kill = machine.after_kill(&mut Prng::new(2));
    expect_read_only(&after_kill);
    let pool = after_kill.open().unwrap();
    assert_eq!(pool.superblock_known_by(), Some(KnownBy::History(0)));
}

fn expect_read_only(machine: &Machine) {
    let intact = superblock(machine);
    let kept = kept_superblocks(&machine.history).unwrap();
    assert_eq!(kept[0].superblock, intact);
    machine.metadata.lose_superblock();
    let damaged = machine.metadata.image().to_bytes();

    let pool = machine.open().unwrap();
    // The power may bring back the log, which then knows it, too.
    assert!(pool.superblock_known_by().is_some());
    assert_eq!(pool.status().mode, Mode::ReadOnly);
    assert!(pool.status().mode_reason.contains("superblock is damaged"));
    expect_runs(&pool, &name("a"), &[(1, BLOCK), (0, 7 * BLOCK)]);
    assert!(block_on(pool.create_volume(new("b"), BLOCK as u64, None)).is_err());
    block_on(pool.close()).unwrap();
    assert_eq!(machine.metadata.image().to_bytes(), damaged);
    assert_eq!(kept_superblocks(&machine.history).unwrap(), kept);
}

/// The superblock that announces a log after a close is the one from before it: the history may have it as an
/// older one, or twice. The daemon is killed at each step of the first write.
#[test]
fn a_superblock_that_comes_again_is_no_older_one() {
    let mut lost = 0;
    for step in 0.. {
        let machine = Machine::new(geometry(32), Prng::new(1));
        block_on(pool_on(&machine).close()).unwrap();
        let pool = machine.open().unwrap();
        machine.power.set_kill(true);
        let first = machine.power.changes();
        machine.power.cut_at(Some(first + step));
        let volume = pool.open_device(&name("a")).unwrap();
        let written = block_on(volume.write(BLOCK as u64, &[2; BLOCK], true));
        machine.power.cut();
        let machine = machine.after_kill(&mut Prng::new(2));
        if superblock(&machine)[360..364] == INCOMPAT_LOG.to_le_bytes() {
            machine.metadata.lose_superblock();
            assert_eq!(machine.open().unwrap().status().mode, Mode::ReadOnly);
            machine.rewind();
            lost += 1;
        }
        let pool = machine.open().unwrap();
        assert_eq!(pool.status().mode, Mode::Write, "step {step}");
        if written.is_ok() {
            expect_runs(&pool, &name("a"), &[(1, BLOCK), (2, BLOCK), (0, 6 * BLOCK)]);
            break;
        }
    }
    assert!(lost > 3, "{lost} steps with a log");
}

/// A commit that was given up: its entry is in the log, and its line in the catalog until the log is taken over. Block 0
/// is lost after each step of the daemon that does so.
#[test]
fn a_commit_that_was_given_up_is_still_whole() {
    for step in 0.. {
        let machine = Machine::new(geometry(32), Prng::new(1));
        let pool = pool_on(&machine);
        let entries = machine.power.count(Io::LogSync);
        machine.power.set_faults([Fault {
            io: Some(Io::MetadataFlush),
            after: 1,
            ..Fault::once(Io::MetadataFlush)
        }]);
        assert!(block_on(pool.create_snapshots(vec![new("a@s")])).is_err());
        assert!(machine.power.count(Io::LogSync) > entries, "no entry");
        let machine = machine.after_cut(Shape::AllButSuperblock, &mut Prng::new(step));
        machine.power.set_kill(true);
        machine.power.cut_at(Some(step));
        let is_over = machine.open().is_ok();
        let machine = machine.after_kill(&mut Prng::new(step));
        machine.metadata.lose_superblock();
        let names = |machine: &Machine| -> Vec<String> {
            let devices = machine.open().unwrap().devices().into_iter();
            devices.map(|info| info.name.to_string()).collect()
        };
        let found = names(&machine);
        assert!(
            found == ["a"] || found == ["a", "a@s"],
            "step {step}: {found:?}"
        );
        machine.rewind();
        assert_eq!(names(&machine), found, "step {step}");
        if is_over {
            assert_eq!(found, ["a"], "the commit never was");
            break;
        }
    }
}

/// A log that names a commit that never was, of a pool that needs none, is not believed after the next start.
#[test]
fn a_log_of_a_closed_pool_is_not_believed() {
    let machine = Machine::new(geometry(32), Prng::new(1));
    block_on(pool_on(&machine).close()).unwrap();
    let pool = machine.open().unwrap();
    machine.power.cut_at(Some(machine.power.changes() + 4));
    let volume = pool.open_device(&name("a")).unwrap();
    assert!(block_on(volume.write(BLOCK as u64, &[2; BLOCK], true)).is_err());
    let machine = machine.after_cut(Shape::AllButSuperblock, &mut Prng::new(2));
    assert!(machine.log.content().is_some());
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("b"), BLOCK as u64, None)).unwrap();
    let machine = machine.after_cut(Shape::All, &mut Prng::new(2));
    machine.metadata.lose_superblock();
    let pool = machine.open().unwrap();
    assert_eq!(pool.superblock_known_by(), Some(KnownBy::History(0)));
    assert_eq!(pool.devices().len(), 2);
}

/// Whoever works on a pool writes its superblock, too.
#[test]
fn a_superblock_that_is_there_is_believed() {
    let machine = Machine::new(geometry(32), Prng::new(1));
    let pool = pool_on(&machine);
    let early = machine.history.clone();
    let kept = kept_superblocks(&early).unwrap().len();
    assert!(
        kept >= 3,
        "a commit each for the pool, the volume, and the log: {kept}"
    );
    block_on(pool.close()).unwrap();
    let pool = machine.open().unwrap();
    assert_eq!(pool.superblock_known_by(), None);
    assert_eq!(pool.status().mode, Mode::Write);
}

/// A history that belongs to other metadata names blocks that are no roots there.
#[test]
fn other_metadata_is_not_believed() {
    let machine = Machine::new(geometry(32), Prng::new(1));
    let pool = pool_on(&machine);
    block_on(pool.close()).unwrap();
    let kept = kept_superblocks(&machine.history).unwrap();
    let root_at = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&kept[0].superblock[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    machine.metadata.lose_superblock();
    for root in [root_at(320), root_at(328)] {
        let machine = machine.after_kill(&mut Prng::new(3));
        machine.metadata.damage(root);
        let error = machine.open().map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
    }
}

/// What the present commit says of an earlier one: mappings, lost, and later ones of each device; devices made since.
fn compared(machine: &Machine, earlier: &[u8; 4096]) -> (Vec<[u64; 3]>, Vec<u32>) {
    let compared = compare(&machine.metadata.image(), earlier, &superblock(machine)).unwrap();
    let devices = compared.devices.iter();
    let counts = devices.map(|device| [device.mappings, device.lost, device.later]);
    (counts.collect(), compared.created)
}

fn remove(pool: &Arc<Pool<SimHost>>, device: &str) {
    block_on(pool.remove(&name(device))).unwrap();
    block_on(pool.reclaim()).unwrap();
    block_on(pool.commit()).unwrap();
}

#[test]
fn what_a_snapshot_shares_is_kept_when_it_goes() {
    let machine = Machine::new(geometry(32), Prng::new(1));
    let pool = pool_on(&machine);
    write(&pool, 1, 2);
    block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
    block_on(pool.commit()).unwrap();
    let earlier = superblock(&machine);
    remove(&pool, "a@s");
    assert_eq!(compared(&machine, &earlier), (vec![[2, 0, 0]; 2], vec![]));

    // What the snapshot alone has is given back with it; the volume has had it, too.
    block_on(pool.create_snapshots(vec![new("a@t")])).unwrap();
    block_on(pool.commit()).unwrap();
    let earlier = superblock(&machine);
    write(&pool, 0, 3);
    block_on(pool.commit()).unwrap();
    let whole = vec![[2, 0, 1], [2, 0, 0]];
    assert_eq!(compared(&machine, &earlier), (whole, vec![]));
    remove(&pool, "a@t");
    let lost = vec![[2, 1, 1], [2, 1, 0]];
    assert_eq!(compared(&machine, &earlier), (lost, vec![]));
}

/// A device of the same number, with the same blocks at the same place and time, is another all the same.
#[test]
fn a_number_that_is_used_again_is_another_device() {
    let machine = Machine::new(geometry(1), Prng::new(1));
    let pool = pool_on(&machine);
    block_on(pool.commit()).unwrap();
    let earlier = superblock(&machine);
    let mapped = dumped(&machine.metadata.image());
    remove(&pool, "a");
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    write(&pool, 0, 9);
    block_on(pool.commit()).unwrap();
    let again = dumped(&machine.metadata.image());
    assert_eq!(
        again[&0].mappings, mapped[&0].mappings,
        "nothing to tell them apart"
    );
    assert_eq!(compared(&machine, &earlier), (vec![[1, 1, 0]], vec![0]));
}
