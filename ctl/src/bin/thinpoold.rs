//! The daemon: runs pools, their exports, metrics and a page about them.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ctl::thinpoold(std::env::args_os())
}
