//! Leaked space: counts that are higher than there are references.
//!
//! Nothing of this pool leaks, but pools come from elsewhere, and tools have had their faults. The counts are
//! corrected in one transaction like any other: space maps are shadowed, the superblock is written last, and
//! data blocks become free as those of a deleted device do. Which counts are too high says a checker that has
//! counted all references.

use std::sync::Arc;

use metadata_btree::{BLOCK_SIZE, Block, BlockKind, BlockNr};

use crate::error::Error;
use crate::host::Host;
use crate::metadata::Metadata;
use crate::pool::Pool;
use crate::superblock::LOCATION;
use crate::writer::Control;

/// Neighbouring blocks whose counts are too high, and how high they are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeakedBlocks {
    /// The first.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// What the space map says.
    pub count: u32,
    /// How many references there are.
    pub references: u32,
}

/// All leaks of a commit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaks {
    /// Of data blocks.
    pub data: Vec<LeakedBlocks>,
    /// Of metadata blocks.
    pub metadata: Vec<LeakedBlocks>,
}

impl<H: Host> Pool<H> {
    /// Corrects the counts of what was found leaked in the commit of this superblock, as
    /// [`Pool::with_pinned_metadata`] has it.
    ///
    /// The leaks must be all that is wrong with that commit. Refuses another one than the last.
    pub async fn reclaim_leaks(
        self: &Arc<Self>,
        superblock: &[u8; BLOCK_SIZE],
        leaks: Leaks,
    ) -> Result<(), Error> {
        let writer = self.writer_for_change().await?;
        let last = self.committed.read().superblock.block();
        if sealed(last).as_bytes() != superblock {
            return Err(Error::BadValue {
                what: "the commit whose leaks are to be reclaimed",
                found: "an earlier one".to_owned(),
                expected: "the last one: check again".to_owned(),
            });
        }
        let control = Control {
            operations: Vec::new(),
            change: Box::new(move |metadata| correct(metadata, &leaks)),
        };
        let begun = self.begin_commit();
        self.finish_commit(writer, begun, Some(control), || ())
            .await?;
        self.release_drained().await;
        Ok(())
    }
}

fn correct(metadata: &mut Metadata, leaks: &Leaks) -> Result<(), Error> {
    let transaction = metadata.transaction();
    for run in &leaks.data {
        for block in run.first..=run.last {
            transaction.correct_disk_count(block, run.count, run.references)?;
        }
    }
    for run in &leaks.metadata {
        for block in run.first..=run.last {
            transaction.correct_count(BlockNr(block), run.count, run.references)?;
        }
    }
    Ok(())
}

pub(crate) fn sealed(mut superblock: Block) -> Block {
    BlockKind::Superblock.seal(&mut superblock, LOCATION);
    superblock
}
