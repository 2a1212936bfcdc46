//! Operations that fail, or meet each other, while blocks are partial or volumes left out of commits.
//! Each of these once lost data, stopped the pool or gave a wrong answer.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pool::{DeviceName, Identity, NewDevice, Pool};
use std::sync::Arc;
use tests::Prng;
use tests::executor::{Task, block_on};
use tests::sim::{Fault, FaultKind, Geometry, Io, Machine, Shape, SimHost};

const BLOCK: usize = 65_536;
const SUB: usize = 4096;

fn name(name: &str) -> DeviceName {
    name.parse().unwrap()
}
fn new(n: &str) -> NewDevice {
    NewDevice {
        name: name(n),
        identity: Identity {
            uuid: format!("uuid of {n}"),
            created: String::new(),
        },
    }
}
fn machine(data_blocks: u64) -> Machine {
    Machine::new(
        Geometry {
            data_blocks,
            metadata_blocks: 600,
        },
        Prng::new(1),
    )
}
fn fault(io: Io, is_sticky: bool) -> Fault {
    Fault {
        after: 0,
        io: Some(io),
        kind: FaultKind::Failed,
        is_sticky,
    }
}
fn read(pool: &Arc<Pool<SimHost>>, n: &str, len: usize) -> Vec<u8> {
    let d = pool.open_device(&name(n)).unwrap();
    let mut bytes = vec![9; len];
    block_on(d.read(0, &mut bytes)).unwrap();
    bytes
}
fn show(bytes: &[u8]) -> String {
    let mut out = String::new();
    for c in bytes.chunks(SUB) {
        out += &format!("{} ", c[0]);
    }
    out
}

/// a: ones, snapshot, then 4 KiB of twos, then a removal whose catalog line cannot be written.
fn refused_removal() -> (Machine, Arc<Pool<SimHost>>) {
    let machine = machine(8);
    let pool = machine.open().unwrap();
    for v in ["a", "b"] {
        block_on(pool.create_volume(new(v), 8 * BLOCK as u64, None)).unwrap();
    }
    {
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[1; BLOCK], true)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        block_on(pool.remove(&name("a@s"))).unwrap();
        block_on(pool.reclaim()).unwrap();
        block_on(a.write(0, &[2; SUB], false)).unwrap();
        assert_eq!(pool.status().partial_blocks, 1);
    }
    machine
        .power
        .set_fault(Some(fault(Io::CatalogWrite, false)));
    let e = block_on(pool.remove(&name("a")));
    eprintln!(
        "remove: {e:?} mode {:?} partial {}",
        pool.status().mode,
        pool.status().partial_blocks
    );
    assert!(e.is_err());
    machine.power.set_fault(None);
    (machine, pool)
}

#[test]
fn refused_removal_then_power_cut() {
    let (machine, pool) = refused_removal();
    let a = pool.open_device(&name("a")).unwrap();
    eprintln!("flush {:?}", block_on(a.flush()));
    let survivor = machine.after_cut(Shape::All, &mut Prng::new(7));
    let bytes = read(&survivor.open().unwrap(), "a", BLOCK);
    eprintln!("after cut: {}", show(&bytes));
    assert!(bytes[..SUB] == [2; SUB] && bytes[SUB..].iter().all(|b| *b == 1));
}

#[test]
fn refused_removal_then_foreign_data() {
    let (_machine, pool) = refused_removal();
    block_on(pool.commit()).unwrap();
    let b = pool.open_device(&name("b")).unwrap();
    for i in 0..7u64 {
        let e = block_on(b.write(i * BLOCK as u64, &[77; BLOCK], true));
        eprintln!("b {i} {e:?}");
    }
    let bytes = read(&pool, "a", BLOCK);
    eprintln!("live: {}", show(&bytes));
    assert!(bytes[..SUB] == [2; SUB] && bytes[SUB..].iter().all(|b| *b == 1));
}

#[test]
fn refused_removal_then_panic() {
    let (_machine, pool) = refused_removal();
    let a = pool.open_device(&name("a")).unwrap();
    for _ in 0..40 {
        block_on(a.discard(0, BLOCK as u64, true)).unwrap();
        block_on(pool.commit()).unwrap();
        block_on(a.write(0, &[3; SUB], false)).unwrap();
        block_on(pool.commit()).unwrap();
    }
    assert_eq!(pool.status().partial_blocks, 0);
}

