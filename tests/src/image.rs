//! Judging a metadata image: with our own checker, and with the tools people already have.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::process::Command;

use metadata_check::{CheckOptions, DumpError, DumpOptions, check, dump};
use metadata_restore::{MetadataSize, Options, restore};
use pool::INCOMPAT_LOG;

use crate::model::Mapping;
use crate::sim::Image;

/// A device as a dump has it.
#[derive(Clone, Debug, Default)]
pub struct Dumped {
    /// Its mappings; the data block's number stands for itself.
    pub mappings: BTreeMap<u64, Mapping>,
    /// The time of its last snapshot.
    pub snapshotted: u32,
}

/// Fails unless a full check finds nothing at all. Returns the number of data blocks in use.
///
/// # Panics
/// When anything is found.
pub fn expect_sound(metadata: &Image, data_blocks: u64) -> u64 {
    let options = CheckOptions {
        data_blocks_available: Some(data_blocks),
        allowed_incompat: INCOMPAT_LOG,
        ..CheckOptions::default()
    };
    let report = check(metadata, &options);
    assert!(
        report.is_sound(),
        "the metadata is damaged: {:#?}",
        report.findings
    );
    assert!(!report.needs_check, "needs_check is set");
    let Some(summary) = report.superblock else {
        unreachable!("a sound pool has a superblock")
    };
    summary.data_blocks_used
}

/// The mappings of all devices, by thin id.
///
/// # Panics
/// When the metadata cannot be dumped.
pub fn dumped(metadata: &Image) -> BTreeMap<u32, Dumped> {
    let mut devices: BTreeMap<u32, Dumped> = BTreeMap::new();
    let mut now = Dumped::default();
    let mut id = 0;
    for line in dump_text(metadata).lines() {
        let number = |key: &str| -> u64 {
            let marker = format!(" {key}=\"");
            let Some(start) = line.find(&marker) else {
                panic!("{line:?} has no {key}")
            };
            let rest = &line[start + marker.len()..];
            let digits = rest.split('"').next().unwrap_or_default();
            digits
                .parse()
                .unwrap_or_else(|_| panic!("{line:?} has a bad {key}"))
        };
        let small = |key: &str| u32::try_from(number(key)).unwrap_or(u32::MAX);
        let line = line.trim_start();
        let (first, count, data) = if line.starts_with("<device ") {
            id = small("dev_id");
            now.snapshotted = small("snap_time");
            devices.insert(id, std::mem::take(&mut now));
            continue;
        } else if line.starts_with("<single_mapping ") {
            (number("origin_block"), 1, number("data_block"))
        } else if line.starts_with("<range_mapping ") {
            (
                number("origin_begin"),
                number("length"),
                number("data_begin"),
            )
        } else {
            continue;
        };
        let time = small("time");
        let Some(device) = devices.get_mut(&id) else {
            panic!("a mapping outside of a device")
        };
        for step in 0..count {
            let mapping = Mapping {
                data: data + step,
                time,
            };
            device.mappings.insert(first + step, mapping);
        }
    }
    devices
}

/// The metadata as text.
///
/// # Panics
/// When it cannot be dumped.
pub fn dump_text(metadata: &Image) -> String {
    let mut text = Vec::new();
    let dumped = dump(metadata, &DumpOptions::default(), &mut text);
    assert!(dumped.is_ok(), "cannot dump: {dumped:?}");
    match String::from_utf8(text) {
        Ok(text) => text,
        Err(cause) => panic!("the dump is no text: {cause}"),
    }
}

/// Fails unless what is restored from a dump is sound, dumps the same, and has the same data blocks in use.
///
/// # Panics
/// When it is not.
pub fn expect_restorable(metadata: &Image, data_blocks_used: u64) {
    let text = dump_text(metadata);
    let Ok(directory) = tempfile::tempdir() else {
        panic!("no temporary directory to be had")
    };
    let path = directory.path().join("metadata");
    let options = Options {
        size: MetadataSize::ForDataBlocks(&|_| 16 * 4096),
        watch: &|_| ControlFlow::Continue(()),
    };
    let restored = match restore(text.as_bytes(), &path, &options) {
        Ok(restored) => restored,
        Err(cause) => panic!("cannot restore: {cause}\n{text}"),
    };
    assert_eq!(
        restored.restored.data_blocks_used, data_blocks_used,
        "data blocks in use, as restored"
    );
    let mut again = Vec::new();
    let dumped = File::open(&path)
        .map_err(DumpError::from)
        .and_then(|file| dump(&file, &DumpOptions::default(), &mut again));
    assert!(dumped.is_ok(), "cannot dump what was restored: {dumped:?}");
    assert_eq!(
        String::from_utf8_lossy(&again),
        text,
        "restored, it differs"
    );
}

/// Fails unless `thin_check` finds nothing and `thin_dump` says what our dump says. Skips, loudly,
/// where they are not installed. Whether they were there.
///
/// # Panics
/// When the tools disagree.
pub fn expect_tools_agree(metadata: &Image) -> bool {
    let Ok(mut file) = tempfile::NamedTempFile::new() else {
        panic!("no temporary file to be had")
    };
    let written = file.write_all(&metadata.to_bytes());
    assert!(written.is_ok(), "cannot write the image: {written:?}");
    let Ok(checked) = Command::new("thin_check").arg(file.path()).output() else {
        eprintln!("thin_check is not installed: comparison with it skipped");
        return false;
    };
    assert!(
        checked.status.success(),
        "thin_check: {}{}",
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr)
    );
    let Ok(dumped) = Command::new("thin_dump").arg(file.path()).output() else {
        eprintln!("thin_dump is not installed: comparison with it skipped");
        return false;
    };
    assert!(
        dumped.status.success(),
        "thin_dump: {}",
        String::from_utf8_lossy(&dumped.stderr)
    );
    let theirs = String::from_utf8_lossy(&dumped.stdout);
    assert_eq!(dump_text(metadata), theirs, "the dumps differ");
    true
}
