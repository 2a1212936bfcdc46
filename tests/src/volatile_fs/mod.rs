//! A file system with a volatile cache, for power cuts on any host: one directory in memory, through FUSE.
//!
//! What is written, the length of a file and the names of files are volatile until they are synced. A sync
//! covers what was complete when it was submitted. A power cut, commanded over a socket (`control.rs`), draws
//! what else survives, by the shapes of the simulator ([`Shape`](crate::sim::Shape)), file by file; with that the
//! file system goes on when the power is back. Until then every request fails, so that nothing of a daemon that
//! is about to be killed arrives late.
//!
//! The kernel caches nothing: neither bytes, nor names, nor lengths. So there is nothing stale after a cut, and
//! the mount stays.

mod control;
mod disk;
mod file;
mod names;
mod requests;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use fuser::{Config, MountOption, Session};

use disk::Disk;
use requests::Requests;

/// Threads for requests: a sync that takes its time holds up no write.
const THREADS: usize = 6;

/// Mounts an empty file system, takes commands on a socket, calls `ready` and serves until it is unmounted. From
/// `seed`, and the order of requests, follows everything random.
///
/// # Errors
/// What keeps it from being mounted, or the socket from being made.
pub fn serve(mountpoint: &Path, socket: &Path, seed: u64, ready: impl FnOnce()) -> io::Result<()> {
    let disk = Arc::new(Disk::new(seed));
    let listener = UnixListener::bind(socket)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("volatile".to_owned()),
        MountOption::NoAtime,
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::new(Requests::new(Arc::clone(&disk)), mountpoint, &config)?;
    thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || control::serve(&listener, &disk))?;
    ready();
    session.run()
}
