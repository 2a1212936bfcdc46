//! The thread of a queue: one ring, one executor, one task a tag.
//!
//! A tag's task fetches a request, carries it out, and answers it, which fetches the next. The loop
//! runs what is ready, enters the ring once for all that came of it, and hands completions out: the
//! driver's to their tags' tasks, data I/O's to [`RingIo`].
//!
//! # Ends
//!
//! The driver ends the queue by aborting its commands, when the device is stopped. Then the thread ends, once
//! no task is in the middle of a request and no data I/O is in flight. It does not wait for the tasks to
//! end, for those of aborted commands never do.
//!
//! Or we leave the device to the next process, by the [`Switch`]. Requests under way are answered, but for writes
//! that lack space, and none is begun; then the thread parks, and only the end of the process ends it. For then the driver knows what to
//! do with the commands and requests it has here: it sends them to the next process. A thread that closed
//! its ring under load while the process went on was seen to leave requests that the driver waits
//! for, for ever (Linux 6.12).
//!
//! A queue whose commands were refused serves no more, and waits for either.
//!
//! # Memory
//!
//! The driver copies to and from a tag's buffer while a command of that tag is with it, and may do so as long
//! as the thread's ring exists: until the thread is no more. So the thread hands its buffers out when
//! it ends, and whoever joins it frees them.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use io_uring::IoUring;
use libublk::ctrl::UblkCtrl;
use libublk::io::{BufDesc, UblkQueue};
use libublk::uring_async::{ublk_reap_io_events_with_update_queue, ublk_wake_task};
use libublk::{UblkError, ublk_init_task_ring, with_task_io_ring_mut};
use parking_lot::{Condvar, Mutex};
use pool::{Host, ThinDevice};
use reactor::{Bell, Executor, RING_IO_MARK, RingIo};
use rustix::io::Errno;

use super::control::CharDevice;
use crate::buffer::PageBuffer;
use crate::request::Descriptor;
use crate::serve::carry_out;

/// The answer to a write that lacked space.
const NO_SPACE: i32 = -Errno::NOSPC.raw_os_error();

/// Parks the queues of a device from another thread.
#[derive(Default)]
pub(crate) struct Switch {
    thrown: AtomicBool,
    bells: Mutex<Vec<Bell>>,
    parked: AtomicUsize,
}

impl Switch {
    /// Makes the queues take no more requests, and their threads park when those under way are
    /// answered.
    pub(crate) fn throw(&self) {
        self.thrown.store(true, Ordering::SeqCst);
        self.bells.lock().iter().for_each(Bell::ring);
    }

    /// How many threads have parked.
    pub(crate) fn parked(&self) -> usize {
        self.parked.load(Ordering::SeqCst)
    }

    fn is_thrown(&self) -> bool {
        self.thrown.load(Ordering::SeqCst)
    }

    fn connect(&self, bell: Bell) {
        self.bells.lock().push(bell);
    }
}

/// A place at the line where the threads of a device wait for each other before they fetch. Who gives its
/// place up is not waited for.
pub(crate) struct StartLine {
    missing: Arc<(Mutex<usize>, Condvar)>,
}

impl StartLine {
    /// One for each of so many threads.
    pub(crate) fn places(count: u16) -> Vec<StartLine> {
        let missing = Arc::new((Mutex::new(usize::from(count)), Condvar::new()));
        let place = || StartLine {
            missing: Arc::clone(&missing),
        };
        (0..count).map(|_| place()).collect()
    }

    /// Waits until all threads are there.
    fn wait(self) {
        let shared = Arc::clone(&self.missing);
        drop(self);
        let (missing, changed) = &*shared;
        changed.wait_while(&mut missing.lock(), |missing| *missing > 0);
    }
}

impl Drop for StartLine {
    fn drop(&mut self) {
        let (missing, changed) = &*self.missing;
        *missing.lock() -= 1;
        changed.notify_all();
    }
}

