//! The tool: asks a pool, or the daemon that serves it.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ctl::thinctl(std::env::args_os())
}
