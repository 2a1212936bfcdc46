//! The commit: from changed memory to a new last commit, all or nothing.
//!
//! **Order.** The superblock is the only block ever overwritten, and everything hangs from it. So:
//!
//! 1. Bring the trees up to date. First the disk map: each changed bitmap gets a new home, the
//!    bitmap index names it, the overflow tree gets its changed counts. All these are changes of
//!    trees, so they allocate and free metadata blocks. Then the metadata map, which counts what
//!    the others took and what it takes itself (`space_map/metadata.rs`). From here on no count
//!    changes.
//! 2. Write all changed blocks but the superblock, in any order, then flush. Nothing reaches
//!    these blocks, so a crash anywhere in here leaves the last commit as it was.
//! 3. Write the superblock, then flush. Its fields fit in one sector, so it is replaced or it is
//!    not. After the flush the new commit is the last one.
//! 4. Only now do the blocks that the transaction freed become candidates for reuse.
//!
//! The caller flushes whatever device the mapped data is on *before* it calls: the superblock must
//! not be the first to know of data that could still be lost.
//!
//! If step 1 or 2 fails, the superblock is not written. If step 3 fails, nobody can tell which
//! superblock the store holds, though either one is whole and describes whole metadata. In every
//! case nothing more is written and the transaction is poisoned. Views keep the version they have:
//! its blocks are intact, since freed ones are not reused without a commit.

use std::io;
use std::sync::Arc;

use probe::{Sabotage, is_sabotaged};

use crate::block::{Block, BlockNr};
use crate::checksum::BlockKind;
use crate::error::Error;
use crate::space_map::{OverflowCount, SpaceMapRoot, SpaceMapRoots};
use crate::transaction::{Transaction, write};
use crate::version::Version;

const SUPERBLOCK: BlockNr = BlockNr(0);

/// A block to be written by the commit.
#[derive(Clone, Copy)]
enum Pending {
    Node,
    DiskBitmap(usize),
    MetadataBitmap(usize),
    Index,
}

impl Transaction {
    /// Makes all changes durable, all or nothing: they are the last commit when this returns.
    ///
    /// `superblock` gets the new space maps and returns the new block 0, which is sealed and
    /// written here, last; unless it fails. Data that the metadata speaks of must be durable before the call.
    ///
    /// # Errors
    /// [`Error::OutOfMetadataSpace`], or any failure to read, write or flush. The transaction is
    /// poisoned then, and the last commit is intact or, if writing the superblock was what failed,
    /// this one may have become the last.
    pub fn commit(
        &mut self,
        superblock: impl FnOnce(&SpaceMapRoots) -> io::Result<Block>,
    ) -> Result<(), Error> {
        self.check_alive()?;
        self.committing = true;
        let result = self.make_durable(superblock);
        self.committing = false;
        self.poisoned |= result.is_err();
        result
    }