/// What a thread needs to serve a queue.
pub(crate) struct QueueJob<H: Host> {
    pub(crate) device: Arc<CharDevice>,
    pub(crate) number: u16,
    pub(crate) thin: ThinDevice<H>,
    pub(crate) switch: Arc<Switch>,
    pub(crate) start: StartLine,
}

/// What is left of a queue's thread: why it failed, if it did, and the buffers, which must outlive it.
pub(crate) struct QueueEnd {
    pub(crate) result: io::Result<()>,
    _buffers: Vec<PageBuffer>,
}

/// What the tasks of a queue share.
struct Queue<'a, H: Host> {
    /// Dropping it waits for every command that the driver still has: see [`serve`].
    commands: ManuallyDrop<UblkQueue<'a>>,
    thin: ThinDevice<H>,
    device: &'a CharDevice,
    switch: &'a Switch,
    /// How many tags are in the middle of a request.
    busy: Cell<usize>,
    /// Why the queue cannot go on.
    failure: RefCell<Option<io::Error>>,
}

/// Serves a queue until it ends.
pub(crate) fn serve_queue<H: Host>(job: QueueJob<H>) -> QueueEnd {
    // Marks the thread as one that memory reclaim waits for.
    UblkCtrl::init_queue_thread();
    let info = job.device.device().dev_info;
    let buffer_len = info.max_io_buf_bytes as usize;
    let mut buffers: Vec<_> = (0..info.queue_depth)
        .map(|_| PageBuffer::new(buffer_len))
        .collect();
    let device = Arc::clone(&job.device);
    let served = catch_unwind(AssertUnwindSafe(|| serve(job, &mut buffers)));
    let Ok(result) = served else {
        // A queue that nobody serves would hang its device, and unwinding would free memory the
        // driver uses. The next process takes the device over.
        tracing::error!("a queue's thread panicked; the process ends");
        std::process::abort();
    };
    if result.is_err() {
        // Whoever waits for this queue to be ready must not wait for ever.
        device.tell_ready(false);
    }
    QueueEnd {
        result,
        _buffers: buffers,
    }
}

fn serve<H: Host>(job: QueueJob<H>, buffers: &mut [PageBuffer]) -> io::Result<()> {
    init_ring(buffers.len())?;
    // Declared before what borrows it; made after what may fail, for from then on it is not dropped on an
    // error, and a device that it has open cannot be deleted.
    let queue;
    let mut executor = Executor::new()?;
    let ring_io = RingIo::new(&executor);
    let commands = UblkQueue::new(job.number, job.device.device()).map_err(io_error)?;
    queue = Queue {
        commands: ManuallyDrop::new(commands),
        thin: job.thin,
        device: &job.device,
        switch: &job.switch,
        busy: Cell::new(0),
        failure: RefCell::default(),
    };
    job.switch.connect(executor.bell());
    for (tag, buffer) in (0..).zip(buffers) {
        executor.spawn(queue.serve_tag(tag, buffer));
    }
    // All first fetches are with the driver after this one call, of all queues at about the same moment, so
    // that a process that dies leaves either all of them or none. To recover a device of which some queues
    // are fetched and others are not makes Linux 6.12 follow a null pointer.
    job.start.wait();
    with_task_io_ring_mut(|ring| ring.submit())?;
    job.device.tell_ready(true);
    loop {
        executor.run_ready();
        if queue.has_ended() && queue.busy.get() == 0 && ring_io.in_flight() == 0 {
            break;
        }
        with_task_io_ring_mut(|ring| ring_io.enter(&executor, ring))?;
        queue.reap(&ring_io)?;
    }
    // The last answers. What the driver sends in return is left to the next process.
    with_task_io_ring_mut(|ring| ring.submit())?;
    drop(executor);
    if !queue.commands.is_stopping() {
        drop(queue.thin);
        job.switch.parked.fetch_add(1, Ordering::SeqCst);
        loop {
            thread::park();
        }
    }
    drop(ManuallyDrop::into_inner(queue.commands));
    queue.failure.take().map_or(Ok(()), Err)
}

