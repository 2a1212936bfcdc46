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

use crate::blocking::BlockingPool;

/// Shares runs of one syncing function.
pub(crate) struct GroupSync {
    shared: Arc<Shared>,
    threads: BlockingPool,
}

struct Shared {
    sync: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
    state: Mutex<State>,
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
    pub(crate) fn new(
        threads: BlockingPool,
        sync: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let shared = Shared {
            sync: Box::new(sync),
            state: Mutex::default(),
        };
        GroupSync {
            shared: Arc::new(shared),
            threads,
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
                drop(state);
                let shared = Arc::clone(&self.shared);
                self.threads.run(Box::new(move || shared.run()));
            }
            Poll::Pending
        })
        .await
    }
}

impl Shared {
    /// Syncs until nobody needs another run.
    fn run(&self) {
        let mut state = self.state.lock();
        while state.failed.is_none() && state.done < state.wanted {
            state.begun += 1;
            drop(state);
            let result = (self.sync)();
            state = self.state.lock();
            match result {
                Ok(()) => state.done = state.begun,
                Err(cause) => state.failed = Some(Failure::of(&cause)),
            }
            // Who needs the next run waits again.
            let waiters = std::mem::take(&mut state.waiters);
            drop(state);
            waiters.into_iter().for_each(Waker::wake);
            state = self.state.lock();
        }
        state.running = false;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::{Executor, block_on};

    #[test]
    fn a_failure_is_final() {
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let group = GroupSync::new(BlockingPool::new(1), move || {
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
        let group = Arc::new(GroupSync::new(BlockingPool::new(1), move || {
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
        let group = Arc::new(GroupSync::new(BlockingPool::new(2), move || {
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
