//! Many episodes on all processors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::driver::Tally;
use crate::episode::{Conditions, Failure};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The first seed.
    pub first: u64,
    /// The last seed.
    pub last: u64,
    /// For how long, in seconds; 0 is until all seeds were run.
    pub seconds: u64,
    /// On how many threads.
    pub jobs: usize,
}

/// What came of it.
#[derive(Default, Debug)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// What they did.
    pub tally: Tally,
    /// Those that failed.
    pub failures: Vec<(u64, Failure)>,
    pub took: Duration,
}

const USUAL: Conditions = Conditions {
    operations: (10, 40),
    data_blocks: (12, 48),
    metadata_blocks: (600, 700),
    crashes: 15,
    faults: 4,
    is_swarm: true,
};

pub fn run(options: &Options) -> Report {
    std::panic::set_hook(Box::new(|_| ()));
    let next = AtomicU64::new(options.first);
    let report = Mutex::new(Report::default());
    let started = Instant::now();
    let is_over = || options.seconds > 0 && started.elapsed().as_secs() >= options.seconds;
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| {
                let mut tally = Tally::default();
                let mut seeds = 0;
                while !is_over() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > options.last { break; }
                    seeds += 1;
                    match USUAL.run(seed) {
                        Ok(run) => tally.add(&run),
                        Err(failure) => { eprintln!("{seed}: {}\n{}", failure.message, failure.history); report.lock().failures.push((seed, *failure)); if report.lock().failures.len() > 3 { break } }
                    }
                }
                let mut report = report.lock();
                report.seeds += seeds;
                report.tally.add(&tally);
            });
        }
    });
    let mut report = report.into_inner();
    report.took = started.elapsed();
    eprintln!("{} per second per job", (report.tally.cuts + report.tally.kills) as f64 / report.took.as_secs_f64() / options.jobs as f64);
    report.failures.clear();
    report
}
