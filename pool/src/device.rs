//! A thin device in memory, and the handle through which it is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::catalog::Entry;
use crate::chunks::{Chunk, ChunkMap};
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::log::LastRecord;
use crate::map::Zeroing;
use crate::name::DeviceName;
use crate::partial::{Partial, Partials};
use crate::pool::Pool;
use crate::queue::Patience;
use crate::serve::ReadPiece;
use crate::stats::DeviceStats;
use crate::sync::{Cells, Gate};
use crate::trees::Mapping;
use crate::units::{ThinId, VirtualBlock};

/// What the pool knows of one device while it is open.
pub(crate) struct Device<D> {
    pub(crate) id: ThinId,
    pub(crate) entry: RwLock<Entry>,
    pub(crate) size: AtomicU64,
    pub(crate) read_only: AtomicBool,
    /// Mappings made before this time may be shared.
    pub(crate) snapshotted_time: AtomicU32,
    /// Mapped blocks, changes that are not committed yet included.
    pub(crate) mapped_blocks: AtomicU64,
    /// Where the intent log has the last of its records.
    pub(crate) last_record: LastRecord,
    pub(crate) chunks: ChunkMap,
    /// Which of its data blocks are not whole yet.
    pub(crate) partials: Partials,
    /// Which chunk is being loaded.
    pub(crate) loading: Cells,
    /// Which virtual block is being provisioned, broken out of sharing, filled in or unmapped.
    pub(crate) blocks: Cells,
    /// Writes pass it; taking a snapshot closes it.
    pub(crate) writes: Gate,
    /// Why the last commit has left its changes out, if it has.
    pub(crate) left_out: Mutex<Option<String>>,
    /// How many of its writes wait for data space.
    pub(crate) queued_writes: AtomicU64,
    pub(crate) origin: Option<Origin<D>>,
    pub(crate) stats: Arc<DeviceStats>,
    users: Mutex<Users>,
}

/// A read-only store that shows through where nothing is mapped.
pub(crate) struct Origin<D> {
    pub(crate) data: D,
    pub(crate) len: u64,
}

/// Who uses a device: any number of openings, or one operation that needs it alone.
#[derive(Default)]
struct Users {
    open: u64,
    claimed: bool,
}

impl<D: DataIo> Device<D> {
    pub(crate) fn new(
        id: ThinId,
        entry: Entry,
        snapshotted_time: u32,
        mapped_blocks: u64,
        origin: Option<Origin<D>>,
    ) -> Self {
        Device {
            id,
            size: AtomicU64::new(entry.size),
            read_only: AtomicBool::new(entry.read_only),
            entry: RwLock::new(entry),
            snapshotted_time: AtomicU32::new(snapshotted_time),
            mapped_blocks: AtomicU64::new(mapped_blocks),
            last_record: LastRecord::default(),
            chunks: ChunkMap::default(),
            partials: Partials::default(),
            loading: Cells::default(),
            blocks: Cells::default(),
            writes: Gate::default(),
            left_out: Mutex::default(),
            queued_writes: AtomicU64::new(0),
            origin,
            stats: Arc::default(),
            users: Mutex::default(),
        }
    }

