//! One connection in transmission: the loop of its thread.
//!
//! A round takes every request that has arrived, polls each once, sends all replies that are ready
//! with one call, and receives. While nothing runs and nothing is to be sent, receiving blocks in the
//! kernel, which costs one system call a round (`awake.rs` tells when it does not); otherwise the thread sleeps until the socket has
//! news or a task is woken.
//!
//! A client that does not take its replies is not read from; its tasks go on. A client that is gone
//! gets no replies, but what it had sent completely is carried out, unless nothing but the reply would come of it.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pool::{Host, ThinDevice};
use reactor::{Executor, Interest, block_on};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::awake::Wait;
use crate::budget::{Budget, IN_FLIGHT_MAX, SharedBudget};
use crate::command::Refusal;
use crate::direct::{Siblings, Standing};
use crate::handshake::Agreement;
use crate::intake::{Intake, Next};
use crate::outbox::SLICES_MAX;
use crate::stream::Stream;
use crate::transmission::{Incoming, Session};
use crate::wire::{Errno, Request};

/// How long a client may leave replies untaken before the connection ends.
const SEND_TIMEOUT: Duration = Duration::from_secs(300);
/// How soon a connection asks again for memory that others use; each time it waits twice as long.
const BUDGET_RETRY_MIN: Duration = Duration::from_millis(10);
const BUDGET_RETRY_MAX: Duration = Duration::from_millis(640);

/// The most that the task of a request may take, in bytes: it is moved when it is spawned.
const TASK_BYTES_MAX: usize = 2048;

/// What a thread needs to serve a connection.
pub(crate) struct Parts<H: Host> {
    pub(crate) stream: Stream,
    /// What was received behind the handshake.
    pub(crate) received: Vec<u8>,
    pub(crate) agreement: Agreement<ThinDevice<H>>,
    pub(crate) budget: Arc<SharedBudget>,
    pub(crate) stopping: Arc<AtomicBool>,
    /// This connection's number, and all to the same client, when it may repeat requests on another.
    pub(crate) siblings: Option<(u64, Arc<Siblings>)>,
}

/// Serves a connection until it is over and every request has finished.
pub(crate) fn serve<H: Host>(parts: Parts<H>) -> io::Result<()> {
    let session = Rc::new(Session::new(parts.agreement, &parts.budget));
    let connection = Connection {
        executor: Executor::new()?,
        serve: |session: Rc<Session<H>>, incoming| async move { session.serve(incoming).await },
        intake: Intake::new(&parts.received),
        budget: Budget::new(parts.budget),
        session: Rc::clone(&session),
        stream: parts.stream,
        stopping: Arc::clone(&parts.stopping),
        siblings: parts.siblings,
        idle: Wait::new(),
        intake_state: Intaking::Waiting,
        last_sent: Instant::now(),
        budget_retry: BUDGET_RETRY_MIN,
    };
    connection.run()?;
    if parts.stopping.load(Ordering::Acquire)
        && let Err(cause) = block_on(session.device().flush())
    {
        tracing::warn!(%cause, "flushing at the end of a connection failed");
    }
    Ok(())
}

/// Why no more requests were taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Intaking {
    /// More bytes are needed.
    Waiting,
    /// A limit is reached, or another connection must end first.
    NoRoom,
    /// No request will follow.
    Over,
}

/// `S` makes a task of a request; the type of that task, `F`, has no name.
struct Connection<H: Host, S, F> {
    executor: Executor<F>,
    serve: S,
    intake: Intake,
    budget: Budget,
    session: Rc<Session<H>>,
    stream: Stream,
    stopping: Arc<AtomicBool>,
    siblings: Option<(u64, Arc<Siblings>)>,
    idle: Wait,
    intake_state: Intaking,
    /// When the client last took a byte, or had none to take.
    last_sent: Instant,
    budget_retry: Duration,
}

