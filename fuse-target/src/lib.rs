//! The thin devices of a pool as files of a FUSE mount, with loop devices on top.
//!
//! The way to a local block device on hosts whose kernel has neither ublk nor the NBD client. One
//! [`FuseMount`] a pool is a flat directory in which each volume `prod` and snapshot
//! `prod@nightly` is a regular file of the device's size; a [`LoopDevice`] makes a file a block
//! device; [`mount`] and [`unmount`] put the file system on it to use.
//!
//! ```no_run
//! # fn example<H: pool::Host>(pool: std::sync::Arc<pool::Pool<H>>) -> Result<(), Box<dyn std::error::Error>> {
//! use std::path::Path;
//! let mut files = fuse_target::FuseMount::start(pool, Path::new("/run/thinpool/tank"))?;
//! let device = fuse_target::LoopDevice::attach(&files.file(&"prod".parse()?), false)?;
//! fuse_target::mount(device.path(), Path::new("/srv/prod"), &[])?;
//! fuse_target::unmount(Path::new("/srv/prod"))?;
//! device.detach()?;
//! files.unmount()?;
//! # Ok(())
//! # }
//! ```
//!
//! # What goes where
//!
//! A write to a file system on the loop device passes the file system's page cache, the loop
//! driver, FUSE, this process, and the pool's data store. Every layer but the first and the last
//! must keep no copy: the files are opened with `FOPEN_DIRECT_IO`, so FUSE caches none of their
//! bytes, and the loop device uses direct I/O. A flush of the loop device is an `fsync` here, and
//! only that (or `O_SYNC`, `O_DSYNC`) commits the pool; closing a file costs nothing.
//!
//! A session thread polls each request's future once, where warm I/O completes. What is pending
//! then moves to a background thread, so that the flush of one volume never delays the reads of
//! another. Requests are never cancelled.
//!
//! # The two ways to lock up, and how we stay clear of them
//!
//! *A thread that serves requests waits for a request.* Reading a file under the mount, a `stat`
//! of one, opening the loop device, waiting for `losetup` or `mount`: all of these end in requests
//! to this process, so whoever does them on a thread that should answer waits for itself. Session
//! and background threads therefore run nothing but pool futures. Everything that touches a loop
//! device or a path under the mount is a child process, started and awaited by the caller's
//! thread, which serves no requests: a runtime must call this crate's functions from a thread for
//! blocking work. What this process wants to know, it reads from `/proc` and `/sys`, which never
//! ask the file system below.
//!
//! *Memory is freed by writing to ourselves.* Under memory pressure the kernel writes out dirty
//! pages of the file system on the loop device; that write comes to this process; serving it needs
//! memory, and the kernel may look for that memory by waiting for the very same write-out. The
//! session and background threads are marked `PR_SET_IO_FLUSHER`, which tells the kernel that
//! their allocations must not wait for I/O, and that they may go on dirtying the data store's
//! pages while others are held back. This needs `CAP_SYS_RESOURCE`; without it a warning is logged
//! and the danger remains. Threads of the host that the pool uses (commits, cold reads) are not
//! ours to mark. Swap space on a device of ours can never be made safe, and is not supported.
//!
//! # What a dead daemon leaves behind
//!
//! The kernel ends the mount with the process: every request fails, `stat` says `ENOTCONN`, and a
//! loop device on top reports I/O errors for good. Nothing reconnects, unlike ublk and NBD: file
//! systems on such a device must be unmounted, and mounted anew from a new one. The next
//! [`FuseMount::start`] at the same place detaches the dead loop devices and clears the dead mount
//! away, once nothing uses them. It must be the same place, since only their path tells whose
//! they are.

#![forbid(unsafe_code)]

mod block_mount;
mod error;
mod file;
mod filesystem;
mod handles;
mod holders;
mod loop_device;
mod mount;
mod mount_table;
mod nodes;
mod program;

pub use block_mount::{mount, unmount, unmount_all};
pub use error::Error;
pub use holders::of_block_device as holder_of;
pub use loop_device::{LoopDevice, LoopOptions};
pub use mount::FuseMount;
pub use mount_table::is_mountpoint;
