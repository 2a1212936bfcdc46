//! The intent log: what a daemon acknowledged outlives it, and what it flushed outlives the power.
//!
//! Between two commits, changed mappings are in memory only. Each is therefore recorded here as well,
//! before anybody can see it: a copy into the kernel's page cache, no disk write. When the daemon is
//! killed, the next one finds the records there and does the changes again (`replay.rs`).
//!
//! # Flushes
//!
//! A flush makes what was recorded so far durable, without a commit (`flush.rs`): the data store is
//! synced, for what the records map; a *marker* is written that says how far the records go; the log is
//! synced. After a power cut what the last marker covers is replayed, and no more: later records may be there
//! or not, and the data that they map, too. A commit's entry (below) covers records in the same way.
//!
//! So what a durable marker covers must stay true until a commit is durable that has it all: a data block that
//! any record names is not given to others before that, even when it has lost its mapping (invariant 2).
//!
//! The same holds when a sync has failed. Data that later records map may be lost then, and the log is made
//! *void*: only what is covered is ever replayed of what this daemon has written. (A daemon that is killed
//! while a sync fails can note nothing; the kernel has told it, and tells nobody again.)
//!
//! # Generations
//!
//! While a commit runs, changes for the next one come in already. So records are numbered by
//! *generation*: a commit begins a new one at the instant in which it collects what changed before.
//! Whether a commit was completed is seen in the superblock. Before it is written, an [`Entry`] says, durably:
//! with this superblock, replay from that generation on. Two successive superblocks always differ,
//! since a commit never writes a tree's root where the last one has it.
//!
//! There are two areas, for generations of even and of odd numbers. A generation is overwritten by the
//! next but one, which begins only when the commit between them is complete. The next daemon goes on in the
//! same file (`term.rs`).
//!
//! ```text
//! page 0, 1        entries of the last two commits, by the parity of their generation
//! page 2, 3        the last two markers, in turn: writing one leaves the other alone
//! page 4           a note, when the log is void up to a generation
//! then 2 areas     of `slots` records each, 64 bytes a slot
//! ```
//!
//! # The kernel
//!
//! While there may be records, a flag in the superblock keeps the kernel from activating the pool, which it
//! would take as it was at its last commit. The first change of all waits for a commit that sets the flag;
//! closing the pool clears it.
//!
//! # Slots
//!
//! Slots are taken in order, and filled by whoever took them: a daemon that dies leaves empty ones
//! between. Nobody saw what an empty slot was for. What is covered says how many are not empty.

mod hand_over;
mod load;
mod record;
mod store;
mod term;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use metadata_btree::Block;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use probe::{Mark, Sabotage, is_sabotaged, mark};

pub use hand_over::hand_over_log;
pub(crate) use hand_over::{agrees_with, logged_superblocks};
pub(crate) use load::{Loaded, load};
pub(crate) use record::{Durable, Intent, Record, WHOLE};
pub use store::LogStore;

use crate::error::{Error, is_full};
use record::{Entry, Filled, Layout, no_entries, void_note};
use term::Term;

/// The fewest records that a generation has room for.
const RECORDS_MIN: u64 = 1024;

/// The most records that are permitted in a generation: what a start has to replay.
const RECORDS_MAX: u64 = 65_536;

/// Slots for a permitted record. The others are for what a commit itself records: blocks made whole,
/// changes it has to leave out, and all that was replayed.
const SLOTS_A_RECORD: u64 = 4;

/// The first generation of a log: of the first area.
const FIRST: u64 = 2;

/// How many records a generation may have before a commit must come.
fn records_max(layout: Layout) -> u64 {
    (layout.slots / SLOTS_A_RECORD).min(RECORDS_MAX)
}

/// The log of an open pool.
pub(crate) struct IntentLog {
    store: Box<dyn LogStore>,
    layout: Layout,
    /// The last generation that there can be.
    last_generation: u64,
    /// The generation that takes records.
    generation: RwLock<Generation>,
    /// The next slot of its area.
    next_slot: AtomicU64,
    /// Records that were written to it.
    written: AtomicU64,
    /// Records in it that needed permission.
    recorded: AtomicU64,
    /// The same, of generations before it that no commit has yet.
    uncommitted: AtomicU64,
    /// Records that have it and may still come.
    permitted: AtomicU64,
    /// Whether the log there is belongs to this daemon.
    is_created: AtomicBool,
    /// The position up to which everything is durable.
    durable: AtomicU64,
    /// How many markers were written.
    markers: AtomicU64,
    /// Who has it syncs the store. The kernel tells a failure once, and not to all who wait for it.
    syncing: Mutex<()>,
    /// Whether a sync has failed.
    is_void: AtomicBool,
    /// Whether the superblock says that there is a log.
    announced: AtomicU8,
}

