//! The daemon: runs pools, their exports and their metrics.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ctl::thinpoold(std::env::args_os())
}
