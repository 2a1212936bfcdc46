//! What a killed daemon leaves behind, and how the next one gets rid of it.
//!
//! The daemon is this test program once more, told by its environment to serve.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use fuse_target::{FuseMount, LoopDevice};
use reactor::block_on;

use crate::rig::{Leftovers, MIB, PoolFiles, Rig, have_loops, name, new};

const DIRECTORY: &str = "FUSE_TARGET_TEST_DIRECTORY";

/// Not a test by itself: serves the pool in a directory until killed.
#[test]
fn serve_until_killed() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        return;
    };
    let directory = Path::new(&directory);
    let (pool, _gate) = PoolFiles(directory.to_owned()).open(false);
    let mount = FuseMount::start(Arc::clone(&pool), &directory.join("files")).unwrap();
    block_on(pool.create_volume(new("vol"), 8 * MIB, None)).unwrap();
    let device = LoopDevice::attach(&mount.file(&name("vol")), false).unwrap();
    eprintln!("serving {}", device.path().display());
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    unreachable!("it is killed before its input ends");
}

/// Kills its child when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _already_dead = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn a_dead_mount_and_its_loop_device_are_cleared_away() {
    if !have_loops() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let files = PoolFiles::format(directory.path(), 64 * MIB);
    let place = directory.path().join("files");
    fs::create_dir(&place).unwrap();
    let _leftovers = Leftovers(place.clone());
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "dead::serve_until_killed", "--nocapture"])
        .env(DIRECTORY, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut daemon = Daemon(child.unwrap());
    let mut stderr = BufReader::new(daemon.0.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("serving ") {
        line.clear();
        assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the daemon ended");
    }
    drop(daemon);
    stderr.read_to_end(&mut Vec::new()).unwrap();
    assert!(fs::metadata(&place).is_err(), "the mount should be dead");

    let device = LoopDevice::find(&place.join("vol"))
        .unwrap()
        .expect("the dead device is there");
    assert_eq!(
        format!("serving {}", device.path().display()),
        line.trim_end()
    );

    let (pool, _gate) = files.open(true);
    let mut held = fs::File::open(device.path()).unwrap();
    assert!(held.read(&mut [0; 512]).is_err(), "it should report errors");
    let refused = FuseMount::start(Arc::clone(&pool), &place)
        .map(drop)
        .unwrap_err();
    assert!(refused.is_busy(), "{refused}");
    assert_eq!(
        LoopDevice::find(&place.join("vol")).unwrap().as_ref(),
        Some(&device)
    );
    drop((held, pool));

    let rig = Rig::of(directory, files, false);
    let path = rig.mount.file(&name("vol"));
    assert_eq!(LoopDevice::find(&path).unwrap(), None);
    let new_device = LoopDevice::attach(&path, false).unwrap();
    fs::File::open(new_device.path())
        .unwrap()
        .read_exact(&mut [0; 512])
        .unwrap();
    new_device.detach().unwrap();
}