/// A generation, and how much there is of the one before.
struct Generation {
    number: u64,
    before: Filled,
}

/// A position in a term of the log, as a number: after so many slots of a generation. Slots are far fewer than
/// 2^32 (`record.rs`), and so are commits in a daemon's life.
fn position(generation: u64, slots: u64) -> u64 {
    generation << 32 | slots
}

/// The position of a device's last record.
#[derive(Default)]
pub(crate) struct LastRecord(AtomicU64);

/// No log, and nobody has asked for one.
const NO: u8 = 0;
/// No log yet: the next commit makes one.
const WANTED: u8 = 1;
/// There is a log, and the superblock says so.
const YES: u8 = 2;
/// There was no space for a log.
const FULL: u8 = 3;
/// The pool is being closed.
const ENDED: u8 = 4;

impl IntentLog {
    /// The log of a pool of so many data blocks, after what an earlier one held was replayed. Nothing
    /// can be recorded before it was created or taken over.
    pub(crate) fn new(
        store: Box<dyn LogStore>,
        data_blocks: u64,
        left: &Loaded,
        is_announced: bool,
    ) -> Self {
        let replayed = left.records.len() as u64;
        let slots = SLOTS_A_RECORD * data_blocks.clamp(RECORDS_MIN, RECORDS_MAX) + 2 * replayed;
        let of_new_log = || Term::of_new_log(Layout { slots });
        let term = left.next_term.clone().unwrap_or_else(of_new_log);
        let filled = term.slot + replayed;
        IntentLog {
            store,
            layout: term.layout,
            last_generation: term::last(term.first),
            generation: RwLock::new(Generation {
                number: term.first,
                before: Filled::default(),
            }),
            next_slot: AtomicU64::new(filled),
            written: AtomicU64::new(replayed),
            recorded: AtomicU64::new(replayed),
            uncommitted: AtomicU64::new(0),
            permitted: AtomicU64::new(0),
            is_created: AtomicBool::new(false),
            durable: AtomicU64::new(position(term.first, filled)),
            markers: AtomicU64::new(0),
            syncing: Mutex::new(()),
            is_void: AtomicBool::new(false),
            announced: AtomicU8::new(if is_announced { YES } else { NO }),
        }
    }

    /// Takes over the log of an earlier daemon, or makes one where it cannot be gone on with: what was replayed
    /// comes first in it. The data that it maps is durable.
    pub(crate) fn take_over(&self, superblock: &Block, left: &Loaded) -> io::Result<()> {
        let durable = self.stop().all();
        let entry = self.entry(superblock, durable).encode();
        let entry_at = Entry::position(durable.generation);
        let encode = |record: &Record| record.encode(durable.generation);
        let records: Vec<u8> = left.records.iter().flat_map(encode).collect();
        let slot = durable.filled.slots - left.records.len() as u64;
        let records_at = self.layout.position(durable.generation, slot);
        let (Some(_), Some(relied_on)) = (&left.next_term, &left.relied_on) else {
            let mut content = entry;
            content.resize(records_at, 0);
            content.extend_from_slice(&records);
            return self.create(&content);
        };
        self.is_created.store(true, Ordering::SeqCst);
        relied_on.write_again(&*self.store)?;
        self.sync()?;
        self.store.write(records_at as u64, &records)?;
        self.store.write(entry_at, &entry)?;
        self.sync()
    }

    /// Sees to it that there is a log, if one is wanted and there is space. Whether the superblock has to
    /// say so.
    pub(crate) fn create_if_wanted(&self) -> io::Result<bool> {
        if !self.is_wanted() {
            return Ok(false);
        }
        if self.is_created.load(Ordering::SeqCst) {
            return Ok(true);
        }
        match self.create(&[]) {
            Err(cause) if is_full(&cause) => {
                self.announced.store(FULL, Ordering::SeqCst);
                Ok(false)
            }
            created => created.map(|()| true),
        }
    }

    /// Refuses to wait for a log for which there is no space; whoever asks next has it tried again.
    pub(crate) fn check_space(&self) -> Result<(), Error> {
        let order = Ordering::SeqCst;
        match self.announced.compare_exchange(FULL, NO, order, order) {
            Ok(_) => Err(log_error(io::ErrorKind::StorageFull.into())),
            Err(_) => Ok(()),
        }
    }

