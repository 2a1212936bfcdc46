//! Mounts a file system that loses what was not synced, when told to. See `tests/README.md`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use tests::volatile_fs::serve;

/// An empty file system in memory, of one directory, that loses what was not synced when it is told that
/// the power goes.
#[derive(Parser)]
struct Arguments {
    /// Where it is mounted.
    mountpoint: PathBuf,
    /// The socket on which it is commanded; must not exist.
    socket: PathBuf,
    /// Everything random follows from it, and from the order of requests.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let ready = || println!("ready");
    serve(
        &arguments.mountpoint,
        &arguments.socket,
        arguments.seed,
        ready,
    )
    .with_context(|| format!("cannot serve {}", arguments.mountpoint.display()))
}
