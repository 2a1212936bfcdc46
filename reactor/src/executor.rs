//! The tasks of one thread.
//!
//! # Tasks
//!
//! A task is polled once when it is spawned and kept only if it is pending. Slots, their memory and
//! their wakers are used again and again, so that a task costs no allocation once the executor is
//! warm. A waker that outlives its task wakes whoever sits in the slot then; being polled without
//! reason is harmless.
//!
//! # No wake-up is lost
//!
//! Wakers may be used by any thread. A waker (1) puts its slot on the ready list, under the lock, and
//! (2) rings if the owner has announced that it sleeps. The owner (1) announces, and (2) looks at
//! the ready list, under the lock, before it sleeps. Whoever takes the lock second sees what the
//! other did: either the owner finds the slot, or the waker finds the announcement.

use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::doorbell::Doorbell;

/// Tasks of one kind, all polled by the thread that owns this.
///
/// Dropping it drops the tasks; an owner whose tasks must run to completion waits until
/// [`Executor::is_empty`].
pub struct Executor<F> {
    slots: Vec<Slot<F>>,
    free: Vec<usize>,
    running: Vec<usize>,
    shared: Arc<Shared>,
}

struct Slot<F> {
    task: Pin<Box<Option<F>>>,
    wake: Arc<SlotWake>,
    waker: Waker,
}

/// What wakers share with the owner.
struct Shared {
    ready: Mutex<Ready>,
    sleeping: AtomicBool,
    doorbell: Doorbell,
}

#[derive(Default)]
struct Ready {
    slots: Vec<usize>,
    rung: bool,
}

struct SlotWake {
    slot: usize,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for SlotWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.shared.ready.lock().slots.push(self.slot);
            self.shared.rouse();
        }
    }
}

impl Shared {
    /// Ends the owner's sleep, if it sleeps.
    fn rouse(&self) {
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            self.doorbell.ring();
        }
    }

    /// Takes back all rings so far.
    fn silence(&self) {
        self.doorbell.silence();
        self.ready.lock().rung = false;
    }
}

/// Rings at an executor's thread from anywhere.
#[derive(Clone)]
pub struct Bell {
    shared: Arc<Shared>,
}

impl Bell {
    /// Ends the thread's present sleep, or the next one.
    pub fn ring(&self) {
        self.shared.ready.lock().rung = true;
        self.shared.rouse();
    }

    /// Takes back all rings so far; for the owner, when it is awake and the doorbell was heard.
    pub(crate) fn silence(&self) {
        self.shared.silence();
    }

    /// What becomes readable when the doorbell rings.
    pub(crate) fn doorbell(&self) -> BorrowedFd<'_> {
        self.shared.doorbell.as_fd()
    }
}

/// What an owner wants to know of its own descriptor while it waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// That it can be read, or that its peer is gone.
    pub readable: bool,
    /// That it can be written.
    pub writable: bool,
}

/// What a wait brought for the owner's descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Reading will not block: bytes, the end, or an error.
    pub readable: bool,
    /// Writing will not block: room, or an error.
    pub writable: bool,
}

