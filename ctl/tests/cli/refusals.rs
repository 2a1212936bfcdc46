//! Bad input: one line that says what, where and what to do; a documented code; nothing changed.

use std::fs;

use rustix::fs::{FlockOperation, flock};

use crate::bench::{Bench, assert_refusal};

#[test]
fn help_tells_the_exit_codes() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]);
    for code in 0..=9 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}: {help}");
    }
    let output = bench
        .command(env!("CARGO_BIN_EXE_thinpoold"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("ready: pools=") && help.contains("Exit codes:"),
        "{help}"
    );
    assert!(bench.ok(&["--version"]).starts_with("thinctl "));
}

#[test]
fn every_command_takes_json() {
    let bench = Bench::new();
    let help = bench.ok(&["--help"]);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    for command in [
        "init",
        "adopt",
        "create",
        "create-snap",
        "clone",
        "rm",
        "rename",
        "resize",
        "rollback",
        "freeze",
        "grow",
        "set",
        "events",
        "status",
        "ls",
        "info",
        "top",
        "tree",
        "du",
        "serve",
        "attach",
        "detach",
        "doctor",
        "check",
        "restore",
        "dump",
        "read",
        "write",
    ] {
        assert!(commands.contains(&command), "{command}: {help}");
    }
    assert!(bench.ok(&["help", "clone"]).contains("POOL/NEW"));
    for command in commands.into_iter().filter(|command| *command != "help") {
        assert!(
            bench.ok(&[command, "--help"]).contains("--json"),
            "{command}"
        );
    }
}

#[test]
fn completions_and_man_pages_come_from_the_definition() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            bench.ok(&["completions", shell]).contains("create-snap"),
            "{shell}"
        );
    }
    assert!(bench.ok(&["man"]).contains("thinctl"));
    bench.ok(&["man", "--out", "man"]);
    for page in ["thinctl.1", "thinctl-create-snap.1", "thinpoold.1"] {
        assert!(
            fs::metadata(bench.path("man").join(page)).unwrap().len() > 100,
            "{page}"
        );
    }
}

#[test]
fn wrong_command_lines() {
    let bench = Bench::with_pool();
    // Whoever opens it first begins its history.
    bench.ok(&["ls", "p"]);
    for (args, reason) in [
        (&["create", "p/vol"][..], "--size"),
        (&["create", "p/vol", "--size", "0"], "more than 0"),
        (&["create", "p/vol", "--size", "1000"], "multiple of 512"),
        (&["create", "p/vol", "--size", "1X"], "512M"),
        (&["create", "p/vol", "--size", "9999999P"], "too large"),
        (&["create", "p/vol", "--size", "8191P"], "vol"),
        (&["create", "vol", "--size", "1M"], "POOL/VOL"),
        (
            &["create", "p/.hidden", "--size", "1M"],
            "letter or a digit",
        ),
        (&["create", "p/a b", "--size", "1M"], "cannot be used"),
        (&["create", "p/vol@s", "--size", "1M"], "not a snapshot"),
        (&["create-snap", "p/vol"], "POOL/VOL@SNAP"),
        (&["rollback", "p/vol"], "POOL/VOL@SNAP"),
        (&["fly"], "fly"),
        (
            &["serve", "p", "--nbd", "tcp:0.0.0.0:10809"],
            "--tls-certificates",
        ),
        (&["serve", "p", "--metrics", "10.1.2.3:1"], "loopback"),
        (&["serve", "p", "--http", "0.0.0.0:1"], "loopback"),
        (&["serve", "p", "p"], "named twice"),
        (&["attach", "vol"], "POOL/VOL"),
        (&["detach", "vol"], "POOL/VOL"),
    ] {
        let before = bench.contents_of("p");
        bench.refused(args, 2, reason);
        assert!(bench.contents_of("p") == before, "{args:?}");
    }
}