    pub(crate) fn name(&self) -> DeviceName {
        self.entry.read().name.clone()
    }

    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Takes over what a committed operation changed in the catalog.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Entry)) {
        let mut entry = self.entry.write();
        change(&mut entry);
        self.size.store(entry.size, Ordering::Release);
        self.read_only.store(entry.read_only, Ordering::Release);
    }

    /// A block's mapping, and the note on its data block when that is not whole yet.
    ///
    /// A note goes when the block is whole, or after the mapping has gone. So when there is none,
    /// and the mapping is still the same, the block is whole. The caller is inside an epoch, hence
    /// the same data block cannot have come back in between.
    pub(crate) fn lookup(
        &self,
        chunk: &Chunk,
        block: VirtualBlock,
    ) -> Option<(Mapping, Option<Arc<Partial>>)> {
        loop {
            let mapping = chunk.get(block)?;
            let partial = self.partials.get(mapping.block);
            if partial.is_some() || chunk.get(block) == Some(mapping) {
                return Some((mapping, partial));
            }
        }
    }

    /// Refuses to call committed what the last commit has left out.
    pub(crate) fn check_covered(&self) -> Result<(), Error> {
        match &*self.left_out.lock() {
            Some(reason) => Err(Error::NotCommitted {
                name: self.name(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(crate) fn open_count(&self) -> u64 {
        self.users.lock().open
    }

    fn open(&self) -> Result<(), Error> {
        let mut users = self.users.lock();
        if users.claimed {
            return Err(Error::InUse(self.name()));
        }
        users.open += 1;
        Ok(())
    }

    /// Claims the device for an operation that nobody may watch; refused while it is open.
    pub(crate) fn claim(self: &Arc<Self>) -> Result<Claim<D>, Error> {
        let mut users = self.users.lock();
        if users.claimed || users.open > 0 {
            return Err(Error::InUse(self.name()));
        }
        users.claimed = true;
        Ok(Claim {
            device: Arc::clone(self),
            is_gone: false,
        })
    }
}

/// Having a device alone, until dropped.
pub(crate) struct Claim<D: DataIo> {
    device: Arc<Device<D>>,
    is_gone: bool,
}

impl<D: DataIo> Claim<D> {
    /// The device is no more: whoever looked it up before cannot open it any longer.
    pub(crate) fn keep_for_good(mut self) {
        self.is_gone = true;
    }
}

impl<D: DataIo> Drop for Claim<D> {
    fn drop(&mut self) {
        self.device.users.lock().claimed = self.is_gone;
    }
}

/// What a range of a device holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// What is there.
    pub state: ExtentState,
}

/// Where the contents of a range come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExtentState {
    /// Nothing is mapped; reads as zeros.
    Hole,
    /// Nothing is mapped; the external origin shows through.
    Origin,
    /// Mapped, and not shared with any snapshot.
    Exclusive,
    /// Mapped before the device's last snapshot, hence perhaps shared with it.
    Shared,
}

/// An open thin device. Cloning it is cheap and counts as the same opening.
///
/// Offsets and lengths are in bytes, with any alignment; what ends beyond the size is refused with
/// [`Error::OutOfRange`], and length 0 succeeds. The futures must be run to completion.
pub struct ThinDevice<H: Host> {
    opening: Arc<Opening<H>>,
    patience: Arc<Patience>,
}

struct Opening<H: Host> {
    pool: Arc<Pool<H>>,
    device: Arc<Device<H::Data>>,
}

impl<H: Host> Drop for Opening<H> {
    fn drop(&mut self) {
        self.device.users.lock().open -= 1;
    }
}

impl<H: Host> Clone for ThinDevice<H> {
    fn clone(&self) -> Self {
        ThinDevice {
            opening: Arc::clone(&self.opening),
            patience: Arc::clone(&self.patience),
        }
    }
}

impl<H: Host> ThinDevice<H> {
    pub(crate) fn open(pool: Arc<Pool<H>>, device: Arc<Device<H::Data>>) -> Result<Self, Error> {
        device.open()?;
        Ok(ThinDevice {
            opening: Arc::new(Opening { pool, device }),
            patience: Arc::default(),
        })
    }

    fn pool(&self) -> &Arc<Pool<H>> {
        &self.opening.pool
    }

    fn device(&self) -> &Arc<Device<H::Data>> {
        &self.opening.device
    }

    /// What it is called now.
    pub fn name(&self) -> DeviceName {
        self.device().name()
    }

    /// Its size now, in bytes.
    pub fn size(&self) -> u64 {
        self.device().size()
    }

    /// Whether writes are refused: a snapshot, a frozen volume, or a pool that may not change.
    pub fn read_only(&self) -> bool {
        self.device().read_only.load(Ordering::Acquire) || self.pool().is_read_only()
    }

    /// The pool's data block size in bytes, the best unit for large requests.
    pub fn block_size(&self) -> u64 {
        self.pool().block_size.bytes()
    }

    /// Its counters; front ends record what they finish.
    pub fn stats(&self) -> &Arc<DeviceStats> {
        &self.device().stats
    }

    /// The pool's surroundings.
    pub fn host(&self) -> &Arc<H> {
        &self.pool().host
    }

    /// Fills `buf` from `offset`.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let mut pieces = Vec::new();
        self.read_sparse(offset, buf, &mut pieces).await?;
        let mut rest = buf;
        for piece in pieces {
            let (bytes, next) = rest.split_at_mut(piece.len);
            if piece.hole {
                bytes.fill(0);
            }
            rest = next;
        }
        Ok(())
    }

    /// As [`ThinDevice::read`], but leaves the bytes of holes in `buf` as they are. `pieces` is
    /// replaced by what is data and what is hole, in order, merged, covering `buf` exactly.
    pub async fn read_sparse(
        &self,
        offset: u64,
        buf: &mut [u8],
        pieces: &mut Vec<ReadPiece>,
    ) -> Result<(), Error> {
        self.pool().read(self.device(), offset, buf, pieces).await
    }

    /// Stores `buf` at `offset`; with `durable`, to survive a power cut once done.
    pub async fn write(&self, offset: u64, buf: &[u8], durable: bool) -> Result<(), Error> {
        let patience = &self.patience;
        self.pool()
            .write(self.device(), offset, buf, durable, patience)
            .await
    }

    /// Writes through this handle and its clones do not wait for data space any more; those that do fail
    /// now, with ENOSPC. For front ends that end, or whose client is gone.
    pub fn end_waiting(&self) {
        if self.patience.end() {
            self.pool().queue.look_again();
        }
    }

    /// The same opening as a handle of its own in view of [`ThinDevice::end_waiting`].
    pub fn another_handle(&self) -> Self {
        ThinDevice {
            opening: Arc::clone(&self.opening),
            patience: Arc::default(),
        }
    }

    /// Makes everything durable that completed on this device before the call.
    pub async fn flush(&self) -> Result<(), Error> {
        self.pool().flush(self.device()).await
    }

    /// Unmaps the whole blocks inside the range; the parts of blocks at its ends stay unchanged.
    pub async fn discard(&self, offset: u64, len: u64, durable: bool) -> Result<(), Error> {
        self.pool()
            .discard(self.device(), offset, len, durable)
            .await
    }

    /// Makes exactly this range read as zeros.
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        zeroing: Zeroing,
        durable: bool,
    ) -> Result<(), Error> {
        let patience = &self.patience;
        self.pool()
            .write_zeroes(self.device(), offset, len, zeroing, durable, patience)
            .await
    }

    /// What lies in the range: extents in order, merged and clipped to it, at least one and at
    /// most `max`, so that they may end before the range does.
    pub async fn extents(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Error> {
        self.pool().extents(self.device(), offset, len, max).await
    }
}