#[test]
fn flush_overtaken_by_a_later_commit() {
    let mut bad = Vec::new();
    let mut oks = 0;
    for seed in 0..3000 {
        let machine = machine(64);
        let pool = machine.open().unwrap();
        for v in ["a", "b"] {
            block_on(pool.create_volume(new(v), 8 * BLOCK as u64, None)).unwrap();
        }
        let a = pool.open_device(&name("a")).unwrap();
        let b = pool.open_device(&name("b")).unwrap();
        block_on(a.write(0, &[1; BLOCK], true)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        block_on(a.write(0, &[2; SUB], false)).unwrap();
        machine.power.set_fault(Some(fault(Io::DataRead, false)));
        machine.power.set_pauses(3);
        let mut lost = false;
        let mut ok = false;
        {
            let (lost, ok) = (&mut lost, &mut ok);
            let (m, pa, pb) = (&machine, &a, &b);
            let flush = async move {
                if pa.flush().await.is_ok() {
                    *ok = true;
                    let survivor = m.after_cut(Shape::Nothing, &mut Prng::new(7));
                    survivor.power.set_pauses(0);
                    let bytes = read(&survivor.open().unwrap(), "a", BLOCK);
                    *lost = bytes[..SUB] != [2; SUB];
                }
            };
            let other = async move {
                for i in 0..3u64 {
                    pb.write(i * BLOCK as u64, &[5; BLOCK], true).await.unwrap();
                }
            };
            let mut tasks: Vec<Task<'_>> = vec![Box::pin(flush), Box::pin(other)];
            for _ in 0..3 {
                let pool = &pool;
                tasks.push(Box::pin(async move {
                    for _ in 0..3 {
                        let _e = pool.commit().await;
                    }
                }));
            }
            tests::executor::run(tasks, &mut Prng::new(seed));
        }
        oks += u64::from(ok);
        if lost {
            bad.push(seed);
        }
    }
    eprintln!(
        "{oks} flushes ok, {} lost: {:?}",
        bad.len(),
        &bad[..bad.len().min(5)]
    );
    assert!(bad.is_empty());
}

#[test]
fn snapshot_with_a_write_meanwhile() {
    let mut stopped = 0;
    let n = 500;
    for seed in 0..n {
        let machine = machine(64);
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
        block_on(pool.create_volume(new("b"), 8 * BLOCK as u64, None)).unwrap();
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[1; 2 * BLOCK], true)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        // one more partial so that the first pass takes a while
        machine.power.set_fault(Some(fault(Io::DataRead, true)));
        machine.power.set_pauses(3);
        let write = async {
            a.write(0, &[2; SUB], false).await.unwrap();
        };
        let snap = async {
            let _e = pool.create_snapshots(vec![new("a@t")]).await;
        };
        let tasks: Vec<Task<'_>> = vec![Box::pin(write), Box::pin(snap)];
        tests::executor::run(tasks, &mut Prng::new(seed));
        if pool.status().mode != pool::Mode::Write {
            stopped += 1;
            if stopped == 1 {
                eprintln!("{}", pool.status().mode_reason);
            }
        }
    }
    eprintln!("{stopped} of {n} pools stopped");
    assert_eq!(stopped, 0);
}

#[test]
fn enlarging_what_is_left_out() {
    let machine = machine(64);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    {
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[1; BLOCK], true)).unwrap();
    }
    block_on(pool.resize(&name("a"), 4096)).unwrap();
    block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
    machine.power.set_fault(Some(Fault {
        after: 0,
        ..fault(Io::DataRead, true)
    }));
    let e = block_on(pool.resize(&name("a"), BLOCK as u64));
    eprintln!("resize {:?}", e.map(|i| i.size));
    let survivor = machine.after_cut(Shape::All, &mut Prng::new(7));
    let bytes = read(
        &survivor.open().unwrap(),
        "a",
        usize::try_from(survivor.open().unwrap().info(&name("a")).unwrap().size)
            .unwrap()
            .min(BLOCK),
    );
    eprintln!("{} bytes: {}", bytes.len(), show(&bytes));
    assert!(bytes[4096..].iter().all(|b| *b == 0));
}

