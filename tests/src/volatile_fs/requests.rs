//! The FUSE requests: which of them the disk is asked to do, and what else is refused.

use std::ffi::{OsStr, OsString};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use rustix::fs::{FallocateFlags, FileType as Kind};

use super::disk::{Disk, Node, ROOT};

/// Names and attributes are asked for anew each time.
const NO_CACHING: Duration = Duration::ZERO;

/// `st_blocks` counts these.
const STAT_BLOCK_SIZE: u64 = 512;

pub(super) struct Requests {
    disk: Arc<Disk>,
}

impl Requests {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Requests { disk }
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        if number == ROOT {
            return Ok(attributes(ROOT, FileType::Directory, 0o700));
        }
        self.disk.look(number, |node: &Node| FileAttr {
            size: node.file.len(),
            blocks: node.file.allocated() / STAT_BLOCK_SIZE,
            ..attributes(number, node.kind, node.mode)
        })
    }

    fn create(&self, name: &OsStr, mode: u32, umask: u32) -> Result<FileAttr, Errno> {
        let kind = match Kind::from_raw_mode(mode) {
            Kind::Socket => FileType::Socket,
            Kind::RegularFile => FileType::RegularFile,
            _ => return Err(Errno::EPERM),
        };
        let number = self.disk.create(name, kind, permissions(mode & !umask))?;
        self.attributes(number)
    }
}

fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or_default()
}

/// Of an empty file. Times are not kept.
fn attributes(number: u64, kind: FileType, perm: u16) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(number),
        size: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO
        | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
        | FopenFlags::FOPEN_NOFLUSH
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&NO_CACHING, &attributes, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&NO_CACHING, &attributes),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Requests {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel lacks makes it slower, not wrong: the refusal is of no interest.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        Ok(())
    }

    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disk.find(name);
        answer_entry(reply, found.and_then(|number| self.attributes(number)));
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        answer_attributes(reply, self.attributes(node.0));
    }

    /// Owners and times are not kept.
    fn setattr(
        &self,
        _request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_flags: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set_mode = mode.map_or(Ok(()), |mode| self.disk.set_mode(node.0, permissions(mode)));
        let set_len = || size.map_or(Ok(()), |size| self.disk.set_len(node.0, size));
        let set = set_mode.and_then(|()| set_len());
        answer_attributes(reply, set.and_then(|()| self.attributes(node.0)));
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        answer_entry(reply, self.create(name, mode, umask));
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.create(name, mode, umask) {
            Ok(attributes) => reply.created(
                &NO_CACHING,
                &attributes,
                Generation(0),
                FileHandle(0),
                open_flags(),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.disk.remove(name));
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        match flags.is_empty() {
            true => answer(reply, self.disk.rename(name, new_name)),
            false => reply.error(Errno::EINVAL),
        }
    }

    fn open(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.attributes(node.0) {
            Ok(_) => reply.opened(FileHandle(0), open_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.disk.read(node.0, offset, size.into()) {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.disk.write(node.0, offset, data);
        let len = u32::try_from(data.len()).map_err(|_| Errno::EINVAL);
        match written.and(len) {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.disk.sync(node.0));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        answer(reply, self.disk.sync_names());
    }

    fn fallocate(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (number, disk) = (node.0, &self.disk);
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        let keeps_size = mode.contains(FallocateFlags::KEEP_SIZE);
        let done = match mode.difference(FallocateFlags::KEEP_SIZE) {
            FallocateFlags::PUNCH_HOLE => disk.punch(number, offset, len),
            FallocateFlags::ZERO_RANGE => disk
                .allocate(number, offset, len, keeps_size)
                .and_then(|()| disk.zero(number, offset, len)),
            allocate if allocate.is_empty() => disk.allocate(number, offset, len, keeps_size),
            _ => Err(Errno::EOPNOTSUPP),
        };
        answer(reply, done);
    }

    fn readdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = match self.disk.list() {
            Ok(listed) => listed,
            Err(errno) => return reply.error(errno),
        };
        let dots = [".", ".."].map(|name| (OsString::from(name), ROOT, FileType::Directory));
        let entries = (1..).zip(dots.into_iter().chain(listed));
        for (next, (name, number, kind)) in entries.filter(|(next, _)| *next > offset) {
            if reply.add(INodeNo(number), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
