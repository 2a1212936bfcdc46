//! The daemon: runs pools, their exports and their metrics.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ctl::thinpoold(std::env::args_os())
}
