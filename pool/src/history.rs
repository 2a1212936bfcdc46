//! The history: the superblocks of the last commits, beside the metadata.
//!
//! A file of 16 slots, written in turn. Each commit puts its superblock there once it is durable; only if there is
//! no intent log, which knows it as well, with a sync. A slot that is torn or lost is harmless, since nothing that
//! the pool promises depends on the file.
//!
//! ```text
//! 16 slots of 1024 bytes:
//!      0    4 CRC32C of the rest
//!      8    8 magic
//!     16    8 sequence number; its slot is that modulo 16
//!     24    8 when it was written, seconds since 1970
//!    512  512 the first sector of the superblock; the other seven are zeros
//! ```
//!
//! # A lost superblock
//!
//! Block 0 is the only place that tells where the trees are. When it is damaged there are two others:
//!
//! - the intent log, while there is one. Its latest entry was durable before the superblock that it names was
//!   written, and after all that this superblock leads to. So it is the last commit, or the one in progress, of
//!   which everything is there; and what was recorded since is in the log. If not all is there that the entry
//!   covers, it was still being synced, its superblock was never written, and the entry before it counts.
//! - the history, if no log names a superblock. Its newest entry is the last commit of ours. It cannot know
//!   whether the kernel has worked on the pool since.
//!
//! So after a crash of any kind the pool is what it would be with block 0 intact: an operation in progress was done
//! or not, and what was flushed is there. For that, a daemon that finds in block 0 that a commit in the log never
//! was, first takes the log over, and cuts the commit's names out of the catalog then; and a log that nothing is to
//! be replayed from is made to name no superblock before it is removed.
//!
//! All the same such a pool can only be read until somebody has decided (`thinctl rewind`, `thinctl repair`): a disk
//! that loses one block may have lost others, and the kernel may have had the pool since.
//!
//! Neither is believed where the trees are not what they should be. Older entries never take the place of
//! newer ones by themselves: blocks that they name may belong to others by now.
//!
//! # What can be gone back to
//!
//! Earlier commits in the history must be of one line, with no commits between them and the present one but
//! ours. So when a pool is opened for writing, entries behind its superblock are forgotten; and all of them, if the
//! superblock is not among them and no intent log vouches that the kernel was kept out.

mod store;

use metadata_btree::{Block, BlockKind, BlockStore};

pub use store::{FileHistory, HistoryStore};

use crate::error::Error;
use crate::log::{LogStore, agrees_with, logged_superblocks};
use crate::superblock::{LOCATION, Superblock};

/// How many superblocks are kept.
const SLOTS: u64 = 16;

const SLOT_BYTES: usize = 1024;
const MAGIC: u64 = u64::from_le_bytes(*b"thinhist");
const SUPERBLOCK_AT: usize = 512;
const SECTOR_BYTES: usize = 512;

/// What of a superblock tells it from others: all of its first sector but checksum and flags.
const IDENTITY: std::ops::Range<usize> = 8..SECTOR_BYTES;

/// The superblock of an earlier commit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptSuperblock {
    /// A number that grows by one with each.
    pub sequence: u64,
    /// When it was kept, in seconds since 1970; 0 if that is not known.
    pub time: u64,
    /// What block 0 held, checksum included.
    pub superblock: [u8; metadata_btree::BLOCK_SIZE],
}

impl KeptSuperblock {
    /// Whether this is the superblock in `block`. Flags do not matter.
    pub fn is(&self, block: &[u8; metadata_btree::BLOCK_SIZE]) -> bool {
        self.superblock[IDENTITY] == block[IDENTITY]
    }

