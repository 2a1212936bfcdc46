//! The directory: what is listed, what may be opened, what is refused.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use fuse_target::{Error, FuseMount};
use pool::ErrorKind;
use reactor::block_on;
use rustix::fs::FileType;

use crate::rig::{BLOCK, MIB, PATIENCE, PoolFiles, Rig, have_fuse, name, read_write, run, text};

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&result.unwrap_err()).unwrap()
}

fn listing(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn files_come_and_go_with_devices() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.mount.file(&name("prod"));
    assert_eq!(
        fs::metadata(&path).unwrap_err().kind(),
        io::ErrorKind::NotFound
    );
    assert_eq!(rig.volume("prod", 3 * MIB + 512), path);
    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.is_file());
    assert_eq!(metadata.len(), 3 * MIB + 512);
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
    assert_eq!(metadata.blocks(), 0);
    let snapshot = rig.snapshot("prod@one");
    assert_eq!(
        fs::metadata(&snapshot).unwrap().permissions().mode() & 0o7777,
        0o400
    );
    assert_eq!(
        listing(rig.mount.mountpoint()),
        ["prod", "prod@one"].map(String::from).into()
    );

    block_on(rig.pool.rename(&name("prod"), &name("test"))).unwrap();
    assert_eq!(
        listing(rig.mount.mountpoint()),
        ["test", "test@one"].map(String::from).into()
    );
    assert!(fs::metadata(&path).is_err());
    rig.remove("test@one");
    rig.remove("test");
    assert_eq!(listing(rig.mount.mountpoint()), BTreeSet::new());
    assert!(fs::metadata(rig.mount.file(&name("test"))).is_err());
}

#[test]
fn a_new_device_never_passes_for_a_removed_one() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    for round in 1..=8_u8 {
        let path = rig.volume("vol", u64::from(round) * MIB);
        let file = read_write(&path);
        let mut found = [0xff; 4096];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, [0; 4096]);
        file.write_all_at(&[round; 4096], 0).unwrap();
        assert_eq!(file.metadata().unwrap().len(), u64::from(round) * MIB);
        drop(file);
        rig.remove("vol");
    }
}

#[test]
fn long_listings_are_complete() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let mut expected = BTreeSet::new();
    for index in 0..200 {
        let long = format!("{index:0>127}");
        rig.volume(&long, MIB);
        rig.snapshot(&format!("{long}@{}", "s".repeat(127)));
        expected.insert(format!("{long}@{}", "s".repeat(127)));
        expected.insert(long);
    }
    assert_eq!(listing(rig.mount.mountpoint()), expected);
    let longest = expected.iter().max_by_key(|name| name.len()).unwrap();
    assert_eq!(longest.len(), 255);
    File::open(rig.mount.mountpoint().join(longest)).unwrap();
}

#[test]
fn the_directory_is_fixed() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", MIB);
    let other = rig.mount.file(&name("other"));
    let perm = rustix::io::Errno::PERM;
    assert_eq!(errno(File::create_new(&other)), perm);
    assert_eq!(errno(fs::create_dir(&other)), perm);
    assert_eq!(errno(fs::remove_file(&path)), perm);
    assert_eq!(errno(fs::rename(&path, &other)), perm);
    assert_eq!(errno(fs::hard_link(&path, &other)), perm);
    assert_eq!(errno(std::os::unix::fs::symlink(&path, &other)), perm);
    let fifo = rustix::fs::mknodat(
        rustix::fs::CWD,
        &other,
        FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    );
    assert_eq!(fifo.unwrap_err(), perm);
    assert_eq!(
        errno(OpenOptions::new().write(true).truncate(true).open(&path)),
        perm
    );
    assert_eq!(
        errno(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o666)
        )),
        perm
    );
    let file = read_write(&path);
    assert_eq!(errno(file.set_len(2 * MIB)), perm);
    assert_eq!(errno(file.set_len(0)), perm);
    file.set_len(MIB).unwrap();
    assert_eq!(
        fs::metadata(path.join("below")).unwrap_err().kind(),
        io::ErrorKind::NotADirectory
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), MIB);
}

#[test]
fn what_is_read_only_cannot_be_opened_for_writing() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let volume = rig.volume("vol", MIB);
    read_write(&volume)
        .write_all_at(b"before", BLOCK - 3)
        .unwrap();
    let snapshot = rig.snapshot("vol@one");
    read_write(&volume)
        .write_all_at(b"behind", BLOCK - 3)
        .unwrap();
    let rofs = rustix::io::Errno::ROFS;
    assert_eq!(errno(OpenOptions::new().write(true).open(&snapshot)), rofs);
    assert_eq!(
        errno(OpenOptions::new().read(true).write(true).open(&snapshot)),
        rofs
    );
    let mut found = [0; 6];
    File::open(&snapshot)
        .unwrap()
        .read_exact_at(&mut found, BLOCK - 3)
        .unwrap();
    assert_eq!(&found, b"before");
    let rig = rig.reopen(true);
    assert_eq!(errno(OpenOptions::new().write(true).open(&volume)), rofs);
    File::open(rig.mount.file(&name("vol")))
        .unwrap()
        .read_exact_at(&mut found, BLOCK - 3)
        .unwrap();
    assert_eq!(&found, b"behind");
}

