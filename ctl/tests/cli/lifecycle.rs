//! What every command does, with a daemon and without.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::bench::{Bench, noise};

const MIB: usize = 1 << 20;

/// What tools of others read from `ls --json`.
const LISTED: [&str; 9] = [
    "name",
    "kind",
    "id",
    "uuid",
    "size",
    "mapped_bytes",
    "parent",
    "created",
    "read_only",
];

/// Everything a pool can do must be the same through a daemon.
fn with_and_without_daemon(test: fn(&Bench)) {
    let bench = Bench::with_pool();
    test(&bench);
    bench.check_clean("p");
    let bench = Bench::with_pool();
    let daemon = bench.serve(&["p"]);
    test(&bench);
    assert!(bench.ok(&["check", "p"]).starts_with("clean: "));
    daemon.stop();
    bench.check_clean("p");
}

fn names(bench: &Bench) -> Vec<String> {
    let list = bench.json(&["ls", "p"]);
    list.as_array()
        .unwrap()
        .iter()
        .map(|info| info["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn snapshots_keep_and_clones_diverge() {
    with_and_without_daemon(|bench| {
        let (first, second) = (noise(3 * MIB + 1000, 1), noise(MIB, 2));
        assert_eq!(bench.ok(&["create", "p/vol", "--size", "16M"]), "");
        bench.write(&["p/vol"], &first);
        bench.ok(&["create-snap", "p/vol@s1"]);
        bench.ok(&["clone", "p/vol@s1", "p/c1"]);
        bench.write(&["p/c1", "--offset", "512K"], &second);
        bench.write(&["p/vol", "--offset", "1M"], &second);
        assert_eq!(
            bench.read(&["p/vol@s1", "--length", &first.len().to_string()]),
            first
        );
        let mut expected = first.clone();
        expected[MIB..2 * MIB].copy_from_slice(&second);
        assert_eq!(
            bench.read(&["p/vol", "--length", &first.len().to_string()]),
            expected
        );
        let mut expected = first.clone();
        expected[MIB / 2..MIB + MIB / 2].copy_from_slice(&second);
        assert_eq!(
            bench.read(&["p/c1", "--length", &first.len().to_string()]),
            expected
        );
        assert_eq!(
            bench.read(&["p/c1", "--offset", "3M", "--length", "999"]),
            expected[3 * MIB..3 * MIB + 999]
        );
        let whole = bench.read(&["p/vol"]);
        assert_eq!(whole.len(), 16 * MIB);
        assert!(whole[first.len()..].iter().all(|byte| *byte == 0));
        bench.ok(&["rollback", "p/vol@s1"]);
        assert_eq!(
            bench.read(&["p/vol", "--length", &first.len().to_string()]),
            first
        );
        assert_eq!(names(bench), ["c1", "vol", "vol@s1"]);
        bench.ok(&["rm", "p/vol", "p/vol@s1"]);
        assert_eq!(bench.read(&["p/c1", "--length", "512K"]), first[..MIB / 2]);
        bench.ok(&["rm", "p/c1"]);
        assert_eq!(bench.ok(&["ls", "p", "--json"]).trim(), "[]");
    });
    // What was deleted has been given back once a daemon had the time, or at once without.
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "16M"]);
    bench.write(&["p/vol"], &noise(MIB, 3));
    assert_eq!(bench.json(&["info", "p"])["data_used_bytes"], MIB);
    bench.ok(&["rm", "p/vol"]);
    assert_eq!(bench.json(&["info", "p"])["data_used_bytes"], 0);
}

