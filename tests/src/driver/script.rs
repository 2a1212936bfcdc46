//! Runs that are written down: each operation, and what goes wrong during it.
//!
//! Whatever is random in a step follows from its number alone, so that a script from which steps are taken
//! out goes on doing the same with the others.

use serde::{Deserialize, Serialize};

use super::Driver;
use super::crash::Crash;
use crate::executor::block_on;
use crate::ops::Op;
use crate::prng::Prng;
use crate::sim::{Fault, Geometry, Io};

/// More changes of the stores than any step makes.
const STEP_CHANGES_MAX: u64 = 100_000;

/// A run.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Script {
    /// The stores it begins with.
    pub geometry: Geometry,
    /// In percent, how often free space of the data store is a hole.
    pub holes: u64,
    /// Whether operations may fail for want of metadata.
    #[serde(default)]
    pub is_tight: bool,
    /// What all randomness is drawn from.
    pub seed: u64,
    /// What happens, in order.
    pub steps: Vec<Step>,
}

impl Script {
    /// The script as JSON, a line for each step.
    ///
    /// # Errors
    /// Never, of what can be written down.
    pub fn text(&self) -> serde_json::Result<String> {
        let empty = Script {
            steps: Vec::new(),
            ..self.clone()
        };
        let head = serde_json::to_string_pretty(&empty)?;
        let steps: Result<Vec<String>, _> = self.steps.iter().map(serde_json::to_string).collect();
        let steps = format!("[\n    {}\n  ]", steps?.join(",\n    "));
        Ok(head.replace("\"steps\": []", &format!("\"steps\": {steps}")) + "\n")
    }
}

/// One operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its number: of no other, and ascending.
    pub number: u64,
    /// The operation.
    pub op: Op,
    /// What goes wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Trouble>,
}

/// What goes wrong during a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Trouble {
    /// The daemon or the power comes to its end, right after the operation at the latest.
    Crash(Crash),
    /// I/O fails; if that fails the operation, the daemon or the power comes to its end.
    Fault(Fault, Crash),
}

impl Driver {
    /// A driver at the beginning of a script.
    pub fn of_script(script: &Script) -> Self {
        let mut driver = Driver::new(script.geometry, Prng::new(script.seed));
        driver.machine.power.set_holes(script.holes);
        driver.is_tight = script.is_tight;
        driver
    }

    /// Performs one step of a script with this seed.
    ///
    /// # Panics
    /// When pool and model disagree.
    pub fn perform_step(&mut self, seed: u64, step: &Step) {
        self.prng = Prng::new(Prng::new(seed ^ step.number).bits());
        self.machine.power.reseed(self.prng.fork());
        self.machine.power.expect_end(STEP_CHANGES_MAX);
        self.number = step.number - 1;
        match &step.trouble {
            None => self.step(&step.op),
            Some(Trouble::Crash(crash)) => self.step_and_crash(&step.op, crash),
            Some(Trouble::Fault(fault, crash)) => {
                self.step_with_fault(&step.op, *fault, crash);
            }
        }
    }

    fn step_and_crash(&mut self, op: &Op, crash: &Crash) {
        let Some(first) = crash.ends.first() else {
            return self.step(op);
        };
        let power = &self.machine.power;
        power.set_kill(first.is_kill);
        power.cut_at(Some(power.changes() + first.after));
        self.step(op);
        self.crash(crash);
    }

    fn step_with_fault(&mut self, op: &Op, fault: Fault, crash: &Crash) {
        // Closing and opening, holding and releasing have no outcome that a fault may change.
        if matches!(op, Op::Reopen | Op::Hold(_) | Op::Release) {
            return self.step(op);
        }
        self.machine.power.set_faults([fault]);
        let goes_on = self.step_with_faults(op);
        let was_hit = self.machine.power.fault_hit();
        self.machine.power.set_faults([]);
        if let (true, Some(io)) = (was_hit, fault.io) {
            *self.tally.faults.entry(io).or_default() += 1;
        }
        if !goes_on || was_hit && self.prng.chance(50) {
            self.crash(crash);
        } else if was_hit && matches!(fault.io, Some(Io::DataRead | Io::DataWrite)) {
            // A volume whose blocks could not be filled in is in the next commit.
            let committed = block_on(self.pool().commit());
            assert!(committed.is_ok(), "a commit after a fault: {committed:?}");
            self.model.settle(&Op::Commit);
        }
    }
}
