//! Who watches a pool: `top`, and the tree of what was made from what.

use std::time::Duration;

use serde_json::Value;

use crate::bench::{Bench, noise};

/// A volume of 1 MiB, half of which its clone has overwritten, and a snapshot between them.
fn family() -> Bench {
    let bench = Bench::with_pool();
    bench.ok(&["create", "p/prod", "--size", "8M"]);
    bench.write(&["p/prod"], &noise(1 << 20, 1));
    bench.ok(&["create-snap", "p/prod@s"]);
    bench.ok(&["clone", "p/prod@s", "p/dev"]);
    bench.write(&["p/dev"], &noise(1 << 19, 2));
    bench
}

#[test]
fn the_tree_says_what_is_whose() {
    let bench = family();
    let told: Vec<(String, u64, u64, u64)> = bench
        .json(&["tree", "p"])
        .as_array()
        .unwrap()
        .iter()
        .map(|node| {
            let number = |field: &str| node[field].as_u64().unwrap();
            (
                node["name"].as_str().unwrap().to_owned(),
                number("depth"),
                number("exclusive_bytes"),
                number("shared_bytes"),
            )
        })
        .collect();
    let expected = [
        ("prod", 0, 0, 1 << 20),
        ("prod@s", 1, 0, 1 << 20),
        ("dev", 2, 1 << 19, 1 << 19),
    ];
    let expected = expected.map(|(name, depth, own, shared)| (name.to_owned(), depth, own, shared));
    assert_eq!(told, expected);
    let text = bench.ok(&["tree", "p"]);
    let words = |name: &str| {
        let line = text.lines().find(|line| line.contains(name)).unwrap();
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(words("─ dev").contains(&"clone".to_owned()), "{text}");
    assert!(words("prod@s").contains(&"snapshot".to_owned()), "{text}");
    assert!(words("prod ").contains(&"volume".to_owned()), "{text}");
}

#[test]
fn top_needs_a_daemon() {
    let bench = family();
    bench.refused(&["top", "p", "--once"], 3, "no daemon serves it");
    bench.refused(&["top", "p", "--interval", "0"], 2, "0.1 to 3600");
    bench.refused(&["top", "p", "--interval", "soon"], 2, "0.1 to 3600");
}

#[test]
fn top_shows_all_devices_once_or_again_and_again() {
    let bench = family();
    let daemon = bench.serve(&["p"]);
    let text = bench.ok(&["top", "p", "--once", "--interval", "0.1"]);
    let rows: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.starts_with("NAME"))
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert_eq!(rows, ["dev", "prod", "prod@s"], "idle ones by name: {text}");
    assert!(!text.contains('\u{1b}'), "it is no terminal: {text:?}");
    let lines = bench.lines(&["top", "p", "--interval", "0.1", "--json"], 3);
    for line in &lines {
        let view: Value = serde_json::from_str(line).unwrap();
        let passed = Duration::from_secs_f64(view["interval_seconds"].as_f64().unwrap());
        assert!(passed >= Duration::from_millis(100), "{line}");
        assert_eq!(view["pool"]["mode"], "write");
        assert_eq!(view["pool"]["data"]["used_bytes"], (1 << 20) + (1 << 19));
        assert_eq!(view["devices"].as_array().unwrap().len(), 3);
    }
    daemon.stop();
}
