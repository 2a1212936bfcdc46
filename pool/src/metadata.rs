//! The open transaction of a pool: its trees, its data space map, its time.
//!
//! Synchronous, and owned by one task at a time. Every method changes only the open transaction;
//! [`Metadata::commit`] makes all of it durable, or nothing. Requests never come here: they look
//! blocks up in memory ([`crate::chunks`]) and their changes arrive in sorted batches. Reading the
//! last commit, concurrently with all this, is [`Committed`]'s business.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use metadata_btree::{Block, BlockStore, Btree, NodeSource, Transaction, View};

use crate::error::Error;
use crate::superblock::{self, Superblock};
use crate::trees::{DeviceDetails, DeviceRoot, Mapping, TIME_MAX};
use crate::units::{BlockSize, ThinId, VirtualBlock};

/// A change of one mapping: the new one, or none when it was unmapped.
pub(crate) type Change = (VirtualBlock, Option<Mapping>);

/// How many virtual blocks one piece of a deletion spans: the work done between two commits.
const REMOVE_SPAN: u64 = 65_536;

/// Reference counts in a bitmap block.
pub(crate) const COUNTS_A_BITMAP: u64 = 16_320;

/// The open transaction.
pub(crate) struct Metadata {
    tx: Transaction,
    superblock: Superblock,
    top_level: Btree<DeviceRoot>,
    details: Btree<DeviceDetails>,
}

/// The trees of the last commit, pinned: readable from any thread as long as this lives.
#[derive(Clone)]
pub(crate) struct Committed {
    pub(crate) view: View,
    pub(crate) superblock: Arc<Superblock>,
}

impl Metadata {
    /// Writes an empty pool and commits it.
    pub(crate) fn format(
        store: Arc<dyn BlockStore>,
        block_size: BlockSize,
        metadata_blocks: u64,
        data_blocks: u64,
    ) -> Result<(), Error> {
        let mut tx = Transaction::format(store, metadata_blocks, data_blocks)?;
        let top_level = Btree::empty(&mut tx)?;
        let details = Btree::empty(&mut tx)?;
        let superblock = Superblock::new(block_size, metadata_blocks);
        Metadata {
            tx,
            superblock,
            top_level,
            details,
        }
        .commit(|_| Ok(()))
    }

    /// Opens the last commit.
    pub(crate) fn open(store: Arc<dyn BlockStore>) -> Result<Self, Error> {
        let superblock = read_superblock(&*store)?;
        Self::open_at(store, superblock)
    }

    /// Opens the commit of a superblock.
    pub(crate) fn open_at(
        store: Arc<dyn BlockStore>,
        superblock: Superblock,
    ) -> Result<Self, Error> {
        let expected = superblock.space_maps.metadata.nr_blocks;
        let found = store.block_count().map_err(|source| Error::Io {
            what: "reading the size of the metadata store".into(),
            source,
        })?;
        if found < expected {
            let bytes = |blocks: u64| blocks.saturating_mul(metadata_btree::BLOCK_SIZE as u64);
            return Err(Error::StoreTooShort {
                store: "the metadata store",
                found: bytes(found),
                expected: bytes(expected),
            });
        }
        let tx = Transaction::open(store, superblock.space_maps)?;
        let top_level = Btree::from_root(superblock.mapping_root);
        let details = Btree::from_root(superblock.details_root);
        Ok(Metadata {
            tx,
            superblock,
            top_level,
            details,
        })
    }

    /// Makes everything since the last commit durable. The data store must have been synced.
    /// `prepare` sees the superblock before it is written, and it is not when that fails.
    pub(crate) fn commit(
        &mut self,
        prepare: impl FnOnce(&Block) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.superblock.mapping_root = self.top_level.root();
        self.superblock.details_root = self.details.root();
        let superblock = &mut self.superblock;
        self.tx.commit(|space_maps| {
            superblock.space_maps = *space_maps;
            let block = superblock.block();
            prepare(&block)?;
            Ok(block)
        })?;
        Ok(())
    }

