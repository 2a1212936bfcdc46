//! Committed versions, views of them, and when a freed block may be reused.
//!
//! **Reading while writing.** A commit never changes a block that the commit before it reaches
//! (invariant 1), so all blocks of a version stay as they are for as long as none of them is
//! allocated anew. A [`View`] holds a version and reads through the cache and the store without
//! asking the transaction anything. No lock spans its I/O.
//!
//! **Freeing and reuse** (invariant 2). A block whose last reference goes away in transaction n is
//! still reached by version n - 1, and by older ones. It must not be written
//!
//! 1. before transaction n is committed, or a crash would leave version n - 1 with a hole, and
//! 2. while a view of version n - 1 or older lives.
//!
//! So [`Retired`] keeps, for each commit n in order, the version it replaced and the blocks it freed. A
//! version's only holders are views, the transaction while it is the last commit, and this queue. When the
//! queue is the only one, the version goes. Of its blocks, those made after the version before it, which is
//! still held, were never in that one, nor in an older one, and can be reused; the others wait with it. So a
//! view that lives long keeps what it reaches and no more, as a snapshot does. Nobody can take a new view of
//! a version in the queue, so one once unheld stays so.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::block::{Block, BlockNr, BlockStore};
use crate::btree::Btree;
use crate::cache::Cache;
use crate::checksum::BlockKind;
use crate::error::{BlockCheck, Error};
use crate::num::to_usize;
use crate::source::{NodeGuard, ReadNode};
use crate::space_map::{
    Bitmap, COUNTS_PER_BITMAP, IndexEntry, OverflowCount, SpaceMapRoots, index_entry,
};

/// A block store and the cache of its verified blocks.
#[derive(Clone)]
pub(crate) struct Reader {
    pub(crate) store: Arc<dyn BlockStore>,
    pub(crate) cache: Arc<Cache>,
}

impl Reader {
    /// A verified block, from the cache or the store. `blocks` is the size of the metadata.
    pub(crate) fn read(
        &self,
        nr: BlockNr,
        kind: BlockKind,
        blocks: u64,
    ) -> Result<Arc<Block>, Error> {
        if let Some(block) = self.cache.get(nr, kind) {
            return Ok(block);
        }
        let block = Arc::new(self.read_uncached(nr, kind, blocks)?);
        self.cache.insert(nr, kind, Arc::clone(&block));
        Ok(block)
    }

    /// A verified block from the store, to be kept by the caller.
    pub(crate) fn read_uncached(
        &self,
        nr: BlockNr,
        kind: BlockKind,
        blocks: u64,
    ) -> Result<Block, Error> {
        if nr.0 >= blocks {
            return Err(Error::BadBlock {
                nr,
                kind,
                check: BlockCheck::OutOfRange { blocks },
            });
        }
        let mut block = Block::zeroed();
        let read = self.store.read(nr, &mut block);
        read.map_err(|source| Error::Io {
            nr: Some(nr),
            op: "read",
            source,
        })?;
        kind.verify(&block, nr)?;
        Ok(block)
    }
}

/// One committed state of the metadata. Metadata that was never committed has an empty one.
pub(crate) struct Version {
    pub(crate) reader: Reader,
    pub(crate) roots: SpaceMapRoots,
}

impl Version {
    fn read(&self, nr: BlockNr, kind: BlockKind) -> Result<Arc<Block>, Error> {
        self.reader.read(nr, kind, self.roots.metadata.nr_blocks)
    }
}

/// The metadata as of one commit: reads trees and counts from any thread, whatever the open
/// transaction does meanwhile.
///
/// A view keeps the blocks of its version from being reused, also by a transaction
/// [reopened](crate::Transaction::reopen). One opened independently knows nothing of it: drop the
/// view before.
#[derive(Clone)]
pub struct View {
    pub(crate) version: Arc<Version>,
}

impl View {
    /// The reference count of a metadata block.
    ///
    /// # Errors
    /// When the block is out of range, or the space map cannot be read.
    pub fn count(&self, nr: BlockNr) -> Result<u32, Error> {
        let root = &self.version.roots.metadata;
        if nr.0 >= root.nr_blocks {
            let check = BlockCheck::OutOfRange {
                blocks: root.nr_blocks,
            };
            return Err(Error::BadBlock {
                nr,
                kind: BlockKind::Node,
                check,
            });
        }
        let index = self.version.read(root.bitmap_root, BlockKind::Index)?;
        let home = index_entry(&index, to_usize(nr.0) / COUNTS_PER_BITMAP).bitmap;
        self.count_in(home, root.ref_count_root, nr.0)
    }

