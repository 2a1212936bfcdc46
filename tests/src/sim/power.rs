//! Power, faults, and the order of events.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::task::Poll;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::prng::Prng;

/// What a store is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Io {
    /// Reading the data store.
    DataRead,
    /// Writing, zeroing or punching the data store.
    DataWrite,
    /// Asking for space on the data store.
    DataAllocate,
    /// Syncing the data store.
    DataSync,
    /// Reading a metadata block.
    MetadataRead,
    /// Writing a metadata block.
    MetadataWrite,
    /// Flushing the metadata store.
    MetadataFlush,
    /// Reading the catalog.
    CatalogLoad,
    /// Appending to or replacing the catalog.
    CatalogWrite,
    /// Reading the intent log.
    LogLoad,
    /// Making an intent log.
    LogCreate,
    /// Writing or removing the intent log.
    LogWrite,
    /// Syncing the intent log.
    LogSync,
    /// Writing the history of superblocks.
    HistoryWrite,
    /// Syncing the history of superblocks.
    HistorySync,
}

impl Io {
    /// Those that fail now and then, and somebody hears of it.
    pub const FAULTY: [Io; 11] = [
        Io::DataRead,
        Io::DataWrite,
        Io::DataAllocate,
        Io::DataSync,
        Io::MetadataRead,
        Io::MetadataWrite,
        Io::MetadataFlush,
        Io::CatalogWrite,
        Io::LogCreate,
        Io::LogWrite,
        Io::LogSync,
    ];

    fn changes(self) -> bool {
        !matches!(
            self,
            Io::DataRead | Io::MetadataRead | Io::CatalogLoad | Io::LogLoad
        )
    }
}

/// Which error an I/O fails with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FaultKind {
    /// EIO.
    Failed,
    /// ENOSPC.
    StorageFull,
}

/// A failure to come.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Fault {
    /// How many I/Os of the chosen kind succeed first.
    pub after: u64,
    /// The kind of I/O that fails; any when none.
    pub io: Option<Io>,
    /// The error.
    pub kind: FaultKind,
    /// Whether all later ones of that kind fail as well.
    pub is_sticky: bool,
}

impl Fault {
    /// The next I/O of this kind fails.
    pub fn once(io: Io) -> Self {
        Fault {
            after: 0,
            io: Some(io),
            kind: FaultKind::Failed,
            is_sticky: false,
        }
    }

    /// Every I/O of this kind fails from now on.
    pub fn lasting(io: Io) -> Self {
        Fault {
            is_sticky: true,
            ..Fault::once(io)
        }
    }

    /// There is no space for any I/O of this kind from now on.
    pub fn full(io: Io) -> Self {
        Fault {
            kind: FaultKind::StorageFull,
            ..Fault::lasting(io)
        }
    }

    fn concerns(&self, io: Io) -> bool {
        self.io.is_none_or(|wanted| wanted == io)
    }
}

/// What becomes of an I/O.
pub(super) enum Verdict {
    Go,
    /// It happens in part at most, and fails.
    Fail(io::Error),
}

struct State {
    prng: Prng,
    changes: u64,
    /// More changes than this are no end to come.
    changes_max: u64,
    /// How many I/Os of each kind were begun.
    counts: BTreeMap<Io, u64>,
    cut_at: Option<u64>,
    is_off: bool,
    faults: Vec<Fault>,
    fault_hit: bool,
    data_sync_failed: bool,
    pauses: u64,
    holes: u64,
    is_kill: bool,
    trace: u64,
}

impl State {
    fn trace_value(&mut self, value: u64) {
        let mixed = (self.trace ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.trace = mixed.rotate_left(29);
    }

    /// The error an I/O fails with, if a failure is due. If none is, it counts as one that succeeds.
    fn fault(&mut self, io: Io) -> Option<FaultKind> {
        let is_due = |fault: &Fault| fault.concerns(io) && fault.after == 0;
        let Some(index) = self.faults.iter().position(is_due) else {
            let concerned = self.faults.iter_mut().filter(|fault| fault.concerns(io));
            concerned.for_each(|fault| fault.after -= 1);
            return None;
        };
        let fault = self.faults[index];
        if !fault.is_sticky {
            self.faults.remove(index);
        }
        self.fault_hit = true;
        Some(fault.kind)
    }
}

/// A cut and failures that are to come.
#[derive(Debug)]
pub struct Plan {
    cut_at: Option<u64>,
    faults: Vec<Fault>,
}

/// What the stores of a machine share.
pub struct Power(Mutex<State>);

fn off() -> io::Error {
    io::Error::other("the power is off")
}

impl Power {
    pub(super) fn new(prng: Prng) -> Self {
        Power(Mutex::new(State {
            prng,
            changes: 0,
            changes_max: u64::MAX,
            counts: BTreeMap::new(),
            cut_at: None,
            is_off: false,
            faults: Vec::new(),
            fault_hit: false,
            data_sync_failed: false,
            pauses: 0,
            holes: 0,
            is_kill: false,
            trace: 0,
        }))
    }

    /// Cuts the power at the change with this number, counted from 0 at the machine's start.
    pub fn cut_at(&self, change: Option<u64>) {
        self.0.lock().cut_at = change;
    }

