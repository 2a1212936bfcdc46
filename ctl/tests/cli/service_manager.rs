//! What the daemon says to the service manager, and the sockets it takes from it. The tests are the
//! manager.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bench::{Bench, Daemon};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A manager that listens to its daemon.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(bench: &Bench) -> Self {
        let socket = UnixDatagram::bind(bench.path("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket }
    }

    fn command(&self, bench: &Bench) -> Command {
        let mut command = bench.command(env!("CARGO_BIN_EXE_thinpoold"));
        command.env("NOTIFY_SOCKET", bench.path("notify"));
        command
    }

    /// The assignments of the next message.
    fn hear(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let len = self.socket.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..len]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Drops what is said until this is. Returns all of its message.
    fn hear_until(&self, assignment: &str) -> Vec<String> {
        loop {
            let heard = self.hear();
            if heard.iter().any(|line| line == assignment) {
                return heard;
            }
        }
    }

    /// Takes in what has been said already. Whether any of it was this.
    fn has_heard(&self, assignment: &str) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let mut found = false;
        let mut buffer = [0; 4096];
        let end = loop {
            match self.socket.recv(&mut buffer) {
                Ok(len) => found |= buffer[..len].starts_with(assignment.as_bytes()),
                Err(cause) => break cause,
            }
        };
        assert_eq!(end.kind(), ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
        found
    }
}

/// Hands a socket over as descriptor 3, as systemd does.
fn start_with(bench: &Bench, socket: UnixListener, args: &[&str]) -> Command {
    let mut command = bench.command("sh");
    command
        .args([
            "-c",
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\" 3<&0 0</dev/null",
        ])
        .args(["sh", env!("CARGO_BIN_EXE_thinpoold")])
        .args(args)
        .stdin(Stdio::from(OwnedFd::from(socket)));
    command
}

#[test]
fn the_manager_hears_of_the_beginning_and_the_end() {
    let bench = Bench::with_pool();
    let manager = Manager::new(&bench);
    let mut command = manager.command(&bench);
    command.arg("p");
    let daemon = bench.start(command);
    let pool = bench.path("p").canonicalize().unwrap();
    assert_eq!(
        manager.hear(),
        [format!("STATUS=opening {}", pool.display())]
    );
    let ready = manager.hear_until("READY=1");
    assert_eq!(ready[1], format!("STATUS=serving {}", pool.display()));
    // It says so when it can be used, not before.
    UnixStream::connect(pool.join("control.sock")).unwrap();
    daemon.stop();
    assert_eq!(manager.hear(), ["STOPPING=1", "STATUS=closing"]);
    // Without having been asked to, it did not say that it was alive.
    assert!(!manager.has_heard("WATCHDOG=1"));
}

#[test]
fn one_that_cannot_serve_is_not_ready() {
    let bench = Bench::with_pool();
    let manager = Manager::new(&bench);
    fs::write(bench.path("p/metadata"), vec![0; 2 << 20]).unwrap();
    let output = manager.command(&bench).arg("p").output().unwrap();
    assert_eq!(output.status.code(), Some(8));
    assert!(!manager.has_heard("READY=1"));
}

#[test]
fn alive_is_one_whose_pools_answer() {
    let bench = Bench::with_pool();
    let manager = Manager::new(&bench);
    let mut command = manager.command(&bench);
    // Pool and host answer in far less than the quarter of this that they are given.
    command.arg("p").env("WATCHDOG_USEC", "4000000");
    let daemon = bench.start(command);
    for _ in 0..2 {
        manager.hear_until("WATCHDOG=1");
    }
    // Now nobody can talk to it any more, though it runs and has all its clocks.
    fs::remove_file(bench.path("p/control.sock")).unwrap();
    let mut alive = 0;
    while bench.log().matches("not alive").count() < 2 {
        alive += u32::from(manager.has_heard("WATCHDOG=1"));
        // One may have been on its way.
        assert!(alive <= 1, "it says it is alive");
        std::thread::sleep(Duration::from_millis(20));
    }
    daemon.stop();
}

#[test]
fn another_process_is_not_watched() {
    let bench = Bench::with_pool();
    let manager = Manager::new(&bench);
    let mut command = manager.command(&bench);
    command
        .arg("p")
        .env("WATCHDOG_USEC", "1")
        .env("WATCHDOG_PID", "1");
    bench.start(command).stop();
    assert!(!manager.has_heard("WATCHDOG=1"));
}

#[test]
fn a_control_socket_is_taken_from_the_manager() {
    let bench = Bench::with_pool();
    // By way of a link: the manager's paths need not be the pool's own.
    std::os::unix::fs::symlink(bench.path("p"), bench.path("link")).unwrap();
    let path = bench.path("link/control.sock");
    let socket = UnixListener::bind(&path).unwrap();
    // Whoever asks before the daemon is there waits for it.
    let mut early = bench
        .command(env!("CARGO_BIN_EXE_thinctl"))
        .args(["create", "p/vol", "--size", "1M"])
        .spawn()
        .unwrap();
    let start =
        || -> Daemon { bench.start(start_with(&bench, socket.try_clone().unwrap(), &["p"])) };
    let daemon = start();
    assert_eq!(early.wait().unwrap().code(), Some(0));
    assert_eq!(bench.json(&["info", "p"])["daemon_pid"], daemon.pid());
    daemon.stop();
    // The manager's socket is not ours to remove, and serves the next daemon.
    assert!(path.exists());
    let daemon = start();
    assert_eq!(bench.json(&["info", "p"])["daemon_pid"], daemon.pid());
    daemon.stop();
    drop(socket);
    // Nobody listens on it now: as if a daemon had died.
    bench.check_clean("p");
}

#[test]
fn a_socket_of_no_pool_is_refused() {
    let bench = Bench::with_pool();
    let socket = UnixListener::bind(bench.path("other.sock")).unwrap();
    let output = start_with(&bench, socket, &["p"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("other.sock") && text.contains("ListenStream="),
        "{text}"
    );
    bench.check_clean("p");
}
