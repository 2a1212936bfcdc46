//! Seeded runs: one seed makes one run, and a run that fails says how to repeat it.
//!
//! `THINPOOL_SEED` runs that seed alone; `THINPOOL_OPS` sets how many operations a run has.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::Prng;
use crate::driver::Tally;
use crate::episode::Conditions;

/// A family of runs.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The test's name, for the command that repeats a run.
    pub test: &'static str,
    /// The first seed.
    pub first_seed: u64,
    /// How many seeds.
    pub seeds: u64,
    /// What a run is like.
    pub conditions: Conditions,
}

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(cause) => panic!("{name}={text}: {cause}"),
    }
}

impl Family {
    /// Runs all seeds.
    ///
    /// # Panics
    /// When pool and model disagree in any.
    pub fn run(mut self) {
        if let Some(operations) = from_environment("THINPOOL_OPS") {
            self.conditions.operations = (operations, operations);
        }
        let seeds = match from_environment("THINPOOL_SEED") {
            Some(seed) => seed..seed + 1,
            None => self.first_seed..self.first_seed + self.seeds,
        };
        let mut tally = Tally::default();
        for seed in seeds {
            let (_, operations) = self.conditions.operations;
            each_seed(self.test, seed, operations, || {
                match self.conditions.run(seed) {
                    Ok(run) => tally.add(&run),
                    Err(failure) => panic!("{}\n{}", failure.history, failure.message),
                }
            });
        }
        eprintln!("{}: {tally:?}", self.test);
    }
}

/// Runs `count` seeds from `first` on. Whether it did, and not the one of the environment alone.
///
/// # Panics
/// When `run` does.
pub fn seeds(first: u64, count: u64, test: &str, mut run: impl FnMut(Prng)) -> bool {
    let alone = from_environment("THINPOOL_SEED");
    let seeds = match alone {
        Some(seed) => seed..seed + 1,
        None => first..first + count,
    };
    for seed in seeds {
        each_seed(test, seed, 0, || run(Prng::new(seed)));
    }
    alone.is_none()
}

/// Runs one seed, and says how to repeat it should it fail.
fn each_seed(test: &str, seed: u64, operations: u64, run: impl FnOnce()) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(run)) {
        eprintln!(
            "to repeat: THINPOOL_SEED={seed} THINPOOL_OPS={operations} \
             cargo test -p tests --profile ci -- --exact {test}"
        );
        resume_unwind(cause);
    }
}