impl<F: Future<Output = ()>> Executor<F> {
    /// An executor without tasks. Fails when the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let shared = Shared {
            ready: Mutex::default(),
            sleeping: AtomicBool::new(false),
            doorbell: Doorbell::new()?,
        };
        Ok(Executor {
            slots: Vec::new(),
            free: Vec::new(),
            running: Vec::new(),
            shared: Arc::new(shared),
        })
    }

    /// How many tasks are pending.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether no task is pending.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A handle by which other threads end this thread's waits.
    pub fn bell(&self) -> Bell {
        Bell {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Polls a task once, at once, and keeps it if it is pending.
    pub fn spawn(&mut self, task: F) {
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        self.slots[index].task.set(Some(task));
        self.poll(index);
    }

    fn add_slot(&mut self) -> usize {
        let slot = self.slots.len();
        let shared = Arc::clone(&self.shared);
        let wake = Arc::new(SlotWake {
            slot,
            queued: AtomicBool::new(false),
            shared,
        });
        let waker = Waker::from(Arc::clone(&wake));
        self.slots.push(Slot {
            task: Box::pin(None),
            wake,
            waker,
        });
        slot
    }

    fn poll(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        // A waker may outlive its task, so that an empty slot can be woken.
        let Some(task) = slot.task.as_mut().as_pin_mut() else {
            return;
        };
        if task.poll(&mut Context::from_waker(&slot.waker)).is_ready() {
            slot.task.set(None);
            self.free.push(index);
        }
    }

    /// Polls each task that was woken before this call, once. Tasks woken meanwhile are left to the
    /// next call, so that one that always wakes itself does not keep the thread. Returns how many
    /// it polled.
    pub fn run_ready(&mut self) -> usize {
        debug_assert!(self.running.is_empty());
        std::mem::swap(&mut self.running, &mut self.shared.ready.lock().slots);
        let mut running = std::mem::take(&mut self.running);
        for &index in &running {
            // Before the poll: a wake-up during it must count.
            self.slots[index]
                .wake
                .queued
                .store(false, Ordering::Release);
            self.poll(index);
        }
        let polled = running.len();
        running.clear();
        self.running = running;
        polled
    }

    /// Calls `sleep`, which may wait for the doorbell and for what else it likes if its argument is
    /// true, and must only look if it is false: a task is ready then, or a [`Bell`] was rung. Wake-ups
    /// ring the doorbell until it returns.
    pub(crate) fn sleep<R>(&self, sleep: impl FnOnce(bool) -> R) -> R {
        self.shared.sleeping.store(true, Ordering::SeqCst);
        let awake = {
            let mut ready = self.shared.ready.lock();
            std::mem::take(&mut ready.rung) || !ready.slots.is_empty()
        };
        let slept = sleep(!awake);
        self.shared.sleeping.store(false, Ordering::SeqCst);
        slept
    }

    /// Sleeps until a task is woken, a [`Bell`] is rung, there is news of the descriptor, or the time
    /// is up; at most one of these is needed, and none is promised. While tasks are ready it only
    /// looks at the descriptor.
    pub fn wait(
        &mut self,
        descriptor: Option<(BorrowedFd<'_>, Interest)>,
        timeout: Option<Duration>,
    ) -> io::Result<News> {
        let (rung, news) = self.sleep(|may_wait| {
            let timeout = if may_wait {
                timeout
            } else {
                Some(Duration::ZERO)
            };
            poll_descriptors(&self.shared.doorbell, descriptor, timeout)
        })?;
        // A ring may arrive after the sleep it was meant to end; the next wait silences it.
        if rung {
            self.shared.silence();
        }
        Ok(news)
    }
}

/// Whether the doorbell rang, and the news of the descriptor.
fn poll_descriptors(
    doorbell: &Doorbell,
    descriptor: Option<(BorrowedFd<'_>, Interest)>,
    timeout: Option<Duration>,
) -> io::Result<(bool, News)> {
    // A timeout too long for the kernel is none.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let bell = PollFd::from_borrowed_fd(doorbell.as_fd(), PollFlags::IN);
    let own = descriptor.map(|(fd, interest)| {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, interest.readable);
        flags.set(PollFlags::OUT, interest.writable);
        PollFd::from_borrowed_fd(fd, flags)
    });
    let mut fds = [bell.clone(), own.unwrap_or(bell)];
    let count = if descriptor.is_some() { 2 } else { 1 };
    match poll(&mut fds[..count], timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok((false, News::default())),
        Err(cause) => return Err(cause.into()),
    }
    let rung = !fds[0].revents().is_empty();
    let flags = if count == 2 {
        fds[1].revents()
    } else {
        PollFlags::empty()
    };
    let over = flags.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
    let readable = over || flags.contains(PollFlags::IN);
    let writable = over || flags.contains(PollFlags::OUT);
    Ok((rung, News { readable, writable }))
}

/// Lets the other tasks of the executor go on first.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