impl<H, S, F> Connection<H, S, F>
where
    H: Host,
    S: Fn(Rc<Session<H>>, Incoming) -> F,
    F: Future<Output = ()>,
{
    fn run(mut self) -> io::Result<()> {
        const { assert!(size_of::<F>() <= TASK_BYTES_MAX) };
        loop {
            self.take_requests();
            self.end_waiting();
            self.executor.run_ready();
            self.send();
            let idle = self.executor.is_empty() && !self.has_output();
            match (idle, self.intake_state) {
                (true, Intaking::Over) => {
                    self.stream.close();
                    return Ok(());
                }
                (true, Intaking::Waiting) => {
                    let (intake, stream) = (&mut self.intake, &mut self.stream);
                    self.idle.until_news(|sleep| intake.receive(stream, sleep));
                }
                _ => self.wait()?,
            }
        }
    }

    /// Takes what has arrived, as far as limits allow, and polls each request once.
    fn take_requests(&mut self) {
        let now = Instant::now();
        let stopping = self.stopping.load(Ordering::Relaxed);
        // Once a round, and only when there is a request: it is a system call.
        let mut standing = None;
        loop {
            let in_flight = self.executor.len() + self.session.outbox.borrow().len();
            let (session, budget) = (&self.session, &mut self.budget);
            let siblings = self.siblings.as_ref();
            let find_standing = || {
                siblings.map_or(Standing::Clear, |(own, siblings)| {
                    siblings.standing_of(*own)
                })
            };
            let admit = |request: &Request| {
                if *standing.get_or_insert_with(find_standing) != Standing::Clear {
                    return None;
                }
                let cost = session.cost(request);
                (in_flight < IN_FLIGHT_MAX && budget.take(cost)).then_some(cost)
            };
            let next = self.intake.next(&mut session.buffers.borrow_mut(), admit);
            self.intake_state = match next {
                Next::Request(taken) => {
                    self.budget_retry = BUDGET_RETRY_MIN;
                    let shutdown = || Refusal::new(Errno::Shutdown, "the server is shutting down");
                    let incoming = Incoming {
                        request: taken.request,
                        payload: taken.payload,
                        cost: taken.cost,
                        refusal: taken.refusal.or_else(|| stopping.then(shutdown)),
                        begun: now,
                    };
                    self.executor
                        .spawn((self.serve)(Rc::clone(&self.session), incoming));
                    continue;
                }
                Next::Incomplete => Intaking::Waiting,
                Next::NoRoom if standing == Some(Standing::CutOff) => {
                    self.intake.stop();
                    Intaking::Over
                }
                Next::NoRoom => Intaking::NoRoom,
                Next::Over => Intaking::Over,
            };
            return;
        }
    }

    /// With the client gone, or the server about to end, nothing waits for data space any more.
    fn end_waiting(&self) {
        let is_over = match self.intake_state {
            Intaking::Over => true,
            // Not read from, so that its end would not be noticed.
            Intaking::NoRoom => self.session.deaf.get() || self.client_has_hung_up(),
            Intaking::Waiting => self.session.deaf.get(),
        };
        if is_over || self.stopping.load(Ordering::Relaxed) {
            // A client that repeats requests on another connection is to hear of them there.
            self.session.withholds.set(self.siblings.is_some());
            self.session.device().end_waiting();
        }
    }

    fn client_has_hung_up(&self) -> bool {
        let mut polled = [PollFd::from_borrowed_fd(
            self.stream.as_fd(),
            PollFlags::RDHUP,
        )];
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        poll(&mut polled, Some(&Timespec::default())).is_ok()
            && polled[0].revents().intersects(gone)
    }

    /// Whether anything waits to be sent.
    fn has_output(&self) -> bool {
        !self.session.outbox.borrow().is_empty() || self.stream.holds_output()
    }

    /// Sends until everything is out or the client takes no more for now.
    fn send(&mut self) {
        if !self.has_output() {
            self.last_sent = Instant::now();
        }
        match self.send_replies() {
            Err(cause) if cause.kind() != io::ErrorKind::WouldBlock => {
                tracing::debug!(%cause, "the client takes no more replies");
                self.drop_replies();
            }
            _ => {}
        }
        let released = self.session.outbox.borrow_mut().collect_released();
        self.budget.give_back(released);
    }

    fn send_replies(&mut self) -> io::Result<()> {
        let mut outbox = self.session.outbox.borrow_mut();
        let mut buffers = self.session.buffers.borrow_mut();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let used = outbox.gather(&mut slices);
            match self.stream.send(&slices[..used]) {
                Ok(count) => {
                    outbox.advance(count, &mut buffers);
                    self.last_sent = Instant::now();
                }
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause),
            }
        }
        self.stream.flush()
    }

    /// The client takes nothing more; its running requests finish.
    fn drop_replies(&mut self) {
        self.session.deaf.set(true);
        self.stream.abandon();
        self.session
            .outbox
            .borrow_mut()
            .clear(&mut self.session.buffers.borrow_mut());
    }

    /// Sleeps until a task is woken or the socket has news, and receives if there is need.
    fn wait(&mut self) -> io::Result<()> {
        let sending = self.has_output();
        let receiving = !sending && self.intake_state == Intaking::Waiting;
        if receiving && self.stream.holds_input() {
            self.intake.receive(&mut self.stream, false);
            return Ok(());
        }
        let timeout = if sending {
            let left = SEND_TIMEOUT.saturating_sub(self.last_sent.elapsed());
            if left.is_zero() {
                tracing::info!("a client has not taken its replies for five minutes");
                self.drop_replies();
                self.intake.stop();
                return Ok(());
            }
            Some(left)
        } else {
            // With requests of its own in flight, memory comes back when they finish; but others
            // may be the ones to wait for.
            (self.intake_state == Intaking::NoRoom).then_some(self.budget_retry)
        };
        let interest = Interest {
            readable: receiving,
            writable: sending,
        };
        // Without interest in either, it still tells that the client is gone.
        let socket = (!self.session.deaf.get()).then(|| (self.stream.as_fd(), interest));
        if self.intake_state == Intaking::NoRoom {
            self.budget_retry = (self.budget_retry * 2).min(BUDGET_RETRY_MAX);
        }
        let news = self.executor.wait(socket, timeout)?;
        if receiving && news.readable {
            self.intake.receive(&mut self.stream, false);
        } else if !sending && news.readable {
            self.drop_replies();
        }
        Ok(())
    }
}