    /// Fails whoever goes on after so many more changes: an operation without end.
    pub fn expect_end(&self, changes: u64) {
        let mut state = self.0.lock();
        state.changes_max = state.changes + changes;
    }

    /// Whether the daemon alone is killed where the power would be cut. The kernel goes on then: what
    /// it was given stays, and a metadata block that it began to copy it copies whole.
    pub fn set_kill(&self, is_kill: bool) {
        self.0.lock().is_kill = is_kill;
    }

    /// Draws everything random from here on.
    pub fn reseed(&self, prng: Prng) {
        self.0.lock().prng = prng;
    }

    /// Whether the daemon alone is killed where the power would be cut.
    pub fn is_kill(&self) -> bool {
        self.0.lock().is_kill
    }

    /// Cuts the power now.
    pub fn cut(&self) {
        self.0.lock().is_off = true;
    }

    /// Whether the power is off.
    pub fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    /// How many changes there were.
    pub fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// How many I/Os of this kind there were.
    pub fn count(&self, io: Io) -> u64 {
        self.0.lock().counts.get(&io).copied().unwrap_or_default()
    }

    /// Arranges these failures, and no others any more.
    pub fn set_faults(&self, faults: impl IntoIterator<Item = Fault>) {
        let mut state = self.0.lock();
        state.faults = faults.into_iter().collect();
        state.fault_hit = false;
    }

    /// Takes off what is arranged, so that a check can be made undisturbed.
    pub fn suspend(&self) -> Plan {
        let mut state = self.0.lock();
        Plan {
            cut_at: state.cut_at.take(),
            faults: std::mem::take(&mut state.faults),
        }
    }

    /// Arranges again what was taken off.
    pub fn resume(&self, plan: Plan) {
        let mut state = self.0.lock();
        state.cut_at = plan.cut_at;
        state.faults = plan.faults;
    }

    /// Whether an arranged failure has happened.
    pub fn fault_hit(&self) -> bool {
        self.0.lock().fault_hit
    }

    /// Lets every data I/O wait up to this many times before each of its steps.
    pub fn set_pauses(&self, most: u64) {
        self.0.lock().pauses = most;
    }

    pub(super) fn pauses(&self) -> u64 {
        self.0.lock().pauses
    }

    /// Lets free space of the data store be holes with this chance in percent: it reads as zeros, and says so.
    pub fn set_holes(&self, percent: u64) {
        self.0.lock().holes = percent;
    }

    pub(super) fn holes(&self) -> u64 {
        self.0.lock().holes
    }

    pub(super) fn is_hole(&self) -> bool {
        let mut state = self.0.lock();
        let percent = state.holes;
        percent > 0 && state.prng.chance(percent)
    }

    /// Waits a random number of polls, so that other tasks go first.
    pub(super) async fn pause(&self) {
        let mut left = {
            let mut state = self.0.lock();
            match state.pauses {
                0 => return,
                most => state.prng.below(most + 1),
            }
        };
        poll_fn(|context| {
            if left == 0 {
                return Poll::Ready(());
            }
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// A number that follows from all I/O so far, what was written where included.
    pub fn trace(&self) -> u64 {
        self.0.lock().trace
    }

    /// Goes on with the trace of an earlier life of the machine.
    pub(super) fn set_trace(&self, trace: u64) {
        self.0.lock().trace = trace;
    }

    /// Notes what is written: by its first eight bytes, which are a checksum where it is not data.
    pub(super) fn trace_write(&self, at: u64, bytes: &[u8]) {
        let mut first = [0; 8];
        let count = bytes.len().min(first.len());
        first[..count].copy_from_slice(&bytes[..count]);
        let mut state = self.0.lock();
        for value in [at, bytes.len() as u64, u64::from_le_bytes(first)] {
            state.trace_value(value);
        }
    }

    /// Decides about an I/O that is submitted now.
    pub(super) fn begin(&self, io: Io) -> Verdict {
        let mut state = self.0.lock();
        if state.is_off {
            return Verdict::Fail(off());
        }
        state.trace_value(io as u64);
        *state.counts.entry(io).or_default() += 1;
        if io.changes() {
            let number = state.changes;
            assert!(number < state.changes_max, "no end after {number} changes");
            state.changes += 1;
            if state.cut_at.is_some_and(|at| number >= at) {
                state.is_off = true;
                return Verdict::Fail(off());
            }
        }
        if io == Io::DataSync && state.data_sync_failed {
            return Verdict::Fail(io::Error::other("an earlier sync failed"));
        }
        let Some(kind) = state.fault(io) else {
            return Verdict::Go;
        };
        state.data_sync_failed |= io == Io::DataSync;
        Verdict::Fail(match kind {
            FaultKind::Failed => io::Error::from_raw_os_error(5),
            FaultKind::StorageFull => io::ErrorKind::StorageFull.into(),
        })
    }

    /// Fails an I/O in progress when the power went meanwhile.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_off() { Err(off()) } else { Ok(()) }
    }

    /// A number from 0 to `most`.
    pub(super) fn up_to(&self, most: u64) -> u64 {
        self.0.lock().prng.below(most + 1)
    }

    pub(super) fn fork(&self) -> Prng {
        self.0.lock().prng.fork()
    }
}
