//! A seeded, single-threaded executor: it polls ready tasks in random order.
//!
//! Whatever waits for something that never comes is a deadlock, and the run panics; as it does when there is
//! no end to it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::prng::Prng;

/// A task of an [`run`].
pub type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// More than any run takes.
const POLLS_MAX: u64 = 20_000_000;

#[derive(Default)]
struct Ready(AtomicBool);

impl Wake for Ready {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Runs all tasks to completion.
pub fn run(tasks: Vec<Task<'_>>, prng: &mut Prng) {
    let mut running: Vec<(Task<'_>, Arc<Ready>)> = tasks
        .into_iter()
        .map(|task| (task, Arc::new(Ready(AtomicBool::new(true)))))
        .collect();
    let mut polls = 0u64;
    while !running.is_empty() {
        polls += 1;
        assert!(polls < POLLS_MAX, "no end after {polls} polls");
        let ready: Vec<usize> = (0..running.len())
            .filter(|index| running[*index].1.0.load(Ordering::SeqCst))
            .collect();
        assert!(
            !ready.is_empty(),
            "deadlock: {} tasks wait for ever",
            running.len()
        );
        let index = ready[prng.index(ready.len())];
        let (task, flag) = &mut running[index];
        flag.0.store(false, Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(flag));
        if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
            drop(running.swap_remove(index));
        }
    }
}

/// Runs one future to completion.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut result = None;
    {
        let result = &mut result;
        let task = Box::pin(async move { *result = Some(future.await) });
        run(vec![task], &mut Prng::new(0));
    }
    let Some(result) = result else {
        unreachable!("a task that finished has a result")
    };
    result
}

/// Runs one future to completion on a thread of its own kind: other threads wake it.
pub fn block_on_thread<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}
