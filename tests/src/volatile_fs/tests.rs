use std::ffi::OsStr;

use fuser::FileType;

use super::disk::Disk;

const LEN: usize = 20_000;

fn name(name: &str) -> &OsStr {
    OsStr::new(name)
}

/// A disk with one file, full of ones, that was synced, and so was its name.
fn disk_with_file(seed: u64) -> (Disk, u64) {
    let disk = Disk::new(seed);
    let file = disk
        .create(name("file"), FileType::RegularFile, 0o600)
        .unwrap();
    disk.write(file, 0, &[1; LEN]).unwrap();
    disk.sync(file).unwrap();
    disk.sync_names().unwrap();
    (disk, file)
}

fn content_after_cut(disk: &Disk, file: u64) -> Vec<u8> {
    disk.cut();
    assert!(disk.read(file, 0, 1).is_err(), "there is no power");
    disk.power_on();
    disk.read(file, 0, 1 << 20).unwrap()
}

#[test]
fn what_was_synced_survives_and_of_the_rest_any_sectors() {
    let (mut some_kept, mut some_lost, mut some_torn) = (false, false, false);
    for seed in 0..200 {
        let (disk, file) = disk_with_file(seed);
        disk.write(file, 100, &[2; 5000]).unwrap();
        let content = content_after_cut(&disk, file);
        assert_eq!(content.len(), LEN);
        assert!(
            content[..100]
                .iter()
                .chain(&content[5100..])
                .all(|byte| *byte == 1)
        );
        for sector in content.chunks(512).skip(1).take(8) {
            assert!(
                sector.iter().all(|byte| *byte == sector[0]),
                "a sector is whole"
            );
        }
        let kept = content.iter().filter(|byte| **byte == 2).count();
        some_kept |= kept == 5000;
        some_lost |= kept == 0;
        some_torn |= kept > 0 && kept < 5000;
    }
    assert!(some_kept && some_lost && some_torn);
}

#[test]
fn a_length_is_volatile_and_what_is_beyond_the_end_is_zero() {
    let (mut some_longer, mut some_not) = (false, false);
    for seed in 0..50 {
        let (disk, file) = disk_with_file(seed);
        disk.write(file, LEN as u64, &[2; 4096]).unwrap();
        let content = content_after_cut(&disk, file);
        assert!(content.len() == LEN || content.len() == LEN + 4096);
        some_longer |= content.len() > LEN;
        some_not |= content.len() == LEN;
        disk.set_len(file, LEN as u64).unwrap();
        disk.set_len(file, LEN as u64 + 4096).unwrap();
        let content = disk.read(file, 0, 1 << 20).unwrap();
        assert!(content[LEN..].iter().all(|byte| *byte == 0));
    }
    assert!(some_longer && some_not);
}

#[test]
fn names_are_volatile_and_a_rename_is_whole() {
    let (mut some_old, mut some_new) = (false, false);
    for seed in 0..50 {
        let (disk, old) = disk_with_file(seed);
        let new = disk
            .create(name("new"), FileType::RegularFile, 0o600)
            .unwrap();
        disk.sync(new).unwrap();
        disk.rename(name("new"), name("file")).unwrap();
        disk.cut();
        disk.power_on();
        let found = disk.find(name("file")).unwrap();
        assert!(found == old || found == new);
        some_old |= found == old;
        some_new |= found == new;
        let is_orphan = disk.look(old, |_| ()).is_err();
        assert_eq!(is_orphan, found == new, "what has no name is gone");
    }
    assert!(some_old && some_new);
}

#[test]
fn a_failed_sync_loses_what_it_covered_but_not_at_once() {
    let mut some_lost = false;
    for seed in 0..20 {
        let (disk, file) = disk_with_file(seed);
        disk.write(file, 0, &[2; 4096]).unwrap();
        let fault = serde_json::from_str(r#"{"operation": "sync", "file": "file", "count": 1}"#);
        disk.set_fault(Some(fault.unwrap()));
        assert!(disk.sync(file).is_err());
        assert_eq!(disk.set_fault(None), 0);
        assert_eq!(disk.read(file, 0, 4096).unwrap(), [2; 4096]);
        // The next one succeeds, and proves nothing.
        disk.sync(file).unwrap();
        disk.evict();
        let is_lost = disk.read(file, 0, 4096).unwrap() == [1; 4096];
        assert_eq!(content_after_cut(&disk, file)[0] == 1, is_lost);
        some_lost |= is_lost;
    }
    assert!(some_lost);
}

#[test]
fn a_full_disk_takes_writes_where_there_is_space_already() {
    let (disk, file) = disk_with_file(1);
    disk.allocate(file, 1 << 20, 8192, true).unwrap();
    disk.set_full(true);
    disk.write(file, 0, &[3; LEN]).unwrap();
    disk.write(file, 1 << 20, &[3; 8192]).unwrap();
    assert!(disk.write(file, 1 << 19, &[3; 512]).is_err());
    disk.punch(file, 1 << 20, 4096).unwrap();
    assert!(disk.allocate(file, 1 << 20, 8192, true).is_err());
    disk.set_full(false);
    disk.write(file, 1 << 19, &[3; 512]).unwrap();
}

#[test]
fn a_sync_that_is_not_done_keeps_nothing() {
    let is_lost = |seed| {
        let (disk, file) = disk_with_file(seed);
        disk.ignore_syncs(vec!["file".to_owned()]);
        disk.write(file, 0, &[2; 512]).unwrap();
        disk.sync(file).unwrap();
        content_after_cut(&disk, file)[0] == 1
    };
    assert!((0..50).any(is_lost));
}
