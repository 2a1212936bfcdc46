//! The simulator: many short episodes on all processors, and what they show.
//!
//! A seed is an episode, of one of five kinds: a script on a small pool; on a tiny one; on one with little metadata; now and then
//! on one large enough for trees of more than one node; or a crowd, whose requests run at the same time.

mod exhaustive;
mod latent;
mod minimise;
mod report;
mod sabotage;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

pub use exhaustive::{Searched, search};
pub use latent::damage;
pub use minimise::{Minimised, minimise};
pub use report::Report;
pub use sabotage::{Caught, catch};

use crate::driver::Tally;
use crate::episode::{Conditions, Failure, Mixture, crowded};

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
    /// Of so many seeds one is run twice, which must make no difference; of none when 0.
    pub twice_one_of: u64,
}

const SMALL: Conditions = Conditions {
    operations: (10, 40),
    data_blocks: (12, 40),
    metadata_blocks: (600, 700),
    crashes: 15,
    faults: 8,
    mixture: Mixture::Swarm { volume_blocks: 20 },
    is_tight: false,
};

/// So few blocks that they are used again and again, and few operations that commit.
const TINY: Conditions = Conditions {
    data_blocks: (1, 6),
    crashes: 10,
    mixture: Mixture::Swarm { volume_blocks: 3 },
    ..SMALL
};

const LARGE: Conditions = Conditions {
    operations: (40, 120),
    data_blocks: (500, 900),
    metadata_blocks: (1200, 1500),
    crashes: 5,
    mixture: Mixture::Large,
    ..SMALL
};

const TIGHT: Conditions = Conditions {
    metadata_blocks: (84, 120),
    is_tight: true,
    ..SMALL
};

/// Runs the episode of a seed on this thread.
///
/// # Errors
/// When a promise is broken.
pub fn run_seed(seed: u64) -> Result<Tally, Box<Failure>> {
    drop(probe::take_hits());
    let tally = match seed % 64 {
        0 if seed.is_multiple_of(2048) => LARGE.run(seed),
        0..4 => TIGHT.run(seed),
        4..24 => crowded(seed),
        24..44 => TINY.run(seed),
        _ => SMALL.run(seed),
    };
    let marks = probe::take_hits();
    tally.map(|tally| Tally { marks, ..tally })
}

/// As [`run_seed`], twice: every count, and the trace of all I/O, must be equal.
///
/// # Errors
/// When a promise is broken, or the two differ.
pub fn run_seed_twice(seed: u64) -> Result<Tally, Box<Failure>> {
    let tally = run_seed(seed)?;
    let again = run_seed(seed)?;
    if tally == again {
        return Ok(tally);
    }
    let message = format!("run twice, it is not the same: {tally:?}, {again:?}");
    Err(Box::new(Failure::without_script(message)))
}

/// How long this process has worked so far.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Keeps panics quiet: they are how episodes fail, and are reported with their seeds.
pub fn quiet() {
    std::panic::set_hook(Box::new(|_| ()));
}

/// Runs seeds until the end, the time, or the first failure.
pub fn run(options: &Options) -> Report {
    let next = AtomicU64::new(options.first);
    let is_over = AtomicBool::new(false);
    let report = Mutex::new(Report::default());
    let started = Instant::now();
    let worked = processor_seconds();
    let is_late = || options.seconds > 0 && started.elapsed().as_secs() >= options.seconds;
    let work = || {
        let mut own = Report::default();
        while !is_over.load(Ordering::Relaxed) && !is_late() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > options.last {
                break;
            }
            let is_twice = options.twice_one_of > 0 && seed.is_multiple_of(options.twice_one_of);
            own.twice += u64::from(is_twice);
            let run = if is_twice { run_seed_twice } else { run_seed };
            own.add_seed(seed, run(seed));
            is_over.fetch_or(!own.failures.is_empty(), Ordering::Relaxed);
        }
        report.lock().add(own);
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(work);
        }
    });
    let mut report = report.into_inner();
    report.seconds = started.elapsed().as_secs_f64();
    report.processor_seconds = processor_seconds() - worked;
    report.jobs = options.jobs;
    report
}
