//! Where the log's bytes are.

use std::io;

/// A file whose writes outlive the process that made them, and after a sync the machine's power, too.
/// Calls may block.
pub trait LogStore: Send + Sync + 'static {
    /// The whole content; none when there is no log.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Makes a log, in place of any that is there, all or nothing, that begins with `content` and has space for
    /// `len` bytes, of which the others read as zeros. Durable.
    fn create(&self, content: &[u8], len: u64) -> io::Result<()>;

    /// Writes to the log there is. What was not written in whole when the process died was not written
    /// at all; of what was not synced when the power went, any sectors may be there.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes every write durable that was made before the call. After a failure it is not known of any of
    /// them, later calls notwithstanding.
    fn sync(&self) -> io::Result<()>;

    /// Removes the log, which may come back if the power goes.
    fn remove(&self) -> io::Result<()>;

    /// What stays equal as long as nothing written, here or to the stores, can have been lost unnoticed:
    /// the machine's boot, and the disks below. At most 128 bytes without zeros. Where a disk loses its
    /// cache and neither says so nor fails a sync, what was not flushed before is undefined after a kill.
    fn incarnation(&self) -> String;
}
