//! The daemon: one a pool, ended cleanly by signals, replaced after it died.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;

use crate::bench::{Bench, assert_refusal, has_program, http_get, noise};

#[test]
fn the_ready_line_tells_where_everything_is() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&[
        "p",
        "--nbd",
        "unix:nbd.sock",
        "--nbd",
        "tcp:127.0.0.1:0",
        "--metrics",
        "127.0.0.1:0",
    ]);
    let pool = bench.path("p").canonicalize().unwrap();
    assert_eq!(daemon.ready_value("pools"), pool.to_str().unwrap());
    assert_eq!(
        daemon.ready_value("control"),
        pool.join("control.sock").to_str().unwrap()
    );
    let nbd: Vec<&str> = daemon.ready_value("nbd").split(',').collect();
    assert_eq!(nbd[0], "unix:nbd.sock");
    assert!(
        nbd[1].starts_with("tcp:127.0.0.1:") && !nbd[1].ends_with(":0"),
        "{nbd:?}"
    );
    assert!(!daemon.ready_value("metrics").ends_with(":0"));
    let mode = |path: &str| fs::metadata(bench.path(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("p/control.sock"), mode("nbd.sock")), (0o600, 0o660));
    assert_eq!(bench.json(&["info", "p"])["daemon_pid"], daemon.pid());
    daemon.stop();
    assert!(!bench.path("p/control.sock").exists() && !bench.path("nbd.sock").exists());
    let again = bench.serve(&["p"]);
    for service in ["nbd", "metrics", "http"] {
        assert_eq!(again.ready_value(service), "none", "{service}");
    }
}

#[test]
fn a_second_daemon_is_refused() {
    let bench = Bench::with_pool();
    bench.ok(&["init", "./q", "--size", "16M", "--metadata-size", "2M"]);
    let daemon = bench.serve(&["p"]);
    let reason = format!("(pid {})", daemon.pid());
    bench.refused(&["serve", "p"], 5, &reason);
    // A daemon serves all its pools or none.
    bench.refused(&["serve", "q", "p"], 5, &reason);
    bench.ok(&["create", "q/vol", "--size", "1M"]);
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    daemon.stop();
}

#[test]
fn signals_close_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let bench = Bench::with_pool();
        let daemon = bench.serve(&["p"]);
        bench.ok(&["create", "p/vol", "--size", "8M"]);
        bench.write(&["p/vol"], &noise(5 << 20, 1));
        assert_eq!(daemon.end(signal).code(), Some(0), "{}", bench.log());
        assert!(!bench.path("p/control.sock").exists());
        bench.check_clean("p");
        assert_eq!(bench.read(&["p/vol", "--length", "5M"]), noise(5 << 20, 1));
    }
}

#[test]
fn a_daemon_that_died_stops_nobody() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p", "--nbd", "unix:nbd.sock"]);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    bench.write(&["p/vol"], &noise(5 << 20, 1));
    daemon.end(Signal::KILL);
    assert!(bench.path("p/control.sock").exists());
    let checked = bench.thinctl(&["check", "p"]);
    assert_eq!(checked.code, 0);
    assert!(checked.stderr.contains("intent log"), "{}", checked.stderr);
    let read = bench.thinctl(&["read", "p/vol", "--length", "5M"]);
    assert!(read.stderr.contains("were replayed"), "{}", read.stderr);
    assert_eq!((read.code, read.stdout), (0, noise(5 << 20, 1)));
    let daemon = bench.serve(&["p", "--nbd", "unix:nbd.sock"]);
    assert_eq!(bench.read(&["p/vol", "--length", "5M"]), noise(5 << 20, 1));
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn deleted_space_comes_back_in_the_background() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p"]);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    bench.write(&["p/vol"], &noise(5 << 20, 1));
    assert_eq!(bench.json(&["info", "p"])["data_used_bytes"], 5 << 20);
    bench.ok(&["rm", "p/vol"]);
    while bench.json(&["info", "p"])["data_used_bytes"] != 0 {
        std::thread::yield_now();
    }
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn many_commands_at_once_through_one_daemon() {
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p"]);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let bench = &bench;
            scope.spawn(move || {
                let volume = format!("p/v{number}");
                bench.ok(&["create", &volume, "--size", "4M"]);
                bench.write(&[&volume], &noise(1 << 20, number));
                bench.ok(&["create-snap", &format!("{volume}@s")]);
                assert!(bench.ok(&["check", "p"]).starts_with("clean"));
                assert_eq!(
                    bench.read(&[&volume, "--length", "1M"]),
                    noise(1 << 20, number)
                );
                bench.ok(&["rm", &volume]);
            });
        }
    });
    assert_eq!(bench.json(&["ls", "p"]).as_array().unwrap().len(), 6);
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn metrics_move() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p", "--metrics", "127.0.0.1:0"]);
    let address = daemon.ready_value("metrics").to_owned();
    let value = |series: &str| {
        let page = http_get(&address, "/metrics");
        assert!(page.starts_with("HTTP/1.1 200"), "{page}");
        let line = page.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series}: {page}"))
            .trim()
            .parse::<f64>()
            .unwrap()
    };
    assert_eq!(
        value("thinpool_data_size_bytes{pool=\"p\"}"),
        f64::from(64 << 20)
    );
    assert_eq!(value("thinpool_data_used_bytes{pool=\"p\"}"), 0.0);
    assert_eq!(value("thinpool_mode{pool=\"p\",mode=\"write\"}"), 1.0);
    assert_eq!(value("thinpool_mode{pool=\"p\",mode=\"failed\"}"), 0.0);
    bench.write(&["p/vol"], &noise(1 << 20, 1));
    assert_eq!(
        value("thinpool_data_used_bytes{pool=\"p\"}"),
        f64::from(1 << 20)
    );
    assert_eq!(
        value("thinpool_device_mapped_bytes{pool=\"p\",volume=\"vol\"}"),
        f64::from(1 << 20)
    );
    assert_eq!(value("thinpool_provisioned_blocks_total{pool=\"p\"}"), 16.0);
    assert!(value("thinpool_commits_total{pool=\"p\"}") >= 1.0);
    assert!(value("thinpool_commit_duration_seconds_count{pool=\"p\"}") >= 1.0);
    if has_program("promtool") {
        fs::write(
            bench.path("page"),
            http_get(&address, "/metrics")
                .split_once("\r\n\r\n")
                .unwrap()
                .1,
        )
        .unwrap();
        let page = fs::File::open(bench.path("page")).unwrap();
        let output = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(page)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert!(http_get(&address, "/other").starts_with("HTTP/1.1 404"));
    daemon.stop();
}

