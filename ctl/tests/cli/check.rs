//! What check says that damage costs, and how it gives leaked space back.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use metadata_btree::{
    Block, BlockNr, BlockStore, Btree, FileStore, SpaceMapRoot, SpaceMapRoots, Transaction, Value,
};
use serde_json::{Value as Json, json};

use crate::bench::{Bench, noise};
use crate::stores::kernel_pool;

const BLOCK: u64 = 65_536;

fn open(path: &Path) -> fs::File {
    let mut options = fs::File::options();
    options.read(true).write(true).open(path).unwrap()
}

fn u64_at(store: &fs::File, at: u64) -> u64 {
    let mut bytes = [0; 8];
    store.read_exact_at(&mut bytes, at).unwrap();
    u64::from_le_bytes(bytes)
}

/// The value of an entry of a node whose values have eight bytes, and its key.
fn entry(store: &fs::File, node: u64, index: u64) -> (u64, u64) {
    let node = node * 4096;
    let value = u64_at(store, node + 32 + 8 * 252 + 8 * index);
    (u64_at(store, node + 32 + 8 * index), value)
}

fn damage(store: &fs::File, block: u64) {
    store.write_all_at(b"damaged", block * 4096 + 100).unwrap();
}

fn losses(bench: &Bench) -> Vec<Json> {
    let outcome = bench.thinctl(&["check", "p", "--json"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, ""));
    let report: Json = serde_json::from_slice(&outcome.stdout).unwrap();
    report["losses"].as_array().unwrap().clone()
}

/// A volume of 600 blocks and a bit, in more than one leaf; a snapshot, that shares all but the first leaf;
/// and a volume in a single one.
fn pool_of_three() -> Bench {
    let bench = Bench::with_pool();
    let size = (600 * BLOCK + 512).to_string();
    bench.ok(&["create", "p/large", "--size", &size]);
    bench.write(&["p/large"], &noise(600 * 65_536, 1));
    bench.ok(&["create-snap", "p/large@s"]);
    bench.write(&["p/large"], &noise(65_536, 2));
    bench.ok(&["create", "p/small", "--size", "4M"]);
    bench.write(&["p/small", "--offset", "1M"], &noise(65_536, 3));
    bench
}

#[test]
fn volumes_and_ranges_that_damage_costs_are_named() {
    let bench = pool_of_three();
    let store = open(&bench.path("p/metadata"));
    let top_level = u64_at(&store, 320);
    // Large, its snapshot, small.
    let [large, snapshot, small] = [0, 1, 2].map(|index| entry(&store, top_level, index).1);
    let (_, own) = entry(&store, large, 0);
    let (first, shared) = entry(&store, large, 1);
    let (end, _) = entry(&store, large, 2);
    assert_eq!(entry(&store, snapshot, 1).1, shared, "shared");

    damage(&store, shared);
    let range = json!({
        "first_block": first, "last_block": end - 1,
        "offset": first * BLOCK, "length": (end - first) * BLOCK,
    });
    let shared = |device, name| {
        json!({
            "device": device, "name": name, "is_all": false, "ranges": [range], "more_ranges": 0,
        })
    };
    assert_eq!(losses(&bench), [shared(0, "large"), shared(1, "large@s")]);
    let text = String::from_utf8(bench.thinctl(&["check", "p"]).stdout).unwrap();
    let expected = format!(
        "cannot be trusted: large@s (thin device 1): {} bytes from {} (blocks {first} to {})\n",
        (end - first) * BLOCK,
        first * BLOCK,
        end - 1
    );
    assert!(text.contains(&expected), "{text}");

    damage(&store, own);
    damage(&store, small);
    let found = losses(&bench);
    let joined = json!([{
        "first_block": 0, "last_block": end - 1, "offset": 0, "length": end * BLOCK,
    }]);
    assert_eq!(found[0]["ranges"], joined);
    assert_eq!(found[1], shared(1, "large@s"));
    assert_eq!(
        (&found[2]["name"], &found[2]["is_all"]),
        (&json!("small"), &json!(true))
    );

    damage(&store, large);
    let all = json!([{
        "first_block": 0, "last_block": 600, "offset": 0, "length": 600 * BLOCK + 512,
    }]);
    assert_eq!(losses(&bench)[0]["ranges"], all);

    damage(&store, top_level);
    let found = losses(&bench);
    let names: Vec<_> = found.iter().map(|loss| loss["name"].as_str()).collect();
    assert_eq!(names, [Some("large"), Some("large@s"), Some("small")]);
    assert!(found.iter().all(|loss| loss["is_all"] == json!(true)));
}

#[test]
fn what_is_made_anew_costs_nothing() {
    let bench = pool_of_three();
    let store = open(&bench.path("p/metadata"));
    let details = u64_at(&store, 328);
    let data_index = u64_at(&store, 64 + 16);
    for block in [details, data_index] {
        damage(&store, block);
    }
    assert_eq!(losses(&bench), Vec::<Json>::new());
    let text = String::from_utf8(bench.thinctl(&["check", "p"]).stdout).unwrap();
    for block in [details, data_index] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("damage: metadata block {block}: ")));
        assert!(
            line.unwrap()
                .ends_with("costs nothing: a repair makes it anew"),
            "{text}"
        );
    }
    damage(&store, 0);
    let text = String::from_utf8(bench.thinctl(&["check", "p"]).stdout).unwrap();
    assert!(
        text.contains("costs everything, unless a copy of the superblock is left"),
        "{text}"
    );
}

#[derive(Clone, Copy, PartialEq)]
struct Number;

