//! What happened when, and what that allows to be read.
//!
//! Requests run at the same time here, so there is no single truth, only rules. A write *counts*
//! for a reader unless another write of the same sector began after it had ended and ended before
//! the reader's *horizon*; of those that count, one must be what is found. The horizon is when a
//! read began; for a snapshot, when it was asked for or when any write it holds began; after a
//! power cut, when the last successful flush began.

use parking_lot::Mutex;

use crate::model::{UNIT, Unit};

const RUNNING: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    word: u64,
    began: u64,
    ended: u64,
}

#[derive(Default)]
struct State {
    now: u64,
    /// By volume and sector.
    writes: Vec<Vec<Vec<Write>>>,
    durable_before: Vec<u64>,
}

/// The writes of all volumes.
pub struct History(Mutex<State>);

/// A write that runs.
pub struct Running {
    volume: usize,
    sectors: std::ops::Range<u64>,
    word: u64,
}

impl History {
    /// Nothing was written yet to volumes of so many sectors.
    pub fn new(volumes: usize, sectors: usize) -> Self {
        let zeros = Write {
            word: 0,
            began: 0,
            ended: 0,
        };
        History(Mutex::new(State {
            now: 1,
            writes: vec![vec![vec![zeros]; sectors]; volumes],
            durable_before: vec![0; volumes],
        }))
    }

    /// The moment now; every moment is another.
    pub fn now(&self) -> u64 {
        let mut state = self.0.lock();
        state.now += 1;
        state.now
    }

    /// Begins a write; its content, or zeros.
    pub fn begin(
        &self,
        volume: usize,
        sectors: std::ops::Range<u64>,
        zeros: bool,
    ) -> (Running, Vec<u8>) {
        let now = self.now();
        let word = if zeros { 0 } else { now };
        let mut bytes = Vec::new();
        let mut state = self.0.lock();
        for sector in sectors.clone() {
            let word = tag(volume, word, sector);
            state.writes[volume][index(sector)].push(Write {
                word,
                began: now,
                ended: RUNNING,
            });
            bytes.extend_from_slice(&Unit::Words(word).bytes());
        }
        let running = Running {
            volume,
            sectors,
            word,
        };
        (running, bytes)
    }

    /// Ends a write that succeeded. One that failed runs for ever.
    pub fn end(&self, running: Running) {
        let now = self.now();
        let mut state = self.0.lock();
        for sector in running.sectors {
            let word = tag(running.volume, running.word, sector);
            let writes = &mut state.writes[running.volume][index(sector)];
            let open = |write: &&mut Write| write.word == word && write.ended == RUNNING;
            if let Some(write) = writes.iter_mut().find(open) {
                write.ended = now;
            }
        }
    }

    /// Notes what a read has shown: a write that was seen has happened, whatever becomes of its request.
    pub fn seen(&self, found: (usize, u64, &[u8]), ended: u64) {
        let (volume, first, bytes) = found;
        let mut state = self.0.lock();
        for (sector, bytes) in (first..).zip(bytes.chunks(UNIT)) {
            let writes = &mut state.writes[volume][index(sector)];
            let is_found = |write: &&mut Write| Unit::Words(write.word).is(bytes);
            if let Some(write) = writes.iter_mut().find(is_found) {
                write.ended = write.ended.min(ended);
            }
        }
    }

    /// Notes that all a volume's writes that had ended at `moment` are durable.
    pub fn durable(&self, volume: usize, moment: u64) {
        let mut state = self.0.lock();
        state.durable_before[volume] = state.durable_before[volume].max(moment);
    }

    /// The horizon of a volume after a power cut.
    pub fn durable_before(&self, volume: usize) -> u64 {
        self.0.lock().durable_before[volume]
    }

    /// Checks what was found in a volume from `first` on, by someone whose horizon this is and who
    /// was done at `ended`. Returns when the youngest write found began.
    ///
    /// # Panics
    /// When something is found that must not be.
    pub fn check(&self, who: &str, found: (usize, u64, &[u8]), horizon: u64, ended: u64) -> u64 {
        let (volume, first, bytes) = found;
        let state = self.0.lock();
        let mut youngest = 0;
        for (sector, bytes) in (first..).zip(bytes.chunks(UNIT)) {
            let Unit::Words(word) = Unit::of(bytes) else {
                panic!("{who}: a mix in sector {sector} of volume {volume}: {bytes:x?}")
            };
            let writes = &state.writes[volume][index(sector)];
            let counts = |write: &&Write| {
                let is_replaced = writes
                    .iter()
                    .any(|other| other.began > write.ended && other.ended < horizon);
                write.word == word && write.began < ended && !is_replaced
            };
            let Some(found) = writes.iter().find(counts) else {
                panic!(
                    "{who}: sector {sector} of volume {volume} holds {word:x}, horizon {horizon}, \
                     ended {ended}: {writes:x?}"
                )
            };
            if word != 0 {
                youngest = youngest.max(found.began);
            }
        }
        youngest
    }
}

fn tag(volume: usize, word: u64, sector: u64) -> u64 {
    if word == 0 {
        return 0;
    }
    (volume as u64 + 1) << 56 | word << 20 | sector
}

fn index(sector: u64) -> usize {
    crate::sim::to_usize(sector)
}
