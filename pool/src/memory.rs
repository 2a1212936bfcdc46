//! What a pool may take in memory, and how that is shared out: pure arithmetic.
//!
//! Three things grow with use: chunks of mappings, verified metadata blocks, and what a commit has
//! changed in the trees. The second has a fixed size. A chunk that was changed stays until it is committed, and
//! the commit changes two leaves for it, seldom more; so a bound on the changed chunks that wait bounds the
//! third. What is left is for chunks. Beside these there is one bit for each data block, about 6 KiB for each
//! device, and the buffers of the front ends.

use metadata_btree::CACHE_BYTES;

/// Bytes a loaded chunk takes: its mappings, what is noted on it, its place in the table.
const CHUNK_BYTES: u64 = 4_352;

/// Bytes of tree nodes that a commit may have to write for a changed chunk.
const CHANGED_CHUNK_BYTES: u64 = 8_192;

/// How much memory a pool may take for mappings and metadata, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryBudget(u64);

impl MemoryBudget {
    /// The smallest: 32 MiB.
    pub const MIN: MemoryBudget = MemoryBudget(32 << 20);

    /// This many bytes, unless that is less than [`MemoryBudget::MIN`].
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes >= Self::MIN.0).then_some(MemoryBudget(bytes))
    }

    /// How many bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// What the open transaction may take: a quarter.
    fn transaction(self) -> u64 {
        self.0 / 4
    }

    /// How many changed chunks may wait for a commit.
    pub(crate) fn changed_chunks_max(self) -> u64 {
        self.transaction() / CHANGED_CHUNK_BYTES
    }

    /// How many chunks are kept. More than may be changed.
    pub(crate) fn chunks_max(self) -> usize {
        let rest = self.0 - self.transaction() - CACHE_BYTES;
        usize::try_from(rest / CHUNK_BYTES).unwrap_or(usize::MAX)
    }
}

impl Default for MemoryBudget {
    /// 256 MiB.
    fn default() -> Self {
        MemoryBudget(256 << 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_changed_is_less_than_what_is_kept() {
        for bytes in [MemoryBudget::MIN.0, 256 << 20, 1 << 40, u64::MAX] {
            let budget = MemoryBudget::new(bytes).unwrap();
            assert!(budget.changed_chunks_max() >= 1024, "{bytes}");
            assert!(
                budget.chunks_max() as u64 > budget.changed_chunks_max() * 5 / 4,
                "{bytes}"
            );
        }
        assert_eq!(MemoryBudget::new(MemoryBudget::MIN.0 - 1), None);
    }
}
