//! Runs operations against a pool and its model, and compares the two after each.

mod crash;
mod perform;
mod recover;
mod script;
mod verify;

pub use crash::{Crash, End};
pub use script::{Script, Step, Trouble};

use std::collections::BTreeMap;
use std::sync::Arc;

use pool::{DeviceInfo, ErrorKind, Mode, Pool, ThinDevice};
use probe::Mark;
use serde::Serialize;

use crate::executor::block_on;
use crate::image;
use crate::model::Model;
use crate::ops::Op;
use crate::prng::Prng;
use crate::sim::{Geometry, Io, Machine, SimHost};

/// How often things are compared that are costly to compare, in operations.
const FULL_EVERY: u64 = 80;

/// A pool under test, and what it should be.
pub struct Driver {
    /// The stores.
    pub machine: Machine,
    /// The model.
    pub model: Model,
    /// What the pool may be as well after the next opening, when an operation on names was
    /// interrupted.
    alternative: Option<Model>,
    /// What it was before the operation in which the daemon was killed.
    before_kill: Option<Model>,
    pool: Option<Arc<Pool<SimHost>>>,
    held: Vec<ThinDevice<SimHost>>,
    prng: Prng,
    number: u64,
    history: Vec<String>,
    /// Whether operations may fail for want of metadata.
    is_tight: bool,
    /// What has survived each power cut, by the numbers of sectors.
    pub survivors: Vec<Vec<u64>>,
    /// Counts of what was done.
    pub tally: Tally,
}

/// What a run has done.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Tally {
    /// Operations.
    pub operations: u64,
    /// Of these, ones that were refused or failed, as foretold.
    pub refused: u64,
    /// Requests that failed for want of space.
    pub full: u64,
    /// Openings after a power cut.
    pub cuts: u64,
    /// Openings after the daemon was killed.
    pub kills: u64,
    /// Of both, those whose recovery was interrupted.
    pub doubles: u64,
    /// Crashes after which the superblock was damaged.
    pub lost_superblocks: u64,
    /// Crashes after which a daemon started without any space first.
    pub starts_without_space: u64,
    /// I/O that was made to fail.
    pub faults: BTreeMap<Io, u64>,
    /// Openings after closing.
    pub reopenings: u64,
    /// Full checks of the metadata.
    pub checks: u64,
    /// Comparisons with other people's tools.
    pub tool_checks: u64,
    /// Bytes compared with the model.
    pub bytes_compared: u64,
    /// How often each mark was hit, in the order of [`Mark::ALL`].
    #[serde(skip)]
    pub marks: Vec<u64>,
    /// What follows from all I/O of one run.
    #[serde(skip)]
    pub trace: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        self.operations += other.operations;
        self.refused += other.refused;
        self.full += other.full;
        self.cuts += other.cuts;
        self.kills += other.kills;
        self.doubles += other.doubles;
        self.lost_superblocks += other.lost_superblocks;
        self.starts_without_space += other.starts_without_space;
        for (io, count) in &other.faults {
            *self.faults.entry(*io).or_default() += count;
        }
        self.reopenings += other.reopenings;
        self.checks += other.checks;
        self.tool_checks += other.tool_checks;
        self.bytes_compared += other.bytes_compared;
        self.marks.resize(Mark::ALL.len(), 0);
        for (sum, hits) in self.marks.iter_mut().zip(&other.marks) {
            *sum += hits;
        }
    }
}

