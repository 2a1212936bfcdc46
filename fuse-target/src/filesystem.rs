//! The FUSE requests of one mount: who is meant, what is refused, and where the rest goes.
//!
//! Names and attributes are answered at once from the pool's memory. Requests on data become a
//! future of the open file ([`OpenFile`]) that is polled here once and, when it has to wait, goes
//! on in the background; the reply is sent wherever it ends. Nothing is cached by the kernel: every
//! timeout is zero, so files come and go with their devices.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use pool::{Host, Pool};
use reactor::Background;
use rustix::fs::OFlags;

use crate::file::{OpenFile, Seek, errno_of};
use crate::handles::{Handles, ListedFile};
use crate::nodes::{Nodes, generation_of, node_of};

/// The largest read and write the kernel sends, in bytes.
const REQUEST_SIZE_MAX: u32 = 1 << 20;

/// How many asynchronous requests the kernel keeps with us.
const BACKGROUND_REQUESTS_MAX: u16 = 128;

/// Names and attributes are asked for anew each time.
const NO_CACHING: Duration = Duration::ZERO;

/// The longest name: a volume's and a snapshot's of 128 bytes each, and the `@`.
const NAME_LEN_MAX: u32 = 128 + 1 + 128;

/// `lseek(2)`: to the next data.
const SEEK_DATA: i32 = 3;

/// `lseek(2)`: to the next hole.
const SEEK_HOLE: i32 = 4;

pub(crate) struct ThinFiles<H: Host> {
    pool: Arc<Pool<H>>,
    nodes: Nodes<H>,
    handles: Arc<Handles<H>>,
    background: Background,
}

impl<H: Host> ThinFiles<H> {
    pub(crate) fn new(
        pool: Arc<Pool<H>>,
        handles: Arc<Handles<H>>,
        background: Background,
    ) -> Self {
        ThinFiles {
            nodes: Nodes::new(Arc::clone(&pool)),
            pool,
            handles,
            background,
        }
    }

    /// Runs a request on an open file, and `answer`s it with the outcome. The file is let go
    /// first: whoever hears of the answer may close it and expect it closed.
    fn serve<T, F>(
        &self,
        handle: FileHandle,
        request: impl FnOnce(Arc<OpenFile<H>>) -> F,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        T: Send + 'static,
        F: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        match self.handles.file(handle.0) {
            None => answer(Err(Errno::EBADF)),
            Some(file) => {
                let request = request(file);
                self.background
                    .spawn_or_finish(async move { answer(request.await) });
            }
        }
    }

    fn open_file(&self, node: INodeNo, flags: OpenFlags) -> Result<u64, Errno> {
        let info = self.nodes.find(node.0).ok_or(Errno::ENOENT)?;
        let device = self
            .pool
            .open_device(&info.name)
            .map_err(|error| errno_of(&error))?;
        // While it is open it cannot be removed; before, its name may have gone to another one.
        let opened = self
            .pool
            .info(&device.name())
            .map_err(|error| errno_of(&error))?;
        if node_of(&opened) != node.0 {
            return Err(Errno::ESTALE);
        }
        if flags.acc_mode() != OpenAccMode::O_RDONLY && device.read_only() {
            return Err(Errno::EROFS);
        }
        Ok(self
            .handles
            .add_file(OpenFile::new(device, is_durable(flags))))
    }

    fn list(&self) -> Vec<ListedFile> {
        let list = |node, name: &str| ListedFile {
            node,
            name: name.to_owned(),
        };
        let mut listing = vec![list(INodeNo::ROOT.0, "."), list(INodeNo::ROOT.0, "..")];
        let devices = self.pool.devices();
        listing.extend(
            devices
                .iter()
                .map(|info| list(node_of(info), &info.name.to_string())),
        );
        listing
    }
}