    /// Permits nothing any more.
    pub(crate) fn end(&self) {
        self.announced.store(ENDED, Ordering::SeqCst);
    }

    fn create(&self, content: &[u8]) -> io::Result<()> {
        self.store.create(content, self.layout.len())?;
        self.is_created.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Sees to it that of this log only what is durable is ever replayed: a sync has failed.
    pub(crate) fn make_void(&self) -> io::Result<()> {
        self.is_void.store(true, Ordering::SeqCst);
        if !self.is_created.load(Ordering::SeqCst) {
            return Ok(());
        }
        make_void(&*self.store, self.last_generation)
    }

    /// Whether all records of a device are durable.
    pub(crate) fn covers(&self, last: &LastRecord) -> bool {
        last.0.load(Ordering::SeqCst) <= self.durable.load(Ordering::SeqCst)
    }

    /// Makes records durable whose data is. Blocking.
    pub(crate) fn mark(&self, durable: Durable) -> io::Result<()> {
        self.check_valid()?;
        let turn = self.markers.fetch_add(1, Ordering::SeqCst);
        let (at, marker) = durable.marker(turn);
        self.store.write(at, &marker)?;
        self.sync()?;
        self.note_durable(durable);
        Ok(())
    }

    /// Notes that so much is durable.
    pub(crate) fn note_durable(&self, durable: Durable) {
        let position = position(durable.generation, durable.filled.slots);
        self.durable.fetch_max(position, Ordering::SeqCst);
    }

    /// Notes that a commit has everything up to the last generation, of which so much is durable.
    pub(crate) fn note_committed(&self, durable: Durable) {
        self.note_durable(durable);
        self.uncommitted.store(0, Ordering::SeqCst);
    }

    fn sync(&self) -> io::Result<()> {
        let _alone = self.syncing.lock();
        self.check_valid()?;
        let mut synced = self.store.sync();
        if synced.is_err() && is_sabotaged(Sabotage::RetriedSync) {
            synced = self.store.sync();
        }
        synced.inspect_err(|_| {
            // If this fails as well, there is nothing left to do.
            let _ = self.make_void();
        })
    }

    fn check_valid(&self) -> io::Result<()> {
        if self.is_void.load(Ordering::SeqCst) {
            return Err(io::Error::other("a sync has failed"));
        }
        Ok(())
    }

    /// How many records a generation may have.
    pub(crate) fn records_max(&self) -> u64 {
        records_max(self.layout)
    }

    /// Whether the current generation has no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.next_slot.load(Ordering::SeqCst) == 0
    }

    /// The bytes of its file; 0 when there is none.
    pub(crate) fn len(&self) -> u64 {
        if self.is_created.load(Ordering::Relaxed) {
            self.layout.len()
        } else {
            0
        }
    }

    /// How many records the current generation has.
    pub(crate) fn records(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Removes a log that nothing is to be replayed from. The power may bring it back, and when block 0 is lost it
    /// would be believed; so it names no superblock any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let zeroed = self.store.write(0, &no_entries());
        let without_entries = zeroed.and_then(|()| self.store.sync());
        self.store.remove()?;
        without_entries
    }