impl Driver {
    /// A driver of an empty pool.
    ///
    /// # Panics
    /// When it cannot be opened.
    pub fn new(geometry: Geometry, mut prng: Prng) -> Self {
        let machine = Machine::new(geometry, prng.fork());
        machine.power.set_holes(50);
        let pool = match machine.open() {
            Ok(pool) => pool,
            Err(cause) => panic!("an empty pool does not open: {cause}"),
        };
        Driver {
            machine,
            model: Model::new(geometry.data_blocks),
            alternative: None,
            before_kill: None,
            pool: Some(pool),
            held: Vec::new(),
            prng,
            number: 0,
            history: Vec::new(),
            is_tight: false,
            survivors: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// The pool.
    ///
    /// # Panics
    /// When it is not open.
    pub fn pool(&self) -> &Arc<Pool<SimHost>> {
        match &self.pool {
            Some(pool) => pool,
            None => panic!("the pool is not open"),
        }
    }

    /// The operations so far, the last of them in full.
    pub fn history(&self) -> String {
        let skipped = self.history.len().saturating_sub(60);
        self.history[skipped..].join("\n")
    }

    /// Performs one operation and compares.
    ///
    /// # Panics
    /// When pool and model disagree.
    pub fn step(&mut self, op: &Op) {
        self.number += 1;
        self.tally.operations += 1;
        self.history.push(format!("{}: {op:?}", self.number));
        match op {
            Op::Reopen => return self.reopen(),
            Op::Hold(name) => {
                let Ok(device) = self.pool().open_device(name) else {
                    assert!(
                        !self.model.devices.contains_key(name),
                        "{name} does not open"
                    );
                    return;
                };
                self.held.push(device);
                if let Some(device) = self.model.devices.get_mut(name) {
                    device.open_count += 1;
                }
                return;
            }
            Op::Release => {
                self.held.clear();
                for device in self.model.devices.values_mut() {
                    device.open_count = 0;
                }
                return;
            }
            _ => {}
        }
        let is_kill = self.machine.power.is_kill();
        let before = (op.is_control() || is_kill || self.is_tight).then(|| self.model.clone());
        let expected = self.model.apply(op, self.number);
        let outcome = block_on(self.perform(op));
        if self.machine.power.is_off() {
            if is_kill {
                self.before_kill.clone_from(&before);
            }
            if outcome.is_ok() {
                self.model.settle(op);
            }
            // Nobody was answered. Whether it was done is seen after the next opening.
            self.alternative = before.filter(|_| op.is_control());
            return;
        }
        if self.is_scarcity(expected, &outcome) {
            self.alternative = before.clone().filter(|_| op.is_control());
            self.before_kill = before;
            return self.crash(&Crash::kill());
        }
        let plan = self.machine.power.suspend();
        self.compare_outcome(op, expected, outcome);
        self.after_success_or_refusal(op, expected);
        self.machine.power.resume(plan);
    }

    /// As [`Driver::step`] while I/O may fail. Whether the pool can go on: not after an operation
    /// that failed without having been foretold.
    ///
    /// # Panics
    /// When pool and model disagree.
    pub fn step_with_faults(&mut self, op: &Op) -> bool {
        self.number += 1;
        self.tally.operations += 1;
        self.history.push(format!("{}: {op:?}", self.number));
        let before = self.model.clone();
        let expected = self.model.apply(op, self.number);
        let outcome = block_on(self.perform(op));
        let plan = self.machine.power.suspend();
        // What was foretold may have come earlier, and for another reason.
        if let Err(cause) = &outcome
            && (expected != Err(cause.kind()) || self.machine.power.fault_hit())
        {
            assert!(
                self.machine.power.fault_hit() || self.is_scarcity(expected, &outcome),
                "{op:?} failed without a fault: {cause}"
            );
            self.alternative = op.is_control().then(|| before.clone());
            self.before_kill = Some(before);
            self.history.push(format!("failed: {cause}"));
            return false;
        }
        self.compare_outcome(op, expected, outcome);
        // An operation on one device may be done while another, whose blocks cannot be filled in,
        // is left out of its commit.
        let covers_all = self.pool().status().partial_blocks == 0;
        if expected.is_ok() && (covers_all || !op.is_control()) {
            self.model.settle(op);
        }
        // A device that ends takes with it what could not be filled in, and which no commit has seen.
        self.model.may_have_reclaimed |= matches!(op, Op::Remove(_) | Op::Rollback(_))
            && expected.is_ok()
            && self.machine.power.fault_hit();
        self.finish_reclaiming();
        self.verify_touched(op);
        self.machine.power.resume(plan);
        true
    }

    /// Whether an operation has failed for want of metadata, which nobody foretells.
    fn is_scarcity<T>(
        &self,
        expected: Result<(), ErrorKind>,
        outcome: &Result<T, pool::Error>,
    ) -> bool {
        let kind = outcome.as_ref().map_err(pool::Error::kind).err();
        let is_unforetold = expected != Err(ErrorKind::NoSpace);
        self.is_tight && is_unforetold && kind == Some(ErrorKind::NoSpace)
    }

    fn compare_outcome(
        &mut self,
        op: &Op,
        expected: Result<(), ErrorKind>,
        outcome: Result<Vec<DeviceInfo>, pool::Error>,
    ) {
        let kind = outcome.as_ref().map(|_| ()).map_err(pool::Error::kind);
        assert_eq!(kind, expected, "{op:?}: {:?}", outcome.as_ref().err());
        if expected.is_err() {
            self.tally.refused += 1;
            self.tally.full += u64::from(expected == Err(ErrorKind::NoSpace));
        }
        for info in outcome.into_iter().flatten() {
            let Some(device) = self.model.devices.get_mut(&info.name) else {
                panic!("{op:?} made {}, which the model does not know", info.name)
            };
            device.id = Some(info.id);
        }
    }

    /// What the pool may have begun to give back for want of space is given back altogether.
    fn finish_reclaiming(&mut self) {
        if self.model.may_have_reclaimed {
            let reclaimed = block_on(self.pool().reclaim());
            assert!(reclaimed.is_ok(), "reclaiming failed: {reclaimed:?}");
            self.model.deleting.clear();
            let committed = block_on(self.pool().commit());
            assert!(committed.is_ok(), "a commit failed: {committed:?}");
            self.model.settle(&Op::Commit);
        }
    }

    fn after_success_or_refusal(&mut self, op: &Op, expected: Result<(), ErrorKind>) {
        if expected.is_ok() {
            self.model.settle(op);
        }
        self.finish_reclaiming();
        let status = self.pool().status();
        assert!(
            matches!(status.mode, Mode::Write | Mode::OutOfDataSpace)
                || self.is_tight && status.mode == Mode::OutOfMetadataSpace,
            "{op:?} left the pool in mode {:?}: {}",
            status.mode,
            status.mode_reason
        );
        self.verify_touched(op);
        if self.number.is_multiple_of(FULL_EVERY) {
            self.verify_everything();
        }
    }

    /// Closes the pool and opens it again.
    fn reopen(&mut self) {
        self.held.clear();
        for device in self.model.devices.values_mut() {
            device.open_count = 0;
        }
        let closed = block_on(self.pool().close());
        if self.machine.power.is_off() {
            return;
        }
        assert!(closed.is_ok(), "closing failed: {closed:?}");
        self.pool = None;
        self.model.settle(&Op::Reopen);
        self.tally.reopenings += 1;
        self.open_again(true);
    }

    fn check_metadata(&mut self) {
        let metadata = self.machine.metadata.image();
        let data_blocks = self.machine.data.image().len() / crate::model::BLOCK;
        let used = image::expect_sound(&metadata, data_blocks);
        self.tally.checks += 1;
        assert_eq!(
            used,
            self.model.used_blocks(),
            "data blocks in use, as recounted"
        );
        if self.tally.checks.is_multiple_of(5) {
            image::expect_restorable(&metadata, used);
        }
        if self.tally.checks.is_multiple_of(20) && image::expect_tools_agree(&metadata) {
            self.tally.tool_checks += 1;
        }
    }
}
