//! The two programs from arguments to exit code.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use rustix::fs::Mode;
use rustix::process::umask;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command, usage_error};
use crate::commands;
use crate::daemon;
use crate::exit;
use crate::protocol::{CallError, CallErrorKind};
use crate::serve_args::DaemonCli;

/// Runs `thinctl` with these arguments, the program's name first.
///
/// # Errors
/// None of a command's: those are told, and make the exit code.
pub fn thinctl(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return not_parsed("thinctl", &error),
    };
    let level = if matches!(cli.command, Command::Serve(_)) {
        "info"
    } else {
        "warn"
    };
    keep_others_from_writing();
    log_to_stderr(level);
    Ok(ended("thinctl", commands::run(cli)))
}

/// Runs `thinpoold` with these arguments, the program's name first.
///
/// # Errors
/// As [`thinctl`].
pub fn thinpoold(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<ExitCode> {
    let cli = match DaemonCli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return not_parsed("thinpoold", &error),
    };
    keep_others_from_writing();
    log_to_stderr("info");
    Ok(ended(
        "thinpoold",
        daemon::run(cli.serve).map(|()| exit::DONE),
    ))
}

/// Nothing that is made may be written by everybody, not even where the umask has nothing against it.
fn keep_others_from_writing() {
    let before = umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    umask(before | Mode::WOTH);
}

/// Human lines on standard error; `THINPOOL_LOG` says how many.
fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_from_env("THINPOOL_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
}

/// Help and version are no errors; anything else is told in one line.
fn not_parsed(program: &str, error: &clap::Error) -> anyhow::Result<ExitCode> {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match error.print() {
            Err(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => Err(cause.into()),
            _ => Ok(ExitCode::SUCCESS),
        };
    }
    eprintln!("{program}: {} (see '{program} --help')", usage_error(error));
    Ok(ExitCode::from(exit::USAGE))
}

fn ended(program: &str, result: Result<u8, CallError>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if error.kind != CallErrorKind::OutputClosed {
                eprintln!("{program}: {error}");
            }
            exit::exit_code(error.kind)
        }
    }
}
