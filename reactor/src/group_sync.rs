//! Making data durable, shared by all who ask and final in its failures.
//!
//! A sync covers what was written before it began, so who asks while one runs needs the next one;
//! everybody who asks meanwhile shares that. After a failure the kernel has dropped pages that it
//! could not write and calls them clean, so that a later success would prove nothing: every later
//! call fails.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Shares runs of one syncing function.
pub(crate) struct GroupSync {
    shared: Arc<Shared>,
}

struct Shared {
    start: Box<dyn Fn(Run) + Send + Sync>,
    state: Mutex<State>,
}

/// One run: the duty to tell how it ended.
pub(crate) struct Run {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    /// How many runs have begun, and how many have succeeded.
    begun: u64,
    done: u64,
    /// The last run that somebody needs.
    wanted: u64,
    /// Whether a thread is at work.
    running: bool,
    failed: Option<Failure>,
    waiters: Vec<Waker>,
}

/// An error that can be told more than once.
#[derive(Clone, Copy)]
struct Failure {
    errno: Option<i32>,
    kind: io::ErrorKind,
}

impl Failure {
    fn of(cause: &io::Error) -> Self {
        Failure {
            errno: cause.raw_os_error(),
            kind: cause.kind(),
        }
    }

    fn error(self) -> io::Error {
        self.errno
            .map_or_else(|| self.kind.into(), io::Error::from_raw_os_error)
    }
}

impl GroupSync {
    /// `start` sees to it that everything written so far is synced and then the run finished, and
    /// does not wait for that. It is called on the thread of who asks, or of who finishes the run
    /// before.
    pub(crate) fn new(start: impl Fn(Run) + Send + Sync + 'static) -> Self {
        let shared = Shared {
            start: Box::new(start),
            state: Mutex::default(),
        };
        GroupSync {
            shared: Arc::new(shared),
        }
    }

    /// Makes durable what was written before the call. Fails for ever after the first failure.
    pub(crate) async fn sync(&self) -> io::Result<()> {
        let mut ticket = None;
        poll_fn(|context| {
            let mut state = self.shared.state.lock();
            let ticket = *ticket.get_or_insert_with(|| state.begun + 1);
            if let Some(failure) = state.failed {
                return Poll::Ready(Err(failure.error()));
            }
            if state.done >= ticket {
                return Poll::Ready(Ok(()));
            }
            state.wanted = state.wanted.max(ticket);
            state.waiters.push(context.waker().clone());
            if !std::mem::replace(&mut state.running, true) {
                state.begun += 1;
                drop(state);
                Run::start(&self.shared);
            }
            Poll::Pending
        })
        .await
    }
}

impl Run {
    fn start(shared: &Arc<Shared>) {
        let run = Run {
            shared: Arc::clone(shared),
        };
        (shared.start)(run);
    }

    /// The run has ended; starts the next one if somebody needs it.
    pub(crate) fn finish(self, result: io::Result<()>) {
        let mut state = self.shared.state.lock();
        match result {
            Ok(()) => state.done = state.begun,
            Err(cause) => state.failed = Some(Failure::of(&cause)),
        }
        let is_needed = state.failed.is_none() && state.done < state.wanted;
        state.running = is_needed;
        state.begun += u64::from(is_needed);
        // Who needs the next run waits again.
        let waiters = std::mem::take(&mut state.waiters);
        drop(state);
        if is_needed {
            Run::start(&self.shared);
        }
        waiters.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::{BlockingPool, Executor, block_on};

    /// Runs `sync` on a pool's threads.
    fn on_threads(
        threads: BlockingPool,
        sync: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> GroupSync {
        let sync = Arc::new(sync);
        GroupSync::new(move |run| {
            let sync = Arc::clone(&sync);
            threads.run(Box::new(move || run.finish(sync())));
        })
    }

    #[test]
    fn a_failure_is_final() {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let group = on_threads(BlockingPool::new(1), move || {
            match counted.fetch_add(1, Ordering::SeqCst) {
                1 => Err(io::Error::from_raw_os_error(28)),
                _ => Ok(()),
            }
        });
        block_on(group.sync()).unwrap();
        for _ in 0..3 {
            let failed = block_on(group.sync()).unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
        }
        assert_eq!(
            calls.load(Ordering::SeqCst),
            2,
            "nothing is synced after a failure"
        );
    }

    #[test]
    fn requests_during_a_run_share_the_next_one() {
        let calls = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(Mutex::new(()));
        let (counted, gated) = (Arc::clone(&calls), Arc::clone(&gate));
        let group = Arc::new(on_threads(BlockingPool::new(1), move || {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(gated.lock());
            Ok(())
        }));
        let mut executor = Executor::new().unwrap();
        let closed = gate.lock();
        let ask = |group: &Arc<GroupSync>| {
            let group = Arc::clone(group);
            async move { group.sync().await.unwrap() }
        };
        executor.spawn(ask(&group));
        while calls.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        (0..20).for_each(|_| executor.spawn(ask(&group)));
        drop(closed);
        while !executor.is_empty() {
            executor.wait(None, None).unwrap();
            executor.run_ready();
        }
        assert_eq!(calls.load(Ordering::SeqCst), 2);
    }

    /// A sync must not be served by a run that began before it.
    #[test]
    fn every_sync_covers_what_was_written_before_it() {
        let written = Arc::new(AtomicU64::new(0));
        let durable = Arc::new(AtomicU64::new(0));
        let (from, to) = (Arc::clone(&written), Arc::clone(&durable));
        let group = Arc::new(on_threads(BlockingPool::new(2), move || {
            let seen = from.load(Ordering::SeqCst);
            thread::sleep(Duration::from_micros(20));
            to.store(seen, Ordering::SeqCst);
            Ok(())
        }));
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let (group, written, durable) = (
                    Arc::clone(&group),
                    Arc::clone(&written),
                    Arc::clone(&durable),
                );
                thread::spawn(move || {
                    for _ in 0..500 {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        block_on(group.sync()).unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                })
            })
            .collect();
        writers
            .into_iter()
            .for_each(|writer| writer.join().unwrap());
    }
}
