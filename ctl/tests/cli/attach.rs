//! Local block devices.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::bench::{Bench, can_attach, has_program, noise};

/// Takes away what a failed test may leave attached or mounted below its directory.
struct Cleanup<'a>(&'a Bench);

impl Cleanup<'_> {
    fn unmount(&self, is_meant: fn(&str) -> bool) {
        let root = self.0.path("").to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines().rev() {
            let mountpoint = mount.split(' ').nth(1).unwrap_or_default();
            if mountpoint.starts_with(&root) && is_meant(mountpoint) {
                let _ = Command::new("umount").arg("-l").arg(mountpoint).status();
            }
        }
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        let is_fuse = |mountpoint: &str| mountpoint.ends_with("/fuse");
        self.unmount(|mountpoint| !mountpoint.ends_with("/fuse"));
        for volume in ["p/vol", "p/c1", "p/vol@s"] {
            self.0.thinctl(&["detach", volume]);
        }
        self.unmount(is_fuse);
    }
}

#[test]
fn a_volume_becomes_a_block_device() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    bench.write(&["p/vol"], &noise(1 << 20, 1));
    bench.ok(&["create-snap", "p/vol@s"]);
    let daemon = bench.serve(&["p"]);
    let attached = bench.json(&["attach", "p/vol", "--fuse"]);
    for key in [
        "device",
        "link",
        "transport",
        "reason",
        "file",
        "mountpoint",
        "read_only",
        "direct_io",
    ] {
        assert!(attached.get(key).is_some(), "{key}: {attached}");
    }
    assert_eq!(
        (
            attached["transport"].as_str(),
            attached["read_only"].as_bool()
        ),
        (Some("fuse"), Some(false))
    );
    let device = attached["device"].as_str().unwrap();
    assert_eq!(fs::read(device).unwrap()[..1 << 20], noise(1 << 20, 1));
    bench.refused(&["attach", "p/vol"], 4, "already attached as /dev/loop");
    bench.refused(&["rm", "p/vol"], 5, "in use");
    bench.refused(&["rollback", "p/vol@s"], 5, "in use");
    let snapshot = bench.json(&["attach", "p/vol@s", "--fuse"]);
    assert_eq!(snapshot["read_only"], true);
    assert!(fs::write(snapshot["device"].as_str().unwrap(), b"x").is_err());
    bench.ok(&["detach", snapshot["device"].as_str().unwrap()]);
    let held = fs::File::open(device).unwrap();
    bench.refused(&["detach", "p/vol"], 5, "busy");
    drop(held);
    bench.ok(&["detach", "p/vol"]);
    bench.refused(&["detach", "p/vol"], 3, "not attached");
    bench.ok(&["rm", "p/vol", "p/vol@s"]);
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn options_of_other_devices_are_refused() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p"]);
    for (options, words) in [
        (&["--queues", "2"][..], "--queues: not for"),
        (
            &["--depth", "8", "--buffer", "64K"],
            "--depth, --buffer: not for",
        ),
    ] {
        let attach = [&["attach", "p/vol", "--fuse"], options].concat();
        bench.refused(&attach, 2, words);
    }
    bench.refused(&["attach", "p/vol", "--buffer", "4G"], 2, "too large");
    daemon.stop();
}

