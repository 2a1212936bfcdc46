//! Child processes: the only ones who touch loop devices and paths under a FUSE mount.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};
use std::thread;

use crate::error::Error;

/// Where system programs are; a daemon's own search path often lacks the `sbin` folders.
const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Set in the environment of a daemon whose service manager gave it a view of the file system of its own:
/// what it mounted itself, nobody else would see. The manager runs `mount` and `umount` for it then.
const MOUNTS_BY_MANAGER: &str = "THINPOOL_MOUNTS_BY_MANAGER";

/// How systemd is asked to run a program, in the common view, with our output and to its end. It does
/// so while the machine is being shut down, too.
const BY_MANAGER: [&str; 8] = [
    "systemd-run",
    "--quiet",
    "--collect",
    "--wait",
    "--pipe",
    "--property=DefaultDependencies=no",
    "--setenv=LC_ALL=C",
    "--",
];

/// Session threads have names that begin so; see [`run`].
pub(crate) const SESSION_THREAD_PREFIX: &str = "fuser-";

/// A program, and the package that usually brings it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Program {
    name: &'static str,
    package: &'static str,
}

pub(crate) const LOSETUP: Program = Program {
    name: "losetup",
    package: "util-linux",
};
pub(crate) const STAT: Program = Program {
    name: "stat",
    package: "coreutils",
};
pub(crate) const MOUNT: Program = Program {
    name: "mount",
    package: "mount (util-linux)",
};
pub(crate) const UMOUNT: Program = Program {
    name: "umount",
    package: "mount (util-linux)",
};

/// Runs the program to its end and returns what it printed. Blocks; what the program does may end
/// in requests to this process, so this must not be called on a thread that serves them.
pub(crate) fn run<S: AsRef<OsStr>>(program: Program, arguments: &[S]) -> Result<String, Error> {
    let thread = thread::current();
    assert!(
        !thread
            .name()
            .is_some_and(|name| name.starts_with(SESSION_THREAD_PREFIX)),
        "a session thread would wait for itself"
    );
    let mut path = env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(SYSTEM_PATH);
    let output = command(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| start_error(program, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let reason = reason_of(program, &complaint).unwrap_or_else(|| output.status.to_string());
    Err(Error::Program {
        command: command_line(program, arguments),
        reason,
    })
}

fn command(program: Program) -> Command {
    let is_for_all = [MOUNT.name, UMOUNT.name].contains(&program.name);
    if !is_for_all || env::var_os(MOUNTS_BY_MANAGER).is_none() {
        return Command::new(program.name);
    }
    let (manager, options) = (BY_MANAGER[0], &BY_MANAGER[1..]);
    let mut command = Command::new(manager);
    command.args(options).arg(program.name);
    command
}

fn start_error(program: Program, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::NotFound {
        return Error::ProgramMissing {
            program: program.name,
            package: program.package,
        };
    }
    Error::Io {
        what: format!("cannot start {}", program.name),
        source,
    }
}

fn command_line<S: AsRef<OsStr>>(program: Program, arguments: &[S]) -> String {
    let mut line = program.name.to_owned();
    for argument in arguments {
        line.push(' ');
        line.push_str(&argument.as_ref().to_string_lossy());
    }
    line
}

/// The first line that says something, without the program's own name before it. Later lines are
/// hints such as "dmesg(1) may have more information".
fn reason_of(program: Program, complaint: &str) -> Option<String> {
    let line = complaint
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    let line = line
        .strip_prefix(program.name)
        .and_then(|l| l.strip_prefix(": "))
        .unwrap_or(line);
    Some(line.trim_end_matches('.').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SH: Program = Program {
        name: "sh",
        package: "dash",
    };

    #[test]
    fn the_first_line_of_the_complaint_is_the_reason() {
        let error = run(
            SH,
            &["-c", "echo 'sh: no luck.' >&2; echo more >&2; exit 3"],
        )
        .unwrap_err();
        let Error::Program { reason, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(reason, "no luck");
        let error = run(SH, &["-c", "exit 3"]).unwrap_err();
        assert!(error.to_string().ends_with("exit status: 3"), "{error}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let program = Program {
            name: "no-such-program-here",
            package: "nothing",
        };
        let error = run(program, &[""; 0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "program no-such-program-here was not found: install nothing"
        );
    }

    #[test]
    fn session_threads_may_not_wait_for_programs() {
        let thread = thread::Builder::new()
            .name(format!("{SESSION_THREAD_PREFIX}0"))
            .spawn(|| run(SH, &["-c", "true"]))
            .unwrap();
        assert!(thread.join().is_err());
    }
}
