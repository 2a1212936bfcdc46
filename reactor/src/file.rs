//! Data I/O on a file or a block device, through the page cache, or past it (`file/direct.rs`).
//!
//! What is in the page cache is read and written at once, on the caller's thread: that is faster than
//! any hand-over, to a ring too (a warm 4 KiB read took 2.0 us inline and 2.7 us through a ring, a
//! write 3.8 and 5.3 us). What would have to wait goes to the ring of the caller's thread where it has
//! one (`ring.rs`), else to a thread that may wait. `RWF_NOWAIT` tells the one from the other. Where the
//! file system does not know it for reads, every read is handed over, but for those of a tmpfs. Where it
//! does not for writes, as with ext4, they are made inline: whole pages need no reading first, so that the
//! caller waits only when the kernel holds back writers as such; handed over, each would pay a copy and two
//! thread switches, and the kernel would make those to one file one after the other anyway.

mod direct;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool::DataIo;
use rustix::fs::{Advice, FallocateFlags, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use crate::blocking::BlockingPool;
use crate::group_sync::{GroupSync, Run};
use crate::pages::Pages;
use crate::promise::promise;
use crate::ring::{self, Finished, Request};
use direct::HeldPages;

/// The most zeros written with one call where the file system cannot zero a range.
const ZERO_PIECE_BYTES: u64 = 1024 * 1024;

/// What `statfs` calls a tmpfs.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// File systems that call nothing a hole that was written, be it in the page cache alone: tmpfs, ext4 and its
/// forebears, XFS, Btrfs. Others have been seen to (OpenZFS before 2.2.2), or ask a server that knows less.
const KNOWS_HOLES_MAGIC: [i64; 4] = [TMPFS_MAGIC, 0xef53, 0x5846_5342, 0x9123_683e];

/// A data store in a file or on a block device.
pub struct FileIo {
    file: Arc<File>,
    threads: BlockingPool,
    syncs: GroupSync,
    /// Whether its file system can be believed which ranges of it hold no data.
    knows_holes: bool,
    /// Whether it is in memory, swapped out at worst: that is not worth a hand-over.
    is_in_memory: bool,
    nowait_reads_known: AtomicBool,
    nowait_writes_known: AtomicBool,
    /// What is being written, if the page cache is passed by.
    direct: Option<HeldPages>,
}

impl FileIo {
    /// Opens the file or block device at `path`.
    pub fn open(path: &Path, read_only: bool, threads: BlockingPool) -> io::Result<Self> {
        let file = File::options().read(true).write(!read_only).open(path)?;
        Ok(Self::new(file, threads))
    }

    /// Takes over an open file or block device.
    pub fn new(file: File, threads: BlockingPool) -> Self {
        // Readahead leaves large folios in the page cache, which make small writes many times
        // slower. Only advice: what does not take it works without.
        let _advised = rustix::fs::fadvise(&file, 0, None, Advice::Random);
        let file_system = file_system(&file);
        let is_in_memory = file_system == Some(TMPFS_MAGIC);
        let knows_holes = file_system.is_some_and(|magic| KNOWS_HOLES_MAGIC.contains(&magic));
        let file = Arc::new(file);
        let syncs = {
            let (file, threads) = (Arc::clone(&file), threads.clone());
            GroupSync::new(move |run| start_sync(&file, &threads, run))
        };
        FileIo {
            file,
            threads,
            syncs,
            knows_holes,
            is_in_memory,
            nowait_reads_known: AtomicBool::new(true),
            nowait_writes_known: AtomicBool::new(true),
            direct: None,
        }
    }

    /// Takes over an open file or block device, past the page cache from now on.
    ///
    /// # Errors
    /// When its file system cannot do that.
    pub fn direct(file: File, threads: BlockingPool) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT)?;
        Ok(FileIo {
            direct: Some(HeldPages::default()),
            ..Self::new(file, threads)
        })
    }

    /// Reads what can be read without waiting; returns how much.
    fn read_warm(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.is_in_memory {
            self.file.read_exact_at(buf, at)?;
            return Ok(buf.len());
        }
        let mut done = 0;
        while done < buf.len() && self.nowait_reads_known.load(Ordering::Relaxed) {
            let rest = &mut [IoSliceMut::new(&mut buf[done..])];
            let position = at + done as u64;
            match rustix::io::preadv2(&self.file, rest, position, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait_reads_known.store(false, Ordering::Relaxed);
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(done)
    }

    async fn read_cold(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let done = self.read_through_ring(at, buf).await?;
        let (at, buf) = (at + done as u64, &mut buf[done..]);
        if buf.is_empty() {
            return Ok(());
        }
        let file = Arc::clone(&self.file);
        let mut bytes = vec![0; buf.len()];
        let job = move || file.read_exact_at(&mut bytes, at).map(|()| bytes);
        buf.copy_from_slice(&self.threads.offload(job).await?);
        Ok(())
    }

    /// Reads as long as the thread has a ring that does not ask to try again; returns how much.
    async fn read_through_ring(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let rest = &mut buf[done..];
            let request = Request::Read {
                at: at + done as u64,
                buffer: Pages::zeroed(rest.len()),
            };
            let Ok(finished) = self.through_ring(request).await else {
                break;
            };
            match finished.result {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    rest[..count].copy_from_slice(&finished.buffer[..count]);
                    done += count;
                }
                Err(cause) if asks_again(&cause) => break,
                Err(cause) => return Err(cause),
            }
        }
        Ok(done)
    }

    /// Writes what a thread with a ring can write without waiting; returns how much. Threads without
    /// one may wait.
    fn write_warm(&self, at: u64, buf: &[u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let (position, rest) = (at + done as u64, &buf[done..]);
            if !ring::is_here() || !self.nowait_writes_known.load(Ordering::Relaxed) {
                return self.file.write_all_at(rest, position).map(|()| buf.len());
            }
            let rest = &[IoSlice::new(rest)];
            match rustix::io::pwritev2(&self.file, rest, position, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait_writes_known.store(false, Ordering::Relaxed);
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(done)
    }

    pub(crate) async fn write_waiting(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (position, rest) = (at + done as u64, &buf[done..]);
            let request = Request::Write {
                at: position,
                buffer: Pages::copy_of(rest),
            };
            let result = match self.through_ring(request).await {
                Ok(finished) => finished.result,
                Err(_) => self.file.write_all_at(rest, position).map(|()| rest.len()),
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count,
                Err(cause) if asks_again(&cause) => {
                    self.file.write_all_at(rest, position)?;
                    return Ok(());
                }
                Err(cause) => return Err(cause),
            }
        }
        Ok(())
    }

    /// Carries a request out on the ring of this thread; gives it back if there is none.
    pub(crate) async fn through_ring(&self, request: Request) -> Result<Finished, Request> {
        let (promise, finished) = promise();
        let done = move |finished| promise.keep(Ok(finished));
        match ring::begin(&self.file, request, done) {
            Ok(()) => Ok(finished.await),
            Err((request, _)) => Err(request),
        }
    }

    /// `fallocate`, on the ring or on a thread that may wait.
    async fn fallocate(&self, mode: FallocateFlags, at: u64, len: u64) -> Result<(), Errno> {
        let request = Request::Allocate { mode, at, len };
        if let Ok(finished) = self.through_ring(request).await {
            return match finished.result {
                Ok(_) => Ok(()),
                Err(cause) => Err(Errno::from_io_error(&cause).unwrap_or(Errno::IO)),
            };
        }
        let file = Arc::clone(&self.file);
        let allocate =
            move || rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, mode, at, len));
        self.threads.offload(allocate).await
    }

    /// Zeroes a range; past the page cache, of whole pages.
    async fn zero_range(&self, at: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match self.fallocate(mode, at, len).await {
            Ok(()) => Ok(()),
            // A block device zeroes whole sectors only, which it reports as an invalid range.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                let file = Arc::clone(&self.file);
                self.threads
                    .offload(move || write_zeros(&file, at, len))
                    .await
            }
            Err(cause) => Err(cause.into()),
        }
    }
}

