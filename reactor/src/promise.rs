//! A value that comes later, perhaps from another thread.

use std::future::Future;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use parking_lot::Mutex;

/// The result of work that is under way. The work goes on if this is dropped.
#[must_use = "the result is the future's"]
pub struct Offload<T> {
    outcome: Arc<Mutex<Outcome<T>>>,
}

/// The duty to leave the result of a piece of work.
pub(crate) struct Promise<T> {
    outcome: Arc<Mutex<Outcome<T>>>,
}

/// Where the result is left, and who waits for it.
struct Outcome<T> {
    result: Option<thread::Result<T>>,
    waiter: Option<Waker>,
}

/// A result to come, from both ends.
pub(crate) fn promise<T>() -> (Promise<T>, Offload<T>) {
    let outcome = Arc::new(Mutex::new(Outcome {
        result: None,
        waiter: None,
    }));
    let theirs = Arc::clone(&outcome);
    (Promise { outcome: theirs }, Offload { outcome })
}

impl<T> Promise<T> {
    /// Leaves the result, or the panic that came instead of it.
    pub(crate) fn keep(self, result: thread::Result<T>) {
        let waiter = {
            let mut outcome = self.outcome.lock();
            outcome.result = Some(result);
            outcome.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

impl<T> Future for Offload<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut outcome = self.outcome.lock();
        match outcome.result.take() {
            Some(Ok(value)) => Poll::Ready(value),
            Some(Err(panic)) => resume_unwind(panic),
            None => {
                outcome.waiter = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
