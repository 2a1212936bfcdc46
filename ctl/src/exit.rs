//! Exit codes: which kind of failure ends a command with which code.

use std::process::ExitCode;

use pool::ErrorKind;

use crate::protocol::CallErrorKind;

/// The codes, as `--help` lists them.
pub const HELP: &str = "\
Exit codes:
  0  done
  1  `check` found damage, `repair` left something out, or a failure that is none of those below
  2  the command line, a name or a size is wrong
  3  what is named does not exist
  4  what would be made exists already
  5  in use: attached, exported, or held by another process
  6  no space: in the pool, or on the file system below it
  7  read only: a snapshot, a frozen volume, or a pool that needs a check
  8  damaged, or of a foreign or newer format
  9  input or output failed
  130  stopped by Ctrl-C or SIGTERM";

/// The code of success.
pub const DONE: u8 = 0;

/// The code of `check` when it found damage, of `repair` when something is missing, and of failures that have no code of their own.
pub const FAILED: u8 = 1;

/// The code of a wrong command line.
pub const USAGE: u8 = 2;

const CODES: [(CallErrorKind, u8); 11] = [
    (CallErrorKind::OutputClosed, DONE),
    (CallErrorKind::Other, FAILED),
    (CallErrorKind::Invalid, USAGE),
    (CallErrorKind::NotFound, 3),
    (CallErrorKind::Exists, 4),
    (CallErrorKind::Busy, 5),
    (CallErrorKind::NoSpace, 6),
    (CallErrorKind::ReadOnly, 7),
    (CallErrorKind::Damaged, 8),
    (CallErrorKind::Io, 9),
    (CallErrorKind::Interrupted, 130),
];

/// The code for a kind of failure.
pub fn code_of(kind: CallErrorKind) -> u8 {
    let kind = match kind {
        CallErrorKind::PoolHeld => CallErrorKind::Busy,
        other => other,
    };
    CODES
        .iter()
        .find(|(known, _)| *known == kind)
        .map_or(FAILED, |(_, code)| *code)
}

/// The kind of failure that a process of ours told by this code.
pub fn kind_of(code: u8) -> CallErrorKind {
    CODES
        .iter()
        .find(|(_, known)| *known == code)
        .map_or(CallErrorKind::Other, |(kind, _)| *kind)
}

/// The code for a kind of failure, as `main` returns it.
pub fn exit_code(kind: CallErrorKind) -> ExitCode {
    ExitCode::from(code_of(kind))
}

impl From<ErrorKind> for CallErrorKind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid => CallErrorKind::Invalid,
            ErrorKind::NotFound => CallErrorKind::NotFound,
            ErrorKind::Exists => CallErrorKind::Exists,
            ErrorKind::Busy => CallErrorKind::Busy,
            ErrorKind::ReadOnly => CallErrorKind::ReadOnly,
            ErrorKind::NoSpace => CallErrorKind::NoSpace,
            ErrorKind::Damaged => CallErrorKind::Damaged,
            ErrorKind::Io => CallErrorKind::Io,
            _ => CallErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_in_the_help() {
        for (kind, code) in CODES {
            assert!(HELP.contains(&format!("\n  {code}  ")), "{kind:?}");
            assert_eq!(kind_of(code), kind);
            assert_eq!(code_of(kind), code);
        }
    }
}
