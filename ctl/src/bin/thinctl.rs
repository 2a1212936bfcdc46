//! The tool: asks a pool, or the daemon that serves it.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ctl::thinctl(std::env::args_os())
}