impl Value for Number {
    const SIZE: usize = 8;
    fn decode(_: &[u8]) -> Self {
        Number
    }
    fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(1);
    }
}

/// Counts references that there are not: to free data blocks, to used ones, to a tree that nobody names, and
/// to the top-level tree.
fn leak(metadata: &Path) {
    let store = FileStore::new(open(metadata)).unwrap();
    let mut superblock = Block::zeroed();
    store.read(BlockNr(0), &mut superblock).unwrap();
    let at = |offset: usize| &superblock.as_bytes()[offset..offset + 32];
    let roots = SpaceMapRoots {
        disk: SpaceMapRoot::decode(at(64)),
        metadata: SpaceMapRoot::decode(at(192)),
    };
    let top_level = u64::from_le_bytes(superblock.as_bytes()[320..328].try_into().unwrap());
    let mut transaction = Transaction::open(Arc::new(store), roots).unwrap();
    let mut free = Vec::new();
    transaction
        .for_each_free_disk_run(&mut |run| free.extend(run))
        .unwrap();
    for block in free.iter().take(5).chain(&free[7..9]) {
        transaction.disk_inc(*block).unwrap();
    }
    // Up to counts that the overflow tree has.
    for _ in 0..4 {
        transaction.disk_inc(free[8]).unwrap();
        transaction.disk_inc(0).unwrap();
    }
    let mut tree = Btree::empty(&mut transaction).unwrap();
    for key in 0..300 {
        tree.insert(&mut transaction, key, Number).unwrap();
    }
    transaction.inc(BlockNr(top_level)).unwrap();
    transaction
        .commit(|roots| {
            roots.disk.encode(&mut superblock.as_bytes_mut()[64..96]);
            roots
                .metadata
                .encode(&mut superblock.as_bytes_mut()[192..224]);
            Ok(superblock)
        })
        .unwrap();
}

fn thin_check_is_content(metadata: &Path) -> bool {
    let status = Command::new("thin_check").arg("-q").arg(metadata).status();
    status.unwrap().success()
}

#[test]
fn leaks_are_reclaimed_when_asked_for() {
    let bench = pool_of_three();
    let metadata = bench.path("p/metadata");
    let used = |report: &Json| report["data_blocks_used"].as_u64().unwrap();
    let before = bench.json(&["check", "p"]);
    let content = bench.read(&["p/large"]);
    leak(&metadata);
    assert!(!thin_check_is_content(&metadata));
    let report = bench.json(&["check", "p"]);
    assert_eq!(report["clean"], json!(false));
    let daemon = bench.serve(&["p"]);
    bench.refused(
        &["check", "p", "--reclaim-leaks"],
        5,
        "a daemon serves the pool",
    );
    daemon.stop();
    assert_eq!(bench.json(&["check", "p"])["findings"], report["findings"]);

    let report = bench.json(&["check", "p", "--reclaim-leaks"]);
    assert_eq!(report["clean"], json!(true));
    // Seven free and one used; three nodes, one of them an inner one, and the top-level tree.
    assert_eq!(
        report["reclaimed"],
        json!({"data_blocks": 8, "metadata_blocks": 4})
    );
    assert_eq!(used(&report), used(&before));
    bench.check_clean("p");
    assert!(bench.read(&["p/large"]) == content);
    let total = bench.json(&["info", "p"]);
    assert_eq!(
        total["data_used_bytes"].as_u64().unwrap(),
        used(&before) * BLOCK
    );
    let again = bench.json(&["check", "p", "--reclaim-leaks"]);
    assert_eq!(
        (&again["clean"], &again["reclaimed"]),
        (&json!(true), &Json::Null)
    );
}

#[test]
fn nothing_is_reclaimed_beside_damage() {
    let bench = pool_of_three();
    let metadata = bench.path("p/metadata");
    leak(&metadata);
    let store = open(&metadata);
    let details = u64_at(&store, 328);
    damage(&store, details);
    let before = bench.contents_of("p");
    let outcome = bench.thinctl(&["check", "p", "--reclaim-leaks"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (1, ""));
    assert!(
        !String::from_utf8(outcome.stdout)
            .unwrap()
            .contains("reclaimed")
    );
    assert!(bench.contents_of("p") == before);
}

/// Blocks that only a metadata snapshot of the kernel's reaches are in use, and stay as they are.
#[test]
fn a_metadata_snapshot_is_no_leak() {
    let bench = Bench::new();
    let Some((metadata, _)) = kernel_pool(&bench, "6-grown-held-origin") else {
        return;
    };
    let held = || {
        let dump = Command::new("thin_dump")
            .arg("-m")
            .arg(&metadata)
            .output()
            .unwrap();
        assert!(dump.status.success());
        dump.stdout
    };
    let before = held();
    bench.ok(&[
        "adopt",
        "./p",
        "--metadata",
        "metadata",
        "--data",
        "data",
        "--volume",
        "1:db:32M",
    ]);
    bench.write(&["p/db"], &noise(1 << 20, 1));
    bench.ok(&["create-snap", "p/db@s"]);
    bench.write(&["p/db"], &noise(1 << 20, 2));
    bench.ok(&["rm", "p/thin-9"]);
    assert!(bench.ok(&["check", "p"]).starts_with("clean: "));
    assert!(thin_check_is_content(&metadata) && held() == before);
    leak(&metadata);
    let report = bench.json(&["check", "p", "--reclaim-leaks"]);
    assert_eq!(report["clean"], json!(true));
    assert!(thin_check_is_content(&metadata) && held() == before);
}
