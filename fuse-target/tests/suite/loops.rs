//! Loop devices on the files, and file systems on those.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuse_target::{Error, FuseMount, LoopDevice, LoopOptions, mount, unmount};
use reactor::block_on;
use rustix::fs::OFlags;

use crate::rig::{
    Leftovers, MIB, PATIENCE, PoolFiles, Rig, have_loops, name, new, run, text, try_run,
};

fn losetup(device: &LoopDevice, column: &str) -> String {
    run(
        "losetup",
        &[
            "--list",
            "--noheadings",
            "--output",
            column,
            text(device.path()),
        ],
    )
    .trim()
    .to_owned()
}

/// Runs `then` with the file mounted through a loop device; everything is gone afterwards.
fn mounted(file: &Path, directory: &Path, options: &[&str], then: impl FnOnce()) {
    let device = LoopDevice::attach(file, options.contains(&"ro")).unwrap();
    mount(device.path(), directory, options).unwrap();
    then();
    unmount(directory).unwrap();
    device.detach().unwrap();
}

/// Runs shell commands in a directory, as another process would.
fn sh(directory: &Path, script: &str) {
    run("sh", &["-ec", &format!("cd {}; {script}", text(directory))]);
}

/// A volume with an ext4 that holds a copy of /etc, a large file and its checksum.
fn volume_with_files(rig: &Rig, place: &Path) -> PathBuf {
    let volume = rig.volume("prod", 128 * MIB);
    let device = LoopDevice::attach(&volume, false).unwrap();
    run("mkfs.ext4", &["-q", text(device.path())]);
    device.detach().unwrap();
    assert_eq!(LoopDevice::find(&volume).unwrap(), None);
    mounted(&volume, place, &[], || {
        sh(
            place,
            "cp -r /etc etc; dd if=/dev/urandom of=big bs=1M count=20; sha256sum big > sums",
        );
    });
    volume
}

#[test]
fn a_file_system_lives_on_a_volume_and_its_snapshot() {
    if !have_loops() {
        return;
    }
    let mut rig = Rig::new();
    let place = rig.mount_directory("place");
    let volume = volume_with_files(&rig, &place);
    run("e2fsck", &["-fn", text(&volume)]);
    let snapshot = rig.snapshot("prod@clean");
    mounted(&volume, &place, &[], || {
        sh(&place, "rm -r etc; echo late > late")
    });

    let old = rig.mount_directory("old");
    mounted(&snapshot, &old, &["ro"], || {
        sh(
            &old,
            "sha256sum -c sums; test ! -e late; diff -r --no-dereference /etc etc",
        );
        let (succeeded, printed) = try_run("touch", &[text(&old.join("x"))]);
        assert!(
            !succeeded && printed.contains("Read-only file system"),
            "{printed}"
        );
    });
    mounted(&volume, &place, &[], || {
        sh(&place, "sha256sum -c sums; test -e late; test ! -e etc")
    });
    let rig = rig.reopen(false);
    for device in ["prod", "prod@clean"] {
        run("e2fsck", &["-fn", text(&rig.mount.file(&name(device)))]);
    }
    rig.remove("prod@clean");
    run("e2fsck", &["-fn", text(&volume)]);
    rig.remove("prod");
}

#[test]
fn a_clone_of_a_mounted_volume_is_mounted_beside_it() {
    if !have_loops() {
        return;
    }
    let mut rig = Rig::new();
    let place = rig.mount_directory("place");
    let volume = volume_with_files(&rig, &place);
    let device = LoopDevice::attach(&volume, false).unwrap();
    mount(device.path(), &place, &[]).unwrap();
    sh(&place, "rm -r etc; echo late > late; sync");
    let snapshot = rig.snapshot("prod@mounted");
    sh(&place, "echo after > after; rm late; sync");

    let clone = rig.clone_of("prod@mounted", "dev");
    let clone_place = rig.mount_directory("clone");
    mounted(&clone, &clone_place, &[], || {
        sh(
            &clone_place,
            "sha256sum -c sums; grep late late; test ! -e etc; test ! -e after",
        );
        sh(&clone_place, "echo new > new");
    });
    run("e2fsck", &["-fn", text(&clone)]);
    // The snapshot itself has a journal to replay, and must not be written.
    let snapshot_place = rig.mount_directory("snapshot");
    mounted(&snapshot, &snapshot_place, &["ro", "norecovery"], || {
        sh(&snapshot_place, "sha256sum -c sums; test ! -e new");
    });
    sh(&place, "grep after after; test ! -e new");
    unmount(&place).unwrap();
    device.detach().unwrap();
    run("e2fsck", &["-fn", text(&volume)]);
}

