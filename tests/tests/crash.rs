//! Short workloads: the power is cut at every change of a store, and every I/O fails once or from
//! then on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pool::{Mode, Zeroing};
use tests::Prng;
use tests::driver::{Crash, Driver};
use tests::ops::Op;
use tests::setup::{geometry, name};
use tests::sim::{Fault, FaultKind, Io, Shape};

const BLOCK: u64 = 65_536;

fn create(text: &str, blocks: u64) -> Op {
    Op::Create {
        name: name(text),
        size: blocks * BLOCK,
        has_origin: false,
    }
}

fn write(text: &str, block: u64, len: u64, durable: bool) -> Op {
    Op::Write {
        name: name(text),
        offset: block * BLOCK,
        len,
        durable,
    }
}

fn flush(text: &str) -> Op {
    Op::Flush { name: name(text) }
}

fn discard(text: &str, block: u64, blocks: u64) -> Op {
    Op::Discard {
        name: name(text),
        offset: block * BLOCK,
        len: blocks * BLOCK,
        durable: false,
    }
}

fn snapshot(text: &str) -> Op {
    Op::Snapshots(vec![name(text)])
}

fn resize(text: &str, bytes: u64) -> Op {
    Op::Resize {
        name: name(text),
        size: bytes,
    }
}

/// Each begins on an empty pool of 12 data blocks.
fn workloads() -> [Vec<Op>; 5] {
    [flushing(), snapshots(), clones(), shrinking(), filling()]
}

/// Writes, flushes, durable writes.
fn flushing() -> Vec<Op> {
    vec![
        create("a", 4),
        write("a", 0, 2 * BLOCK, false),
        flush("a"),
        write("a", 0, BLOCK, false),
        write("a", 1, 4096, true),
        write("a", 2, 512, false),
        flush("a"),
        Op::Reopen,
        write("a", 2, 4096, false),
        Op::Commit,
    ]
}

/// Snapshots, their removal, a rollback.
fn snapshots() -> Vec<Op> {
    vec![
        create("a", 3),
        write("a", 0, 3 * BLOCK, false),
        snapshot("a@s"),
        write("a", 0, 4096, false),
        write("a", 1, BLOCK, true),
        snapshot("a@t"),
        write("a", 1, 512, false),
        Op::Remove(name("a@s")),
        Op::Reclaim,
        flush("a"),
        Op::Rollback(name("a@t")),
        Op::Reclaim,
        write("a", 2, 512, true),
    ]
}

/// A group of snapshots, clones, renaming, freezing.
fn clones() -> Vec<Op> {
    vec![
        create("a", 3),
        create("b", 2),
        write("a", 0, 3 * BLOCK, false),
        write("b", 0, BLOCK, false),
        Op::Snapshots(vec![name("a@g"), name("b@g")]),
        Op::Clone {
            from: name("a@g"),
            to: name("c"),
        },
        write("c", 1, 4096, false),
        Op::Rename {
            from: name("a"),
            to: name("z"),
        },
        flush("c"),
        Op::Remove(name("z")),
        write("b", 1, BLOCK, true),
        Op::Freeze(name("c")),
        Op::Reclaim,
    ]
}

/// Discards, zeroing, shrinking and enlarging.
fn shrinking() -> Vec<Op> {
    let zeroes = Op::Zeroes {
        name: name("a"),
        offset: 3 * BLOCK / 2,
        len: 2 * BLOCK,
        zeroing: Zeroing::MayUnmap,
        durable: true,
    };
    vec![
        create("a", 4),
        write("a", 0, 4 * BLOCK, true),
        discard("a", 1, 2),
        flush("a"),
        write("a", 2, BLOCK, false),
        zeroes,
        write("a", 1, 4096, false),
        flush("a"),
        resize("a", 2 * BLOCK),
        resize("a", 4 * BLOCK),
        resize("a", BLOCK + 512),
        resize("a", 4 * BLOCK),
        write("a", 3, 4096, true),
    ]
}

/// Running full, growing, deleting.
fn filling() -> Vec<Op> {
    vec![
        create("a", 16),
        write("a", 0, 11 * BLOCK, false),
        discard("a", 0, 4),
        write("a", 11, 5 * BLOCK, false),
        Op::GrowData(6),
        write("a", 0, 4 * BLOCK, false),
        flush("a"),
        Op::GrowMetadata(8),
        Op::Remove(name("a")),
        create("b", 4),
        write("b", 0, 4 * BLOCK, true),
        Op::Reclaim,
    ]
}

fn driver(seed: u64) -> Driver {
    Driver::new(geometry(12), Prng::new(seed))
}