#[test]
fn durable_write_behind_a_mapping_just_made() {
    let machine = machine(64);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    let a = pool.open_device(&name("a")).unwrap();
    let lost = std::thread::scope(|scope| {
        scope.spawn(|| tests::executor::block_on_thread(a.write(0, &[1; BLOCK], false)).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        tests::executor::block_on_thread(a.write(0, &[2; SUB], true)).unwrap();
        let one = machine.after_cut(Shape::All, &mut Prng::new(7));
        tests::executor::block_on_thread(a.write(0, &[3; SUB], false)).unwrap();
        tests::executor::block_on_thread(a.flush()).unwrap();
        let two = machine.after_cut(Shape::All, &mut Prng::new(7));
        (
            read(&one.open().unwrap(), "a", SUB)[0],
            read(&two.open().unwrap(), "a", SUB)[0],
        )
    });
    eprintln!("after FUA {}, after flush {}", lost.0, lost.1);
    assert_eq!(lost, (2, 3));
}

#[test]
fn space_of_what_was_left_out() {
    let machine = machine(4);
    let pool = machine.open().unwrap();
    for v in ["a", "b"] {
        block_on(pool.create_volume(new(v), 8 * BLOCK as u64, None)).unwrap();
    }
    let a = pool.open_device(&name("a")).unwrap();
    let b = pool.open_device(&name("b")).unwrap();
    block_on(a.write(0, &[1; BLOCK], true)).unwrap();
    block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
    block_on(a.write(BLOCK as u64, &[1; BLOCK], true)).unwrap();
    block_on(a.write(0, &[2; SUB], false)).unwrap();
    machine.power.set_fault(Some(fault(Io::DataRead, true)));
    block_on(a.discard(BLOCK as u64, BLOCK as u64, false)).unwrap();
    assert!(block_on(a.flush()).is_err());
    block_on(b.write(0, &[3; BLOCK], false)).unwrap();
    machine.power.set_fault(None);
    block_on(a.write(SUB as u64, &[4; BLOCK - SUB], false)).unwrap();
    block_on(b.flush()).ok();
    // left out again above? make it so: re-create the state
    let e = block_on(b.write(BLOCK as u64, &[3; BLOCK], false));
    eprintln!("after b.flush {e:?}");
}

#[test]
fn space_of_what_was_left_out_without_a_commit_between() {
    let machine = machine(4);
    let pool = machine.open().unwrap();
    for v in ["a", "b"] {
        block_on(pool.create_volume(new(v), 8 * BLOCK as u64, None)).unwrap();
    }
    let a = pool.open_device(&name("a")).unwrap();
    let b = pool.open_device(&name("b")).unwrap();
    block_on(a.write(0, &[1; BLOCK], true)).unwrap();
    block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
    block_on(a.write(BLOCK as u64, &[1; BLOCK], true)).unwrap();
    block_on(a.write(0, &[2; SUB], false)).unwrap();
    machine.power.set_fault(Some(fault(Io::DataRead, true)));
    block_on(a.discard(BLOCK as u64, BLOCK as u64, false)).unwrap();
    block_on(b.write(0, &[3; BLOCK], false)).unwrap();
    assert!(block_on(a.flush()).is_err());
    machine.power.set_fault(None);
    block_on(a.write(SUB as u64, &[4; BLOCK - SUB], false)).unwrap();
    let e = block_on(b.write(BLOCK as u64, &[3; BLOCK], false));
    eprintln!("first {e:?}");
    block_on(pool.commit()).unwrap();
    let f = block_on(b.write(BLOCK as u64, &[3; BLOCK], false));
    eprintln!("after a commit {f:?}");
    assert!(e.is_ok());
}

#[test]
fn enlarging_while_it_is_removed() {
    let mut leaked = 0;
    for seed in 0..2000 {
        let machine = machine(64);
        let pool = machine.open().unwrap();
        block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
        {
            let a = pool.open_device(&name("a")).unwrap();
            block_on(a.write(0, &[1; BLOCK], true)).unwrap();
        }
        block_on(pool.resize(&name("a"), 4096)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        machine.power.set_pauses(3);
        let p = &pool;
        let t1: Task<'_> = Box::pin(async move {
            let _e = p.resize(&name("a"), BLOCK as u64).await;
        });
        let t2: Task<'_> = Box::pin(async move {
            let _e = p.remove(&name("a")).await;
        });
        tests::executor::run(vec![t1, t2], &mut Prng::new(seed));
        leaked += u64::from(pool.status().partial_blocks > 0);
        if seed == 1999 {
            eprintln!("{leaked} leaked notes");
        }
    }
}

