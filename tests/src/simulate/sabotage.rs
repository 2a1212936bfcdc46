//! Known bugs: how many seeds it takes until each is noticed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub fn catch(starts: u64, seeds_max: u64, jobs: usize, mut tell: impl FnMut(Caught)) {
    for sabotage in Sabotage::ALL {
        let mut caught = Caught {
            sabotage: *sabotage,
            seeds: Vec::new(),
            failure: None,
            message: String::new(),
        };
        for start in 0..starts {
            let first = 1 + start * 1_000_000;
            let noticed = first_noticed(*sabotage, first..first + seeds_max, jobs);
            caught
                .seeds
                .push(noticed.as_ref().map(|(seed, _)| seed - first + 1));
            let Some((_, failure)) = noticed else {
                continue;
            };
            if caught.message.is_empty() {
                caught.message.clone_from(&failure.message);
            }
            if failure.script.is_some() {
                caught.failure.get_or_insert(*failure);
            }
        }
        tell(caught);
    }
}

/// The first seed that notices a bug: all threads seek it together.
fn first_noticed(
    sabotage: Sabotage,
    seeds: Range<u64>,
    jobs: usize,
) -> Option<(u64, Box<Failure>)> {
    let next = AtomicU64::new(seeds.start);
    let end = AtomicU64::new(seeds.end);
    let first: Mutex<Option<(u64, Box<Failure>)>> = Mutex::default();
    let work = || {
        set_sabotage(Some(sabotage));
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end.load(Ordering::Relaxed) {
                break;
            }
            let Err(failure) = run_seed(seed) else {
                continue;
            };
            let mut first = first.lock();
            // Earlier ones are still under way elsewhere.
            if first.as_ref().is_none_or(|(earlier, _)| seed < *earlier) {
                end.fetch_min(seed, Ordering::Relaxed);
                *first = Some((seed, failure));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    first.into_inner()
}
