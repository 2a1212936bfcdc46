//! What many episodes have done, as text and as JSON.

use std::fmt;

use probe::Mark;
use serde_json::{Map, Value, json};

use crate::driver::Tally;
use crate::episode::Failure;
use crate::model::UNIT;

/// What came of many episodes.
#[derive(Default, Debug)]
pub struct Report {
    /// Seeds run.
    pub seeds: u64,
    /// Of these, twice.
    pub twice: u64,
    /// The first and the last of them.
    pub range: Option<(u64, u64)>,
    /// What they did.
    pub tally: Tally,
    /// Those that failed.
    pub failures: Vec<(u64, Failure)>,
    /// How long it took.
    pub seconds: f64,
    /// How long processors worked for it.
    pub processor_seconds: f64,
    /// On how many threads.
    pub jobs: usize,
}

impl Report {
    pub(super) fn add_seed(&mut self, seed: u64, outcome: Result<Tally, Box<Failure>>) {
        self.seeds += 1;
        self.widen((seed, seed));
        match outcome {
            Ok(tally) => self.tally.add(&tally),
            Err(failure) => self.failures.push((seed, *failure)),
        }
    }

    pub(super) fn add(&mut self, other: Report) {
        self.seeds += other.seeds;
        self.twice += other.twice;
        self.tally.add(&other.tally);
        self.failures.extend(other.failures);
        other.range.into_iter().for_each(|range| self.widen(range));
    }

    fn widen(&mut self, (first, last): (u64, u64)) {
        let (least, most) = self.range.unwrap_or((first, last));
        self.range = Some((least.min(first), most.max(last)));
    }

    /// Crashes of all kinds.
    pub fn crashes(&self) -> u64 {
        self.tally.kills + self.tally.cuts
    }

    /// Crashes in a second of one processor.
    #[expect(clippy::cast_precision_loss, reason = "for people to read")]
    pub fn rate(&self) -> f64 {
        self.crashes() as f64 / self.processor_seconds.max(0.001)
    }

    /// Marks that nothing has hit.
    pub fn missed(&self) -> Vec<&'static str> {
        let hits = |mark: &Mark| self.tally.marks.get(*mark as usize).copied();
        let missed = Mark::ALL.iter().filter(|mark| hits(mark).unwrap_or(0) == 0);
        missed.map(|mark| mark.name()).collect()
    }

    fn marks(&self) -> Map<String, Value> {
        let marks = Mark::ALL.iter().zip(&self.tally.marks);
        marks
            .map(|(mark, hits)| (mark.name().to_owned(), json!(hits)))
            .collect()
    }

    /// The report as one line of JSON.
    pub fn json(&self) -> Value {
        let tally = &self.tally;
        json!({
            "seeds": self.seeds,
            "twice": self.twice,
            "range": self.range,
            "seconds": self.seconds,
            "jobs": self.jobs,
            "processor_seconds": self.processor_seconds,
            "crashes_per_processor_second": self.rate(),
            "operations": tally.operations,
            "crashes": { "cut": tally.cuts, "kill": tally.kills, "double": tally.doubles },
            "lost_superblocks": tally.lost_superblocks,
            "faults": tally.faults,
            "sectors_compared": tally.bytes_compared / UNIT as u64,
            "checks": tally.checks,
            "marks": self.marks(),
            "violations": self.failures.len(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        writeln!(
            to,
            "{} seeds, {} of them twice, in {:.0} s on {} threads: {:.0} crashes in a second of a processor",
            self.seeds,
            self.twice,
            self.seconds,
            self.jobs,
            self.rate()
        )?;
        writeln!(
            to,
            "{} operations, {} refused, {} without space; {} power cuts, {} kills, {} of both interrupted again",
            tally.operations, tally.refused, tally.full, tally.cuts, tally.kills, tally.doubles
        )?;
        writeln!(
            to,
            "{} sectors compared, {} full checks; faults: {:?}",
            tally.bytes_compared / UNIT as u64,
            tally.checks,
            tally.faults
        )?;
        for (mark, hits) in self.marks() {
            writeln!(to, "  {mark}: {hits}")?;
        }
        write!(to, "violations: {}", self.failures.len())
    }
}
