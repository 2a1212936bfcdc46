//! Making a script that fails shorter, as long as it fails.

use crate::driver::{Crash, Script, Step, Trouble};
use crate::episode::{Failure, replay};

/// A shorter script.
#[derive(Debug)]
pub struct Minimised {
    /// It.
    pub script: Script,
    /// How it fails.
    pub failure: Failure,
    /// How many runs that took.
    pub runs: u64,
}

/// Makes shorter what fails: first by leaving steps out, then by simpler troubles, then by fewer sectors that
/// survive. `is_it` says of a failure, and its script, whether it is still the one sought.
pub fn minimise(failure: &Failure, is_it: impl Fn(&Script) -> bool) -> Option<Minimised> {
    let script = failure.script.clone()?;
    let mut search = Search {
        best: script,
        failure: failure.clone(),
        runs: 0,
        is_it: &is_it,
    };
    search.fewer_steps();
    search.simpler_troubles();
    search.fewer_steps();
    search.fewer_sectors();
    Some(Minimised {
        script: search.best,
        failure: search.failure,
        runs: search.runs,
    })
}

/// Leaves out as much of `parts` as `fails` allows (ddmin, by complements).
fn ddmin<T: Clone>(mut parts: Vec<T>, mut fails: impl FnMut(&[T]) -> bool) -> Vec<T> {
    let mut chunk = parts.len().div_ceil(2);
    while chunk > 0 && !parts.is_empty() {
        let mut at = 0;
        let mut is_shorter = false;
        while at < parts.len() {
            let end = (at + chunk).min(parts.len());
            let rest = [&parts[..at], &parts[end..]].concat();
            if fails(&rest) {
                parts = rest;
                is_shorter = true;
            } else {
                at = end;
            }
        }
        if !is_shorter || chunk > 1 {
            chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
        }
    }
    parts
}

struct Search<'a> {
    best: Script,
    failure: Failure,
    runs: u64,
    is_it: &'a dyn Fn(&Script) -> bool,
}

impl Search<'_> {
    /// Takes a script over, if it fails as well.
    fn try_script(&mut self, script: Script) -> bool {
        self.runs += 1;
        let Err(failure) = replay(&script) else {
            return false;
        };
        if !(self.is_it)(&script) {
            return false;
        }
        self.best = script;
        self.failure = *failure;
        true
    }

    fn fewer_steps(&mut self) {
        let steps = self.best.steps.clone();
        ddmin(steps, |steps: &[Step]| {
            let steps = steps.to_vec();
            let script = Script {
                steps,
                ..self.best.clone()
            };
            self.try_script(script)
        });
    }

    /// Tries the step at `index` with other troubles.
    fn try_trouble(&mut self, index: usize, trouble: Option<Trouble>) -> bool {
        let mut script = self.best.clone();
        script.steps[index].trouble = trouble;
        self.try_script(script)
    }

    fn simpler_troubles(&mut self) {
        for index in 0..self.best.steps.len() {
            if self.best.steps[index].trouble.is_none() || self.try_trouble(index, None) {
                continue;
            }
            for ends in (1..=2).rev() {
                let Some(mut trouble) = self.best.steps[index].trouble.clone() else {
                    break;
                };
                let (Trouble::Crash(Crash { ends: all }) | Trouble::Fault(_, Crash { ends: all })) =
                    &mut trouble;
                if all.len() > ends {
                    all.truncate(ends);
                    self.try_trouble(index, Some(trouble));
                }
            }
        }
    }

    /// Names the sectors that survive the power cuts, and leaves out those that do not matter.
    fn fewer_sectors(&mut self) {
        let survivors = self.failure.survivors.clone();
        let mut script = self.best.clone();
        let mut cuts = survivors.into_iter();
        for_each_cut(&mut script, |keeps| *keeps = cuts.next());
        if !self.try_script(script) {
            return;
        }
        let mut count = 0;
        for_each_cut(&mut self.best.clone(), |_| count += 1);
        for number in 0..count {
            let mut sectors = Vec::new();
            at_cut(&mut self.best.clone(), number, |keeps| {
                sectors = keeps.clone().unwrap_or_default();
            });
            ddmin(sectors, |sectors: &[u64]| {
                let mut script = self.best.clone();
                at_cut(&mut script, number, |keeps| *keeps = Some(sectors.to_vec()));
                self.try_script(script)
            });
        }
    }
}

fn at_cut(script: &mut Script, number: usize, mut change: impl FnMut(&mut Option<Vec<u64>>)) {
    let mut at = 0;
    for_each_cut(script, |keeps| {
        if at == number {
            change(keeps);
        }
        at += 1;
    });
}

/// Shows what is kept by each power cut of the script that happens.
fn for_each_cut(script: &mut Script, mut change: impl FnMut(&mut Option<Vec<u64>>)) {
    for step in &mut script.steps {
        if let Some(Trouble::Crash(crash)) = &mut step.trouble {
            let cuts = crash.ends.iter_mut().filter(|end| !end.is_kill);
            cuts.for_each(|end| change(&mut end.keeps));
        }
    }
}
