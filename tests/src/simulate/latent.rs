//! Many pools whose metadata has changed at rest.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use super::Options;
use crate::episode::Failure;
use crate::latent::{Tally, episode};

/// Runs seeds until the end, the time, or the first failure; what was shown, and which failed.
pub fn damage(options: &Options) -> (Tally, Vec<(u64, Failure)>) {
    let next = AtomicU64::new(options.first);
    let shown = Mutex::new((Tally::default(), Vec::new()));
    let started = Instant::now();
    let is_late = || options.seconds > 0 && started.elapsed().as_secs() >= options.seconds;
    let work = || {
        while !is_late() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > options.last || !shown.lock().1.is_empty() {
                break;
            }
            let outcome = episode(seed);
            let (tally, failures) = &mut *shown.lock();
            match outcome {
                Ok(episode) => tally.add(&episode),
                Err(failure) => failures.push((seed, *failure)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(work);
        }
    });
    shown.into_inner()
}
