//! Stores that are damaged, short, foreign or made by the kernel.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::{Bench, assert_refusal, has_program, noise};

#[test]
fn damage_is_told_and_nothing_is_written() {
    for (what, damage) in [
        ("superblock checksum", flip as fn(&Bench)),
        ("another magic", foreign),
        ("metadata store too short", shorten_metadata),
        ("data store too short", shorten_data),
        ("catalog", garble_catalog),
    ] {
        let bench = Bench::with_pool();
        bench.ok(&["create", "p/vol", "--size", "4M"]);
        bench.write(&["p/vol"], &noise(2 << 20, 1));
        damage(&bench);
        // Which would know the superblock.
        fs::remove_file(bench.path("p/superblocks")).unwrap();
        let before = bench.contents_of("p");
        bench.refused(&["ls", "p"], 8, "thinctl check");
        bench.refused(&["read", "p/vol"], 8, "");
        bench.refused(&["serve", "p"], 8, "");
        let outcome = bench.thinctl(&["check", "p"]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (1, ""), "{what}");
        let report = String::from_utf8(outcome.stdout).unwrap();
        assert!(
            report.contains("damage: ") && report.contains("damaged: "),
            "{what}: {report}"
        );
        let outcome = bench.thinctl(&["check", "p", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(
            (outcome.code, &report["clean"]),
            (1, &serde_json::json!(false)),
            "{what}"
        );
        assert_eq!(
            report["findings"][0]["severity"], "damage",
            "{what}: {report}"
        );
        assert!(bench.contents_of("p") == before, "{what}");
    }
}

fn metadata_of(bench: &Bench) -> fs::File {
    fs::File::options()
        .read(true)
        .write(true)
        .open(bench.path("p/metadata"))
        .unwrap()
}

fn flip(bench: &Bench) {
    let metadata = metadata_of(bench);
    let mut byte = [0];
    metadata.read_exact_at(&mut byte, 100).unwrap();
    metadata.write_all_at(&[byte[0] ^ 1], 100).unwrap();
}

fn foreign(bench: &Bench) {
    metadata_of(bench).write_all_at(&[0x5a; 4096], 0).unwrap();
}

fn shorten_metadata(bench: &Bench) {
    metadata_of(bench).set_len(1 << 20).unwrap();
}

fn shorten_data(bench: &Bench) {
    let data = fs::File::options()
        .write(true)
        .open(bench.path("p/data"))
        .unwrap();
    data.set_len(1 << 20).unwrap();
}

fn garble_catalog(bench: &Bench) {
    fs::write(bench.path("p/catalog"), "this is no catalog\n").unwrap();
}

#[test]
fn names_without_devices_are_found() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "4M"]);
    let catalog = fs::read_to_string(bench.path("p/catalog")).unwrap();
    fs::write(
        bench.path("p/catalog"),
        catalog.replace("\"id\":0", "\"id\":7"),
    )
    .unwrap();
    let outcome = bench.thinctl(&["check", "p"]);
    let report = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.code, 1);
    assert!(
        report.contains("vol is thin device 7, which does not exist"),
        "{report}"
    );
    assert!(report.contains("thin device 0 has no name"), "{report}");
}

#[test]
fn a_damaged_node_is_found_by_check_and_by_the_daemon() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "4M"]);
    bench.write(&["p/vol"], &noise(2 << 20, 1));
    let metadata = metadata_of(&bench);
    let mut superblock = [0; 4096];
    metadata.read_exact_at(&mut superblock, 0).unwrap();
    let details_root = u64::from_le_bytes(superblock[328..336].try_into().unwrap());
    metadata
        .write_all_at(b"x", details_root * 4096 + 2000)
        .unwrap();
    let outcome = bench.thinctl(&["check", "p"]);
    let report = String::from_utf8(outcome.stdout).unwrap();
    assert_eq!(outcome.code, 1, "{report}");
    assert!(
        report.contains(&format!("metadata block {details_root}")),
        "{report}"
    );
    bench.refused(&["ls", "p"], 8, "metadata block");
}