    /// The last commit, pinned.
    pub(crate) fn committed(&self) -> Committed {
        Committed {
            view: self.tx.view(),
            superblock: Arc::new(self.superblock.clone()),
        }
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Says in the superblocks from now on whether an intent log may hold what they lack.
    pub(crate) fn set_has_log(&mut self, has_log: bool) {
        self.superblock.has_log = has_log;
    }

    pub(crate) fn transaction(&mut self) -> &mut Transaction {
        &mut self.tx
    }

    /// Raises the transaction id: names or devices change in this transaction.
    pub(crate) fn raise_transaction_id(&mut self) -> u64 {
        self.superblock.transaction_id = self.superblock.transaction_id.wrapping_add(1);
        self.superblock.transaction_id
    }

    /// Raises the time to at least this: that of a snapshot that was begun and failed.
    pub(crate) fn raise_time(&mut self, time: u32) {
        self.superblock.time = self.superblock.time.max(time);
    }

    /// Adds an empty device.
    pub(crate) fn create_thin(&mut self, id: ThinId) -> Result<(), Error> {
        let root = Btree::<Mapping>::empty(&mut self.tx)?.root();
        self.top_level
            .insert(&mut self.tx, id.key(), DeviceRoot(root))?;
        let time = self.superblock.time;
        let details = DeviceDetails {
            mapped_blocks: 0,
            transaction_id: self.superblock.transaction_id,
            creation_time: time,
            snapshotted_time: time,
        };
        self.details.insert(&mut self.tx, id.key(), details)?;
        Ok(())
    }

    /// Adds a device that shares all mappings of `origin`, at the time `time`.
    pub(crate) fn create_snapshot(
        &mut self,
        id: ThinId,
        origin: ThinId,
        time: u32,
    ) -> Result<(), Error> {
        assert!(
            time > self.superblock.time && time <= TIME_MAX,
            "time only goes up"
        );
        self.superblock.time = time;
        let root = self.root_of(origin)?;
        self.tx.inc(root.0)?;
        self.top_level.insert(&mut self.tx, id.key(), root)?;
        let mut details = self.details_of(origin)?;
        details.snapshotted_time = time;
        self.details.replace(&mut self.tx, origin.key(), details)?;
        details.creation_time = time;
        details.transaction_id = self.superblock.transaction_id;
        self.details.insert(&mut self.tx, id.key(), details)?;
        Ok(())
    }

    /// Applies changes of a device's mappings, sorted by virtual block.
    ///
    /// The path to the device's root is shadowed first: only then do the roots in a top-level leaf
    /// that a metadata snapshot shares have the counts that shadowing the tree itself relies on.
    pub(crate) fn apply(&mut self, id: ThinId, changes: &[Change]) -> Result<(), Error> {
        self.change_tree(id, |tx, tree| {
            let mut added = 0i64;
            for (block, change) in changes {
                let before = match change {
                    Some(mapping) => {
                        tx.disk_inc(mapping.block.0)?;
                        tree.insert(tx, block.0, *mapping)?
                    }
                    None => tree.remove(tx, block.0)?,
                };
                added += i64::from(change.is_some()) - i64::from(before.is_some());
            }
            Ok(added)
        })
    }

    /// Removes every mapping from `begin` on.
    pub(crate) fn remove_from(&mut self, id: ThinId, begin: VirtualBlock) -> Result<(), Error> {
        self.change_tree(id, |tx, tree| {
            let removed = tree.remove_range(tx, begin.0..u64::MAX)?;
            Ok(-i64::try_from(removed).unwrap_or(i64::MAX))
        })
    }

    /// Takes a bounded piece out of a device that is to go; the last piece takes the device.
    /// Whether it is gone; it may have been before, when that could not be noted in the catalog.
    pub(crate) fn remove_piece(&mut self, id: ThinId) -> Result<bool, Error> {
        if self.top_level.lookup(&self.tx, id.key())?.is_none() {
            return Ok(true);
        }
        let root = self.root_of(id)?;
        let shared = self.tx.count(root.0)? > 1;
        let first = if shared {
            None
        } else {
            first_key(&root.tree(), &self.tx)?
        };
        let Some(first) = first else {
            self.details.remove(&mut self.tx, id.key())?;
            self.top_level.remove(&mut self.tx, id.key())?;
            return Ok(true);
        };
        self.change_tree(id, |tx, tree| {
            let removed = tree.remove_range(tx, first..first.saturating_add(REMOVE_SPAN))?;
            Ok(-i64::try_from(removed).unwrap_or(i64::MAX))
        })?;
        Ok(false)
    }

    /// Changes a device's tree, and its count of mapped blocks by what `change` returns.
    fn change_tree(
        &mut self,
        id: ThinId,
        change: impl FnOnce(&mut Transaction, &mut Btree<Mapping>) -> Result<i64, Error>,
    ) -> Result<(), Error> {
        let root = self.root_of(id)?;
        self.top_level.replace(&mut self.tx, id.key(), root)?;
        let mut tree = root.tree();
        let added = change(&mut self.tx, &mut tree)?;
        self.top_level
            .replace(&mut self.tx, id.key(), DeviceRoot(tree.root()))?;
        let mut details = self.details_of(id)?;
        let Some(mapped) = details.mapped_blocks.checked_add_signed(added) else {
            return Err(miscounted(id, details.mapped_blocks, added));
        };
        details.mapped_blocks = mapped;
        self.details.replace(&mut self.tx, id.key(), details)?;
        Ok(())
    }

    fn root_of(&self, id: ThinId) -> Result<DeviceRoot, Error> {
        let found = self.top_level.lookup(&self.tx, id.key())?;
        found.ok_or_else(|| missing("mapping tree", id))
    }

    fn details_of(&self, id: ThinId) -> Result<DeviceDetails, Error> {
        let found = self.details.lookup(&self.tx, id.key())?;
        found.ok_or_else(|| missing("device details", id))
    }
}

impl Committed {
    pub(crate) fn top_level(&self) -> Btree<DeviceRoot> {
        Btree::from_root(self.superblock.mapping_root)
    }