#[test]
fn json_has_the_promised_shape() {
    with_and_without_daemon(|bench| {
        let made = bench.json(&["create", "p/vol", "--size", "8M"]);
        assert_eq!(made["name"], "vol");
        bench.write(&["p/vol"], &noise(100_000, 1));
        let snapshots = bench.json(&["create-snap", "p/vol@s1"]);
        assert_eq!(snapshots[0]["kind"], "snapshot");
        bench.json(&["clone", "p/vol@s1", "p/c1"]);
        let list = bench.json(&["ls", "p"]);
        for info in list.as_array().unwrap() {
            for key in LISTED {
                assert!(info.get(key).is_some(), "{key}: {info}");
            }
        }
        let by_name = |name: &str| {
            list.as_array()
                .unwrap()
                .iter()
                .find(|info| info["name"] == name)
                .unwrap()
                .clone()
        };
        let (volume, snapshot) = (by_name("vol"), by_name("vol@s1"));
        assert_eq!(
            (&volume["kind"], &volume["read_only"]),
            (&json!("volume"), &json!(false))
        );
        assert_eq!(
            (&snapshot["kind"], &snapshot["read_only"]),
            (&json!("snapshot"), &json!(true))
        );
        assert_eq!(
            (&volume["size"], &volume["mapped_bytes"]),
            (&json!(8 << 20), &json!(128 << 10))
        );
        assert_eq!(
            (&snapshot["parent"], &volume["parent"]),
            (&json!("vol"), &Value::Null)
        );
        assert_eq!(by_name("c1")["parent"], "vol@s1");
        assert_eq!(bench.json(&["info", "p/vol@s1"]), snapshot);
        assert_eq!(bench.json(&["info", "p/vol"])["uuid"], volume["uuid"]);
        let pool = bench.json(&["info", "p"]);
        assert_eq!(
            (&pool["mode"], &pool["data_total_bytes"]),
            (&json!("write"), &json!(64 << 20))
        );
        let usage = bench.json(&["du", "p"]);
        assert_eq!(usage["devices"][0]["shared_bytes"], 128 << 10);
        assert_eq!(usage["devices"][0]["exclusive_bytes"], 0);
        assert_eq!(usage["devices"][0]["freed_if_deleted_bytes"], 0);
        assert_eq!(usage["pool"]["data_used_bytes"], 128 << 10);
        let report = bench.json(&["check", "p"]);
        assert_eq!(
            (&report["clean"], &report["devices"]),
            (&json!(true), &json!(3))
        );
        let tree = bench.json(&["tree", "p"]);
        let depths: Vec<_> = tree
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node["depth"].as_u64().unwrap())
            .collect();
        assert_eq!(depths, [0, 1, 2]);
    });
}

#[test]
fn tables_for_people() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/vol", "--size", "8M"]);
        bench.ok(&["create-snap", "p/vol@s1"]);
        let list = bench.ok(&["ls", "p"]);
        let lines: Vec<&str> = list.lines().collect();
        let header: Vec<&str> = lines[0].split_whitespace().collect();
        assert_eq!(
            header,
            ["NAME", "KIND", "SIZE", "MAPPED", "PARENT", "CREATED"]
        );
        assert!(
            lines[1].starts_with("vol ") && lines[2].starts_with("vol@s1 "),
            "{list}"
        );
        assert!(bench.ok(&["tree", "p"]).contains("└── vol@s1"));
        assert!(bench.ok(&["du", "p"]).contains("FREED IF DELETED"));
        assert!(bench.ok(&["info", "p"]).contains("mode:"));
        assert!(
            bench
                .ok(&["info", "p/vol"])
                .contains("8.00 MiB (8388608 bytes)")
        );
    });
}

#[test]
fn several_snapshots_at_one_instant() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/a", "--size", "1M"]);
        bench.ok(&["create", "p/b", "--size", "1M"]);
        bench.ok(&["create-snap", "p/a@s", "p/b@s"]);
        assert_eq!(names(bench), ["a", "a@s", "b", "b@s"]);
        bench.refused(&["create-snap", "p/a@t", "p/b@s"], 4, "b@s");
        bench.refused(&["create-snap", "p/a@t", "p/none@t"], 3, "none");
        assert_eq!(names(bench), ["a", "a@s", "b", "b@s"]);
    });
}