    /// Permission for a record in the generation that is current then; none when a commit has to come
    /// first. What no commit has is never much more than two generations, however often daemons are killed
    /// while they commit: the next one replays that, and must find room to write it again.
    pub(crate) fn permit(&self) -> Option<LogPermit<'_>> {
        if self.announced.load(Ordering::SeqCst) != YES {
            let (current, new) = (NO, WANTED);
            let order = Ordering::SeqCst;
            // Whoever was first has asked for it.
            let _ = self.announced.compare_exchange(current, new, order, order);
            return None;
        }
        let permit = LogPermit(&self.permitted);
        let permitted = self.permitted.fetch_add(1, Ordering::SeqCst) + 1;
        let recorded = self.recorded.load(Ordering::SeqCst) + permitted;
        let uncommitted = self.uncommitted.load(Ordering::SeqCst) + recorded;
        let most = self.records_max();
        (recorded <= most && uncommitted <= 2 * most).then_some(permit)
    }

    /// Whether the next superblock has to say that there is a log.
    pub(crate) fn is_wanted(&self) -> bool {
        self.announced.load(Ordering::SeqCst) == WANTED
    }

    /// Notes what the superblock says that was written last.
    pub(crate) fn note_announced(&self, has_log: bool) {
        if has_log {
            self.announced.store(YES, Ordering::SeqCst);
        }
    }

    /// Keeps the generation from changing between a record and what it is about.
    pub(crate) fn record(&self) -> Recording<'_> {
        Recording {
            log: self,
            generation: self.generation.read(),
        }
    }

    /// Keeps everybody else from recording.
    pub(crate) fn stop(&self) -> Stopped<'_> {
        Stopped {
            log: self,
            generation: self.generation.write(),
        }
    }

    /// Notes durably that this superblock, about to be written, lacks what is in the last generation of
    /// `durable`; and how much of that is durable.
    pub(crate) fn prepare(&self, superblock: &Block, durable: Durable) -> io::Result<()> {
        self.check_valid()?;
        if !self.is_created.load(Ordering::SeqCst) {
            return Ok(());
        }
        let page = self.entry(superblock, durable).encode();
        self.store
            .write(Entry::position(durable.generation), &page)?;
        self.sync()
    }

    fn entry(&self, superblock: &Block, durable: Durable) -> Entry {
        Entry {
            layout: self.layout,
            durable,
            incarnation: self.store.incarnation(),
            superblock: Entry::superblock(superblock),
        }
    }

    /// Writes a record, and notes where.
    fn write(&self, generation: u64, record: &Record, last: &LastRecord) -> io::Result<()> {
        let slot = self.next_slot.fetch_add(1, Ordering::SeqCst);
        if slot >= self.layout.slots {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "all its slots are taken",
            ));
        }
        let at = self.layout.position(generation, slot);
        self.store.write(at as u64, &record.encode(generation))?;
        self.written.fetch_add(1, Ordering::SeqCst);
        let position = position(generation, slot + 1);
        last.0.fetch_max(position, Ordering::SeqCst);
        Ok(())
    }
}

/// Sees to it that of the log there is only what is durable is ever replayed, up to this generation.
fn make_void(store: &dyn LogStore, generation: u64) -> io::Result<()> {
    let (at, note) = void_note(generation);
    store.write(at, &note)
}

/// While this lives, no commit begins.
pub(crate) struct Recording<'a> {
    log: &'a IntentLog,
    generation: RwLockReadGuard<'a, Generation>,
}

impl Recording<'_> {
    /// Records what is about to be done to a device.
    pub(crate) fn append(&self, record: &Record, last: &LastRecord) -> io::Result<()> {
        self.log.recorded.fetch_add(1, Ordering::SeqCst);
        self.log.write(self.generation.number, record, last)
    }
}

/// While this lives, nobody else records anything.
pub(crate) struct Stopped<'a> {
    log: &'a IntentLog,
    generation: RwLockWriteGuard<'a, Generation>,
}

impl Stopped<'_> {
    /// All records so far. Whoever syncs the data store from now on makes them true.
    pub(crate) fn all(&self) -> Durable {
        Durable {
            generation: self.generation.number,
            filled: self.filled(),
            before: self.generation.before,
        }
    }

    fn filled(&self) -> Filled {
        Filled {
            // What was refused for want of a slot has none.
            slots: self
                .log
                .next_slot
                .load(Ordering::SeqCst)
                .min(self.log.layout.slots),
            records: self.log.written.load(Ordering::SeqCst),
        }
    }

    /// Begins the next generation.
    pub(crate) fn begin_generation(&mut self) {
        if is_sabotaged(Sabotage::StaleGeneration) {
            return;
        }
        if self.log.permitted.load(Ordering::SeqCst) > 0 {
            mark(Mark::SwitchWithRecordsToCome);
        }
        let before = self.filled();
        *self.generation = Generation {
            number: self.generation.number + 1,
            before,
        };
        self.log.next_slot.store(0, Ordering::SeqCst);
        self.log.written.store(0, Ordering::SeqCst);
        let recorded = self.log.recorded.swap(0, Ordering::SeqCst);
        self.log.uncommitted.fetch_add(recorded, Ordering::SeqCst);
    }

    /// Records again what the generation before has, and the commit that ends it leaves out.
    pub(crate) fn carry(&self, record: &Record, last: &LastRecord) -> io::Result<()> {
        self.log.write(self.generation.number, record, last)
    }
}

pub(crate) fn log_error(source: io::Error) -> Error {
    Error::Io {
        what: "writing the intent log".into(),
        source,
    }
}

/// A record that may come.
pub(crate) struct LogPermit<'a>(&'a AtomicU64);

impl Drop for LogPermit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
