//! A thread that finishes what other threads begin.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::executor::{Bell, Executor};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A thread with an executor, for front ends whose own threads must go on.
///
/// Dropping it waits until every task has finished.
pub struct Background {
    inbox: Arc<Mutex<Inbox>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Inbox {
    tasks: Vec<Task>,
    closed: bool,
}

impl Background {
    /// Starts the thread, called `name` in lists of threads.
    pub fn start(name: &str) -> io::Result<Self> {
        let executor = Executor::new()?;
        let bell = executor.bell();
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let theirs = Arc::clone(&inbox);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || serve(executor, &theirs))?;
        Ok(Background {
            inbox,
            bell,
            thread: Some(thread),
        })
    }

    /// Polls a task once on the caller's thread; if it is pending then, the background thread
    /// finishes it.
    pub fn spawn_or_finish(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut task: Task = Box::pin(task);
        // Nobody needs to hear of wake-ups before the hand-over: it brings a poll of its own.
        if task
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
        {
            self.inbox.lock().tasks.push(task);
            self.bell.ring();
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.inbox.lock().closed = true;
        self.bell.ring();
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A task may hold the last reference to its own thread, which cannot wait for itself.
        if thread.thread().id() != thread::current().id() {
            // A panic was reported by the thread itself.
            let _finished = thread.join();
        }
    }
}

fn serve(mut executor: Executor<Task>, inbox: &Mutex<Inbox>) {
    loop {
        let (tasks, closed) = {
            let mut inbox = inbox.lock();
            (std::mem::take(&mut inbox.tasks), inbox.closed)
        };
        let quiet = tasks.is_empty();
        tasks.into_iter().for_each(|task| executor.spawn(task));
        if executor.run_ready() == 0 && quiet {
            if closed && executor.is_empty() {
                return;
            }
            if executor.wait(None, None).is_err() {
                // Polling two descriptors fails for want of kernel memory only, which passes.
                thread::yield_now();
            }
        }
    }
}