/// After whatever happened, the pool can be used as ever.
fn carry_on(driver: &mut Driver) {
    driver.step(&create("later", 2));
    driver.step(&write("later", 0, 4096, true));
    driver.step(&snapshot("later@s"));
    driver.step(&write("later", 0, 512, false));
    driver.step(&Op::Reopen);
}

#[test]
fn the_power_goes_at_every_change() {
    let mut cuts = 0;
    for (index, workload) in workloads().iter().enumerate() {
        let mut whole = driver(0);
        workload.iter().for_each(|op| whole.step(op));
        let total = whole.machine.power.changes();
        for shape in Shape::ALL {
            let first = driver(0).machine.power.changes();
            for change in first..total {
                let mut driver = driver(change);
                driver.machine.power.cut_at(Some(change));
                eprintln!("workload {index}, change {change} of {total}, {shape:?}");
                for op in workload {
                    if !driver.machine.power.is_off() {
                        driver.step(op);
                    }
                }
                driver.crash(&Crash::cut(shape));
                carry_on(&mut driver);
                cuts += 1;
            }
        }
    }
    eprintln!("{cuts} power cuts");
}

#[test]
fn the_daemon_is_killed_at_every_change() {
    let mut kills = 0;
    for (index, workload) in workloads().iter().enumerate() {
        let mut whole = driver(0);
        workload.iter().for_each(|op| whole.step(op));
        let total = whole.machine.power.changes();
        for seed in 0..2 {
            let first = driver(0).machine.power.changes();
            for change in first..total {
                let mut driver = driver(1000 * seed + change);
                driver.machine.power.set_kill(true);
                driver.machine.power.cut_at(Some(change));
                eprintln!("workload {index}, change {change} of {total}, seed {seed}");
                for op in workload {
                    if !driver.machine.power.is_off() {
                        driver.step(op);
                    }
                }
                let mut prng = Prng::new(seed + change);
                driver.crash(&Crash::then_drawn(&mut prng, true, 1));
                carry_on(&mut driver);
                kills += 1;
            }
        }
    }
    eprintln!("{kills} kills");
}

/// What ends a run in which something failed.
#[derive(Clone, Copy, Debug)]
enum End {
    Cut(Shape),
    Kill,
}

/// One run with one fault. Whether the fault was hit.
fn with_fault(workload: &[Op], fault: Fault, end: End) -> bool {
    let mut driver = driver(fault.after);
    driver.machine.power.set_faults([fault]);
    let mut failed = false;
    for op in workload.iter().filter(|op| !matches!(op, Op::Reopen)) {
        if !driver.step_with_faults(op) {
            failed = true;
            break;
        }
    }
    let hit = driver.machine.power.fault_hit();
    let mode = driver.pool().status().mode;
    driver.machine.power.set_faults([]);
    match fault.io {
        Some(
            Io::DataSync
            | Io::MetadataWrite
            | Io::MetadataFlush
            | Io::LogCreate
            | Io::LogWrite
            | Io::LogSync,
        ) if failed => {
            assert_eq!(mode, Mode::ReadOnly, "after {fault:?}");
        }
        Some(Io::DataRead | Io::DataWrite | Io::DataAllocate | Io::CatalogWrite) => {
            assert!(
                matches!(mode, Mode::Write | Mode::OutOfDataSpace),
                "after {fault:?}"
            );
        }
        _ => {}
    }
    match end {
        End::Cut(shape) => driver.crash(&Crash::cut(shape)),
        End::Kill => driver.crash(&Crash::kill()),
    }
    carry_on(&mut driver);
    hit
}

#[test]
fn every_io_fails_once_or_for_good() {
    let mut faults = 0;
    for (index, workload) in workloads().iter().enumerate() {
        for io in Io::FAULTY {
            for is_sticky in [false, true] {
                for end in [
                    End::Cut(Shape::Nothing),
                    End::Cut(Shape::Percent(50)),
                    End::Kill,
                ] {
                    let kind = if matches!(io, Io::DataWrite | Io::DataAllocate) && is_sticky {
                        FaultKind::StorageFull
                    } else {
                        FaultKind::Failed
                    };
                    // What a failed sync may have lost is not replayed.
                    if matches!((io, end), (Io::DataSync | Io::LogSync, End::Kill)) {
                        continue;
                    }
                    for after in 0.. {
                        let fault = Fault {
                            after,
                            io: Some(io),
                            kind,
                            is_sticky,
                        };
                        eprintln!("workload {index}, {fault:?}, {end:?}");
                        if !with_fault(workload, fault, end) {
                            break;
                        }
                        faults += 1;
                    }
                }
            }
        }
    }
    eprintln!("{faults} faults");
}
