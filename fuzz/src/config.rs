//! The small files beside a pool: `pool.toml`, `attachments.toml`, and tables of block devices.

use std::fs;

use ctl::fuzzing::{ATTACHMENTS_FILE, CONFIG_FILE, PoolDir};
use tempfile::TempDir;

/// A `pool.toml` that can be understood.
const CONFIG: &str = "version = 1\nuuid = 'u'\nmetadata = 'metadata'\ndata = 'data'\n";

/// A directory in memory.
pub fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in /dev/shm")
}

/// The first byte says which file the rest is.
pub fn run(input: &[u8]) {
    thread_local!(static SCRATCH: TempDir = scratch());
    let Some((kind, text)) = input.split_first() else {
        return;
    };
    SCRATCH.with(|scratch| {
        let root = scratch.path();
        let write = |file: &str, text: &[u8]| fs::write(root.join(file), text).unwrap();
        match kind % 3 {
            0 => {
                write(CONFIG_FILE, text);
                let _dir = PoolDir::open_path(root);
            }
            1 => {
                write(CONFIG_FILE, CONFIG.as_bytes());
                write(ATTACHMENTS_FILE, text);
                attachments(&PoolDir::open_path(root).unwrap());
            }
            _ => {
                write("devices.json", text);
                devices(&root.join("devices.json"));
            }
        }
    });
}

/// What is understood stays what it is when it is written again.
fn attachments(dir: &PoolDir) {
    let Ok(all) = dir.persistent() else { return };
    let Some(last) = all.last().cloned() else {
        return;
    };
    dir.persist(last.clone())
        .expect("an attachment can be written");
    let again = dir.persistent().expect("what was written is understood");
    assert_eq!(again.last(), Some(&last));
}

fn devices(path: &std::path::Path) {
    let Ok(mut table) = nbd_target::Table::open(path) else {
        return;
    };
    let before = table.records().to_vec();
    if let Some(last) = before.last().cloned() {
        table.insert(last).expect("a record can be written");
        let again = nbd_target::Table::open(path).expect("what was written is understood");
        assert_eq!(again.records(), before);
    }
}