    /// The reference count of a disk block.
    ///
    /// # Errors
    /// When the block is out of range, or the space map cannot be read.
    pub fn disk_count(&self, block: u64) -> Result<u32, Error> {
        let root = &self.version.roots.disk;
        if block >= root.nr_blocks {
            return Err(Error::DiskBlockOutOfRange {
                block,
                blocks: root.nr_blocks,
            });
        }
        let bitmap = block / COUNTS_PER_BITMAP as u64;
        let index = Btree::<IndexEntry>::from_root(root.bitmap_root);
        let Some(entry) = index.lookup(self, bitmap)? else {
            return Err(Error::NoBitmap {
                root: root.bitmap_root,
                bitmap,
            });
        };
        self.count_in(entry.bitmap, root.ref_count_root, block)
    }

    fn count_in(&self, home: BlockNr, overflow: BlockNr, block: u64) -> Result<u32, Error> {
        let bitmap = self.version.read(home, BlockKind::Bitmap)?;
        let position = to_usize(block) % COUNTS_PER_BITMAP;
        match Bitmap::peek(&bitmap, position) {
            Some(count) => Ok(count),
            None => {
                let count = Btree::<OverflowCount>::from_root(overflow).lookup(self, block)?;
                OverflowCount::check(count, overflow, block)
            }
        }
    }
}

impl ReadNode for View {
    fn read_node(&self, nr: BlockNr) -> Result<NodeGuard<'_>, Error> {
        self.version.read(nr, BlockKind::Node).map(NodeGuard::Clean)
    }
}

/// Replaced versions that views may still read, oldest first, with the blocks that wait for them.
#[derive(Default)]
pub(crate) struct Retired {
    queue: VecDeque<Replaced>,
    /// The number of the version that is the last commit.
    last: u64,
    /// The number of the oldest in the queue, or of the last commit.
    oldest: u64,
    /// The first version that has a block, if that is younger than the oldest.
    births: BTreeMap<BlockNr, u64>,
}

/// A version that a commit has replaced.
struct Replaced {
    version: Arc<Version>,
    number: u64,
    /// Blocks that this version may reach, and no later one; with the number of the first that has them, or 0
    /// if that is not known.
    freed: Vec<(BlockNr, u64)>,
}

impl Replaced {
    fn is_held(&mut self) -> bool {
        // Unlike a look at the number of holders, this also makes the last reads of a view that
        // is gone happen before the writes that reuse its blocks.
        Arc::get_mut(&mut self.version).is_none()
    }
}

impl Retired {
    /// The last commit was replaced by another, which freed these blocks and made those.
    pub(crate) fn push(&mut self, version: Arc<Version>, freed: Vec<BlockNr>, born: Vec<BlockNr>) {
        let births = &mut self.births;
        let freed = freed
            .into_iter()
            .map(|nr| (nr, births.remove(&nr).unwrap_or(0)));
        self.queue.push_back(Replaced {
            version,
            number: self.last,
            freed: freed.collect(),
        });
        self.last += 1;
        births.extend(born.into_iter().map(|nr| (nr, self.last)));
    }

    /// Keeps only those freed blocks for which `keep` returns true.
    pub(crate) fn retain_blocks(&mut self, mut keep: impl FnMut(BlockNr) -> bool) {
        for replaced in &mut self.queue {
            replaced.freed.retain(|&(nr, _)| keep(nr));
        }
    }

    /// The blocks that nobody can reach any more.
    pub(crate) fn take_unreachable(&mut self) -> Vec<BlockNr> {
        let mut free = Vec::new();
        let mut held: VecDeque<Replaced> = VecDeque::new();
        for mut replaced in std::mem::take(&mut self.queue) {
            if replaced.is_held() {
                held.push_back(replaced);
                continue;
            }
            for (nr, birth) in replaced.freed {
                match held.back_mut() {
                    Some(before) if birth <= before.number => before.freed.push((nr, birth)),
                    _ => free.push(nr),
                }
            }
        }
        let oldest = held.front().map_or(self.last, |oldest| oldest.number);
        if self.oldest < oldest {
            self.births.retain(|_, birth| *birth > oldest);
            self.oldest = oldest;
        }
        self.queue = held;
        free
    }
}