    /// The mapping tree of a device.
    pub(crate) fn mappings(&self, id: ThinId) -> Result<Btree<Mapping>, Error> {
        let found = self.top_level().lookup(&self.view, id.key())?;
        Ok(found.ok_or_else(|| missing("mapping tree", id))?.tree())
    }

    /// What is recorded of a device.
    pub(crate) fn details(&self, id: ThinId) -> Result<DeviceDetails, Error> {
        let tree = Btree::<DeviceDetails>::from_root(self.superblock.details_root);
        let found = tree.lookup(&self.view, id.key())?;
        found.ok_or_else(|| missing("device details", id))
    }

    /// All devices and their details, by id.
    pub(crate) fn devices(&self) -> Result<Vec<(ThinId, DeviceDetails)>, Error> {
        collect_devices(&Btree::from_root(self.superblock.details_root), &self.view)
    }
}

/// Reads and understands block 0.
pub(crate) fn read_superblock(store: &dyn BlockStore) -> Result<Superblock, Error> {
    let mut block = Block::zeroed();
    store
        .read(superblock::LOCATION, &mut block)
        .map_err(|source| Error::Io {
            what: "reading the superblock".into(),
            source,
        })?;
    Superblock::decode(&block)
}

fn collect_devices(
    details: &Btree<DeviceDetails>,
    source: &impl NodeSource,
) -> Result<Vec<(ThinId, DeviceDetails)>, Error> {
    let mut devices = Vec::new();
    let mut beyond = None;
    details.for_each(source, 0..u64::MAX, &mut |key, details| {
        match u32::try_from(key).ok().and_then(ThinId::new) {
            Some(id) => devices.push((id, details)),
            None => beyond = Some(key),
        }
        ControlFlow::Continue(())
    })?;
    match beyond {
        None => Ok(devices),
        Some(key) => Err(Error::Superblock {
            what: "a thin id in the device details",
            found: key.to_string(),
            expected: format!("at most {}", ThinId::MAX),
        }),
    }
}

fn first_key(tree: &Btree<Mapping>, source: &impl NodeSource) -> Result<Option<u64>, Error> {
    let mut first = None;
    tree.for_each(source, 0..u64::MAX, &mut |key, _| {
        first = Some(key);
        ControlFlow::Break(())
    })?;
    Ok(first)
}

fn missing(tree: &'static str, id: ThinId) -> Error {
    Error::DeviceDamaged {
        id: id.get(),
        reason: format!("it is missing in the {tree}"),
    }
}

fn miscounted(id: ThinId, mapped: u64, added: i64) -> Error {
    let reason = format!(
        "its details count {mapped} mapped blocks, but {} were removed",
        -added
    );
    Error::DeviceDamaged {
        id: id.get(),
        reason,
    }
}

/// The number of metadata blocks kept back, so that the transaction in progress can always be
/// committed: a tenth of the metadata, at most 4096 blocks, as the kernel keeps.
pub(crate) fn reserve(metadata_blocks: u64) -> u64 {
    (metadata_blocks / 10).min(4096)
}