#[test]
fn an_open_file_is_a_use_of_its_device() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", MIB);
    let first = File::open(&path).unwrap();
    let second = File::open(&path).unwrap();
    assert_eq!(rig.info("vol").open_count, 2);
    drop(first);
    let error = block_on(rig.pool.remove(&name("vol"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        !rig.mount
            .wait_closed(&name("vol"), std::time::Duration::from_millis(50))
    );
    drop(second);
    rig.remove("vol");
    assert_eq!(errno(File::open(&path)), rustix::io::Errno::NOENT);
}

#[test]
fn a_grown_device_is_a_grown_file() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", MIB);
    let file = read_write(&path);
    assert_eq!(
        file.write_at(&[1; 512], MIB).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    block_on(rig.pool.resize(&name("vol"), 4 * MIB)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 4 * MIB);
    file.write_all_at(&[1; 512], 4 * MIB - 512).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 4 * MIB);
}

#[test]
fn the_file_system_tells_the_space_of_the_pool() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::with_data(64 * MIB);
    let file = read_write(&rig.volume("vol", 16 * MIB));
    file.write_all_at(&vec![7; 5 << 20], 0).unwrap();
    let space = rustix::fs::statfs(rig.mount.mountpoint()).unwrap();
    assert_eq!(u64::try_from(space.f_bsize).unwrap(), BLOCK);
    assert_eq!(space.f_blocks, 64 * MIB / BLOCK);
    assert_eq!(space.f_blocks - space.f_bfree, 5 * MIB / BLOCK);
    assert_eq!(file.metadata().unwrap().blocks() * 512, 5 * MIB);
}

#[test]
fn a_busy_mount_stays_and_tells_who_holds_it() {
    if !have_fuse() {
        return;
    }
    let mut rig = Rig::new();
    let path = rig.volume("vol", MIB);
    let file = File::open(&path).unwrap();
    let error = rig.mount.unmount().unwrap_err();
    assert!(error.is_busy());
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    file.read_exact_at(&mut [0; 512], 0).unwrap();
    drop(file);
    rig.mount.unmount().unwrap();
    rig.mount.unmount().unwrap();
    assert!(!path.exists());
    assert!(rig.mount.wait_closed(&name("vol"), PATIENCE));
    assert_eq!(rig.info("vol").open_count, 0);
}

#[test]
fn dropping_a_busy_mount_frees_the_directory_and_serves_on() {
    if !have_fuse() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (pool, _gate) = PoolFiles::format(directory.path(), 64 * MIB).open(false);
    let place = directory.path().join("files");
    fs::create_dir(&place).unwrap();
    let mount = FuseMount::start(Arc::clone(&pool), &place).unwrap();
    block_on(pool.create_volume(crate::rig::new("vol"), MIB, None)).unwrap();
    let file = read_write(&mount.file(&name("vol")));
    drop(mount);
    assert_eq!(listing(&place), BTreeSet::new());
    file.write_all_at(b"still served", 100).unwrap();
    file.sync_all().unwrap();
    drop(file);
}

#[test]
fn mountpoints_are_checked() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let start = |place: &Path| FuseMount::start(Arc::clone(&rig.pool), place).map(drop);
    assert!(matches!(
        start(rig.mount.mountpoint()),
        Err(Error::Busy { .. })
    ));
    assert!(matches!(
        start(&rig.directory().join("data")),
        Err(Error::BadPath { .. })
    ));
    assert!(matches!(
        start(&rig.directory().join("nowhere")),
        Err(Error::Io { .. })
    ));
    let listed = run(
        "findmnt",
        &["-no", "FSTYPE,SOURCE", text(rig.mount.mountpoint())],
    );
    assert_eq!(listed.trim(), "fuse.thinpool thinpool");
}

#[test]
fn others_may_not_look() {
    if !have_fuse() {
        return;
    }
    let rig = Rig::new();
    let path = rig.volume("vol", MIB);
    fs::set_permissions(rig.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    let (succeeded, printed) = crate::rig::try_run(
        "setpriv",
        &[
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "cat",
            text(&path),
        ],
    );
    assert!(
        !succeeded && printed.contains("Permission denied"),
        "{printed}"
    );
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(0o40000)
        .open(&path);
    direct.unwrap();
}
