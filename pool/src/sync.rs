//! Waiting without a runtime: a list of wakers, and the three things built on it.
//!
//! Nothing here blocks a thread. Guards are owned values, so that a future that holds one may move
//! between threads. Wake-ups go to every waiter; each looks again whether its turn has come. The
//! lists are short: waiting is what happens off the fast path.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};

use parking_lot::Mutex;

/// Tasks that wait for something to change.
#[derive(Default)]
pub(crate) struct WaitList {
    wakers: Mutex<Vec<Waker>>,
}

impl WaitList {
    /// Wakes everybody who waits.
    pub(crate) fn wake_all(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock());
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until `ready` gives a value. It is asked again after every [`WaitList::wake_all`].
    pub(crate) async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| {
            if let Some(value) = ready() {
                return Poll::Ready(value);
            }
            self.wakers.lock().push(context.waker().clone());
            // The change may have come between the question and the registration.
            match ready() {
                Some(value) => Poll::Ready(value),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// Lets other tasks of the same thread go first, once.
pub(crate) async fn yield_now() {
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

/// A value that one task owns at a time. The owner takes it out altogether, so that it can be
/// moved into blocking work, and no lock is held meanwhile.
pub(crate) struct Exclusive<T> {
    slot: Mutex<Option<T>>,
    waiting: WaitList,
}

impl<T> Exclusive<T> {
    pub(crate) fn new(value: T) -> Self {
        Exclusive {
            slot: Mutex::new(Some(value)),
            waiting: WaitList::default(),
        }
    }

    /// Takes the value as soon as it is there.
    pub(crate) async fn acquire(self: &Arc<Self>) -> Held<T> {
        let value = self.waiting.until(|| self.slot.lock().take()).await;
        Held {
            value: Some(value),
            home: Arc::clone(self),
        }
    }

    /// Takes the value if it is there.
    pub(crate) fn try_acquire(self: &Arc<Self>) -> Option<Held<T>> {
        let value = self.slot.lock().take()?;
        Some(Held {
            value: Some(value),
            home: Arc::clone(self),
        })
    }

    /// Takes the value as soon as it is there, unless `done` says first that it is not needed.
    pub(crate) async fn acquire_unless(
        self: &Arc<Self>,
        mut done: impl FnMut() -> bool,
    ) -> Option<Held<T>> {
        let value = self
            .waiting
            .until(|| {
                if done() {
                    Some(None)
                } else {
                    self.slot.lock().take().map(Some)
                }
            })
            .await?;
        Some(Held {
            value: Some(value),
            home: Arc::clone(self),
        })
    }
}

/// The value of an [`Exclusive`], until dropped.
pub(crate) struct Held<T> {
    value: Option<T>,
    home: Arc<Exclusive<T>>,
}

impl<T> std::ops::Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let Some(value) = &self.value else {
            unreachable!("a held value is there until dropped")
        };
        value
    }
}

impl<T> std::ops::DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        let Some(value) = &mut self.value else {
            unreachable!("a held value is there until dropped")
        };
        value
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        *self.home.slot.lock() = self.value.take();
        self.home.waiting.wake_all();
    }
}

/// A gate that running operations hold open: who closes it waits until they are through, and new
/// ones wait until it opens again.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: WaitList,
}

#[derive(Default)]
struct GateState {
    closed: u32,
    inside: u64,
}

impl Gate {
    /// Passes the gate; inside until the pass is dropped.
    pub(crate) async fn enter(&self) -> GatePass<'_> {
        if !self.try_enter() {
            self.changed.until(|| self.try_enter().then_some(())).await;
        }
        GatePass(self)
    }

    fn try_enter(&self) -> bool {
        let mut state = self.state.lock();
        if state.closed == 0 {
            state.inside += 1;
        }
        state.closed == 0
    }

    /// Closes the gate to newcomers at once; [`Gate::drained`] waits for those inside.
    pub(crate) fn close(&self) {
        self.state.lock().closed += 1;
    }

    /// Waits until nobody is inside.
    pub(crate) async fn drained(&self) {
        self.changed
            .until(|| (self.state.lock().inside == 0).then_some(()))
            .await;
    }

    /// Takes one [`Gate::close`] back.
    pub(crate) fn open(&self) {
        let mut state = self.state.lock();
        assert!(state.closed > 0, "a gate was opened more often than closed");
        state.closed -= 1;
        drop(state);
        self.changed.wake_all();
    }
}

/// Being inside a [`Gate`].
pub(crate) struct GatePass<'a>(&'a Gate);

impl Drop for GatePass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.inside -= 1;
        let wake = state.inside == 0 && state.closed > 0;
        drop(state);
        if wake {
            self.0.changed.wake_all();
        }
    }
}

/// Gates that are closed until dropped.
pub(crate) struct ClosedGates<'a>(&'a [&'a Gate]);

impl<'a> ClosedGates<'a> {
    pub(crate) fn close(gates: &'a [&'a Gate]) -> Self {
        gates.iter().for_each(|gate| gate.close());
        ClosedGates(gates)
    }

    pub(crate) async fn drained(&self) {
        for gate in self.0 {
            gate.drained().await;
        }
    }
}

impl Drop for ClosedGates<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|gate| gate.open());
    }
}

/// Locks by number: at most one task holds each.
#[derive(Default)]
pub(crate) struct Cells {
    /// Held cells, and whether somebody waits for one.
    held: Mutex<BTreeMap<u64, bool>>,
    released: WaitList,
}

impl Cells {
    /// Holds the cell until the guard is dropped.
    pub(crate) async fn lock(&self, cell: u64) -> CellGuard<'_> {
        self.released
            .until(|| match self.held.lock().entry(cell) {
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(false);
                    Some(())
                }
                std::collections::btree_map::Entry::Occupied(mut held) => {
                    held.insert(true);
                    None
                }
            })
            .await;
        CellGuard { cells: self, cell }
    }
}

/// Holding one of [`Cells`].
pub(crate) struct CellGuard<'a> {
    cells: &'a Cells,
    cell: u64,
}

impl Drop for CellGuard<'_> {
    fn drop(&mut self) {
        let awaited = self.cells.held.lock().remove(&self.cell);
        if awaited == Some(true) {
            self.cells.released.wake_all();
        }
    }
}

/// Commits, or flushes, numbered: which have begun to collect changes, which are durable.
///
/// A change is covered by the first that begins after it was noted, so whoever needs it
/// durable waits for `started + 1`, read after the change was noted.
#[derive(Default)]
pub(crate) struct Rounds {
    started: AtomicU64,
    completed: AtomicU64,
}

impl Rounds {
    /// The number of the round that will cover everything noted so far.
    pub(crate) fn next(&self) -> u64 {
        self.started.load(Ordering::SeqCst) + 1
    }

    /// Begins a round; to be called before it collects changes.
    pub(crate) fn start(&self) -> u64 {
        self.started.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Says that the round with this number is durable.
    pub(crate) fn complete(&self, number: u64) {
        let before = self.completed.swap(number, Ordering::SeqCst);
        assert!(before < number, "rounds complete in the order they start");
    }

    /// Whether a round has begun that is not durable: it is running, or it failed.
    pub(crate) fn has_unfinished(&self) -> bool {
        !self.is_complete(self.started.load(Ordering::SeqCst))
    }

    /// The last round that is durable.
    pub(crate) fn completed(&self) -> u64 {
        self.completed.load(Ordering::SeqCst)
    }

    /// Whether the round with this number is durable.
    pub(crate) fn is_complete(&self, number: u64) -> bool {
        self.completed.load(Ordering::SeqCst) >= number
    }
}
