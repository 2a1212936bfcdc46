//! Whether the free metadata suffices for the changes that wait for a commit: pure arithmetic.
//!
//! A commit must never run out of metadata blocks, so changes are admitted only while the most they
//! can need is free: for mappings and, on top of that, for overflow counts.
//!
//! *Mappings:* one change may need a path in each of the trees, and splits. The 512 mappings of a
//! chunk lie in at most eight leaves, each at least a third full; however many of them change, each
//! leaf is written anew once, may split, may be merged with its neighbours, and has a few nodes above
//! it. The smaller of the two counts.
//!
//! *Overflow counts:* the first change in a leaf that a snapshot shares raises the counts of all data
//! blocks that the leaf names, up to 252, and of one or two more. Each may lie in another leaf of the
//! tree of overflow counts; but that tree as a whole is no larger than the data blocks in use allow.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::backlog::Waiting;

/// The most changes that may wait for a commit, so that none takes long.
const CHANGES_MAX: u64 = 65_536;

/// Metadata blocks that one change may need.
const BLOCKS_A_CHANGE: u64 = 8;

/// Metadata blocks that all changes in a chunk may need together.
const BLOCKS_A_CHUNK: u64 = 64;

/// Counts that one change may touch.
const COUNTS_A_CHANGE: u64 = 254;

/// Counts that all changes in a chunk may touch together.
const COUNTS_A_CHUNK: u64 = 8 * COUNTS_A_CHANGE;

/// Data blocks in use to a metadata block of the tree of overflow counts, when its leaves are a third
/// full (112 entries) and each is written anew and split, nodes above them included.
const COUNTS_AN_OVERFLOW_BLOCK: u64 = 50;

/// Metadata blocks that a commit may need whatever changed: paths of the trees' upper levels, and
/// what the trees keep back for removals.
const BLOCKS_A_COMMIT: u64 = 64;

/// The most that the tree of overflow counts can need in one commit. A tree of few leaves is covered by
/// what every commit may need.
fn overflow_blocks(data_used: u64) -> u64 {
    data_used / COUNTS_AN_OVERFLOW_BLOCK
}

/// What is known of a pool's space after a commit, in blocks.
#[derive(Clone, Copy, Default)]
pub(crate) struct Space {
    /// Metadata blocks.
    pub(crate) total: u64,
    /// Metadata blocks with count 0.
    pub(crate) free: u64,
    /// Metadata blocks to be left alone: the reserve, and the bitmaps of the data store, each of
    /// which a commit may touch.
    pub(crate) kept: u64,
    /// Data blocks in use.
    pub(crate) data_used: u64,
}

/// The room for changes until the next commit.
pub(crate) struct Room {
    /// The most chunks that may have changes, for the sake of memory.
    chunks_max: u64,
    total: AtomicU64,
    free: AtomicU64,
    usable: AtomicU64,
    /// The most that overflow counts can need.
    overflow: AtomicU64,
}

impl Room {
    /// None, until a commit has said what it has left.
    pub(crate) fn new(chunks_max: u64) -> Self {
        Room {
            chunks_max,
            total: AtomicU64::new(0),
            free: AtomicU64::new(0),
            usable: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
        }
    }

    /// Takes over what a commit has left.
    pub(crate) fn note(&self, space: Space) {
        let usable = space.free.saturating_sub(space.kept + BLOCKS_A_COMMIT);
        let overflow = overflow_blocks(space.data_used);
        self.total.store(space.total, Ordering::Relaxed);
        self.free.store(space.free, Ordering::Relaxed);
        self.usable.store(usable, Ordering::Relaxed);
        self.overflow.store(overflow, Ordering::Relaxed);
    }

    /// Metadata blocks.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Metadata blocks with count 0.
    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Whether only what is kept is left.
    pub(crate) fn is_exhausted(&self) -> bool {
        !self.admits(Waiting::default(), 1)
    }

    /// Whether `more` changes, wherever they are, can join those that wait.
    pub(crate) fn admits(&self, waiting: Waiting, more: u64) -> bool {
        let Waiting { changes, chunks } = waiting;
        let mappings = (BLOCKS_A_CHANGE * changes).min(BLOCKS_A_CHUNK * chunks);
        let counts = (COUNTS_A_CHANGE * changes).min(COUNTS_A_CHUNK * chunks);
        let overflow = (counts + COUNTS_A_CHANGE * more).min(self.overflow.load(Ordering::Relaxed));
        let needed = mappings + BLOCKS_A_CHANGE * more + overflow;
        changes + more <= CHANGES_MAX
            && chunks + more <= self.chunks_max
            && needed <= self.usable.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Room for mappings; what overflow counts can need comes on top.
    fn room(usable: u64, data_used: u64) -> Room {
        let room = Room::new(u64::MAX);
        let overflow = overflow_blocks(data_used);
        room.note(Space {
            total: 2 * usable,
            free: usable + overflow + 10 + BLOCKS_A_COMMIT,
            kept: 10,
            data_used,
        });
        room
    }

    #[test]
    fn single_changes_need_a_path_each() {
        let room = room(800, 5000);
        let scattered = |changes| Waiting {
            changes,
            chunks: changes,
        };
        assert!(room.admits(scattered(99), 1));
        assert!(!room.admits(scattered(100), 1));
        assert!(!room.admits(scattered(90), 11));
        assert!(!room.is_exhausted());
    }

    #[test]
    fn changes_close_to_each_other_share_what_they_need() {
        let room = room(800, 5000);
        let together = |changes| Waiting { changes, chunks: 4 };
        assert!(room.admits(together(2048), 1));
        let apart = Waiting {
            changes: 2048,
            chunks: 13,
        };
        assert!(!room.admits(apart, 1));
    }

    #[test]
    fn in_a_large_pool_each_change_may_touch_a_leaf_of_counts() {
        let room = Room::new(u64::MAX);
        room.note(Space {
            total: 10_000,
            free: 2620 + BLOCKS_A_COMMIT,
            kept: 0,
            data_used: 1 << 30,
        });
        let scattered = |changes| Waiting {
            changes,
            chunks: changes,
        };
        assert!(room.admits(scattered(9), 1));
        assert!(!room.admits(scattered(10), 1));
    }

    #[test]
    fn there_is_a_limit_however_much_is_free() {
        let room = room(1 << 40, 0);
        let waiting = |changes| Waiting { changes, chunks: 1 };
        assert!(room.admits(waiting(CHANGES_MAX - 1), 1));
        assert!(!room.admits(waiting(CHANGES_MAX), 1));
    }

    #[test]
    fn changes_wait_in_so_many_chunks() {
        let room = Room {
            chunks_max: 100,
            ..room(1 << 40, 0)
        };
        let waiting = |chunks| Waiting {
            changes: 1000,
            chunks,
        };
        assert!(room.admits(waiting(99), 1));
        assert!(!room.admits(waiting(100), 1));
    }

    #[test]
    fn an_exhausted_pool_admits_nothing() {
        assert!(room(7, 0).is_exhausted());
        assert!(!room(8, 0).is_exhausted());
        assert!(Room::new(u64::MAX).is_exhausted());
    }
}
