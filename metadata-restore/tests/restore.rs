//! Dumps become metadata that dumps the same; what cannot be restored leaves nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test, as it should"
)]

use std::cell::Cell;
use std::fmt::Write;
use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use metadata_check::{CheckOptions, DumpOptions, check, dump};
use metadata_restore::{Error, Fault, FromDump, MetadataSize, Options, Progress, restore};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn options(size: MetadataSize<'_>) -> Options<'_> {
    Options {
        size,
        watch: &|_| ControlFlow::Continue(()),
    }
}

fn restore_small(dump: &str, path: &Path) -> Result<FromDump, Error> {
    restore(
        dump.as_bytes(),
        path,
        &options(MetadataSize::Exactly(4 * MIB)),
    )
}

fn dump_of(path: &Path) -> String {
    let mut text = Vec::new();
    dump(
        &File::open(path).unwrap(),
        &DumpOptions::default(),
        &mut text,
    )
    .unwrap();
    String::from_utf8(text).unwrap()
}

fn names_in(directory: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(directory.path()).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<String> = entries.map(|entry| name(entry.unwrap())).collect();
    names.sort_unstable();
    names
}

fn unpack(file: &Path) -> String {
    let output = Command::new("zstd").arg("-dc").arg(file).output();
    let output = output.expect("the zstd program is needed to unpack the fixtures");
    assert!(output.status.success(), "zstd failed on {}", file.display());
    String::from_utf8(output.stdout).unwrap()
}

/// A pool of that many devices, each with single mappings of the same data blocks.
fn scattered(devices: u64, mappings: u64) -> String {
    let mut text = format!(
        "<superblock uuid=\"\" time=\"2\" transaction=\"77\" flags=\"0\" version=\"2\" \
         data_block_size=\"256\" nr_data_blocks=\"{}\">\n",
        mappings * 2
    );
    for id in 0..devices {
        writeln!(
            text,
            "  <device dev_id=\"{id}\" mapped_blocks=\"{mappings}\" transaction=\"{}\" \
             creation_time=\"1\" snap_time=\"2\">",
            id + 3
        )
        .unwrap();
        for block in 0..mappings {
            writeln!(
                text,
                "    <single_mapping origin_block=\"{}\" data_block=\"{}\" time=\"{}\"/>",
                block * 3,
                mappings * 2 - 1 - block * 2,
                block % 3
            )
            .unwrap();
        }
        text.push_str("  </device>\n");
    }
    text.push_str("</superblock>\n");
    text
}

#[test]
fn dumps_of_kernel_pools_are_restored() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kernel-pools");
    let directory = tempfile::tempdir().unwrap();
    let mut count = 0;
    for entry in fs::read_dir(fixtures).unwrap() {
        for name in ["thin_dump.xml.zst", "thin_dump_held.xml.zst"] {
            let file = entry.as_ref().unwrap().path().join(name);
            if !file.exists() {
                continue;
            }
            count += 1;
            let text = unpack(&file);
            let path = directory.path().join(count.to_string());
            let text = with_data_blocks(text, &path);
            let restored = restore_small(&text, &path).unwrap();
            // A check is what restored metadata does not need.
            assert_eq!(restored.needed_check, text.contains("flags=\"1\""));
            let expected = text.replace("flags=\"1\"", "flags=\"0\"");
            assert!(dump_of(&path) == expected, "{}", file.display());
            let report = check(&File::open(&path).unwrap(), &CheckOptions::default());
            let summary = report.superblock.as_ref().unwrap();
            assert!(report.is_sound() && !report.needs_check);
            assert_eq!(
                summary.metadata_blocks * 4096,
                fs::metadata(&path).unwrap().len()
            );
            let restored = restored.restored;
            assert_eq!(summary.metadata_blocks_used, restored.metadata_blocks_used);
            assert_eq!(summary.data_blocks_used, restored.data_blocks_used);
            assert_eq!(report.devices.len() as u64, restored.devices);
        }
    }
    assert_eq!(count, 9);
}

/// The dump of a metadata snapshot, which lacks the number of data blocks, with one; others as they are.
fn with_data_blocks(text: String, path: &Path) -> String {
    let none = "nr_data_blocks=\"0\"";
    if !text.contains(none) {
        return text;
    }
    match restore_small(&text, path) {
        Err(Error::Dump { line: 3, fault }) => assert_eq!(fault, Fault::NoDataBlocks),
        other => panic!("{other:?}"),
    }
    text.replace(none, "nr_data_blocks=\"3072\"")
}

#[test]
fn metadata_grows_with_its_mappings() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let text = scattered(5, 20_000);
    let small = |data_blocks: u64| {
        assert_eq!(data_blocks, 40_000);
        // Not even the counts fit.
        8 * 4096
    };
    let options = options(MetadataSize::ForDataBlocks(&small));
    let restored = restore(text.as_bytes(), &path, &options).unwrap().restored;
    assert!(dump_of(&path) == text);
    assert_eq!((restored.devices, restored.mappings), (5, 100_000));
    assert_eq!(
        (restored.data_blocks, restored.data_blocks_used),
        (40_000, 20_000)
    );
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        restored.metadata_blocks * 4096
    );
    // The trees are full nodes, and there is room for as much again.
    assert!(
        restored.metadata_blocks_used < 100_000 / 252 + 200,
        "{restored:?}"
    );
    assert!(
        restored.metadata_blocks >= 2 * restored.metadata_blocks_used,
        "{restored:?}"
    );
    // That large it must not grow.
    let large = |_| 64 * MIB;
    let path = directory.path().join("large");
    let options = self::options(MetadataSize::ForDataBlocks(&large));
    assert_eq!(
        restore(text.as_bytes(), &path, &options)
            .unwrap()
            .restored
            .metadata_blocks,
        16_384
    );
}

