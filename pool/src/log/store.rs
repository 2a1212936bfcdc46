//! Where the log's bytes are.

use std::io;

/// A file whose writes outlive the process that made them, though perhaps not the machine. Calls may
/// block.
pub trait LogStore: Send + Sync + 'static {
    /// The whole content; none when there is no log.
    fn load(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces the log, all or nothing, by one that begins with `content` and has space for `len`
    /// bytes, of which the others read as zeros.
    fn create(&self, content: &[u8], len: u64) -> io::Result<()>;

    /// Writes to the log that was created last. What was not written in whole when the process died
    /// was not written at all.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Removes the log.
    fn remove(&self) -> io::Result<()>;

    /// What stays equal as long as nothing written, here or to the stores, can have been lost unnoticed:
    /// the machine's boot, and the disks below. At most 128 bytes without zeros. Where a disk loses its
    /// cache and neither says so nor fails a sync, what was not flushed before is undefined after a kill.
    fn incarnation(&self) -> String;
}
