//! No wake-up is lost, however waking and falling asleep interleave. A lost one hangs the test.

use std::future::poll_fn;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use reactor::{Background, BlockingPool, Executor, Interest, block_on, yield_now};

const STRESS_WAITS: u64 = 200_000;

/// A task that waits for a counter to pass what it saw last.
async fn follow(counter: Arc<AtomicU64>, waiter: Arc<Mutex<Option<Waker>>>, until: u64) {
    let mut seen = 0;
    while seen < until {
        seen = poll_fn(|context| {
            *waiter.lock() = Some(context.waker().clone());
            let now = counter.load(Ordering::SeqCst);
            if now > seen {
                Poll::Ready(now)
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

fn raise(counter: &AtomicU64, waiter: &Mutex<Option<Waker>>) {
    counter.fetch_add(1, Ordering::SeqCst);
    if let Some(waker) = waiter.lock().take() {
        waker.wake();
    }
}

/// The waker fires while the owner is anywhere between polling and sleeping.
#[test]
fn one_task_and_one_waker() {
    let (counter, waiter) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
    let mut executor = Executor::new().unwrap();
    executor.spawn(follow(
        Arc::clone(&counter),
        Arc::clone(&waiter),
        STRESS_WAITS,
    ));
    let other = thread::spawn(move || {
        for round in 0..STRESS_WAITS {
            raise(&counter, &waiter);
            (0..round % 64).for_each(|_| std::hint::spin_loop());
        }
    });
    while !executor.is_empty() {
        executor.wait(None, None).unwrap();
        executor.run_ready();
    }
    other.join().unwrap();
}

/// Strict alternation between two spinning threads: each round the waker fires a little later after
/// the task has become pending, so that it hits every step of falling asleep.
#[test]
fn ping_pong() {
    let mut executor = Executor::new().unwrap();
    let (asked, answered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let waker = Arc::new(Mutex::new(None));
    let (asking, answer, own_waker) = (
        Arc::clone(&asked),
        Arc::clone(&answered),
        Arc::clone(&waker),
    );
    executor.spawn(poll_fn(move |context| {
        own_waker
            .lock()
            .get_or_insert_with(|| context.waker().clone());
        if answer.load(Ordering::SeqCst) == asking.load(Ordering::SeqCst) {
            asking.fetch_add(1, Ordering::SeqCst);
        }
        if asking.load(Ordering::SeqCst) > STRESS_WAITS {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }));
    let other = thread::spawn(move || {
        let waker: Waker = waker
            .lock()
            .clone()
            .expect("the task was polled when it was spawned");
        for round in 1..=STRESS_WAITS {
            while asked.load(Ordering::SeqCst) < round {
                std::hint::spin_loop();
            }
            (0..round % 200).for_each(|_| std::hint::spin_loop());
            answered.store(round, Ordering::SeqCst);
            waker.wake_by_ref();
        }
    });
    while !executor.is_empty() {
        executor.wait(None, None).unwrap();
        executor.run_ready();
    }
    other.join().unwrap();
}

#[test]
fn many_tasks_and_many_wakers() {
    let threads = BlockingPool::new(4);
    let mut executor = Executor::new().unwrap();
    let finished = Arc::new(AtomicU64::new(0));
    for round in 0..2000u64 {
        let (threads, finished) = (threads.clone(), Arc::clone(&finished));
        executor.spawn(async move {
            for step in 0..5 {
                assert_eq!(threads.offload(move || round + step).await, round + step);
                yield_now().await;
            }
            finished.fetch_add(1, Ordering::SeqCst);
        });
        if executor.len() >= 32 {
            executor.wait(None, None).unwrap();
            executor.run_ready();
        }
    }
    while !executor.is_empty() {
        executor.wait(None, None).unwrap();
        executor.run_ready();
    }
    assert_eq!(finished.load(Ordering::SeqCst), 2000);
}

#[test]
fn a_bell_ends_the_wait() {
    let mut executor = Executor::<std::future::Ready<()>>::new().unwrap();
    let bell = executor.bell();
    bell.ring();
    executor.wait(None, None).unwrap();
    for _ in 0..10_000 {
        let bell = bell.clone();
        let (done, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                bell.ring();
                done.send(()).unwrap();
            });
            executor.wait(None, None).unwrap();
            wait.recv().unwrap();
        });
    }
}

#[test]
fn news_of_the_descriptor_ends_the_wait() {
    let mut executor = Executor::<std::future::Ready<()>>::new().unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    let reading = Interest {
        readable: true,
        writable: false,
    };
    let news = executor
        .wait(Some((far.as_fd(), reading)), Some(Duration::ZERO))
        .unwrap();
    assert!(!news.readable && !news.writable);
    near.write_all(b"x").unwrap();
    assert!(
        executor
            .wait(Some((far.as_fd(), reading)), None)
            .unwrap()
            .readable
    );
    let writing = Interest {
        readable: false,
        writable: true,
    };
    assert!(
        executor
            .wait(Some((far.as_fd(), writing)), None)
            .unwrap()
            .writable
    );
    drop(near);
    let news = executor.wait(Some((far.as_fd(), writing)), None).unwrap();
    assert!(
        news.readable && news.writable,
        "a peer that is gone is news of every kind"
    );
}

#[test]
fn a_yielding_task_does_not_keep_the_thread() {
    let mut executor = Executor::new().unwrap();
    executor.spawn(async {
        for _ in 0..10 {
            yield_now().await;
        }
    });
    for _ in 0..10 {
        assert_eq!(executor.run_ready(), 1);
    }
    assert!(executor.is_empty());
    assert_eq!(executor.run_ready(), 0);
}

#[test]
fn background_finishes_what_is_pending() {
    let background = Background::start("background").unwrap();
    let threads = BlockingPool::new(3);
    let finished = Arc::new(AtomicU64::new(0));
    let inline = Arc::clone(&finished);
    background.spawn_or_finish(async move {
        inline.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(
        finished.load(Ordering::SeqCst),
        1,
        "what need not wait finishes at once"
    );
    for _ in 0..5000 {
        let (threads, finished) = (threads.clone(), Arc::clone(&finished));
        background.spawn_or_finish(async move {
            yield_now().await;
            threads.offload(|| ()).await;
            finished.fetch_add(1, Ordering::SeqCst);
        });
    }
    drop(background);
    assert_eq!(
        finished.load(Ordering::SeqCst),
        5001,
        "dropping it waits for its tasks"
    );
}

#[test]
fn block_on_survives_foreign_unparks() {
    thread::current().unpark();
    let threads = BlockingPool::new(1);
    for n in 0..1000 {
        thread::current().unpark();
        assert_eq!(block_on(threads.offload(move || n)), n);
    }
}
