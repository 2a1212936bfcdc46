//! A dump that is to be restored.

use std::fs::{self, File};
use std::ops::ControlFlow;

use metadata_check::{CheckOptions, DumpOptions, check, dump};
use metadata_restore::{MetadataSize, Options, restore};

use crate::config::scratch;

/// Room for some ten thousand mappings, and no more: what a dump asks for is not to take long.
const METADATA_BYTES: u64 = 128 * 4096;

/// What is restored is sound, and dumps as itself.
pub fn run(input: &[u8]) {
    let scratch = scratch();
    let first = scratch.path().join("first");
    if !restored(input, &first) {
        assert!(!first.exists(), "it failed, and left a file");
        return;
    }
    let text = dump_of(&first);
    let second = scratch.path().join("second");
    assert!(restored(text.as_bytes(), &second), "{text}");
    assert_eq!(dump_of(&second), text);
    fs::remove_file(first).unwrap();
}

fn restored(dump: &[u8], path: &std::path::Path) -> bool {
    let options = Options {
        size: MetadataSize::Exactly(METADATA_BYTES),
        watch: &|_| ControlFlow::Continue(()),
    };
    match restore(dump, path, &options) {
        Ok(_) => true,
        Err(metadata_restore::Error::Unsound(finding)) => panic!("restored unsound: {finding}"),
        Err(_) => false,
    }
}

fn dump_of(path: &std::path::Path) -> String {
    let file = File::open(path).unwrap();
    let report = check(&file, &CheckOptions::default());
    assert!(report.is_sound(), "{:#?}", report.findings);
    let mut text = Vec::new();
    dump(&file, &DumpOptions::default(), &mut text).expect("what was restored can be dumped");
    String::from_utf8(text).unwrap()
}
