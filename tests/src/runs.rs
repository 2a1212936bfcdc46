//! Seeded runs: one seed makes one run, and a run that fails says how to repeat it.
//!
//! `THINPOOL_SEED` runs that seed alone; `THINPOOL_OPS` sets how many operations a run has.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::Prng;
use crate::driver::{Driver, Tally};
use crate::ops::Generator;
use crate::sim::{Geometry, Shape};

/// A family of runs.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The test's name, for the command that repeats a run.
    pub test: &'static str,
    /// The first seed.
    pub first_seed: u64,
    /// How many seeds.
    pub seeds: u64,
    /// Operations in a run.
    pub operations: u64,
    /// Fewest and most data blocks.
    pub data_blocks: (u64, u64),
    /// Fewest and most metadata blocks.
    pub metadata_blocks: (u64, u64),
    /// How often the power is cut, or the daemon killed, in the middle of an operation, in percent.
    pub cuts: u64,
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
        self.operations = from_environment("THINPOOL_OPS").unwrap_or(self.operations);
        let seeds = match from_environment("THINPOOL_SEED") {
            Some(seed) => seed..seed + 1,
            None => self.first_seed..self.first_seed + self.seeds,
        };
        let mut tally = Tally::default();
        for seed in seeds {
            each_seed(self.test, seed, self.operations, || {
                tally.add(&self.run_seed(seed))
            });
        }
        eprintln!("{}: {tally:?}", self.test);
    }

    fn run_seed(&self, seed: u64) -> Tally {
        let mut prng = Prng::new(seed);
        let between =
            |prng: &mut Prng, (least, most): (u64, u64)| least + prng.below(most - least + 1);
        let geometry = Geometry {
            data_blocks: between(&mut prng, self.data_blocks),
            metadata_blocks: between(&mut prng, self.metadata_blocks),
        };
        let cuts = self.cuts > 0;
        let mut generator = Generator::new(prng.fork(), geometry.data_blocks, cuts);
        let mut driver = Driver::new(geometry, prng.fork());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..self.operations {
                let op = generator.next(&driver.model);
                if prng.chance(self.cuts) {
                    let power = &driver.machine.power;
                    power.cut_at(Some(power.changes() + prng.below(40)));
                    power.set_kill(prng.chance(50));
                }
                driver.step(&op);
                match &driver.machine.power {
                    power if !power.is_off() => {}
                    power if power.is_kill() => driver.kill(Shape::any(&mut prng)),
                    _ => driver.cut(Shape::any(&mut prng)),
                }
                driver.machine.power.cut_at(None);
            }
        }));
        if let Err(cause) = outcome {
            eprintln!("{geometry:?}\n{}", driver.history());
            resume_unwind(cause);
        }
        driver.tally
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