#[test]
fn a_block_device_grows_with_its_volume() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p"]);
    let attached = bench.json(&["attach", "p/vol", "--fuse"]);
    assert!(attached["queues"].is_null(), "{attached}");
    let device = Path::new(attached["device"].as_str().unwrap());
    let resized = bench.json(&["resize", "p/vol", "--size", "12M"]);
    assert_eq!(resized["size"], 12 << 20);
    assert!(resized["notes"].as_array().unwrap().is_empty(), "{resized}");
    assert_eq!(fs::read(device).unwrap().len(), 12 << 20);
    bench.ok(&["detach", "p/vol"]);
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn what_is_persistent_is_attached_by_the_next_daemon() {
    if !can_attach() || !has_program("mkfs.ext4") {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    fs::create_dir(bench.path("m")).unwrap();
    bench.ok(&["create", "p/vol", "--size", "32M"]);
    bench.ok(&["create", "p/c1", "--size", "1M"]);
    let daemon = bench.serve(&["p"]);
    let attached = bench.json(&["attach", "p/vol", "--fuse"]);
    let device = attached["device"].as_str().unwrap();
    let mkfs = Command::new("mkfs.ext4").args(["-q", device]).status();
    assert!(mkfs.unwrap().success());
    bench.ok(&["detach", "p/vol"]);
    let attach = |volume: &str, more: &[&str]| {
        let outcome = bench.thinctl(&[&["attach", volume, "--fuse", "--persist"], more].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        // No unit has been made for it.
        assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        assert!(
            outcome.stderr.contains("with the machine"),
            "{}",
            outcome.stderr
        );
    };
    attach("p/vol", &["--mount", "m"]);
    attach("p/c1", &["--sector-size", "4096"]);
    bench.ok(&["rename", "p/vol", "p/new"]);
    fs::write(bench.path("m/file"), noise(1 << 20, 5)).unwrap();
    daemon.stop();
    assert!(!bench.path("m/file").exists());

    // A daemon that one attachment needs does not bring all the others.
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    bench.ok(&["attach", "p/vol", "--fuse"]);
    assert!(!bench.path("m/file").exists());
    bench.ok(&["detach", "p/vol"]);
    bench.ok(&["rm", "p/vol"]);

    let daemon = bench.serve(&["p"]);
    assert!(fs::read(bench.path("m/file")).unwrap() == noise(1 << 20, 5));
    bench.refused(&["attach", "p/c1"], 4, "already attached");
    bench.refused(&["rm", "p/c1"], 5, "in use");
    let device = fs::read_link(bench.path("links/p/c1")).unwrap();
    let sectors = Command::new("blockdev")
        .arg("--getss")
        .arg(&device)
        .output();
    assert_eq!(sectors.unwrap().stdout, b"4096\n");
    let detached = bench.json(&["detach", "p/new"]);
    assert_eq!(detached["name"], "new");
    daemon.stop();

    let daemon = bench.serve(&["p"]);
    assert!(!bench.path("m/file").exists() && bench.path("links/p/c1").exists());
    daemon.stop();
    let detached = bench.json(&["detach", "p/c1"]);
    assert!(detached["device"].is_null(), "{detached}");
    bench.refused(&["detach", "p/c1"], 3, "not attached");
    assert!(!bench.path("p/attachments.toml").exists());
    bench.check_clean("p");
}

#[test]
fn what_cannot_be_attached_stops_no_daemon() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    let table = "version = 1\n[[attachment]]\nname = 'none'\n[[attachment]]\nname = 'vol'\ntransport = 'fuse'\n";
    fs::write(bench.path("p/attachments.toml"), table).unwrap();
    let daemon = bench.serve(&["p"]);
    assert!(bench.path("links/p/vol").exists());
    assert!(
        bench.log().contains("attachments.toml: none: "),
        "{}",
        bench.log()
    );
    daemon.stop();
    bench.ok(&["rm", "p/vol"]);
    assert!(
        !fs::read_to_string(bench.path("p/attachments.toml"))
            .unwrap()
            .contains("vol")
    );
    fs::write(bench.path("p/attachments.toml"), "version = 7").unwrap();
    let daemon = bench.serve(&["p"]);
    assert!(
        bench.log().contains("attachments.toml: its version is 7"),
        "{}",
        bench.log()
    );
    daemon.stop();
}

#[test]
fn without_a_daemon_one_is_started_and_ends_by_itself() {
    if !can_attach() || !has_program("mkfs.ext4") {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    for mountpoint in ["m1", "m2"] {
        fs::create_dir(bench.path(mountpoint)).unwrap();
    }
    bench.ok(&["create", "p/vol", "--size", "32M"]);
    let attached = bench.json(&["attach", "p/vol", "--fuse"]);
    let device = attached["device"].as_str().unwrap();
    assert!(
        Command::new("mkfs.ext4")
            .args(["-q", device])
            .status()
            .unwrap()
            .success()
    );
    bench.ok(&["detach", device]);
    assert!(!bench.path("p/control.sock").exists());
    bench.check_clean("p");
    let mounted = bench.json(&["attach", "p/vol", "--mount", "m1", "--fuse"]);
    assert_eq!(
        mounted["mountpoint"],
        bench.path("m1").canonicalize().unwrap().to_str().unwrap()
    );
    fs::write(bench.path("m1/file"), noise(1 << 20, 5)).unwrap();
    fs::File::open(bench.path("m1/file"))
        .unwrap()
        .sync_all()
        .unwrap();
    bench.ok(&["create-snap", "p/vol@s"]);
    bench.ok(&["clone", "p/vol@s", "p/c1"]);
    bench.ok(&["attach", "p/c1", "--mount", "m2", "--fuse"]);
    assert!(fs::read(bench.path("m2/file")).unwrap() == noise(1 << 20, 5));
    fs::write(bench.path("m2/file"), b"other").unwrap();
    assert!(fs::read(bench.path("m1/file")).unwrap() == noise(1 << 20, 5));
    let busy = fs::File::open(bench.path("m2/file")).unwrap();
    bench.refused(&["detach", "p/c1"], 5, "busy");
    assert_eq!(fs::read(bench.path("m2/file")).unwrap(), b"other");
    drop(busy);
    bench.ok(&["detach", "p/c1"]);
    bench.ok(&["detach", "p/vol"]);
    assert!(!bench.path("p/control.sock").exists());
    bench.check_clean("p");
}

#[test]
fn a_file_system_is_made_on_what_is_blank_and_on_nothing_else() {
    if !can_attach() || !has_program("mkfs.ext4") {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    fs::create_dir(bench.path("m")).unwrap();
    bench.ok(&["create", "p/vol", "--size", "32M"]);
    bench.ok(&["create", "p/c1", "--size", "32M"]);
    bench.write(&["p/c1"], &noise(1 << 20, 3));
    let made = [
        "attach", "p/vol", "--mount", "m", "--mkfs", "ext4", "--fuse",
    ];
    let daemon = bench.serve(&["p"]);
    assert_eq!(bench.json(&made)["made"], "ext4");
    fs::write(bench.path("m/file"), b"kept").unwrap();
    bench.ok(&["detach", "p/vol"]);
    assert!(bench.json(&made)["made"].is_null());
    assert_eq!(fs::read(bench.path("m/file")).unwrap(), b"kept");
    bench.ok(&["detach", "p/vol"]);
    let mut over = made;
    over[1] = "p/c1";
    bench.refused(&over, 4, "blkdiscard");
    bench.refused(&["detach", "p/c1"], 3, "not attached");
    bench.refused(&["attach", "p/c1", "--mkfs", "ext4"], 2, "--mount");
    daemon.stop();
    assert_eq!(bench.ok(&["ls", "p"]).lines().count(), 3);
    bench.check_clean("p");
}

#[test]
fn attaching_what_cannot_be_leaves_no_daemon() {
    let bench = Bench::with_pool();
    bench.refused(&["attach", "p/none"], 3, "no such volume");
    bench.refused(&["attach", "p/none", "--mount", "nowhere"], 3, "nowhere");
    if can_attach() {
        bench.ok(&["create", "p/vol", "--size", "1M"]);
        fs::create_dir(bench.path("m")).unwrap();
        // There is no file system on it.
        let outcome = bench.thinctl(&["attach", "p/vol", "--mount", "m", "--fuse"]);
        assert_eq!(
            (outcome.code, outcome.stderr.lines().count()),
            (1, 1),
            "{}",
            outcome.stderr
        );
    }
    let metadata = fs::File::open(bench.path("p/metadata")).unwrap();
    // Ending takes it a moment.
    rustix::fs::flock(&metadata, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(!bench.path("p/control.sock").exists());
}

#[test]
fn a_daemon_that_died_attached_is_replaced() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p"]);
    bench.write(&["p/vol"], &noise(1 << 20, 1));
    let first = bench.json(&["attach", "p/vol", "--fuse"]);
    daemon.end(Signal::KILL);
    let daemon = bench.serve(&["p"]);
    let second = bench.json(&["attach", "p/vol", "--fuse"]);
    let device = second["device"].as_str().unwrap();
    assert_eq!(fs::read(device).unwrap()[..1 << 20], noise(1 << 20, 1));
    let backing = |device: &str| {
        let name = Path::new(device).file_name().unwrap();
        fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file"))
            .unwrap_or_default()
    };
    let first = first["device"].as_str().unwrap();
    assert!(first == device || !backing(first).contains(bench.path("run").to_str().unwrap()));
    bench.ok(&["detach", "p/vol"]);
    daemon.stop();
    bench.check_clean("p");
}

#[test]
fn ending_the_daemon_detaches() {
    if !can_attach() {
        return;
    }
    let bench = Bench::with_pool();
    let _cleanup = Cleanup(&bench);
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    let daemon = bench.serve(&["p"]);
    bench.ok(&["attach", "p/vol", "--fuse"]);
    daemon.stop();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(bench.path("run").to_str().unwrap()),
        "{mounts}"
    );
    bench.check_clean("p");
}

#[test]
fn attach_takes_what_works_and_says_why() {
    let bench = Bench::with_pool();
    let doctor = bench.json(&["doctor"]);
    let transports = doctor.as_array().unwrap();
    let names: Vec<_> = transports.iter().map(|t| t["transport"].clone()).collect();
    assert_eq!(names, ["ublk", "nbd", "fuse"]);
    for transport in transports {
        let works = transport["works"].as_bool().unwrap();
        assert_eq!(works, transport.get("missing").is_none(), "{transport}");
        assert_eq!(works, transport.get("remedy").is_none(), "{transport}");
    }
    let lines = bench.ok(&["doctor"]);
    assert_eq!(lines.lines().count(), 1 + transports.len(), "{lines}");
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    for transport in transports.iter().filter(|t| t["works"] == false) {
        let flag = format!("--{}", transport["transport"].as_str().unwrap());
        let lack = transport["missing"].as_str().unwrap();
        bench.refused(&["attach", "p/vol", &flag], 1, lack);
    }
    let Some(best) = transports.iter().find(|t| t["works"] == true) else {
        return;
    };
    let _cleanup = Cleanup(&bench);
    let outcome = bench.thinctl(&["attach", "p/vol"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    let device = String::from_utf8(outcome.stdout).unwrap();
    let link = bench.path("links/p/vol");
    assert_eq!(
        fs::read_link(&link).unwrap().to_str().unwrap(),
        device.trim()
    );
    // What is better and missing is named, for people, beside the device.
    let told = best != &transports[0];
    assert_eq!(
        outcome.stderr.lines().count(),
        usize::from(told),
        "{}",
        outcome.stderr
    );
    if told {
        let lack = transports[0]["missing"].as_str().unwrap();
        assert!(outcome.stderr.contains(lack), "{}", outcome.stderr);
    }
    bench.ok(&["detach", "p/vol"]);
    assert!(!link.exists() && !bench.path("links/p").exists());
}
