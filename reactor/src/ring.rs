//! Data I/O through the io_uring of the calling thread.
//!
//! A thread's ring belongs to the thread's owner, who also has entries of its own on it: commands of
//! a device, say. A [`RingIo`] is the share that data I/O has in that ring. While one lives, whatever
//! [`FileIo`](crate::FileIo) begins on its thread and would have to wait for goes through the ring;
//! on other threads it goes to the threads for blocking work as before. So neither the pool nor
//! `FileIo` is told which thread it runs on, and the ring never hears of the pool.
//!
//! # What the owner does
//!
//! In a loop: run the executor's ready tasks, [`RingIo::enter`], and give each completion that
//! carries [`RING_IO_MARK`] to [`RingIo::complete`]. The doorbell of the executor is on the ring too,
//! so that wake-ups from other threads end the wait. Nothing else may block such a thread, least of
//! all [`block_on`](crate::block_on): what it waited for would need the loop to go round.
//!
//! # Who owns the memory
//!
//! The operation does, from [`begin`] until its completion: the kernel reads and writes buffers that
//! nobody else can reach, and a dropped future changes nothing. That costs a copy for each operation,
//! on the cold path only, where it is a small part of the time; in return no safe code, however it
//! treats its futures, can make the kernel write where it should not.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::executor::{Bell, Executor};
use crate::pages::Pages;

/// The bit of an entry's user data that says it is data I/O; the owner's own entries lack it.
pub const RING_IO_MARK: u64 = 1 << 63;

/// The user data of the doorbell's entry. Slots never get there.
const DOORBELL: u64 = u64::MAX;

thread_local! {
    static CURRENT: RefCell<Option<Rc<Operations>>> = const { RefCell::new(None) };
}

/// What data I/O asks of a ring.
pub(crate) enum Request {
    /// Fill the buffer.
    Read { at: u64, buffer: Pages },
    /// Write what is in the buffer.
    Write { at: u64, buffer: Pages },
    /// As `fdatasync` does.
    SyncData,
    /// As `fallocate` does.
    Allocate {
        mode: FallocateFlags,
        at: u64,
        len: u64,
    },
}

impl Request {
    /// What was to be read into, or written.
    pub(crate) fn into_buffer(self) -> Pages {
        match self {
            Request::Read { buffer, .. } | Request::Write { buffer, .. } => buffer,
            Request::SyncData | Request::Allocate { .. } => Pages::default(),
        }
    }
}

/// How a request ended.
pub(crate) struct Finished {
    /// How many bytes were moved, which may be fewer than asked for.
    pub(crate) result: io::Result<usize>,
    /// The bytes read, in front, or those to be written.
    pub(crate) buffer: Pages,
}

/// Begins a request on the ring of this thread; `done` is called on this thread when it has ended.
/// Gives both back if the thread has no ring.
pub(crate) fn begin<D: FnOnce(Finished) + 'static>(
    file: &Arc<File>,
    request: Request,
    done: D,
) -> Result<(), (Request, D)> {
    CURRENT.with_borrow(|current| match current {
        Some(operations) => {
            operations.begin(Arc::clone(file), request, Box::new(done));
            Ok(())
        }
        None => Err((request, done)),
    })
}

/// Whether this thread has a ring for data I/O.
pub(crate) fn is_here() -> bool {
    CURRENT.with_borrow(Option::is_some)
}

/// One operation from its beginning to its completion.
struct Operation {
    /// Keeps the descriptor open until the kernel has taken the entry.
    _file: Arc<File>,
    /// What the kernel reads or writes. Its heap memory stays where it is.
    buffer: Pages,
    done: Box<dyn FnOnce(Finished)>,
}

#[derive(Default)]
struct Operations {
    slots: RefCell<Vec<Option<Operation>>>,
    free: RefCell<Vec<usize>>,
    /// Entries that the ring has not taken yet.
    waiting: RefCell<VecDeque<squeue::Entry>>,
    in_flight: Cell<usize>,
}

impl Operations {
    fn begin(&self, file: Arc<File>, request: Request, done: Box<dyn FnOnce(Finished)>) {
        let fd = types::Fd(file.as_raw_fd());
        let (entry, buffer) = match request {
            Request::Read { at, mut buffer } => {
                // More than the length field holds is read in pieces, by the caller.
                let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                let entry = opcode::Read::new(fd, buffer.as_mut_ptr(), len).offset(at);
                (entry.build(), buffer)
            }
            Request::Write { at, buffer } => {
                let len = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
                let entry = opcode::Write::new(fd, buffer.as_ptr(), len).offset(at);
                (entry.build(), buffer)
            }
            Request::SyncData => {
                let entry = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
                (entry.build(), Pages::default())
            }
            Request::Allocate { mode, at, len } => {
                let entry = opcode::Fallocate::new(fd, len)
                    .offset(at)
                    .mode(mode.bits().cast_signed());
                (entry.build(), Pages::default())
            }
        };
        let operation = Operation {
            _file: file,
            buffer,
            done,
        };
        let slot = self.put(operation);
        let user_data = RING_IO_MARK | slot as u64;
        self.waiting
            .borrow_mut()
            .push_back(entry.user_data(user_data));
        self.in_flight.set(self.in_flight.get() + 1);
    }