#[test]
fn names_sizes_and_freezing() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/vol", "--size", "4M"]);
        bench.write(&["p/vol"], &noise(4 * MIB, 1));
        bench.ok(&["create-snap", "p/vol@s1"]);
        bench.ok(&["rename", "p/vol", "p/live"]);
        assert_eq!(names(bench), ["live", "live@s1"]);
        bench.ok(&["rename", "p/live@s1", "p/live@s2"]);
        bench.ok(&["resize", "p/live", "--size", "6M"]);
        assert_eq!(bench.json(&["info", "p/live"])["size"], 6 << 20);
        bench.refused(&["resize", "p/live", "--size", "1M"], 2, "--shrink");
        bench.ok(&["resize", "p/live", "--size", "1M", "--shrink"]);
        assert_eq!(bench.json(&["info", "p/live"])["mapped_bytes"], 1 << 20);
        bench.ok(&["clone", "p/live", "p/copy"]);
        assert_eq!(names(bench), ["copy", "live", "live@s2"]);
        bench.ok(&["freeze", "p/live"]);
        let refused = bench.thinctl_with(&["write", "p/live"], b"x");
        crate::bench::assert_refusal(&["write"], &refused, 7, "read only");
        assert!(bench.ok(&["ls", "p"]).contains("frozen"));
    });
}

#[test]
fn grow_gives_room() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/vol", "--size", "80M"]);
        let full = bench.thinctl_with(&["write", "p/vol"], &noise(65 * MIB, 1));
        crate::bench::assert_refusal(&["write"], &full, 6, "out of data space");
        bench.refused(&["grow", "p", "--size", "32M"], 2, "cannot shrink");
        bench.refused(&["grow", "p", "--size", "100000001"], 2, "multiple");
        bench.ok(&["grow", "p", "--size", "128M", "--metadata-size", "4M"]);
        assert_eq!(bench.path("p/data").metadata().unwrap().len(), 128 << 20);
        let info = bench.json(&["info", "p"]);
        assert_eq!(
            (&info["data_total_bytes"], &info["mode"]),
            (&json!(128 << 20), &json!("write"))
        );
        assert_eq!(info["metadata_total_bytes"], 4 << 20);
        bench.write(&["p/vol"], &noise(65 * MIB, 2));
        assert_eq!(
            bench.read(&["p/vol", "--offset", "64M", "--length", "1M"]),
            noise(65 * MIB, 2)[64 * MIB..]
        );
    });
}

#[test]
fn an_origin_shows_through() {
    with_and_without_daemon(|bench| {
        let image = noise(2 * MIB, 7);
        fs::write(bench.path("image"), &image).unwrap();
        bench.ok(&["create", "p/vol", "--size", "3M", "--origin", "image"]);
        let mut expected = image.clone();
        expected.resize(3 * MIB, 0);
        assert_eq!(bench.read(&["p/vol"]), expected);
        // Zeros must hide the origin, not uncover it.
        bench.write(&["p/vol"], &vec![0; MIB]);
        expected[..MIB].fill(0);
        assert_eq!(bench.read(&["p/vol"]), expected);
        assert_eq!(fs::read(bench.path("image")).unwrap(), image);
        bench.refused(
            &["create", "p/other", "--size", "3M", "--origin", "none"],
            3,
            "none",
        );
    });
}

fn program(bench: &Bench, args: &[&str]) -> Command {
    let mut command = bench.command(env!("CARGO_BIN_EXE_thinctl"));
    command.args(args);
    command
}

