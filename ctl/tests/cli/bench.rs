//! A directory, the real binaries, and a daemon that is always ended.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A directory of its own for one test, with pools in it.
pub struct Bench {
    root: TempDir,
}

/// How a command ended.
pub struct Outcome {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Bench {
    pub fn new() -> Self {
        Bench {
            root: tempfile::tempdir().unwrap(),
        }
    }

    /// With a pool `p` of 64 MiB.
    pub fn with_pool() -> Self {
        let bench = Self::new();
        bench.ok(&["init", "./p", "--size", "64M", "--metadata-size", "2M"]);
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.root.path())
            .env("THINPOOL_ROOT", self.path("root"))
            .env("THINPOOL_RUNTIME_DIR", self.path("run"))
            .env("THINPOOL_LINK_DIR", self.path("links"))
            .stdin(Stdio::null());
        command
    }

    pub fn thinctl(&self, args: &[&str]) -> Outcome {
        self.thinctl_with(args, b"")
    }

    /// With standard input from a pipe.
    pub fn thinctl_with(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_thinctl"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // A command that does not read its input closes the pipe, which is fine.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Runs what must succeed and say nothing on standard error; returns standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let outcome = self.thinctl(args);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
        String::from_utf8(outcome.stdout).unwrap()
    }

    /// The first lines of a command that goes on for ever, until nobody reads them any more.
    pub fn lines(&self, args: &[&str], count: usize) -> Vec<String> {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_thinctl"))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let reader = BufReader::new(child.stdout.take().unwrap());
        let lines: Vec<String> = reader.lines().take(count).map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
        lines
    }

    pub fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    pub fn read(&self, args: &[&str]) -> Vec<u8> {
        let outcome = self.thinctl(&[&["read"], args].concat());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
        outcome.stdout
    }

    pub fn write(&self, args: &[&str], input: &[u8]) {
        let outcome = self.thinctl_with(&[&["write"], args].concat(), input);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
    }

    /// Runs what must be refused with this code and one line that says so.
    pub fn refused(&self, args: &[&str], code: i32, reason: &str) {
        let outcome = self.thinctl(args);
        assert_refusal(args, &outcome, code, reason);
    }

    /// The pool `name` passes our check, and thin_check where that is installed.
    pub fn check_clean(&self, name: &str) {
        let report = self.ok(&["check", name]);
        assert!(report.starts_with("clean: "), "{report}");
        let metadata = self.path(name).join("metadata");
        match Command::new("thin_check").arg("-q").arg(metadata).status() {
            Ok(status) => assert!(status.success(), "thin_check: {status}"),
            Err(cause) => eprintln!("SKIPPED thin_check: {cause}"),
        }
    }

    /// Everything below the pool's directory, and how it looks.
    pub fn contents_of(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = std::fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.path(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    }

    /// Starts a daemon and waits until it is ready.
    pub fn serve(&self, args: &[&str]) -> Daemon {
        let mut command = self.command(env!("CARGO_BIN_EXE_thinpoold"));
        command.args(args);
        self.start(command)
    }

    /// Starts a daemon by this command and waits until it is ready.
    pub fn start(&self, mut command: Command) -> Daemon {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        let child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon {
            child,
            ready: String::new(),
        };
        let stdout = daemon.child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut daemon.ready).unwrap();
        assert!(daemon.ready.starts_with("ready: "), "{}", self.log());
        daemon
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

pub fn assert_refusal(args: &[&str], outcome: &Outcome, code: i32, reason: &str) {
    assert_eq!(outcome.code, code, "{args:?}: {}", outcome.stderr);
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{args:?}: {}", outcome.stderr);
    assert!(lines[0].starts_with("thinctl: "), "{args:?}: {}", lines[0]);
    assert!(lines[0].contains(reason), "{args:?}: {}", lines[0]);
}

/// A running daemon; killed when dropped.
pub struct Daemon {
    child: Child,
    pub ready: String,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the ready line says of `key`.
    pub fn ready_value(&self, key: &str) -> &str {
        let prefix = format!("{key}=");
        self.ready
            .split_whitespace()
            .find_map(|word| word.strip_prefix(&prefix))
            .unwrap()
    }

    pub fn end(mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap()
    }

    /// Ends it as a user would; it must close cleanly.
    pub fn stop(self) {
        assert_eq!(self.end(Signal::TERM).code(), Some(0));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that are not alike anywhere.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// What a web server at `address` answers.
pub fn http_get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether a program is there; says so when it is not.
pub fn has_program(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

/// Whether block devices can be attached here; says so when they cannot.
pub fn can_attach() -> bool {
    let possible = Path::new("/dev/fuse").exists()
        && Path::new("/dev/loop-control").exists()
        && rustix::process::geteuid().is_root();
    if !possible {
        eprintln!("SKIPPED: attaching needs root, /dev/fuse and /dev/loop-control");
    }
    possible
}
