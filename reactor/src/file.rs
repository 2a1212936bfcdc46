//! Data I/O on a file or a block device, through the page cache.
//!
//! What is in the page cache is read on the caller's thread; what is not is read by a thread that
//! may wait. Writes go to the page cache at once. `preadv2` with `RWF_NOWAIT` tells warm from cold;
//! where the file system does not know it, every read goes to the waiting threads.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pool::DataIo;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::{Errno, ReadWriteFlags};

use crate::blocking::BlockingPool;
use crate::group_sync::GroupSync;

/// The most zeros written with one call where the file system cannot zero a range.
const ZERO_PIECE_BYTES: u64 = 1024 * 1024;

/// A data store in a file or on a block device.
pub struct FileIo {
    file: Arc<File>,
    threads: BlockingPool,
    syncs: GroupSync,
    nowait_known: AtomicBool,
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
        let file = Arc::new(file);
        let synced = Arc::clone(&file);
        let syncs = GroupSync::new(threads.clone(), move || synced.sync_data());
        FileIo {
            file,
            threads,
            syncs,
            nowait_known: AtomicBool::new(true),
        }
    }

    /// Reads what can be read without waiting; returns how much.
    fn read_warm(&self, at: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() && self.nowait_known.load(Ordering::Relaxed) {
            let rest = &mut [IoSliceMut::new(&mut buf[done..])];
            let position = at + done as u64;
            match rustix::io::preadv2(&self.file, rest, position, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.nowait_known.store(false, Ordering::Relaxed);
                }
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(done)
    }

    async fn read_cold(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let mut bytes = vec![0; buf.len()];
        let job = move || file.read_exact_at(&mut bytes, at).map(|()| bytes);
        buf.copy_from_slice(&self.threads.offload(job).await?);
        Ok(())
    }
}

impl DataIo for FileIo {
    async fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let done = self.read_warm(at, buf)?;
        if done == buf.len() {
            return Ok(());
        }
        self.read_cold(at + done as u64, &mut buf[done..]).await
    }

    async fn write(&self, at: u64, buf: &[u8], durable: bool) -> io::Result<()> {
        self.file.write_all_at(buf, at)?;
        if durable {
            self.syncs.sync().await
        } else {
            Ok(())
        }
    }

    async fn zero(&self, at: u64, len: u64) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        self.threads
            .offload(move || zero_range(&file, at, len))
            .await
    }

    async fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        self.threads
            .offload(move || punch_hole(&file, at, len))
            .await
    }

    async fn sync(&self) -> io::Result<()> {
        self.syncs.sync().await
    }

    fn size(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))?);
        }
        Ok(metadata.len())
    }
}

fn zero_range(file: &File, at: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, at, len)) {
        Ok(()) => Ok(()),
        // A block device zeroes whole sectors only, which it reports as an invalid range.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => write_zeros(file, at, len),
        Err(cause) => Err(cause.into()),
    }
}

fn write_zeros(file: &File, at: u64, len: u64) -> io::Result<()> {
    let piece_max = usize::try_from(ZERO_PIECE_BYTES.min(len)).unwrap_or(usize::MAX);
    let zeros = vec![0; piece_max];
    let mut done = 0;
    while done < len {
        let piece = usize::try_from(len - done).map_or(piece_max, |rest| rest.min(piece_max));
        file.write_all_at(&zeros[..piece], at + done)?;
        done += piece as u64;
    }
    Ok(())
}

fn punch_hole(file: &File, at: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, flags, at, len)) {
        // Space that cannot be given back is no failure.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

#[cfg(test)]
mod tests;
