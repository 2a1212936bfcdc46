//! Looking at a whole commit while the pool is in use: exact usage, and what checkers need.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{BLOCK_SIZE, BlockStore};

use crate::error::Error;
use crate::host::Host;
use crate::info::{DeviceUsage, ExclusivePiece};
use crate::leaks::sealed;
use crate::metadata::Committed;
use crate::name::DeviceName;
use crate::pool::Pool;
use crate::units::ThinId;

/// How many mappings are counted at a time.
const PIECE_BLOCKS: usize = 1024;

impl<H: Host> Pool<H> {
    /// What each device uses, counted from the metadata, exact as of a commit made first.
    pub async fn usage(self: &Arc<Self>) -> Result<Vec<DeviceUsage>, Error> {
        let committed = self.settled().await?;
        let names: Vec<(ThinId, DeviceName)> = {
            let table = self.table.read();
            table
                .devices
                .values()
                .map(|device| (device.id, device.name()))
                .collect()
        };
        let block_size = self.block_size.bytes();
        self.host
            .offload(move || usage_of(&committed, &names, block_size))
            .await
    }

    /// Counts what only this device maps in a part of it, from virtual block `from` on: so few mappings that
    /// whoever watches a pool all the time can do so without others noticing. As of the last commit, which is
    /// not made for it. Blocking.
    pub fn count_exclusive(&self, name: &DeviceName, from: u64) -> Result<ExclusivePiece, Error> {
        self.check_readable()?;
        let id = self.device(name)?.id;
        // One that was made after the commit has nothing yet.
        let committed = self.committed.read().clone();
        let piece = exclusive_blocks(&committed, id, from)?;
        Ok(ExclusivePiece {
            bytes: piece.blocks * self.block_size.bytes(),
            next: piece.next,
        })
    }

    /// Runs `f` over the metadata store and the superblock of a commit made first, whose blocks
    /// stay as they are until `f` returns, although the pool goes on.
    pub async fn with_pinned_metadata<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&dyn BlockStore, &[u8; BLOCK_SIZE]) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let committed = self.settled().await?;
        let store = Arc::clone(&self.store);
        let run = move || f(&*store, sealed(committed.superblock.block()).as_bytes());
        Ok(self.host.offload(run).await)
    }

    /// The last commit, after making one of what has changed.
    async fn settled(self: &Arc<Self>) -> Result<Committed, Error> {
        self.check_readable()?;
        if !self.is_read_only() {
            self.commit().await?;
        }
        Ok(self.committed.read().clone())
    }
}

fn usage_of(
    committed: &Committed,
    names: &[(ThinId, DeviceName)],
    block_size: u64,
) -> Result<Vec<DeviceUsage>, Error> {
    let present: BTreeMap<ThinId, _> = committed.devices()?.into_iter().collect();
    let mut usages = Vec::with_capacity(names.len());
    for (id, name) in names {
        // One that was made after the commit is left out.
        let Some(mapped) = present.get(id).map(|details| details.mapped_blocks) else {
            continue;
        };
        let (mut exclusive, mut next) = (0, Some(0));
        while let Some(from) = next {
            let piece = exclusive_blocks(committed, *id, from)?;
            exclusive += piece.blocks;
            next = piece.next;
        }
        usages.push(DeviceUsage {
            name: name.clone(),
            mapped_bytes: mapped.saturating_mul(block_size),
            exclusive_bytes: exclusive * block_size,
            shared_bytes: mapped.saturating_sub(exclusive).saturating_mul(block_size),
            freed_if_deleted_bytes: exclusive * block_size,
        });
    }
    usages.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(usages)
}

/// Exclusive blocks of a part of a device.
struct Exclusive {
    blocks: u64,
    /// The virtual block to go on from, unless that was all.
    next: Option<u64>,
}

/// Counts some of the data blocks that only this device maps, from a virtual block on. A block comes free with
/// its device exactly when every metadata block on the path to it, and the data block itself, are referenced
/// once: that is also what makes it exclusive.
fn exclusive_blocks(committed: &Committed, id: ThinId, from: u64) -> Result<Exclusive, Error> {
    let view = &committed.view;
    let mut is_alone = false;
    let key = id.key();
    committed
        .top_level()
        .for_each_exclusive(view, key..=key, &mut |_, _| {
            is_alone = true;
            ControlFlow::Break(())
        })?;
    let mut blocks = Vec::new();
    let mut next = None;
    if is_alone {
        let tree = committed.mappings(id)?;
        tree.for_each_exclusive(view, from.., &mut |at, mapping| {
            if blocks.len() == PIECE_BLOCKS {
                next = Some(at);
                return ControlFlow::Break(());
            }
            blocks.push(mapping.block);
            ControlFlow::Continue(())
        })?;
    }
    let mut exclusive = 0;
    for block in blocks {
        exclusive += u64::from(view.disk_count(block.0)? == 1);
    }
    Ok(Exclusive {
        blocks: exclusive,
        next,
    })
}