#[test]
fn direct_io_is_on_and_trim_gives_space_back() {
    if !have_loops() {
        return;
    }
    let rig = Rig::new();
    let volume = rig.volume("vol", 64 * MIB + 512);
    let device = LoopDevice::attach(&volume, false).unwrap();
    assert!(device.direct_io());
    assert_eq!(losetup(&device, "DIO"), "1");
    assert_eq!(losetup(&device, "LOG-SEC"), "512");
    assert_eq!(losetup(&device, "RO"), "0");
    let path = text(device.path());
    assert_eq!(
        run("blockdev", &["--getsize64", path]).trim(),
        (64 * MIB + 512).to_string()
    );
    run(
        "dd",
        &[
            "if=/dev/urandom",
            &format!("of={path}"),
            "bs=1M",
            "count=8",
            "oflag=direct",
        ],
    );
    assert_eq!(rig.info("vol").mapped_bytes, 8 * MIB);
    let granularity = device.path().file_name().unwrap().to_str().unwrap();
    let granularity = format!("/sys/block/{granularity}/queue/discard_granularity");
    assert_eq!(fs::read_to_string(granularity).unwrap().trim(), "65536");
    run(
        "blkdiscard",
        &["--offset", "1048576", "--length", "2097152", path],
    );
    assert_eq!(rig.info("vol").mapped_bytes, 6 * MIB);
    run("blkdiscard", &[path]);
    assert_eq!(rig.info("vol").mapped_bytes, 0);
    device.detach().unwrap();
}

#[test]
fn a_flush_of_the_device_is_one_of_the_pool() {
    if !have_loops() {
        return;
    }
    let rig = Rig::new();
    let device = LoopDevice::attach(&rig.volume("vol", 16 * MIB), false).unwrap();
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let options = OpenOptions::new()
        .write(true)
        .custom_flags(direct)
        .open(device.path());
    let target = format!("of={}", text(device.path()));
    let write = |blocks: &str| {
        let count = format!("count={blocks}");
        let arguments = ["if=/dev/urandom", &target, "bs=64k", "oflag=direct", &count];
        run("dd", &arguments);
    };
    // The first write of all has a commit say that there is an intent log now.
    write("1");
    let flushes = || rig.pool.status().flushes;
    let before = flushes();
    write("4");
    assert_eq!(flushes(), before, "writing alone flushed");
    options.unwrap().sync_all().unwrap();
    assert!(flushes() > before);
    device.detach().unwrap();
}

#[test]
fn a_busy_device_stays_and_tells_who_holds_it() {
    if !have_loops() {
        return;
    }
    let mut rig = Rig::new();
    let volume = rig.volume("vol", 32 * MIB);
    let place = rig.mount_directory("place");
    let device = LoopDevice::attach(&volume, false).unwrap();
    run("mkfs.ext4", &["-q", text(device.path())]);
    mount(device.path(), &place, &[]).unwrap();

    let busy = |result: Result<(), Error>, holder: &str| {
        let error = result.unwrap_err();
        assert!(
            error.is_busy() && error.to_string().contains(holder),
            "{error}"
        );
    };
    busy(device.detach(), &format!("mounted at {}", text(&place)));
    busy(
        mount(device.path(), &place, &[]),
        "something is mounted there already",
    );
    let second = rig.mount_directory("second");
    busy(mount(device.path(), &second, &[]), "mounted at");
    busy(
        rig.mount.unmount(),
        &format!("attached as {}", text(device.path())),
    );
    let attached = LoopDevice::attach(&volume, true).unwrap_err();
    assert!(
        matches!(attached, Error::Attached { .. }) && attached.is_busy(),
        "{attached}"
    );
    assert!(block_on(rig.pool.remove(&name("vol"))).is_err());
    let held = fs::File::create(place.join("held")).unwrap();
    busy(unmount(&place), &format!("process {}", std::process::id()));
    drop(held);
    unmount(&place).unwrap();

    let above = LoopDevice::attach(device.path(), false).unwrap();
    busy(
        device.detach(),
        &format!("used by block device {}", text(above.path())),
    );
    above.detach().unwrap();
    let open = fs::File::open(device.path()).unwrap();
    busy(device.detach(), &format!("process {}", std::process::id()));
    assert_eq!(LoopDevice::find(&volume).unwrap().as_ref(), Some(&device));
    open.read_exact_at(&mut [0; 4096], 0).unwrap();
    drop(open);
    device.detach().unwrap();
    assert!(matches!(device.detach(), Err(Error::NotAttached { .. })));
    assert!(rig.mount.wait_closed(&name("vol"), PATIENCE));
    rig.mount.unmount().unwrap();
}