#[test]
fn a_newer_or_broken_pool_toml() {
    let bench = Bench::with_pool();
    let path = bench.path("p/pool.toml");
    let text = fs::read_to_string(&path).unwrap();
    for (from, to, reason) in [
        ("version = 1", "version = 2", "version 2"),
        ("version = 1", "", "no version"),
        ("metadata = ", "metadata ", "pool.toml"),
        ("read_only", "unheard_of", "unheard_of"),
    ] {
        fs::write(&path, text.replace(from, to)).unwrap();
        bench.refused(&["ls", "p"], 8, reason);
        bench.refused(&["check", "p"], 8, reason);
    }
    fs::write(&path, text.replace("read_only = false", "read_only = true")).unwrap();
    bench.refused(&["create", "p/vol", "--size", "1M"], 7, "read only");
    assert!(bench.ok(&["info", "p"]).contains("read only"));
}

#[test]
fn stores_elsewhere() {
    let bench = Bench::new();
    fs::write(bench.path("d"), vec![0; 32 << 20]).unwrap();
    bench.ok(&[
        "init",
        "./p",
        "--data",
        "d",
        "--metadata",
        "m",
        "--metadata-size",
        "2M",
    ]);
    let info = bench.json(&["info", "p"]);
    assert_eq!(info["data_total_bytes"], 32 << 20);
    assert_eq!(
        info["metadata"],
        bench.path("m").canonicalize().unwrap().to_str().unwrap()
    );
    bench.ok(&["create", "p/vol", "--size", "1M"]);
    bench.refused(&["init", "./q", "--data", "d", "--metadata", "m"], 4, "m");
    assert!(bench.ok(&["check", "p"]).starts_with("clean"));
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/kernel-pools")
        .join(name)
}

/// Unpacks a pool made by the kernel; none when that is not possible here.
pub fn kernel_pool(bench: &Bench, name: &str) -> Option<(PathBuf, PathBuf)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/kernel-pools")
        .join(name);
    if !has_program("zstd") {
        return None;
    }
    let unpack = |store: &str| {
        let out = bench.path(store);
        let status = Command::new("zstd")
            .args(["-q", "-d", "--sparse", "--long=27", "-o"])
            .arg(&out)
            .arg(folder.join(format!("{store}.bin.zst")))
            .status()
            .unwrap();
        assert!(status.success(), "{name}/{store}");
        out
    };
    Some((unpack("metadata"), unpack("data")))
}