    fn make_durable(
        &mut self,
        superblock: impl FnOnce(&SpaceMapRoots) -> io::Result<Block>,
    ) -> Result<(), Error> {
        let mut written = Vec::new();
        if self.has_changes() {
            self.release_unreachable();
            let disk_bitmaps = self.settle_disk_map()?;
            self.settle_metadata_map()?;
            written = self.pending_blocks(disk_bitmaps);
            self.write_blocks(&written)?;
        }
        if !is_sabotaged(Sabotage::SuperblockFirst) {
            self.flush()?;
        }
        let roots = self.roots();
        let mut block = superblock(&roots).map_err(|source| Error::Io {
            nr: None,
            op: "prepare the commit of",
            source,
        })?;
        BlockKind::Superblock.seal(&mut block, SUPERBLOCK);
        write(&self.reader.store, SUPERBLOCK, &block)?;
        self.flush()?;
        if !written.is_empty() {
            self.begin_next(roots);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Error> {
        let flushed = self.reader.store.flush();
        flushed.map_err(|source| Error::Io {
            nr: None,
            op: "flush",
            source,
        })
    }

    /// Returns the new homes of the disk map's bitmaps, which hold nothing yet.
    fn settle_disk_map(&mut self) -> Result<Vec<(BlockNr, Pending)>, Error> {
        let mut homes = Vec::new();
        for number in self.disk.changed_bitmaps() {
            let home = self.alloc_bitmap()?;
            let entry = self.disk.index_entry(number, home);
            let mut index = self.disk.index;
            let replaced = index.insert(self, number as u64, entry)?;
            self.disk.index = index;
            homes.push((home, Pending::DiskBitmap(number)));
            if let Some(old) = replaced {
                self.dec(old.bitmap)?;
            }
        }
        let mut overflow = self.disk.overflow;
        for (block, count) in self.disk.overflow_changes() {
            match count {
                Some(count) => overflow.insert(self, block, OverflowCount(count))?,
                None => overflow.remove(self, block)?,
            };
        }
        self.disk.overflow = overflow;
        Ok(homes)
    }

    fn settle_metadata_map(&mut self) -> Result<(), Error> {
        let mut overflow = self.metadata_overflow;
        // Nodes of this tree have count 1, so changing it normally changes no count of three or
        // more; in damaged metadata they may be shared, and then once more is enough.
        loop {
            let changes = self.metadata.take_overflow_changes();
            if changes.is_empty() {
                break;
            }
            for (nr, count) in changes {
                match count {
                    Some(count) => overflow.insert(self, nr, OverflowCount(count))?,
                    None => overflow.remove(self, nr)?,
                };
            }
        }
        self.metadata_overflow = overflow;
        self.metadata.rehome()?;
        let left = self.metadata.take_overflow_changes();
        assert!(
            left.is_empty(),
            "giving bitmaps homes changed counts of three or more"
        );
        Ok(())
    }

    /// The space maps as the trees have them now.
    fn roots(&self) -> SpaceMapRoots {
        let metadata = SpaceMapRoot {
            nr_blocks: self.metadata.nr_blocks(),
            nr_allocated: self.metadata.nr_allocated(),
            bitmap_root: self.metadata.index_home(),
            ref_count_root: self.metadata_overflow.root(),
        };
        SpaceMapRoots {
            disk: self.disk.root(),
            metadata,
        }
    }

    fn pending_blocks(&self, disk_bitmaps: Vec<(BlockNr, Pending)>) -> Vec<(BlockNr, Pending)> {
        let mut blocks = disk_bitmaps;
        blocks.push((self.metadata.index_home(), Pending::Index));
        blocks.extend(self.dirty_nodes().into_iter().map(|nr| (nr, Pending::Node)));
        let metadata = self.metadata.changed_bitmaps();
        blocks.extend(
            metadata
                .into_iter()
                .map(|(nr, n)| (nr, Pending::MetadataBitmap(n))),
        );
        blocks.sort_unstable_by_key(|&(nr, _)| nr);
        blocks
    }

    fn write_blocks(&mut self, blocks: &[(BlockNr, Pending)]) -> Result<(), Error> {
        let mut block = Block::zeroed();
        for &(nr, pending) in blocks {
            assert!(
                self.metadata.is_born(nr),
                "block {nr} of the last commit was to be overwritten"
            );
            let kind = match pending {
                Pending::Node => {
                    self.write_node(nr)?;
                    continue;
                }
                Pending::DiskBitmap(number) => {
                    self.disk.encode_bitmap(number, &mut block);
                    BlockKind::Bitmap
                }
                Pending::MetadataBitmap(number) => {
                    self.metadata.encode_bitmap(number, &mut block);
                    BlockKind::Bitmap
                }
                Pending::Index => {
                    self.metadata.encode_index(&mut block);
                    BlockKind::Index
                }
            };
            kind.seal(&mut block, nr);
            // The metadata map finds homes by itself, without telling the cache.
            self.reader.cache.remove(nr);
            write(&self.reader.store, nr, &block)?;
        }
        Ok(())
    }

    fn begin_next(&mut self, roots: SpaceMapRoots) {
        self.cache_dirty_nodes();
        let born = self.metadata.blocks_made();
        let freed = self.metadata.take_freed();
        self.disk.mark_saved();
        let next = Arc::new(Version {
            reader: self.reader.clone(),
            roots,
        });
        self.retired
            .push(std::mem::replace(&mut self.current, next), freed, born);
        self.release_unreachable();
    }
}
