//! Looking at a whole commit while the pool is in use: exact usage, and what checkers need.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata_btree::{BLOCK_SIZE, BlockStore};

use crate::error::Error;
use crate::host::Host;
use crate::info::DeviceUsage;
use crate::leaks::sealed;
use crate::metadata::Committed;
use crate::name::DeviceName;
use crate::pool::Pool;
use crate::units::ThinId;

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

/// A block comes free with its device exactly when every metadata block on the path to it, and
/// the data block itself, are referenced once: that is also what makes it exclusive.
fn usage_of(
    committed: &Committed,
    names: &[(ThinId, DeviceName)],
    block_size: u64,
) -> Result<Vec<DeviceUsage>, Error> {
    let mut alone = BTreeSet::new();
    committed
        .top_level()
        .for_each_exclusive(&committed.view, &mut |id, _| {
            alone.insert(id);
        })?;
    let present: BTreeMap<ThinId, _> = committed.devices()?.into_iter().collect();
    let mut usages = Vec::with_capacity(names.len());
    for (id, name) in names {
        // One that was made after the commit is left out.
        let Some(mapped) = present.get(id).map(|details| details.mapped_blocks) else {
            continue;
        };
        let mut candidates = Vec::new();
        if alone.contains(&id.key()) {
            let tree = committed.mappings(*id)?;
            tree.for_each_exclusive(&committed.view, &mut |_, mapping| {
                candidates.push(mapping.block);
            })?;
        }
        let mut exclusive = 0;
        for block in candidates {
            exclusive += u64::from(committed.view.disk_count(block.0)? == 1);
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
