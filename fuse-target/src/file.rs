//! An open file: what its requests mean for the thin device behind it.
//!
//! A file has a fixed size. Reads stop at its end and writes are cut off there, as on a block
//! device; what begins beyond it fails with `ENOSPC`, as block devices have it. Nothing is cached
//! here, so a request is as durable as the pool made it.

use std::fmt::Display;
use std::time::Instant;

use fuser::Errno;
use pool::{DeviceName, ErrorKind, ExtentState, Host, Operation, ThinDevice, Zeroing};
use reactor::yield_now;
use rustix::fs::FallocateFlags;

/// The largest piece of a range that is zeroed without letting other requests run, in bytes.
const ZERO_PIECE_SIZE: u64 = 32 << 20;

/// How many extents are looked at before other requests may run.
const EXTENTS_MAX: usize = 1024;

/// What an `lseek` looks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seek {
    Data,
    Hole,
}

pub(crate) struct OpenFile<H: Host> {
    device: ThinDevice<H>,
    /// Opened with `O_SYNC` or `O_DSYNC`: every change is durable before it is answered.
    durable: bool,
}

impl<H: Host> OpenFile<H> {
    pub(crate) fn new(device: ThinDevice<H>, durable: bool) -> Self {
        OpenFile { device, durable }
    }

    pub(crate) fn name(&self) -> DeviceName {
        self.device.name()
    }

    pub(crate) fn size(&self) -> u64 {
        self.device.size()
    }

    /// The bytes at `offset`, fewer than `len` at the end of the file only.
    pub(crate) async fn read(&self, offset: u64, len: u32) -> Result<Vec<u8>, Errno> {
        let started = Instant::now();
        let len = self.clip(offset, u64::from(len));
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; usize_of(len)?];
        let result = self.device.read(offset, &mut bytes).await;
        self.finish(Operation::Read, offset, len, started, result)?;
        Ok(bytes)
    }

    /// Has its writes that wait for data space fail now.
    pub(crate) fn end_waiting(&self) {
        self.device.end_waiting();
    }

    /// Stores the bytes, at most up to the end of the file, and returns how many.
    pub(crate) async fn write(
        &self,
        offset: u64,
        bytes: &[u8],
        durable: bool,
    ) -> Result<u32, Errno> {
        let started = Instant::now();
        let asked = u64::try_from(bytes.len()).map_err(|_| Errno::EINVAL)?;
        let len = self.clip(offset, asked);
        if len == 0 {
            return if asked == 0 {
                Ok(0)
            } else {
                Err(Errno::ENOSPC)
            };
        }
        let bytes = &bytes[..usize_of(len)?];
        let result = self
            .device
            .write(offset, bytes, durable || self.durable)
            .await;
        self.finish(Operation::Write, offset, len, started, result)?;
        u32::try_from(len).map_err(|_| Errno::EINVAL)
    }

    /// Makes everything durable that was answered before.
    pub(crate) async fn sync(&self) -> Result<(), Errno> {
        let started = Instant::now();
        let result = self.device.flush().await;
        self.finish(Operation::Flush, 0, 0, started, result)
    }

    /// Makes holes and zeros. `fallocate` in its other modes makes no sense for a file that is a
    /// device, or could not keep its promise of space.
    pub(crate) async fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let bits = u32::try_from(mode).map_err(|_| Errno::EOPNOTSUPP)?;
        let Some(mode) = FallocateFlags::from_bits(bits) else {
            return Err(Errno::EOPNOTSUPP);
        };
        let end = offset.checked_add(len).ok_or(Errno::EFBIG)?;
        let keep_size = FallocateFlags::KEEP_SIZE;
        let (operation, zeroing) = if mode == FallocateFlags::PUNCH_HOLE | keep_size {
            (Operation::Discard, Zeroing::MayUnmap)
        } else if mode.difference(keep_size) == FallocateFlags::ZERO_RANGE {
            (Operation::WriteZeroes, Zeroing::KeepMapped)
        } else {
            return Err(Errno::EOPNOTSUPP);
        };
        if end > self.size() && !mode.contains(keep_size) {
            return Err(Errno::EPERM);
        }
        let started = Instant::now();
        let len = self.clip(offset, len);
        let result = self.zero(offset, len, zeroing).await;
        self.finish(operation, offset, len, started, result)
    }

    /// Zeroes piece by piece, each ending at a multiple of the pool's block size, so that no block
    /// is cut in two that could have been unmapped whole. A hole must read as zeros at its ends
    /// too, which a discard of the device does not promise.
    async fn zero(&self, offset: u64, len: u64, zeroing: Zeroing) -> Result<(), pool::Error> {
        let step = ZERO_PIECE_SIZE.next_multiple_of(self.device.block_size());
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let next = (at - at % step).saturating_add(step).min(end);
            let durable = self.durable && next == end;
            self.device
                .write_zeroes(at, next - at, zeroing, durable)
                .await?;
            at = next;
            if at < end {
                yield_now().await;
            }
        }
        Ok(())
    }

    /// The first position from `offset` on that holds data, or a hole; the file's end counts as a
    /// hole. `ENXIO` when there is none.
    pub(crate) async fn seek(&self, offset: u64, seek: Seek) -> Result<u64, Errno> {
        let size = self.size();
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut at = offset;
        while at < size {
            let extents = self.device.extents(at, size - at, EXTENTS_MAX).await;
            let extents = extents.map_err(|error| self.errno(&error, "seek", at, size - at))?;
            assert!(!extents.is_empty(), "at least one extent is told");
            for extent in extents {
                let is_hole = extent.state == ExtentState::Hole;
                if is_hole == (seek == Seek::Hole) {
                    return Ok(at);
                }
                at += extent.len;
            }
            yield_now().await;
        }
        assert_eq!(at, size, "extents end with the device");
        match seek {
            Seek::Hole => Ok(size),
            Seek::Data => Err(Errno::ENXIO),
        }
    }

    /// How much of the range lies within the file.
    fn clip(&self, offset: u64, len: u64) -> u64 {
        self.size().saturating_sub(offset).min(len)
    }

    fn finish(
        &self,
        operation: Operation,
        offset: u64,
        len: u64,
        started: Instant,
        result: Result<(), pool::Error>,
    ) -> Result<(), Errno> {
        let stats = self.device.stats();
        match result {
            Ok(()) => stats.record(operation, len, started.elapsed()),
            Err(_) => stats.record_error(operation),
        }
        result.map_err(|error| self.errno(&error, operation.name(), offset, len))
    }

    fn errno(&self, error: &pool::Error, what: impl Display, offset: u64, len: u64) -> Errno {
        if matches!(error.kind(), ErrorKind::Io | ErrorKind::Damaged) {
            let name = self.device.name();
            tracing::warn!("{name}: {what} of {len} bytes at {offset} failed: {error}");
        }
        errno_of(error)
    }
}

/// The errno by which a file tells an error of the pool.
pub(crate) fn errno_of(error: &pool::Error) -> Errno {
    match error.kind() {
        ErrorKind::ReadOnly => Errno::EROFS,
        _ => Errno::from_i32(error.errno()),
    }
}

fn usize_of(len: u64) -> Result<usize, Errno> {
    usize::try_from(len).map_err(|_| Errno::EINVAL)
}
