//! A few threads for work that blocks.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::promise::{Offload, promise};

/// How long a thread waits for work before it ends.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// Threads that run closures in the order they were given, several at a time. They are started when
/// needed and end when idle. Cloning it is cheap and shares the threads.
#[derive(Clone)]
pub struct BlockingPool {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl BlockingPool {
    /// At most `threads_max` threads, at least one.
    pub fn new(threads_max: usize) -> Self {
        let shared = Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            threads_max: threads_max.max(1),
        };
        BlockingPool {
            shared: Arc::new(shared),
        }
    }

    /// Runs `job` on one of the threads. The job is on its way when this returns, and runs even if
    /// the future is dropped. A panic of the job goes on in whoever awaits it.
    pub fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Offload<T> {
        let (promise, offload) = promise();
        self.run(Box::new(move || {
            promise.keep(catch_unwind(AssertUnwindSafe(job)));
        }));
        offload
    }

    /// Runs a job that nobody waits for and that does not panic.
    pub(crate) fn run(&self, job: Job) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.shared.work.notify_one();
            return;
        }
        if state.threads == self.shared.threads_max {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new()
            .name("blocking".to_owned())
            .spawn(move || shared.serve());
        if started.is_ok() {
            state.threads += 1;
        } else if state.threads == 0 {
            // No thread to be had: better to block the caller than never to finish.
            let job = state.jobs.pop_back();
            drop(state);
            job.into_iter().for_each(|job| job());
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                continue;
            }
            state.idle += 1;
            let wait = self.work.wait_for(&mut state, IDLE_THREAD_TIMEOUT);
            state.idle -= 1;
            if wait.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::block_on;

    #[test]
    fn results_come_back() {
        let pool = BlockingPool::new(2);
        let jobs: Vec<_> = (0..100).map(|n| pool.offload(move || n * 2)).collect();
        let results: Vec<_> = jobs.into_iter().map(block_on).collect();
        assert_eq!(results, (0..100).map(|n| n * 2).collect::<Vec<_>>());
        assert!(pool.shared.state.lock().threads <= 2);
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        let pool = BlockingPool::new(3);
        let now = Arc::new(AtomicUsize::new(0));
        let jobs: Vec<_> = (0..50)
            .map(|_| {
                let now = Arc::clone(&now);
                pool.offload(move || {
                    let running = now.fetch_add(1, Ordering::SeqCst) + 1;
                    thread::sleep(Duration::from_micros(200));
                    now.fetch_sub(1, Ordering::SeqCst);
                    running
                })
            })
            .collect();
        assert!(jobs.into_iter().all(|job| block_on(job) <= 3));
    }

    #[test]
    fn a_panic_reaches_whoever_waits_and_the_thread_goes_on() {
        let pool = BlockingPool::new(1);
        let job = pool.offload(|| panic!("on purpose"));
        let caught = catch_unwind(AssertUnwindSafe(|| block_on::<()>(job)));
        assert!(caught.is_err());
        assert_eq!(block_on(pool.offload(|| 7)), 7);
    }
}