/// `nbdinfo --list` prints each export's name.
fn exports(bench: &Bench) -> Vec<String> {
    let uri = format!("nbd+unix:///?socket={}", bench.path("nbd.sock").display());
    let output = bench
        .command("nbdinfo")
        .args(["--list", "--json", &uri])
        .output()
        .unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    list["exports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|export| export["export-name"].as_str().unwrap().to_owned())
        .collect()
}

fn export_size(bench: &Bench, name: &str) -> Option<u64> {
    let uri = format!(
        "nbd+unix:///{name}?socket={}",
        bench.path("nbd.sock").display()
    );
    let output = bench
        .command("nbdinfo")
        .args(["--size", &uri])
        .output()
        .unwrap();
    output.status.success().then(|| {
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    })
}

#[test]
fn exports_are_named_after_devices() {
    if !has_program("nbdinfo") {
        return;
    }
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/a", "--size", "1M"]);
    let daemon = bench.serve(&["p", "--nbd", "unix:nbd.sock"]);
    bench.ok(&["create-snap", "p/a@s"]);
    assert_eq!(exports(&bench), ["a", "a@s"]);
    assert_eq!(export_size(&bench, "a"), Some(1 << 20));
    assert_eq!(export_size(&bench, "p/a"), Some(1 << 20));
    assert_eq!(export_size(&bench, "none"), None);
    bench.ok(&["rm", "p/a@s"]);
    assert_eq!(exports(&bench), ["a"]);
    daemon.stop();
    bench.ok(&["init", "./q", "--size", "16M", "--metadata-size", "2M"]);
    bench.ok(&["create", "q/a", "--size", "2M"]);
    bench.ok(&["create", "q/b", "--size", "3M"]);
    let daemon = bench.serve(&["p", "q", "--nbd", "unix:nbd.sock"]);
    assert_eq!(exports(&bench), ["p/a", "q/a", "q/b"]);
    assert_eq!(export_size(&bench, "q/a"), Some(2 << 20));
    assert_eq!(export_size(&bench, "b"), Some(3 << 20));
    // Which one is meant is not clear.
    assert_eq!(export_size(&bench, "a"), None);
    daemon.stop();
}

#[test]
fn interrupting_a_write_keeps_what_was_written() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let mut child = bench
        .command(env!("CARGO_BIN_EXE_thinctl"))
        .args(["write", "p/vol"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Once the third piece fits into the pipe, the first has been taken out and is being written.
    std::io::Write::write_all(&mut stdin, &noise(3 << 20, 1)).unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let outcome = crate::bench::Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: Vec::new(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    };
    assert_refusal(&["write"], &outcome, 130, "interrupted");
    drop(stdin);
    bench.check_clean("p");
    bench.ok(&["ls", "p"]);
}
