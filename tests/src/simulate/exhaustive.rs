//! Every short sequence of operations, with a crash after every change of a store, and every set of unsynced
//! writes that may have survived it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::Serialize;

use crate::Prng;
use crate::driver::{Crash, Driver};
use crate::episode::message;
use crate::model::BLOCK;
use crate::ops::Op;
use crate::setup::{geometry, name};
use crate::sim::{Survivors, to_usize};

const VOLUMES: [&str; 2] = ["a", "b"];
const BLOCKS: u64 = 2;

/// With more unsynced writes than this, sets of survivors are drawn.
const ALL_SETS_MAX: usize = 10;
const DRAWN_SETS: u64 = 64;

/// What a search has done.
#[derive(Clone, Default, Debug, Serialize)]
pub struct Searched {
    /// Sequences of operations.
    pub sequences: u64,
    /// Power cuts, each with another set of survivors.
    pub cuts: u64,
    /// Kills.
    pub kills: u64,
    /// Sectors compared.
    pub sectors_compared: u64,
    /// What was wrong.
    pub violations: Vec<String>,
}

impl Searched {
    fn add(&mut self, other: Searched) {
        self.sequences += other.sequences;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.sectors_compared += other.sectors_compared;
        self.violations.extend(other.violations);
    }
}

/// Tries all sequences of so many operations, or one of so many.
pub fn search(length: u32, one_of: u64, jobs: usize) -> Searched {
    let operations = operations();
    let count = (operations.len() as u64).pow(length);
    let next = AtomicU64::new(0);
    let all = Mutex::new(Searched::default());
    let work = || {
        loop {
            let number = next.fetch_add(one_of, Ordering::Relaxed);
            if number >= count || !all.lock().violations.is_empty() {
                break;
            }
            let searched = try_sequence(&sequence(&operations, number, length));
            all.lock().add(searched);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    all.into_inner()
}

fn operations() -> Vec<Op> {
    let mut operations = vec![Op::Commit];
    for volume in VOLUMES {
        let write = |offset, len| Op::Write {
            name: name(volume),
            offset,
            len,
            durable: false,
        };
        for block in 0..BLOCKS {
            let at = block * BLOCK;
            operations.push(write(at, BLOCK));
            // Neither begins nor ends with a sub-block.
            operations.push(write(at + 512, 4096));
            operations.push(Op::Discard {
                name: name(volume),
                offset: at,
                len: BLOCK,
                durable: false,
            });
        }
        let of = name(volume);
        operations.push(Op::Flush { name: of });
        operations.push(Op::Snapshots(vec![name(&format!("{volume}@s"))]));
    }
    operations
}

/// The sequence with this number: its digits are operations.
fn sequence(operations: &[Op], number: u64, length: u32) -> Vec<Op> {
    let base = operations.len() as u64;
    let digit = |place| number / base.pow(place) % base;
    (0..length)
        .map(|place| operations[to_usize(digit(place))].clone())
        .collect()
}

fn begun() -> Driver {
    let mut driver = Driver::new(geometry(12), Prng::new(1));
    for volume in VOLUMES {
        driver.step(&Op::Create {
            name: name(volume),
            size: BLOCKS * BLOCK,
            has_origin: false,
        });
    }
    driver
}

fn try_sequence(sequence: &[Op]) -> Searched {
    let mut searched = Searched {
        sequences: 1,
        ..Searched::default()
    };
    let mut whole = begun();
    let first = whole.machine.power.changes();
    sequence.iter().for_each(|op| whole.step(op));
    let last = whole.machine.power.changes();
    for change in first..=last {
        for is_kill in [false, true] {
            let tried = catch_unwind(AssertUnwindSafe(|| {
                let driver = interrupted(sequence, change, is_kill);
                end_all_ways(driver, is_kill, &mut searched);
            }));
            if let Err(cause) = tried {
                let end = if is_kill { "kill" } else { "cut" };
                let what = message(&*cause);
                let violation = format!("{sequence:?}, {end} at change {change}: {what}");
                searched.violations.push(violation);
                return searched;
            }
        }
    }
    searched
}

/// A sequence that ends at a change.
fn interrupted(sequence: &[Op], change: u64, is_kill: bool) -> Driver {
    let mut driver = begun();
    driver.machine.power.set_kill(is_kill);
    driver.machine.power.cut_at(Some(change));
    for op in sequence {
        if !driver.machine.power.is_off() {
            driver.step(op);
        }
    }
    driver
}

fn end_all_ways(mut driver: Driver, is_kill: bool, searched: &mut Searched) {
    if is_kill {
        driver.crash(&Crash::kill());
        searched.kills += 1;
        searched.sectors_compared += driver.tally.bytes_compared / 512;
        return;
    }
    driver.machine.power.cut();
    let unsynced = driver.machine.unsynced_writes();
    let mut prng = Prng::new(unsynced as u64);
    let sets: Vec<u64> = match unsynced {
        0..=ALL_SETS_MAX => (0..1 << unsynced).collect(),
        _ => (0..DRAWN_SETS).map(|_| prng.bits()).collect(),
    };
    for set in sets {
        let fork = driver.fork_after_cut(&mut Survivors::writes(set));
        searched.cuts += 1;
        searched.sectors_compared += fork.tally.bytes_compared / 512;
    }
}
