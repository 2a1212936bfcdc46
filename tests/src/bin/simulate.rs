//! Runs the simulator. See `tests/README.md`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use probe::set_sabotage;
use serde_json::json;
use tests::driver::Script;
use tests::episode::{Failure, replay};
use tests::simulate::{Caught, Options, Report, catch, damage, minimise, quiet, run, search};

/// Runs episodes of random operations, crashes and faults on simulated pools.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Threads.
    #[arg(long, global = true, default_value_t = 2)]
    jobs: usize,
    /// Where scripts of failures are put.
    #[arg(long, global = true, default_value = "target/simulate")]
    scripts: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Runs seeds, each an episode.
    Run {
        /// A seed, or FIRST..LAST, the last one included.
        #[arg(long, default_value = "1..1000000000000", value_parser = seeds)]
        seeds: (u64, u64),
        /// Stops after so many seconds; 0 is never.
        #[arg(long, default_value_t = 0)]
        seconds: u64,
        /// Runs one of so many seeds twice, and fails when that makes a difference; 0 is none.
        #[arg(long, default_value_t = 16)]
        twice_one_of: u64,
        /// Fails when a mark is not hit.
        #[arg(long)]
        all_marks: bool,
    },
    /// Breaks the pool in each known way, and fails unless that is noticed.
    Sabotage {
        /// How many first seeds to begin with.
        #[arg(long, default_value_t = 5)]
        starts: u64,
        /// How many seeds each may take.
        #[arg(long, default_value_t = 100_000)]
        seeds_max: u64,
        /// Makes a script of each that is as short as can be.
        #[arg(long)]
        minimise: bool,
    },
    /// Tries every short sequence of operations, a crash after every change, and every set of survivors.
    Exhaustive {
        /// How many operations.
        #[arg(long, default_value_t = 2)]
        length: u32,
        /// Tries one of so many sequences.
        #[arg(long, default_value_t = 1)]
        one_of: u64,
    },
    /// Damages metadata at rest: what is noticed of it, and what a repair recovers.
    Latent {
        /// A seed, or FIRST..LAST, the last one included.
        #[arg(long, default_value = "1..1000000000000", value_parser = seeds)]
        seeds: (u64, u64),
        /// Stops after so many seconds; 0 is never.
        #[arg(long, default_value_t = 0)]
        seconds: u64,
    },
    /// Runs a script.
    Replay {
        /// The script.
        file: PathBuf,
    },
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|cause| cause.to_string());
    match text.split_once("..") {
        Some((first, last)) => Ok((number(first)?, number(last)?)),
        None => number(text).map(|seed| (seed, seed)),
    }
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    quiet();
    let is_good = match arguments.command {
        Command::Run {
            seeds: (first, last),
            seconds,
            twice_one_of,
            all_marks,
        } => {
            let report = run(&Options {
                first,
                last,
                seconds,
                jobs: arguments.jobs,
                twice_one_of,
            });
            tell(&report, &arguments.scripts)?;
            report.failures.is_empty() && !(all_marks && tell_missed(&report))
        }
        Command::Sabotage {
            starts,
            seeds_max,
            minimise,
        } => {
            let scripts = minimise.then_some(arguments.scripts.as_path());
            let mut told = Ok(());
            let mut are_all_caught = true;
            catch(starts, seeds_max, arguments.jobs, |caught| {
                are_all_caught &= caught.median().is_some();
                if told.is_ok() {
                    told = tell_caught(&caught, scripts);
                }
            });
            told?;
            are_all_caught
        }
        Command::Exhaustive { length, one_of } => {
            let searched = search(length, one_of.max(1), arguments.jobs);
            println!("{}", serde_json::to_string(&searched)?);
            searched.violations.is_empty()
        }
        Command::Latent {
            seeds: (first, last),
            seconds,
        } => {
            let options = Options {
                first,
                last,
                seconds,
                jobs: arguments.jobs,
                twice_one_of: 0,
            };
            tell_damaged(&options)?
        }
        Command::Replay { file } => {
            let text = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let script: Script = serde_json::from_slice(&text)
                .with_context(|| format!("{} is no script", file.display()))?;
            if let Err(failure) = replay(&script) {
                bail!("{}\n{}", failure.history, failure.message);
            }
            true
        }
    };
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn tell(report: &Report, scripts: &Path) -> Result<()> {
    for (seed, failure) in &report.failures {
        eprintln!("seed {seed}:\n{}\n{}", failure.history, failure.message);
        eprintln!(
            "to repeat: cargo run -p tests --profile ci --features probes --bin simulate -- run --seeds {seed}"
        );
        shorten(failure, scripts, &format!("seed-{seed}"), &|_| true)?;
    }
    println!("{report}");
    println!("{}", report.json());
    Ok(())
}

/// Whether nothing was wrong.
fn tell_damaged(options: &Options) -> Result<bool> {
    let (shown, failures) = damage(options);
    for (seed, failure) in &failures {
        eprintln!("latent, seed {seed}: {}", failure.message);
    }
    println!("{}", serde_json::to_string(&shown)?);
    Ok(failures.is_empty())
}

fn tell_missed(report: &Report) -> bool {
    let missed = report.missed();
    if !missed.is_empty() {
        eprintln!("marks that nothing has hit: {}", missed.join(", "));
    }
    !missed.is_empty()
}

fn tell_caught(caught: &Caught, scripts: Option<&Path>) -> Result<()> {
    let name = caught.sabotage.name();
    let mut left = None;
    if let (Some(scripts), Some(failure)) = (scripts, &caught.failure) {
        set_sabotage(Some(caught.sabotage));
        let is_it = |script: &Script| {
            set_sabotage(None);
            let is_sound = replay(script).is_ok();
            set_sabotage(Some(caught.sabotage));
            is_sound
        };
        left = shorten(failure, scripts, name, &is_it)?;
        set_sabotage(None);
    }
    let message: String = caught.message.chars().take(160).collect();
    println!(
        "{}",
        json!({
            "sabotage": name,
            "median_seeds": caught.median(),
            "seeds": caught.seeds,
            "operations_left": left,
            "noticed": message,
        })
    );
    Ok(())
}

/// Writes a script down that is as short as can be. How many steps it has.
fn shorten(
    failure: &Failure,
    scripts: &Path,
    name: &str,
    is_it: &dyn Fn(&Script) -> bool,
) -> Result<Option<usize>> {
    let Some(minimised) = minimise(failure, is_it) else {
        return Ok(None);
    };
    let path = scripts.join(format!("{name}.json"));
    fs::create_dir_all(scripts).with_context(|| format!("making {}", scripts.display()))?;
    fs::write(&path, minimised.script.text()?)
        .with_context(|| format!("writing {}", path.display()))?;
    let steps = minimised.script.steps.len();
    eprintln!(
        "{} steps of it are in {} ({} runs)",
        steps,
        path.display(),
        minimised.runs
    );
    Ok(Some(steps))
}