#[test]
fn a_size_that_is_too_small_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    for bytes in [4096, 65_536, MIB] {
        let options = options(MetadataSize::Exactly(bytes));
        let result = restore(scattered(5, 20_000).as_bytes(), &path, &options);
        assert!(matches!(result, Err(Error::TooSmall { bytes: found, .. }) if found == bytes));
        assert_eq!(names_in(&directory), Vec::<String>::new());
    }
}

#[test]
fn a_wrong_dump_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let text = scattered(2, 3000);
    let cut = &text[..text.find("origin_block=\"300\"").unwrap()];
    let changed = text.replacen("origin_block=\"30\"", "origin_block=\"26\"", 1);
    for (dump, line) in [("", 1), ("no dump", 1), (cut, 103), (&*changed, 13)] {
        match restore_small(dump, &path) {
            Err(Error::Dump { line: found, fault }) => assert_eq!(found, line, "{fault}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(names_in(&directory), Vec::<String>::new());
    }
    let twice = text.replacen("dev_id=\"1\"", "dev_id=\"0\"", 1);
    let result = restore_small(&twice, &path);
    let fault = Fault::DeviceTwice { id: 0 };
    assert!(matches!(result, Err(Error::Dump { line: 3004, fault: found }) if found == fault));
}

#[test]
fn with_any_digit_changed_it_is_refused_or_means_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let text = scattered(1, 24);
    let (mut restored, mut refused) = (0, 0);
    for (at, digit) in text
        .bytes()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_digit())
    {
        let other = if digit == b'9' { "8" } else { "9" };
        let mut changed = text.clone();
        changed.replace_range(at..=at, other);
        match restore(
            changed.as_bytes(),
            &path,
            &options(MetadataSize::Exactly(MIB)),
        ) {
            Ok(_) => {
                assert_eq!(dump_of(&path), changed);
                fs::remove_file(&path).unwrap();
                restored += 1;
            }
            Err(Error::Dump { .. }) => refused += 1,
            Err(other) => panic!("{changed}: {other:?}"),
        }
        assert_eq!(names_in(&directory), Vec::<String>::new());
    }
    assert!(restored > 30 && refused > 30, "{restored}, {refused}");
}

#[test]
fn what_is_there_stays() {
    let directory = tempfile::tempdir().unwrap();
    let text = scattered(1, 10);
    let path = directory.path().join("metadata");
    fs::write(&path, "mine").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    for taken in [
        &*path,
        &*link,
        directory.path(),
        Path::new("/dev/null"),
        Path::new(".."),
    ] {
        let result = restore_small(&text, taken);
        assert!(matches!(result, Err(Error::Exists { .. })), "{result:?}");
    }
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert_eq!(names_in(&directory), ["link", "metadata"]);

    // What a restore that was killed has left is not written over: it may be another's that runs.
    let other = directory.path().join("other");
    fs::write(directory.path().join("other.restoring"), "theirs").unwrap();
    let result = restore_small(&text, &other);
    assert!(matches!(result, Err(Error::Exists { .. })), "{result:?}");
    assert_eq!(
        fs::read(directory.path().join("other.restoring")).unwrap(),
        b"theirs"
    );

    let nowhere = directory.path().join("none/metadata");
    assert!(matches!(
        restore_small(&text, &nowhere),
        Err(Error::Io { .. })
    ));
}

#[test]
fn a_name_taken_meanwhile_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let watch = |_| {
        fs::write(&path, "mine").unwrap();
        ControlFlow::Continue(())
    };
    let options = Options {
        size: MetadataSize::Exactly(MIB),
        watch: &watch,
    };
    let result = restore(scattered(1, 10).as_bytes(), &path, &options);
    assert!(matches!(result, Err(Error::Exists { .. })), "{result:?}");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    assert_eq!(names_in(&directory), ["metadata"]);
}

#[test]
fn it_can_be_stopped_at_every_turn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let text = scattered(3, 5000);
    for turns in 0u64.. {
        let left = Cell::new(turns);
        let checked = Cell::new(false);
        let watch = |at: Progress| {
            // Without its name until it is done.
            assert_eq!(names_in(&directory), ["metadata.restoring"]);
            checked.set(checked.get() || matches!(at, Progress::Checking { .. }));
            if left.replace(left.get().saturating_sub(1)) == 0 {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        };
        let options = Options {
            size: MetadataSize::Exactly(4 * MIB),
            watch: &watch,
        };
        match restore(text.as_bytes(), &path, &options) {
            Ok(_) => {
                assert!(turns > 5 && checked.get(), "{turns}");
                break;
            }
            Err(Error::Stopped) => assert_eq!(names_in(&directory), Vec::<String>::new()),
            Err(other) => panic!("{other}"),
        }
    }
    assert!(dump_of(&path) == text);
}
