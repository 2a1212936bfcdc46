//! Runs the simulator: many short episodes, each followed from a seed.

use std::process::ExitCode;

use clap::Parser;
use tests::simulate::{Options, run};

/// Runs episodes of random operations, crashes and faults on a simulated pool.
#[derive(Parser)]
struct Arguments {
    /// Seeds, as FIRST..LAST, the last one included; or a single one.
    #[arg(long, default_value = "1..18446744073709551615")]
    seeds: String,
    /// Stops after this many seconds; 0 is never.
    #[arg(long, default_value_t = 0)]
    seconds: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let Some((first, last)) = seeds(&arguments.seeds) else {
        eprintln!("--seeds {}: expected FIRST..LAST", arguments.seeds);
        return ExitCode::from(2);
    };
    let report = run(&Options { first, last, seconds: arguments.seconds, jobs: arguments.jobs });
    println!("{report:#?}");
    ExitCode::SUCCESS
}

fn seeds(text: &str) -> Option<(u64, u64)> {
    match text.split_once("..") {
        Some((first, last)) => Some((first.parse().ok()?, last.parse().ok()?)),
        None => text.parse().ok().map(|seed| (seed, seed)),
    }
}