    fn put(&self, operation: Operation) -> usize {
        let mut slots = self.slots.borrow_mut();
        if let Some(slot) = self.free.borrow_mut().pop() {
            slots[slot] = Some(operation);
            return slot;
        }
        slots.push(Some(operation));
        slots.len() - 1
    }

    fn take(&self, user_data: u64) -> Option<Operation> {
        let slot = usize::try_from(user_data & !RING_IO_MARK).ok()?;
        let operation = self.slots.borrow_mut().get_mut(slot)?.take()?;
        self.free.borrow_mut().push(slot);
        self.in_flight.set(self.in_flight.get() - 1);
        Some(operation)
    }
}

/// The share of a thread's data I/O in the thread's ring, until dropped.
pub struct RingIo {
    operations: Rc<Operations>,
    bell: Bell,
}

impl RingIo {
    /// From now on, what this thread begins goes through its ring, on which the doorbell of its
    /// executor is heard.
    ///
    /// # Panics
    /// When the thread has one already.
    pub fn new<F: Future<Output = ()>>(executor: &Executor<F>) -> Self {
        let operations = Rc::new(Operations::default());
        let ring_io = RingIo {
            operations: Rc::clone(&operations),
            bell: executor.bell(),
        };
        let before = CURRENT.with_borrow_mut(|current| current.replace(operations));
        assert!(before.is_none(), "a thread has one ring for data I/O");
        ring_io.hear_doorbell();
        ring_io
    }

    fn hear_doorbell(&self) {
        let fd = types::Fd(self.bell.doorbell().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, POLL_IN)
            .build()
            .user_data(DOORBELL);
        self.operations.waiting.borrow_mut().push_back(entry);
    }

    /// How many operations have begun and not ended.
    pub fn in_flight(&self) -> usize {
        self.operations.in_flight.get()
    }

    /// Hands the kernel what has begun, and the owner's entries with it; then, unless a task is
    /// ready, sleeps until there is a completion. Being interrupted by a signal is no error.
    pub fn enter<F: Future<Output = ()>>(
        &self,
        executor: &Executor<F>,
        ring: &mut IoUring,
    ) -> io::Result<()> {
        self.push_waiting(ring)?;
        executor.sleep(
            |may_wait| match ring.submit_and_wait(usize::from(may_wait)) {
                Ok(_) => Ok(()),
                Err(cause) if is_passing(&cause) => Ok(()),
                Err(cause) => Err(cause),
            },
        )
    }

    fn push_waiting(&self, ring: &mut IoUring) -> io::Result<()> {
        let mut waiting = self.operations.waiting.borrow_mut();
        while let Some(entry) = waiting.front() {
            // SAFETY: the entry's descriptor and buffer must stay valid until its completion. Both
            // belong to an operation that stays in its slot until `complete` takes it out, whose
            // caller promises that this is its completion; `drop` leaks those that are left. The
            // doorbell's entry has no buffer, and its descriptor is kept open by `self.bell`.
            let pushed = unsafe { ring.submission().push(entry) };
            if pushed.is_ok() {
                waiting.pop_front();
                continue;
            }
            match ring.submit() {
                Ok(_) => {}
                // The kernel wants its completions taken first: the rest waits for the next round.
                Err(cause) if is_passing(&cause) => return Ok(()),
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Ends the operation that a completion with [`RING_IO_MARK`] belongs to.
    ///
    /// # Safety
    /// The completion must come from the ring that [`RingIo::enter`] was given, and be passed on
    /// once: the operation's buffer is no longer the kernel's afterwards.
    pub unsafe fn complete(&self, user_data: u64, result: i32) {
        if user_data == DOORBELL {
            self.bell.silence();
            self.hear_doorbell();
            return;
        }
        let Some(operation) = self.operations.take(user_data) else {
            unreachable!("a completion without an operation")
        };
        let result = usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
        (operation.done)(Finished {
            result,
            buffer: operation.buffer,
        });
    }
}

impl Drop for RingIo {
    /// An owner waits until nothing is in flight. One that cannot, since its ring has failed, leaves
    /// operations behind: they fail, and their buffers are leaked, for the kernel may still use
    /// them.
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = None);
        let left = std::mem::take(&mut *self.operations.slots.borrow_mut());
        for mut operation in left.into_iter().flatten() {
            std::mem::forget(std::mem::take(&mut operation.buffer));
            (operation.done)(Finished {
                result: Err(Errno::CANCELED.into()),
                buffer: Pages::default(),
            });
        }
    }
}

/// `POLLIN`.
const POLL_IN: u32 = 1;

/// Whether the next try may well succeed: a signal came, or completions are to be taken first.
fn is_passing(cause: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(cause),
        Some(Errno::INTR | Errno::AGAIN | Errno::BUSY)
    )
}

#[cfg(test)]
pub(crate) mod tests;