#[test]
fn contents_are_exact_in_files_and_pipes() {
    with_and_without_daemon(|bench| {
        let mut bytes = noise(5 * MIB, 1);
        bytes[MIB..3 * MIB].fill(0);
        fs::write(bench.path("in"), &bytes).unwrap();
        bench.ok(&["create", "p/vol", "--size", "6M"]);
        let input = fs::File::open(bench.path("in")).unwrap();
        assert!(
            program(bench, &["write", "p/vol"])
                .stdin(input)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(bench.json(&["info", "p/vol"])["mapped_bytes"], 3 << 20);
        // Into a file, with holes and a hole at the end.
        let out = fs::File::create(bench.path("out")).unwrap();
        assert!(
            program(bench, &["read", "p/vol"])
                .stdout(out)
                .status()
                .unwrap()
                .success()
        );
        let mut expected = bytes.clone();
        expected.resize(6 * MIB, 0);
        assert_eq!(fs::read(bench.path("out")).unwrap(), expected);
        // Behind what a file holds, and over what a file holds.
        fs::write(bench.path("out"), b"before").unwrap();
        let append = fs::File::options()
            .append(true)
            .open(bench.path("out"))
            .unwrap();
        assert!(
            program(bench, &["read", "p/vol", "--length", "2M"])
                .stdout(append)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(
            fs::read(bench.path("out")).unwrap(),
            [b"before", &expected[..2 * MIB]].concat()
        );
        fs::write(bench.path("out"), vec![1; 7 * MIB]).unwrap();
        let over = fs::File::options()
            .write(true)
            .open(bench.path("out"))
            .unwrap();
        assert!(
            program(bench, &["read", "p/vol"])
                .stdout(over)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(fs::read(bench.path("out")).unwrap()[..6 * MIB], expected);
    });
}

#[test]
fn more_than_fits_is_refused() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/vol", "--size", "6M"]);
        bench.write(&["p/vol"], &noise(6 * MIB, 1));
        // A file is refused at once; of a pipe the beginning is written.
        let before = bench.read(&["p/vol"]);
        fs::write(bench.path("in"), vec![9; 6 * MIB + 1]).unwrap();
        let input = fs::File::open(bench.path("in")).unwrap();
        let status = program(bench, &["write", "p/vol"])
            .stdin(input)
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(2));
        assert_eq!(bench.read(&["p/vol"]), before);
        let refused = bench.thinctl_with(&["write", "p/vol"], &vec![9; 6 * MIB + 1]);
        crate::bench::assert_refusal(&["write"], &refused, 2, "longer than the volume");
    });
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    with_and_without_daemon(|bench| {
        bench.ok(&["create", "p/vol", "--size", "32M"]);
        bench.write(&["p/vol"], &noise(8 * MIB, 1));
        for args in [
            &["read", "p/vol"][..],
            &["dump", "p"],
            &["ls", "p"],
            &["--help"],
        ] {
            let mut child = bench
                .command(env!("CARGO_BIN_EXE_thinctl"))
                .args(args)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            drop(child.stdout.take());
            let output = child.wait_with_output().unwrap();
            assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{args:?}");
            assert_eq!(output.status.code(), Some(0), "{args:?}");
        }
    });
}

#[test]
fn dumps_are_equal_with_and_without_a_daemon() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "8M"]);
    bench.write(&["p/vol"], &noise(3 * MIB, 1));
    bench.ok(&["create-snap", "p/vol@s"]);
    bench.write(&["p/vol", "--offset", "64K"], &noise(100, 2));
    let alone = bench.ok(&["dump", "p"]);
    let daemon = bench.serve(&["p"]);
    assert_eq!(bench.ok(&["dump", "p"]), alone);
    daemon.stop();
    assert!(alone.contains("nr_data_blocks=\"1024\""), "{alone}");
    if crate::bench::has_program("thin_dump") {
        let output = bench
            .command("thin_dump")
            .arg("p/metadata")
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), alone);
    }
}

#[test]
fn pools_with_bare_names_are_below_the_root() {
    let bench = Bench::new();
    fs::create_dir(bench.path("root")).unwrap();
    bench.ok(&["init", "main", "--size", "16M", "--metadata-size", "2M"]);
    assert!(bench.path("root/main/pool.toml").is_file());
    bench.ok(&["create", "main/vol", "--size", "1M"]);
    assert_eq!(bench.json(&["ls", "main"])[0]["name"], "vol");
    assert_eq!(bench.json(&["info", "main/vol"])["name"], "vol");
}