impl<H: Host> Filesystem for ThinFiles<H> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What an older kernel lacks makes it slower, not wrong: the refusals are of no interest.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        config
            .set_max_write(REQUEST_SIZE_MAX)
            .and_then(|_| {
                config
                    .set_max_background(BACKGROUND_REQUESTS_MAX)
                    .map_err(u32::from)
            })
            .map_err(|nearest| io::Error::other(format!("limits are refused, try {nearest}")))?;
        Ok(())
    }

    fn destroy(&mut self) {
        self.handles.clear();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        match name.to_str().and_then(|name| self.nodes.lookup(name)) {
            None => reply.error(Errno::ENOENT),
            Some(info) => {
                let attributes = self.nodes.file_attributes(&info);
                reply.entry(&NO_CACHING, &attributes, generation_of(&info));
            }
        }
    }

    fn forget(&self, _request: &Request, node: INodeNo, _lookups: u64) {
        self.nodes.forget(node.0);
    }

    fn getattr(
        &self,
        _request: &Request,
        node: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        if node == INodeNo::ROOT {
            return reply.attr(&NO_CACHING, &self.nodes.root_attributes());
        }
        match self.nodes.find(node.0) {
            None => reply.error(Errno::ENOENT),
            Some(info) => reply.attr(&NO_CACHING, &self.nodes.file_attributes(&info)),
        }
    }

    /// Only what changes nothing is granted: the size the file has, and times, which are not kept.
    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _accessed: Option<TimeOrNow>,
        _modified: Option<TimeOrNow>,
        _changed: Option<SystemTime>,
        handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed_flags: Option<SystemTime>,
        _backed_up: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let unchanged = match size {
            None => true,
            Some(size) => self
                .nodes
                .find(node.0)
                .is_some_and(|info| info.size == size),
        };
        if !unchanged || mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        self.getattr(request, node, handle, reply);
    }

    fn open(&self, _request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.open_file(node, flags) {
            Err(errno) => reply.error(errno),
            Ok(handle) => reply.opened(
                FileHandle(handle),
                FopenFlags::FOPEN_DIRECT_IO
                    | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
                    | FopenFlags::FOPEN_NOFLUSH,
            ),
        }
    }

    fn read(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size.min(REQUEST_SIZE_MAX);
        let read = move |file: Arc<OpenFile<H>>| async move { file.read(offset, size).await };
        self.serve(handle, read, |result| match result {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The buffer of the session thread is reused as soon as this returns.
        let data = data.to_vec();
        let durable = is_durable(flags);
        let write =
            move |file: Arc<OpenFile<H>>| async move { file.write(offset, &data, durable).await };
        self.serve(handle, write, |result| match result {
            Ok(len) => reply.written(len),
            Err(errno) => reply.error(errno),
        });
    }

    /// Sent by `close` on kernels that do not know `FOPEN_NOFLUSH`. There is nothing to do, and
    /// the kernel does not ask again.
    fn flush(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.handles.release_file(handle.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        let sync = |file: Arc<OpenFile<H>>| async move { file.sync().await };
        self.serve(handle, sync, |result| answer_empty(reply, result));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let allocate =
            move |file: Arc<OpenFile<H>>| async move { file.allocate(offset, len, mode).await };
        self.serve(handle, allocate, |result| answer_empty(reply, result));
    }

    fn lseek(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let seek = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let find = move |file: Arc<OpenFile<H>>| async move { file.seek(offset, seek).await };
        self.serve(handle, find, |result| {
            match result.and_then(|at| i64::try_from(at).map_err(|_| Errno::EOVERFLOW)) {
                Ok(at) => reply.offset(at),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn opendir(&self, _request: &Request, node: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if node != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        // Listed once, so that what comes and goes meanwhile shifts no offset.
        let handle = self.handles.add_listing(self.list());
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(listing) = self.handles.listing(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        let begin = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, file) in (offset + 1..).zip(listing.iter().skip(begin)) {
            let is_root = file.node == INodeNo::ROOT.0;
            let kind = if is_root {
                FileType::Directory
            } else {
                FileType::RegularFile
            };
            if reply.add(INodeNo(file.node), next, kind, &file.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _node: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles.release_listing(handle.0);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        _node: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// The loop driver takes the block size told here for the granularity of discards.
    fn statfs(&self, _request: &Request, _node: INodeNo, reply: ReplyStatfs) {
        let status = self.pool.status();
        let Ok(block_size) = u32::try_from(status.block_size) else {
            return reply.error(Errno::EOVERFLOW);
        };
        let total = status.data_total_bytes / status.block_size;
        let free = total.saturating_sub(status.data_used_bytes / status.block_size);
        let files = status.volumes + status.snapshots;
        reply.statfs(
            total,
            free,
            free,
            files,
            0,
            block_size,
            NAME_LEN_MAX,
            block_size,
        );
    }

    // Devices are made, named and removed by the pool's own commands only.

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _target: &Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn link(
        &self,
        _request: &Request,
        _node: INodeNo,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }
}

fn answer_empty(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

/// Whether each write must be durable once answered. `O_SYNC` contains the bit of `O_DSYNC`; the
/// kernel also sets it for a single write with `RWF_DSYNC`.
fn is_durable(flags: OpenFlags) -> bool {
    OFlags::from_bits_retain(flags.0.cast_unsigned()).intersects(OFlags::SYNC | OFlags::DSYNC)
}