#[test]
fn a_failed_attach_leaves_nothing_behind() {
    if !have_loops() {
        return;
    }
    let rig = Rig::new();
    rig.volume("vol", MIB);
    let snapshot = rig.snapshot("vol@one");
    let missing = LoopDevice::attach(&rig.mount.file(&name("none")), false).unwrap_err();
    assert!(
        missing.to_string().ends_with("No such file or directory"),
        "{missing}"
    );
    let relative = LoopDevice::attach(Path::new("vol"), false).unwrap_err();
    assert!(matches!(relative, Error::BadPath { .. }));
    let refused = LoopDevice::attach(&snapshot, false);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(LoopDevice::find(&snapshot).unwrap(), None);
    let options = LoopOptions {
        sector_size: 777,
        ..LoopOptions::default()
    };
    let refused = LoopDevice::attach_with(&rig.mount.file(&name("vol")), options);
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(
        LoopDevice::find(&rig.mount.file(&name("vol"))).unwrap(),
        None
    );

    let device = LoopDevice::attach(&snapshot, true).unwrap();
    assert!(device.read_only());
    // The kernel lets it be opened for writing, and refuses the write.
    let written = OpenOptions::new().write(true).open(device.path());
    let written = written.and_then(|file| {
        file.write_all_at(&[1; 4096], 0)
            .and_then(|()| file.sync_all())
    });
    assert!(written.is_err(), "a read-only device was written");
    device.detach().unwrap();
}

#[test]
fn sectors_can_be_larger() {
    if !have_loops() {
        return;
    }
    let rig = Rig::new();
    let options = LoopOptions {
        sector_size: 4096,
        ..LoopOptions::default()
    };
    let device = LoopDevice::attach_with(&rig.volume("vol", 8 * MIB), options).unwrap();
    assert_eq!(losetup(&device, "LOG-SEC"), "4096");
    assert!(device.direct_io());
    device.detach().unwrap();
}

#[test]
fn what_mount_complains_about_is_passed_on_in_one_line() {
    if !have_loops() {
        return;
    }
    let mut rig = Rig::new();
    let place = rig.mount_directory("place");
    let device = LoopDevice::attach(&rig.volume("vol", 8 * MIB), false).unwrap();
    let error = mount(device.path(), &place, &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("mount /dev/loop") && !error.contains('\n'),
        "{error}"
    );
    let nowhere = place.join("nowhere");
    let error = mount(device.path(), &nowhere, &[]).unwrap_err().to_string();
    assert!(error.ends_with("mount point does not exist"), "{error}");
    assert!(matches!(unmount(&place), Err(Error::BadPath { .. })));
    device.detach().unwrap();
}

#[test]
fn a_loop_device_follows_its_file() {
    if !have_loops() {
        return;
    }
    let rig = Rig::new();
    let file = rig.volume("vol", 8 * MIB);
    let device = LoopDevice::attach(&file, false).unwrap();
    block_on(rig.pool.resize(&name("vol"), 16 * MIB)).unwrap();
    let size = || run("blockdev", &["--getsize64", text(device.path())]);
    assert_eq!(size().trim(), (8 * MIB).to_string());
    device.follow_size().unwrap();
    assert_eq!(size().trim(), (16 * MIB).to_string());
    device.detach().unwrap();
}

#[test]
fn dropping_a_mount_leaves_its_loop_devices_served_and_known() {
    if !have_loops() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let (pool, _gate) = PoolFiles::format(directory.path(), 64 * MIB).open(false);
    let place = directory.path().join("files");
    fs::create_dir(&place).unwrap();
    let _leftovers = Leftovers(place.clone());
    let mount = FuseMount::start(Arc::clone(&pool), &place).unwrap();
    block_on(pool.create_volume(new("vol"), 8 * MIB, None)).unwrap();
    let file = mount.file(&name("vol"));
    let device = LoopDevice::attach(&file, false).unwrap();
    drop(mount);
    assert_eq!(LoopDevice::find(&file).unwrap().as_ref(), Some(&device));
    run(
        "dd",
        &[
            "if=/dev/zero",
            &format!("of={}", text(device.path())),
            "bs=64k",
            "count=4",
        ],
    );
    device.detach().unwrap();
    run("umount", &[text(&place)]);
}
