//! Which unsynced sectors survive a power cut: drawn, or told one by one.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::prng::Prng;

/// How survivors are drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Shape {
    /// None.
    Nothing,
    /// All.
    All,
    /// Each with this chance in percent.
    Percent(u64),
    /// Runs of so many sectors, each with an even chance: larger units than a disk tears.
    Runs(u64),
    /// Those of the writes that completed first; of the next one, some.
    Prefix,
    /// All but those of one write.
    AllButOne,
    /// Those of one write alone.
    OnlyOne,
    /// The superblock alone.
    Superblock,
    /// All but the superblock.
    AllButSuperblock,
}

impl Shape {
    /// All kinds.
    pub const ALL: [Shape; 12] = [
        Shape::Nothing,
        Shape::All,
        Shape::Percent(10),
        Shape::Percent(50),
        Shape::Percent(90),
        Shape::Runs(8),
        Shape::Runs(128),
        Shape::Prefix,
        Shape::AllButOne,
        Shape::OnlyOne,
        Shape::Superblock,
        Shape::AllButSuperblock,
    ];

    /// A kind at random.
    pub fn any(prng: &mut Prng) -> Self {
        Self::ALL[prng.index(Self::ALL.len())]
    }
}

/// How it is decided.
enum Choice {
    Drawn(Shape, Prng),
    /// Whole writes, by their numbers.
    Writes(u64),
    Sectors(BTreeSet<u64>),
}

/// Decides for each unsynced sector of a machine, in the order of stores and writes.
pub struct Survivors {
    choice: Choice,
    /// Of the store that is asked about: the write that a shape singles out.
    single: usize,
    is_metadata: bool,
    writes: u64,
    sectors: u64,
    kept: Vec<u64>,
    did_last: bool,
}

impl Survivors {
    fn new(choice: Choice) -> Self {
        Survivors {
            choice,
            single: 0,
            is_metadata: false,
            writes: 0,
            sectors: 0,
            kept: Vec::new(),
            did_last: false,
        }
    }

    /// What a shape leaves.
    pub fn drawn(shape: Shape, prng: &mut Prng) -> Self {
        Self::new(Choice::Drawn(shape, prng.fork()))
    }

    /// The writes whose bits are set; the bit of write 64 is that of write 0.
    pub fn writes(mask: u64) -> Self {
        Self::new(Choice::Writes(mask))
    }

    /// These sectors, by their numbers.
    pub fn sectors(numbers: impl IntoIterator<Item = u64>) -> Self {
        Self::new(Choice::Sectors(numbers.into_iter().collect()))
    }

    /// The numbers of the sectors that survived.
    pub fn kept(&self) -> &[u64] {
        &self.kept
    }

    /// How many sectors it was asked about.
    pub fn asked(&self) -> u64 {
        self.sectors
    }

    /// Begins with a store, or a part of one, that has so many unsynced writes.
    pub(super) fn enter(&mut self, writes: usize, is_metadata: bool) {
        self.is_metadata = is_metadata;
        if let Choice::Drawn(_, prng) = &mut self.choice {
            self.single = match writes {
                0 => 0,
                _ => prng.index(writes),
            };
        }
    }

    /// Whether something that is no sector, such as an entry of a directory, survives.
    pub(crate) fn flips(&mut self) -> bool {
        match &mut self.choice {
            Choice::Drawn(_, prng) => prng.chance(50),
            Choice::Writes(_) | Choice::Sectors(_) => true,
        }
    }

    /// Which sectors of the write at `index` survive: of `count`, of which the first is `first` in its store.
    pub(super) fn of_write(&mut self, index: usize, first: u64, count: u64) -> Vec<bool> {
        let survivors: Vec<bool> = (0..count)
            .map(|sector| self.survives(index, first, sector))
            .collect();
        self.writes += 1;
        survivors
    }

    fn survives(&mut self, index: usize, first: u64, sector: u64) -> bool {
        let is_superblock = self.is_metadata && first == 0;
        let single = self.single;
        let survives = match &mut self.choice {
            Choice::Writes(mask) => *mask >> (self.writes % 64) & 1 == 1,
            Choice::Sectors(numbers) => numbers.contains(&self.sectors),
            Choice::Drawn(shape, prng) => {
                let percent = match *shape {
                    Shape::Nothing => 0,
                    Shape::All => 100,
                    Shape::Percent(percent) => percent,
                    Shape::Runs(run) if sector > 0 && !(first + sector).is_multiple_of(run) => {
                        100 * u64::from(self.did_last)
                    }
                    Shape::Runs(_) => 50,
                    Shape::Prefix if index == single => 50,
                    Shape::Prefix => 100 * u64::from(index < single),
                    Shape::AllButOne => 100 * u64::from(index != single),
                    Shape::OnlyOne => 100 * u64::from(index == single),
                    Shape::Superblock => 100 * u64::from(is_superblock),
                    Shape::AllButSuperblock => 100 * u64::from(!is_superblock),
                };
                prng.chance(percent)
            }
        };
        self.did_last = survives;
        if survives {
            self.kept.push(self.sectors);
        }
        self.sectors += 1;
        survives
    }
}
