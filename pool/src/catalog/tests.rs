//! Tests of the catalog.

use super::*;
use crate::queue::NoSpaceOverride;

fn entry(id: u32, name: &str) -> Entry {
    Entry {
        id,
        name: name.parse().unwrap(),
        size: 1 << 20,
        uuid: format!("uuid-{id}"),
        created: "2020-01-01T00:00:00Z".into(),
        read_only: name.contains('@'),
        parent: None,
        external_origin: None,
        no_space: NoSpaceOverride::default(),
    }
}

fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

fn history() -> Vec<Operation> {
    vec![
        Operation::Add(entry(0, "prod")),
        Operation::Add(entry(1, "prod@s1")),
        Operation::Add(entry(2, "dev")),
        Operation::Rename {
            from: name("prod"),
            to: name("live"),
        },
        Operation::Resize {
            name: name("dev"),
            size: 4096,
        },
        Operation::Rollback {
            name: name("live"),
            id: 3,
            uuid: "u3".into(),
            parent: "uuid-1".into(),
            size: 1 << 20,
            external_origin: Some("/images/base".into()),
        },
        Operation::Remove { name: name("dev") },
        Operation::Reclaimed { id: 2 },
        Operation::Freeze { name: name("live") },
    ]
}

fn encoded(history: &[Operation]) -> Vec<u8> {
    let lines = (1..).zip(history);
    lines
        .flat_map(|(id, operation)| Catalog::encode_operations(std::slice::from_ref(operation), id))
        .collect()
}

#[test]
fn every_prefix_of_a_history_reads_back() {
    let content = encoded(&history());
    for done in 0..=history().len() {
        let mut expected = Catalog::default();
        history()[..done]
            .iter()
            .for_each(|operation| expected.apply(operation).unwrap());
        let loaded = Catalog::decode(&content, done as u64).unwrap();
        assert_eq!(loaded.catalog, expected);
        assert_eq!(loaded.has_unfinished, done < history().len());
        let compacted = Catalog::decode(&expected.encode(done as u64), done as u64).unwrap();
        assert_eq!(compacted.catalog, expected, "compaction keeps everything");
    }
}

#[test]
fn renaming_a_volume_renames_its_snapshots() {
    let mut catalog = Catalog::default();
    history()[..4]
        .iter()
        .for_each(|operation| catalog.apply(operation).unwrap());
    let names: Vec<String> = catalog
        .entries()
        .map(|entry| entry.name.to_string())
        .collect();
    assert_eq!(names, ["dev", "live", "live@s1"]);
}

#[test]
fn a_torn_last_line_never_happened() {
    let content = encoded(&history()[..2]);
    for cut in 1..40 {
        let loaded = Catalog::decode(&content[..content.len() - cut], 9).unwrap();
        assert_eq!(loaded.lines, 1);
        assert!(loaded.has_unfinished);
    }
}

/// A power cut leaves any sectors of an append, and zeros in the place of the others.
#[test]
fn zeros_in_what_no_commit_covers_never_happened() {
    let history = history();
    let kept = encoded(&history[..2]).len();
    for zeros in [kept..kept + 30, kept + 10..kept + 40] {
        let mut content = encoded(&history);
        content[zeros].fill(0);
        let loaded = Catalog::decode(&content, 2).unwrap();
        assert_eq!((loaded.lines, loaded.has_unfinished), (2, true));
        let damaged = Catalog::decode(&content, 3);
        assert!(matches!(damaged, Err(Error::Catalog { line: 3, .. })));
    }
}

#[test]
fn damage_in_the_middle_is_an_error_that_names_the_line() {
    let mut content = encoded(&history());
    content[3] = b'!';
    let Err(Error::Catalog { line, .. }) = Catalog::decode(&content, 99) else {
        panic!("damage was not noticed")
    };
    assert_eq!(line, 1);
}

#[test]
fn a_file_catalog_appends_and_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let file = FileCatalog::new(directory.path().join("catalog"));
    assert!(file.load().unwrap().is_empty());
    file.append(0, b"a\n").unwrap();
    file.append(2, b"b\n").unwrap();
    assert_eq!(file.load().unwrap(), b"a\nb\n");
    file.append(2, b"c\n").unwrap();
    assert_eq!(
        file.load().unwrap(),
        b"a\nc\n",
        "cut off behind the first line"
    );
    file.append(2, b"").unwrap();
    assert_eq!(file.load().unwrap(), b"a\n");
    file.replace(b"c\n").unwrap();
    assert_eq!(file.load().unwrap(), b"c\n");
}
