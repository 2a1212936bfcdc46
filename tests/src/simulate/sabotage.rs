//! Known bugs: how many seeds it takes until each is noticed.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use probe::{Sabotage, set_sabotage};

use super::run_seed;
use crate::episode::Failure;

/// How a bug was noticed, or not.
#[derive(Debug)]
pub struct Caught {
    /// The bug.
    pub sabotage: Sabotage,
    /// How many seeds it took, from each first seed; none where it was not noticed.
    pub seeds: Vec<Option<u64>>,
    /// The first failure that has a script.
    pub failure: Option<Failure>,
    /// What was said first.
    pub message: String,
}

impl Caught {
    /// The median of the seeds it took, if it was always noticed.
    pub fn median(&self) -> Option<u64> {
        let mut seeds: Vec<u64> = self.seeds.iter().copied().collect::<Option<_>>()?;
        seeds.sort_unstable();
        seeds.get(seeds.len() / 2).copied()
    }
}

/// Seeks each bug from so many first seeds, with at most so many seeds each, and tells of each as soon as that
/// is done.
pub fn catch(starts: u64, seeds_max: u64, jobs: usize, tell: impl FnMut(Caught) + Send) {
    let all = Sabotage::ALL;
    let next = AtomicUsize::new(0);
    let tell = Mutex::new(tell);
    let work = || {
        while let Some(sabotage) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            set_sabotage(Some(*sabotage));
            let found = catch_one(*sabotage, starts, seeds_max);
            set_sabotage(None);
            (tell.lock())(found);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
}

fn catch_one(sabotage: Sabotage, starts: u64, seeds_max: u64) -> Caught {
    let mut caught = Caught {
        sabotage,
        seeds: Vec::new(),
        failure: None,
        message: String::new(),
    };
    for start in 0..starts {
        let first = 1 + start * 1_000_000;
        let mut took = None;
        for seed in first..first + seeds_max {
            let Err(failure) = run_seed(seed) else {
                continue;
            };
            took = Some(seed - first + 1);
            if caught.message.is_empty() {
                caught.message.clone_from(&failure.message);
            }
            if failure.script.is_some() {
                caught.failure.get_or_insert(*failure);
            }
            break;
        }
        caught.seeds.push(took);
    }
    caught
}
