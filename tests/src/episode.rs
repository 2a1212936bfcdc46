//! Episodes: a seed makes a script, step by step, since what is drawn next depends on what there is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Prng;
use crate::crowd;
use crate::driver::{Crash, Driver, Script, Step, Tally, Trouble};
use crate::ops::{Generator, Op};
use crate::sim::{Fault, FaultKind, Geometry, Io};

/// A kind of episodes.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Operations in an episode, fewest and most.
    pub operations: (u64, u64),
    /// Fewest and most data blocks.
    pub data_blocks: (u64, u64),
    /// Fewest and most metadata blocks.
    pub metadata_blocks: (u64, u64),
    /// How often the power is cut, or the daemon killed, in percent of operations.
    pub crashes: u64,
    /// How often I/O fails, in percent of operations.
    pub faults: u64,
    /// Which operations there are.
    pub mixture: Mixture,
    /// Whether metadata is so scarce that operations may fail for want of it.
    pub is_tight: bool,
}

/// Which operations an episode has.
#[derive(Clone, Copy, Debug)]
pub enum Mixture {
    /// All kinds, lengths and alignments.
    All,
    /// Some kinds, lengths and alignments, on volumes of at most so many blocks.
    Swarm {
        /// So many.
        volume_blocks: u64,
    },
    /// All kinds, on large volumes and many blocks at a time.
    Large,
}

/// How an episode that failed did so.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was said.
    pub message: String,
    /// What was done, if that is a script; its last step is the one that failed.
    pub script: Option<Script>,
    /// The last operations.
    pub history: String,
    /// What survived each power cut.
    pub survivors: Vec<Vec<u64>>,
}

impl Failure {
    /// One that only its seed repeats.
    pub fn without_script(message: String) -> Self {
        Failure {
            message,
            script: None,
            history: String::new(),
            survivors: Vec::new(),
        }
    }
}

/// Draws the steps of an episode.
struct Drawn {
    generator: Generator,
    prng: Prng,
    conditions: Conditions,
}

impl Drawn {
    fn step(&mut self, number: u64, driver: &Driver) -> Step {
        let op = self.generator.next(&driver.model);
        let trouble = if self.prng.chance(self.conditions.crashes) {
            Some(Trouble::Crash(Crash::drawn(&mut self.prng, 40)))
        } else if self.prng.chance(self.conditions.faults) {
            Some(self.fault(&op))
        } else {
            None
        };
        Step {
            number,
            op,
            trouble,
        }
    }

    fn fault(&mut self, op: &Op) -> Trouble {
        let prng = &mut self.prng;
        let likely: &[Io] = match op {
            Op::Flush { .. } => &[Io::DataSync, Io::LogWrite, Io::LogSync],
            Op::Read { .. } => &[Io::DataRead],
            Op::Write { .. } | Op::Zeroes { .. } => {
                &[Io::DataRead, Io::DataWrite, Io::DataAllocate, Io::LogWrite]
            }
            _ => &Io::FAULTY,
        };
        let io = likely[prng.index(likely.len())];
        let is_sticky = prng.chance(50);
        let may_be_full = matches!(io, Io::DataWrite | Io::DataAllocate) && is_sticky;
        let fault = Fault {
            after: prng.below(4) * prng.below(2),
            io: Some(io),
            kind: match may_be_full {
                true => FaultKind::StorageFull,
                false => FaultKind::Failed,
            },
            is_sticky,
        };
        // What a failed sync has lost is still in the page cache, where a next daemon would take it for good.
        let is_sync = matches!(io, Io::DataSync | Io::LogSync | Io::MetadataFlush);
        let is_kill = !is_sync && prng.chance(50);
        Trouble::Fault(fault, Crash::then_drawn(prng, is_kill, 1))
    }
}

impl Conditions {
    /// Runs the episode of a seed.
    ///
    /// # Errors
    /// When pool and model disagree.
    pub fn run(&self, seed: u64) -> Result<Tally, Box<Failure>> {
        let mut prng = Prng::new(seed);
        let mut between = |(least, most): (u64, u64)| least + prng.below(most - least + 1);
        let geometry = Geometry {
            data_blocks: between(self.data_blocks),
            metadata_blocks: between(self.metadata_blocks),
        };
        let operations = between(self.operations);
        let mut script = Script {
            geometry,
            holes: [0, 50, 100][prng.index(3)],
            is_tight: self.is_tight,
            seed,
            steps: Vec::new(),
        };
        let generator = match self.mixture {
            Mixture::All => Generator::new(prng.fork(), geometry.data_blocks),
            Mixture::Swarm { volume_blocks } => Generator::swarm(prng.fork(), volume_blocks),
            Mixture::Large => Generator::large(prng.fork()),
        };
        let mut drawn = Drawn {
            generator,
            prng,
            conditions: *self,
        };
        let driver = Driver::of_script(&script);
        play(driver, |driver| {
            for number in 1..=operations {
                let step = drawn.step(number, driver);
                script.steps.push(step.clone());
                driver.perform_step(seed, &step);
            }
        })
        .map_err(|mut failed| {
            failed.script = Some(script);
            failed
        })
    }
}

/// Runs a script.
///
/// # Errors
/// When pool and model disagree.
pub fn replay(script: &Script) -> Result<Tally, Box<Failure>> {
    let outcome = play(Driver::of_script(script), |driver| {
        for step in &script.steps {
            driver.perform_step(script.seed, step);
        }
    });
    outcome.map_err(|mut failed| {
        failed.script = Some(script.clone());
        failed
    })
}

/// Runs an episode, whose script is still to be added to a failure.
fn play(mut driver: Driver, run: impl FnOnce(&mut Driver)) -> Result<Tally, Box<Failure>> {
    match catch_unwind(AssertUnwindSafe(|| run(&mut driver))) {
        Ok(()) => Ok(Tally {
            trace: driver.machine.power.trace(),
            ..driver.tally
        }),
        Err(cause) => Err(Box::new(Failure {
            message: message(&*cause),
            script: None,
            history: driver.history(),
            survivors: driver.survivors,
        })),
    }
}

/// Runs an episode of a crowd.
///
/// # Errors
/// When a rule is broken.
pub fn crowded(seed: u64) -> Result<Tally, Box<Failure>> {
    let outcome = catch_unwind(|| crowd::episode(&mut Prng::new(seed)));
    outcome.map_err(|cause| Box::new(Failure::without_script(message(&*cause))))
}

/// What a panic said.
pub(crate) fn message(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}