#[test]
fn what_does_not_exist_and_what_does() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    bench.ok(&["create-snap", "p/vol@s"]);
    bench.ok(&["init", "./q", "--size", "16M", "--metadata-size", "2M"]);
    fs::create_dir(bench.path("empty")).unwrap();
    fs::write(bench.path("file"), "").unwrap();
    for (args, code, reason) in [
        (&["ls", "none"][..], 3, "no such pool"),
        (&["ls", "empty"], 3, "no pool.toml"),
        (&["ls", "./file"], 3, "not a directory"),
        (&["create", "none/vol", "--size", "1M"], 3, "no such pool"),
        (&["info", "p/none"], 3, "none"),
        (&["rm", "p/none"], 3, "no such volume"),
        (&["read", "p/none"], 3, "no such volume"),
        (&["clone", "p/vol@none", "p/c"], 3, "vol@none"),
        (&["create-snap", "p/none@s"], 3, "none"),
        (&["rollback", "p/vol@none"], 3, "vol@none"),
        (&["detach", "p/vol"], 3, "not attached"),
        (&["detach", "/dev/null"], 3, "not attached"),
        (&["serve", "none"], 3, "no such pool"),
        (&["create", "p/vol", "--size", "1M"], 4, "already in use"),
        (&["create-snap", "p/vol@s"], 4, "already in use"),
        (&["clone", "p/vol@s", "p/vol"], 4, "already in use"),
        (&["clone", "p/vol", "q/c"], 2, "one pool"),
        (&["rename", "p/vol", "q/c"], 2, "one pool"),
        (&["rename", "p/vol", "p/x@s"], 2, "name"),
        (&["resize", "p/vol@s", "--size", "2M"], 2, "not a snapshot"),
        (&["read", "p/vol", "--offset", "2M"], 2, "not inside"),
        (&["read", "p/vol", "--length", "2M"], 2, "not inside"),
        (&["write", "p/vol", "--offset", "2M"], 2, "not inside"),
        (&["write", "p/vol@s"], 7, "read only"),
        (&["init", "./p", "--size", "1G"], 4, "pool already"),
        (&["init", "./file", "--size", "1G"], 4, "a file already"),
    ] {
        let before = (bench.contents_of("p"), bench.contents_of("q"));
        bench.refused(args, code, reason);
        assert!(
            (bench.contents_of("p"), bench.contents_of("q")) == before,
            "{args:?}"
        );
    }
    // The same through a daemon.
    let daemon = bench.serve(&["p"]);
    bench.refused(&["info", "p/none"], 3, "none");
    bench.refused(&["read", "p/none"], 3, "none");
    bench.refused(&["create", "p/vol", "--size", "1M"], 4, "already in use");
    let refused = bench.thinctl_with(&["write", "p/vol@s"], b"x");
    assert_refusal(&["write"], &refused, 7, "read only");
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn a_pool_that_cannot_be_made_leaves_nothing() {
    let bench = Bench::new();
    fs::create_dir(bench.path("full")).unwrap();
    fs::write(bench.path("full/something"), "").unwrap();
    fs::write(bench.path("used"), "something").unwrap();
    let big = (1_u64 << 62).to_string();
    for (line, code, reason) in [
        ("init ./full --size 1G", 4, "not empty"),
        ("init ./new", 2, "--size"),
        ("init ./new --size 100000", 2, "not a multiple of 65536"),
        (
            "init ./new --size 1G --block-size 100K",
            2,
            "multiple of 64K",
        ),
        ("init ./new --size 1G --block-size 2G", 2, "multiple of 64K"),
        (
            "init ./new --size 1G --metadata-size 100001",
            2,
            "multiple of 4096",
        ),
        ("init ./new --size 1G --metadata-size 16G", 2, "at most"),
        ("init ./new --size 1G --metadata-size 4K", 2, "at least"),
        ("init ./new --size 1G --data ./used", 4, "not empty"),
        ("init ./new --size 1G --metadata ./used", 4, "not empty"),
        (
            "init ./new --size 1G --data /dev/null",
            2,
            "neither a file nor",
        ),
        ("init ./none/new --size 1G", 3, "none"),
        ("adopt ./new --metadata ./used --data ./used", 8, "used"),
        ("adopt ./new --metadata ./none --data ./used", 3, "none"),
        (
            "adopt ./new --metadata ./used --data ./used --volume x",
            2,
            "ID:NAME:SIZE",
        ),
    ] {
        bench.refused(&line.split(' ').collect::<Vec<_>>(), code, reason);
        assert!(!bench.path("new").exists(), "{line}");
    }
    assert_ne!(bench.thinctl(&["init", "./new", "--size", &big]).code, 0);
    assert!(!bench.path("new").exists());
    assert_eq!(fs::read(bench.path("used")).unwrap(), b"something");
}

#[test]
fn a_pool_in_use_by_another_process() {
    let bench = Bench::with_pool();
    let metadata = fs::File::open(bench.path("p/metadata")).unwrap();
    flock(&metadata, FlockOperation::LockExclusive).unwrap();
    let reason = format!("in use by another process (pid {})", std::process::id());
    bench.refused(&["create", "p/vol", "--size", "1M"], 5, &reason);
    bench.refused(&["check", "p"], 5, "in use by another process");
    bench.refused(&["dump", "p"], 5, "in use by another process");
    bench.refused(&["serve", "p"], 5, "in use by another process");
    flock(&metadata, FlockOperation::LockShared).unwrap();
    bench.refused(
        &["create", "p/vol", "--size", "1M"],
        5,
        "in use by another process",
    );
    // Readers share.
    assert!(bench.ok(&["check", "p"]).starts_with("clean"));
    flock(&metadata, FlockOperation::Unlock).unwrap();
    bench.ok(&["create", "p/vol", "--size", "1M"]);
}

#[test]
fn a_pool_that_is_held_for_a_moment_is_waited_for() {
    let bench = Bench::with_pool();
    let metadata = fs::File::open(bench.path("p/metadata")).unwrap();
    flock(&metadata, FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let create = scope.spawn(|| bench.ok(&["create", "p/vol", "--size", "1M"]));
        // Long enough to be met by it, and far from as long as it waits.
        std::thread::sleep(std::time::Duration::from_millis(300));
        flock(&metadata, FlockOperation::Unlock).unwrap();
        create.join().unwrap();
    });
}