/// After a removal everything of the device that a tree names is whole.
#[test]
fn removed_and_lost_catalog() {
    let machine = machine(64);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("secret"), 8 * BLOCK as u64, None)).unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    {
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[2; SUB], false)).unwrap();
    }
    block_on(pool.remove(&name("a"))).unwrap();
    let mut identity = || Identity {
        uuid: "u".into(),
        created: String::new(),
    };
    Pool::<SimHost>::adopt(
        Arc::clone(&machine.metadata) as _,
        &machine.catalog,
        vec![],
        &mut identity,
    )
    .unwrap();
    let pool = machine.open().unwrap();
    for d in pool.devices() {
        eprintln!(
            "{} {}",
            d.name,
            show(&read(
                &pool,
                &d.name.to_string(),
                usize::try_from(d.size).unwrap().min(BLOCK)
            ))
        );
    }
}

#[test]
fn resize_during_removal_leaks() {
    let (mut leaked, mut n) = (0, 0);
    for seed in 0..40 {
        let r = std::panic::catch_unwind(|| {
            let machine = machine(64);
            let pool = machine.open().unwrap();
            block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
            {
                let a = pool.open_device(&name("a")).unwrap();
                block_on(a.write(0, &[1; BLOCK], true)).unwrap();
            }
            block_on(pool.resize(&name("a"), 4096)).unwrap();
            block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
            machine.power.set_pauses(3);
            let p = &pool;
            let t1: Task<'_> = Box::pin(async move {
                let _e = p.resize(&name("a"), BLOCK as u64).await;
            });
            let t2: Task<'_> = Box::pin(async move {
                let _e = p.remove(&name("a")).await;
            });
            tests::executor::run(vec![t1, t2], &mut Prng::new(seed));
            block_on(pool.commit()).ok();
            pool.status().partial_blocks
        });
        match r {
            Ok(0) => {}
            Ok(_) => leaked += 1,
            Err(_) => n += 1,
        }
    }
    eprintln!("{leaked} leaked, {n} panicked of 40");
}

#[test]
fn timer_gives_space_back_while_a_volume_is_left_out() {
    let machine = machine(64);
    let pool = machine.open().unwrap();
    for v in ["a", "b"] {
        block_on(pool.create_volume(new(v), 8 * BLOCK as u64, None)).unwrap();
    }
    let a = pool.open_device(&name("a")).unwrap();
    let b = pool.open_device(&name("b")).unwrap();
    block_on(a.write(0, &[1; BLOCK], true)).unwrap();
    block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
    block_on(a.write(0, &[2; SUB], false)).unwrap();
    machine.power.set_fault(Some(fault(Io::DataRead, true)));
    block_on(b.write(0, &[1; 8 * BLOCK], true)).unwrap();
    let full = pool.status().data_used_bytes / BLOCK as u64;
    block_on(b.discard(0, 8 * BLOCK as u64, true)).unwrap();
    for _ in 0..3 {
        let _e = block_on(pool.commit());
    }
    eprintln!("{full} -> {}", pool.status().data_used_bytes / BLOCK as u64);
}

#[test]
fn refused_rollback() {
    let machine = machine(8);
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("a"), 8 * BLOCK as u64, None)).unwrap();
    {
        let a = pool.open_device(&name("a")).unwrap();
        block_on(a.write(0, &[1; BLOCK], true)).unwrap();
        block_on(pool.create_snapshots(vec![new("a@s")])).unwrap();
        block_on(a.write(0, &[2; SUB], false)).unwrap();
    }
    machine
        .power
        .set_fault(Some(fault(Io::CatalogWrite, false)));
    let e = block_on(pool.rollback(
        &name("a@s"),
        Identity {
            uuid: "r".into(),
            created: String::new(),
        },
    ));
    machine.power.set_fault(None);
    let a = pool.open_device(&name("a")).unwrap();
    eprintln!("{} flush {:?}", e.is_err(), block_on(a.flush()));
    let bytes = read(
        &machine
            .after_cut(Shape::All, &mut Prng::new(7))
            .open()
            .unwrap(),
        "a",
        BLOCK,
    );
    eprintln!("after cut: {}", show(&bytes));
}
