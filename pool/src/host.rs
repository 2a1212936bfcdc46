//! What the pool is handed: data I/O, a place for blocking work, and a monotonic clock.
//!
//! The crate itself has no threads, no runtime and no clock. The same code therefore runs under
//! an NBD connection's thread, a FUSE session, a command line tool, and a seeded executor that
//! stops it between any two awaits.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

/// I/O on a data store: a flat array of bytes.
///
/// Positions and lengths lie within the store, but need no alignment. Futures are never dropped
/// before they are done.
pub trait DataIo: Send + Sync + 'static {
    /// Fills `buf` from position `at`. A short read is an error.
    fn read(&self, at: u64, buf: &mut [u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Stores `buf` at position `at`.
    fn write(&self, at: u64, buf: &[u8]) -> impl Future<Output = io::Result<()>> + Send;

    /// Sees to it that writes to the range will not lack space, where the store can promise that.
    /// What the range holds stays as it is. Whether that is known to be zeros, all of it; they are
    /// durable with the next [`DataIo::sync`], like what was written.
    fn allocate(&self, at: u64, len: u64) -> impl Future<Output = io::Result<bool>> + Send;

    /// Makes the range read as zeros and keeps its space allocated.
    fn zero(&self, at: u64, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Gives the range's space back where the store can; what it reads afterwards is undefined.
    fn punch(&self, at: u64, len: u64) -> impl Future<Output = io::Result<()>> + Send;

    /// Makes every write, zero and punch that had completed before the call durable. After a
    /// failure every later call fails too: what was lost is not known.
    fn sync(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// As [`DataIo::sync`], of a store that nobody uses yet. Blocking.
    fn sync_at_opening(&self) -> io::Result<()>;

    /// The size of the store now, in bytes.
    fn size(&self) -> io::Result<u64>;
}

/// The surroundings a pool runs in.
pub trait Host: Send + Sync + 'static {
    /// How this host does data I/O.
    type Data: DataIo;

    /// Runs blocking work, such as a metadata commit, away from the caller's thread.
    fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send;

    /// Opens the external origin at `path`, a file or block device, for reading only.
    fn open_origin(&self, path: &Path) -> io::Result<Self::Data>;

    /// Monotonic time since some fixed moment: for statistics, and for how long something may wait.
    fn now(&self) -> Duration;

    /// Lets about so much time pass.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;
}
