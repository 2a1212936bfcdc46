//! Inode numbers and attributes of the devices.
//!
//! A device's inode number is its thin id, moved beyond the root's; the generation comes from its
//! UUID, so that the kernel tells a new device from a removed one with the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{FileAttr, FileType, Generation, INodeNo};
use parking_lot::Mutex;
use pool::{DeviceInfo, DeviceName, Host, Pool};

/// What `stat` says is a good size for requests, in bytes: the smallest data block. Tools expect a
/// power of two, which the pool's block size need not be.
const REQUEST_SIZE_BEST: u32 = 64 * 1024;

/// The unit of `st_blocks`, in bytes.
const STAT_BLOCK_SIZE: u64 = 512;

/// Inode numbers below are the root's, or mean nothing.
const FIRST_NODE: u64 = 2;

pub(crate) struct Nodes<H: Host> {
    pool: Arc<Pool<H>>,
    /// What a node was called when the kernel last asked; a hint that spares a search.
    names: Mutex<HashMap<u64, DeviceName>>,
    uid: u32,
    gid: u32,
    /// The pool keeps no times of change, so every file shows when the mount was made.
    mounted: SystemTime,
}

impl<H: Host> Nodes<H> {
    pub(crate) fn new(pool: Arc<Pool<H>>) -> Self {
        Nodes {
            pool,
            names: Mutex::default(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mounted: SystemTime::now(),
        }
    }

    /// The device of this name in the directory.
    pub(crate) fn lookup(&self, name: &str) -> Option<DeviceInfo> {
        let info = self.pool.info(&name.parse().ok()?).ok()?;
        self.names.lock().insert(node_of(&info), info.name.clone());
        Some(info)
    }

    /// The device behind an inode number, whatever it is called now.
    pub(crate) fn find(&self, node: u64) -> Option<DeviceInfo> {
        let hint = self.names.lock().get(&node).cloned();
        let info = hint.and_then(|name| self.pool.info(&name).ok());
        if let Some(info) = info.filter(|info| node_of(info) == node) {
            return Some(info);
        }
        let info = self
            .pool
            .devices()
            .into_iter()
            .find(|info| node_of(info) == node)?;
        self.names.lock().insert(node, info.name.clone());
        Some(info)
    }

    /// The kernel knows the node no more.
    pub(crate) fn forget(&self, node: u64) {
        self.names.lock().remove(&node);
    }

    pub(crate) fn file_attributes(&self, info: &DeviceInfo) -> FileAttr {
        let perm = if info.read_only { 0o400 } else { 0o600 };
        FileAttr {
            size: info.size,
            blocks: info.mapped_bytes / STAT_BLOCK_SIZE,
            ..self.attributes(node_of(info), FileType::RegularFile, perm)
        }
    }

    pub(crate) fn root_attributes(&self) -> FileAttr {
        self.attributes(INodeNo::ROOT.0, FileType::Directory, 0o500)
    }

    fn attributes(&self, node: u64, kind: FileType, perm: u16) -> FileAttr {
        FileAttr {
            ino: INodeNo(node),
            size: 0,
            blocks: 0,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind,
            perm,
            nlink: if kind == FileType::Directory { 2 } else { 1 },
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: REQUEST_SIZE_BEST,
            flags: 0,
        }
    }
}

/// The inode number of a device.
pub(crate) fn node_of(info: &DeviceInfo) -> u64 {
    FIRST_NODE + u64::from(info.id)
}

/// The generation of a device's inode number: FNV-1a of its UUID, in 32 bits as the kernel keeps.
pub(crate) fn generation_of(info: &DeviceInfo) -> Generation {
    let hash = info.uuid.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    Generation(u64::from(hash))
}