#[test]
fn a_kernel_pool_is_adopted_in_place() {
    let bench = Bench::new();
    let Some((metadata, data)) = kernel_pool(&bench, "3-snapshots") else {
        return;
    };
    let before = (fs::read(&metadata).unwrap(), fs::read(&data).unwrap());
    let expected = fs::read_to_string(fixture("3-snapshots").join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    let device = &expected["devices"][0];
    let volume = format!(
        "{}:db:{}",
        device["id"],
        device["sectors"].as_u64().unwrap() * 512
    );
    bench.ok(&[
        "adopt",
        "./p",
        "--metadata",
        "metadata",
        "--data",
        "data",
        "--volume",
        &volume,
    ]);
    let list = bench.json(&["ls", "p"]);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|info| info["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"db") && names.iter().any(|name| name.starts_with("thin-")),
        "{names:?}"
    );
    for name in names {
        bench.read(&[&format!("p/{name}")]);
    }
    bench.ok(&["du", "p"]);
    bench.ok(&["info", "p"]);
    let report = bench.ok(&["check", "p"]);
    assert!(report.starts_with("clean"), "{report}");
    bench.ok(&["dump", "p"]);
    assert!((fs::read(&metadata).unwrap(), fs::read(&data).unwrap()) == before);
    bench.refused(
        &[
            "adopt",
            "./q",
            "--metadata",
            "metadata",
            "--data",
            "data",
            "--volume",
            "9999:db:64M",
        ],
        2,
        "9999",
    );
}

#[test]
fn a_pool_that_needs_a_check_stays_read_only() {
    let bench = Bench::new();
    let Some((metadata, _)) = kernel_pool(&bench, "8-needs-check") else {
        return;
    };
    let before = fs::read(&metadata).unwrap();
    let adopted = bench.thinctl(&["adopt", "./p", "--metadata", "metadata", "--data", "data"]);
    assert_eq!(adopted.code, 0, "{}", adopted.stderr);
    assert!(
        adopted.stderr.contains("needs a check"),
        "{}",
        adopted.stderr
    );
    let report = bench.ok(&["check", "p"]);
    assert!(
        report.contains("needs_check is set") && report.contains("clean"),
        "{report}"
    );
    let info = bench.json(&["info", "p"]);
    assert_eq!(
        (info["needs_check"].as_bool(), info["mode"].as_str()),
        (Some(true), Some("read_only"))
    );
    bench.refused(&["create", "p/new", "--size", "1M"], 7, "read only");
    let name = bench.json(&["ls", "p"])[0]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let refused = bench.thinctl_with(&["write", &format!("p/{name}")], b"x");
    assert_refusal(&["write"], &refused, 7, "read only");
    let daemon = bench.serve(&["p"]);
    bench.refused(&["create", "p/new", "--size", "1M"], 7, "read only");
    bench.read(&[&format!("p/{name}")]);
    daemon.stop();
    assert!(fs::read(&metadata).unwrap() == before);
}

#[test]
fn metadata_is_restored_from_a_dump() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "4M"]);
    bench.write(&["p/vol"], &noise(2 << 20, 1));
    bench.ok(&["create-snap", "p/vol@s"]);
    let dump = bench.ok(&["dump", "p"]);
    fs::write(bench.path("dump"), &dump).unwrap();

    assert_eq!(bench.ok(&["restore", "dump", "--to", "new"]), "");
    let outcome = bench.thinctl_with(
        &[
            "restore",
            "-",
            "--to",
            "piped",
            "--metadata-size",
            "1M",
            "--json",
        ],
        dump.as_bytes(),
    );
    let restored: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
    for (key, number) in [
        ("devices", 2),
        ("mappings", 64),
        ("metadata_blocks", 256),
        ("data_blocks", 1024),
        ("data_blocks_used", 32),
    ] {
        assert_eq!(restored[key], number, "{key}: {restored}");
    }
    assert_eq!(fs::metadata(bench.path("new")).unwrap().len(), 64 << 20);
    let volume = "--volume=0:vol:4M";
    bench.ok(&[
        "adopt",
        "q",
        "--metadata",
        "new",
        "--data",
        "p/data",
        volume,
    ]);
    assert!(bench.read(&["q/vol"]) == bench.read(&["p/vol"]));
    assert_eq!(bench.ok(&["dump", "q"]), dump);
    assert!(bench.ok(&["check", "q"]).starts_with("clean: "));
}

#[test]
fn what_cannot_be_restored_leaves_nothing() {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/vol", "--size", "4M"]);
    let dump = bench.ok(&["dump", "p"]);
    fs::write(bench.path("dump"), &dump).unwrap();
    fs::write(bench.path("half"), &dump[..dump.len() / 2]).unwrap();
    fs::write(
        bench.path("ref"),
        dump.replace("</device>", "<ref name=\"1\"/></device>"),
    )
    .unwrap();
    let to = ["--to", "new"];
    let refused = |args: &[&str], code, reason| {
        bench.refused(&[&["restore"], args].concat(), code, reason);
        assert!(!bench.path("new").exists() && !bench.path("new.restoring").exists());
    };
    refused(&["half", to[0], to[1]], 8, "half: line 2: ");
    refused(&["ref", to[0], to[1]], 8, "<ref>: parts that devices share");
    refused(&["p", to[0], to[1]], 9, "p: is a directory");
    refused(&["none", to[0], to[1]], 3, "none: ");
    refused(
        &["dump", to[0], to[1], "--metadata-size", "1000001"],
        2,
        "multiple of 4096",
    );
    refused(
        &["dump", to[0], to[1], "--metadata-size", "4K"],
        2,
        "at least 262144",
    );
    refused(&["dump", "--to", "none/new"], 3, "none/new: ");
    refused(
        &["dump", "--to", "p/metadata"],
        4,
        "p/metadata: there is something already",
    );
    refused(&["dump", "--to", "p"], 4, "p: there is something already");
    refused(&["dump"], 2, "--to");
}
