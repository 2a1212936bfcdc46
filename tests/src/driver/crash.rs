//! How a daemon, or the power, comes to its end.

use serde::{Deserialize, Serialize};

use crate::prng::Prng;
use crate::sim::Shape;

/// How many changes of the stores a start and its commit may see before they are interrupted, about.
const START_CHANGES: u64 = 60;

/// One end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct End {
    /// How many changes of the stores come first: since the operation, or the start, has begun.
    pub after: u64,
    /// Whether the daemon alone is killed; else the power goes.
    pub is_kill: bool,
    /// What is left of unsynced sectors when the power goes.
    pub shape: Shape,
    /// The numbers of the sectors that are left, if that is not to be drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<Vec<u64>>,
}

impl End {
    fn drawn(prng: &mut Prng, is_kill: bool, changes: u64) -> Self {
        End {
            after: prng.below(changes),
            is_kill,
            shape: Shape::any(prng),
            keeps: None,
        }
    }
}

/// The end of a daemon, and those of the next ones that do not even finish starting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crash {
    /// At least one.
    pub ends: Vec<End>,
}

impl Crash {
    /// The power goes now.
    pub fn cut(shape: Shape) -> Self {
        Self::now(false, shape)
    }

    /// The daemon is killed now.
    pub fn kill() -> Self {
        Self::now(true, Shape::Nothing)
    }

    fn now(is_kill: bool, shape: Shape) -> Self {
        let end = End {
            after: 0,
            is_kill,
            shape,
            keeps: None,
        };
        Crash { ends: vec![end] }
    }

    /// Anything that may come within so many changes.
    pub fn drawn(prng: &mut Prng, changes: u64) -> Self {
        let is_kill = prng.chance(50);
        Self::then_drawn(prng, is_kill, changes)
    }

    /// An end of one kind, and any that may follow it.
    pub fn then_drawn(prng: &mut Prng, is_kill: bool, changes: u64) -> Self {
        let mut ends = vec![End::drawn(prng, is_kill, changes)];
        for _ in 0..[0, 0, 0, 1, 2][prng.index(5)] {
            let is_kill = prng.chance(50);
            ends.push(End::drawn(prng, is_kill, START_CHANGES));
        }
        Crash { ends }
    }
}