    /// None where the superblock has more than its first sector.
    fn encode(&self) -> Option<Vec<u8>> {
        let (first, rest) = self.superblock.split_at(SECTOR_BYTES);
        if rest.iter().any(|byte| *byte != 0) {
            return None;
        }
        let mut slot = vec![0; SLOT_BYTES];
        slot[8..16].copy_from_slice(&MAGIC.to_le_bytes());
        slot[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        slot[24..32].copy_from_slice(&self.time.to_le_bytes());
        slot[SUPERBLOCK_AT..].copy_from_slice(first);
        let checksum = crc32c::crc32c(&slot[4..]);
        slot[..4].copy_from_slice(&checksum.to_le_bytes());
        Some(slot)
    }

    fn decode(slot: &[u8], number: u64) -> Option<Self> {
        let u64_at = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&slot[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let sequence = u64_at(16);
        if slot[..4] != crc32c::crc32c(&slot[4..]).to_le_bytes()
            || u64_at(8) != MAGIC
            || sequence % SLOTS != number
        {
            return None;
        }
        let mut block = Block::zeroed();
        block.as_bytes_mut()[..SECTOR_BYTES].copy_from_slice(&slot[SUPERBLOCK_AT..]);
        BlockKind::Superblock.seal(&mut block, LOCATION);
        Some(KeptSuperblock {
            sequence,
            time: u64_at(24),
            superblock: *block.as_bytes(),
        })
    }
}

/// A superblock that says that there is no intent log, and is otherwise the same.
pub fn without_log(
    superblock: &[u8; metadata_btree::BLOCK_SIZE],
) -> [u8; metadata_btree::BLOCK_SIZE] {
    let mut block = Block::zeroed();
    block.as_bytes_mut().copy_from_slice(superblock);
    Superblock::clear_log(&mut block);
    BlockKind::Superblock.seal(&mut block, LOCATION);
    *block.as_bytes()
}

/// The superblocks that a history has, newest first.
///
/// # Errors
/// When it cannot be read. What is damaged in it is left out.
pub fn kept_superblocks(history: &dyn HistoryStore) -> Result<Vec<KeptSuperblock>, Error> {
    let content = history.load().map_err(|source| Error::Io {
        what: "reading the history of superblocks".into(),
        source,
    })?;
    let slots = (0..SLOTS).zip(content.chunks_exact(SLOT_BYTES));
    let mut kept: Vec<_> = slots
        .filter_map(|(number, slot)| KeptSuperblock::decode(slot, number))
        .collect();
    kept.sort_unstable_by_key(|kept| std::cmp::Reverse(kept.sequence));
    Ok(kept)
}

/// What is known of the last superblock when block 0 cannot tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KnownBy {
    /// The intent log.
    Log,
    /// The history: it was kept at this time, in seconds since 1970.
    History(u64),
}

/// The superblocks that may have been the last one, the likeliest first, and who knows of them.
///
/// # Errors
/// When log or history cannot be read.
pub fn known_superblocks(
    log: &dyn LogStore,
    history: &dyn HistoryStore,
) -> Result<Vec<([u8; metadata_btree::BLOCK_SIZE], KnownBy)>, Error> {
    let mut logged = logged_superblocks(log)?;
    // A commit whose entry is there and not all that it covers never was: the entry was still being synced.
    logged.sort_by_key(|superblock| !agrees_with(log, superblock));
    let logged = logged.into_iter().map(|block| (block, KnownBy::Log));
    let kept = kept_superblocks(history)?.into_iter().take(1);
    let newest = kept.map(|kept| (kept.superblock, KnownBy::History(kept.time)));
    Ok(logged.chain(newest).collect())
}

/// The superblock of the last commit, and who knows it if block 0 is damaged.
pub(crate) fn find_superblock(
    metadata: &dyn BlockStore,
    log: &dyn LogStore,
    history: &dyn HistoryStore,
) -> Result<(Superblock, Option<KnownBy>), Error> {
    let mut block = Block::zeroed();
    metadata
        .read(LOCATION, &mut block)
        .map_err(|source| Error::Io {
            what: "reading the superblock".into(),
            source,
        })?;
    let cause = match Superblock::decode(&block) {
        Ok(superblock) => return Ok((superblock, None)),
        Err(cause) => cause,
    };
    let is_damaged = BlockKind::Superblock.verify(&block, LOCATION).is_err();
    let known = known_superblocks(log, history)?.into_iter().next();
    let Some((known, by)) = known.filter(|_| is_damaged) else {
        return Err(cause);
    };
    block.as_bytes_mut().copy_from_slice(&known);
    let superblock = Superblock::decode(&block)?;
    // Else these are other stores, or far more is damaged than the superblock.
    for root in [superblock.mapping_root, superblock.details_root] {
        let read = metadata.read(root, &mut block);
        if read.is_err() || BlockKind::Node.verify(&block, root).is_err() {
            return Err(cause);
        }
    }
    Ok((superblock, Some(by)))
}

/// The history of an open pool.
pub(crate) struct History {
    store: Box<dyn HistoryStore>,
    /// The sequence number of the next superblock.
    next: u64,
    /// Whether something was kept that is not durable.
    is_unsynced: bool,
    /// Whether nothing is to be kept, since what is there could not be put right.
    is_broken: bool,
}

impl History {
    /// Over what an earlier daemon has left.
    pub(crate) fn new(store: Box<dyn HistoryStore>) -> Self {
        History {
            store,
            next: 0,
            is_unsynced: false,
            is_broken: false,
        }
    }

    /// Goes on from a superblock, and forgets what does not lead to it, in a pool that may be written. If it was not
    /// closed, an intent log has kept everybody else out.
    pub(crate) fn go_on_from(&mut self, superblock: &Superblock, was_left: bool, may_write: bool) {
        if !may_write {
            return;
        }
        let is_line = superblock.has_log && was_left;
        let gone_on = self.try_go_on_from(&superblock.block(), is_line);
        self.is_broken = gone_on.is_err();
    }

    fn try_go_on_from(&mut self, superblock: &Block, is_line: bool) -> Result<(), Error> {
        let kept = kept_superblocks(&*self.store)?;
        let newest = kept.first();
        self.next = newest.map_or(0, |newest| newest.sequence.wrapping_add(1));
        let found = kept.iter().position(|kept| kept.is(superblock.as_bytes()));
        let forgotten = match found {
            Some(index) => index,
            None if is_line => 0,
            None => kept.len(),
        };
        let forget = |kept: &KeptSuperblock| {
            let at = kept.sequence % SLOTS * SLOT_BYTES as u64;
            self.store.write(at, &[0; SLOT_BYTES])
        };
        kept[..forgotten]
            .iter()
            .try_for_each(forget)
            .map_err(|source| Error::Io {
                what: "writing the history of superblocks".into(),
                source,
            })?;
        if found.is_none() {
            self.keep(superblock);
        }
        // What a killed daemon has kept may be in the page cache only.
        self.is_unsynced = true;
        self.sync();
        Ok(())
    }

    /// Keeps the superblock of a commit that is durable.
    pub(crate) fn keep(&mut self, superblock: &Block) {
        if self.is_broken {
            return;
        }
        let kept = KeptSuperblock {
            sequence: self.next,
            time: self.store.time(),
            superblock: *superblock.as_bytes(),
        };
        let at = self.next % SLOTS * SLOT_BYTES as u64;
        self.next = self.next.wrapping_add(1);
        if let Some(slot) = kept.encode() {
            // The commit is good without it.
            let _ = self.store.write(at, &slot);
            self.is_unsynced = true;
        }
    }

    /// Makes durable what was kept. The commits are good without it.
    pub(crate) fn sync(&mut self) {
        if std::mem::take(&mut self.is_unsynced) {
            let _ = self.store.sync();
        }
    }
}

#[cfg(test)]
mod tests;