/// What `statfs` calls the file system of a file. That of a device node says nothing about the device.
fn file_system(file: &File) -> Option<i64> {
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    is_file.then(|| Some(rustix::fs::fstatfs(file).ok()?.f_type))?
}

/// Begins a sync on the ring of this thread, or on a thread that may wait.
fn start_sync(file: &Arc<File>, threads: &BlockingPool, run: Run) {
    let done = move |finished: Finished| run.finish(finished.result.map(drop));
    if let Err((_, done)) = ring::begin(file, Request::SyncData, done) {
        let file = Arc::clone(file);
        threads.run(Box::new(move || {
            done(Finished {
                result: file.sync_data().map(|()| 0),
                buffer: Pages::default(),
            });
        }));
    }
}

/// Whether the same request would be carried out if it were made again, by somebody who may wait.
fn asks_again(cause: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(cause),
        Some(Errno::AGAIN | Errno::INTR)
    )
}

impl DataIo for FileIo {
    async fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.direct.is_some() {
            return Box::pin(self.read_direct(at, buf)).await;
        }
        let done = self.read_warm(at, buf)?;
        if done == buf.len() {
            return Ok(());
        }
        Box::pin(self.read_cold(at + done as u64, &mut buf[done..])).await
    }

    async fn write(&self, at: u64, buf: &[u8]) -> io::Result<()> {
        if let Some(held) = &self.direct {
            return Box::pin(self.write_direct(held, at, buf)).await;
        }
        let done = self.write_warm(at, buf)?;
        if done < buf.len() {
            Box::pin(self.write_waiting(at + done as u64, &buf[done..])).await?;
        }
        Ok(())
    }

    async fn allocate(&self, at: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        let (file, knows_holes) = (Arc::clone(&self.file), self.knows_holes);
        let job = move || {
            let is_zero = knows_holes && is_hole(&file, at, len);
            allocate(&file, at, len).map(|()| is_zero)
        };
        if self.is_in_memory {
            return job();
        }
        self.threads.offload(job).await
    }

    async fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        match &self.direct {
            _ if len == 0 => Ok(()),
            Some(held) => self.zero_direct(held, at, len).await,
            None => self.zero_range(at, len).await,
        }
    }

    async fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.fallocate(mode, at, len).await {
            // Space that cannot be given back is no failure.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
            Err(cause) => Err(cause.into()),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        self.syncs.sync().await
    }

    fn sync_at_opening(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }
}

/// Whether a range of a file holds no data: it was never written, or given back. Space that was merely
/// allocated is such a hole, too.
fn is_hole(file: &File, at: u64, len: u64) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => data >= at + len,
        // None from there to the end.
        Err(cause) => cause == Errno::NXIO,
    }
}

fn allocate(file: &File, at: u64, len: u64) -> io::Result<()> {
    let allocate = || rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, at, len);
    match rustix::io::retry_on_intr(allocate) {
        // A block device has its space, and of a file system that cannot promise it nothing is lost.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

fn write_zeros(file: &File, at: u64, len: u64) -> io::Result<()> {
    let piece_max = usize::try_from(ZERO_PIECE_BYTES.min(len)).unwrap_or(usize::MAX);
    let zeros = Pages::zeroed(piece_max);
    let mut done = 0;
    while done < len {
        let piece = usize::try_from(len - done).map_or(piece_max, |rest| rest.min(piece_max));
        file.write_all_at(&zeros[..piece], at + done)?;
        done += piece as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