/// The thread's ring: room for a command and a data operation a tag, and the doorbell.
fn init_ring(depth: usize) -> io::Result<()> {
    let entries = u32::try_from(2 * depth + 32).unwrap_or(u32::MAX);
    ublk_init_task_ring(|cell| {
        let ring = IoUring::builder()
            .setup_cqsize(2 * entries)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(entries)?;
        cell.set(RefCell::new(ring))
            .map_err(|_| UblkError::OtherError(-Errno::EXIST.raw_os_error()))
    })
    .map_err(io_error)
}

impl<H: Host> Queue<'_, H> {
    /// Whether the driver has ended the queue, or we have.
    fn has_ended(&self) -> bool {
        self.switch.is_thrown() || self.commands.is_stopping()
    }

    /// Whether nothing more is to be begun.
    fn is_over(&self) -> bool {
        self.has_ended() || self.failure.borrow().is_some()
    }

    /// Serves one tag until the queue is over.
    async fn serve_tag(&self, tag: u16, buffer: &mut PageBuffer) {
        let address = BufDesc::RawAddress(buffer.address());
        let mut fetched = self
            .commands
            .submit_io_prep_cmd(tag, address, 0, None)
            .await;
        loop {
            match fetched {
                Ok(0) => {}
                // Not a request: the driver has refused the command, and the descriptor is stale.
                Ok(refused) => return self.fail(tag, refused),
                Err(_) => return,
            }
            if self.is_over() {
                return;
            }
            self.busy.set(self.busy.get() + 1);
            let answer = carry_out(&self.thin, self.descriptor(tag), buffer.bytes()).await;
            self.busy.set(self.busy.get() - 1);
            if self.switch.is_thrown() && answer == NO_SPACE {
                // Perhaps it was waiting for space: the driver hands it to the next process, which waits on.
                return;
            }
            // The next line hands the answer to the ring before it waits, so that nothing comes
            // between it and the count.
            let address = BufDesc::RawAddress(buffer.address());
            fetched = self
                .commands
                .submit_io_commit_cmd(tag, address, answer)
                .await;
        }
    }

    fn descriptor(&self, tag: u16) -> Descriptor {
        let described = self.commands.get_iod(tag);
        Descriptor {
            op_flags: described.op_flags,
            sectors: described.nr_sectors,
            start_sector: described.start_sector,
        }
    }

    fn fail(&self, tag: u16, refused: i32) {
        let cause = io::Error::from_raw_os_error(refused.saturating_neg());
        tracing::error!("{}: tag {tag} was refused: {cause}", self.thin.name());
        self.failure.borrow_mut().get_or_insert(cause);
        self.device.tell_ready(false);
    }

    /// Hands out the completions that are there.
    fn reap(&self, ring_io: &RingIo) -> io::Result<()> {
        ublk_reap_io_events_with_update_queue(&self.commands, false, None, |completion| {
            let user_data = completion.user_data();
            if user_data & RING_IO_MARK == 0 {
                ublk_wake_task(user_data, completion);
                return;
            }
            // SAFETY: this is called for each completion of the thread's ring, once, and that is the
            // ring `enter` was given. libublk marks only entries of targets so, and we make none
            // through it.
            unsafe { ring_io.complete(user_data, completion.result()) };
        })
        .map(drop)
        .map_err(io_error)
    }
}

fn io_error(cause: UblkError) -> io::Error {
    match cause {
        UblkError::IOError(cause) => cause,
        UblkError::UringIOError(number) | UblkError::OtherError(number) => {
            io::Error::from_raw_os_error(number.saturating_neg())
        }
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_start_together_without_those_that_gave_up() {
        let mut places = StartLine::places(3);
        let arrived = AtomicUsize::new(0);
        thread::scope(|scope| {
            drop(places.pop());
            for place in places {
                scope.spawn(|| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    place.wait();
                    assert_eq!(arrived.load(Ordering::SeqCst), 2);
                });
            }
        });
    }
}
