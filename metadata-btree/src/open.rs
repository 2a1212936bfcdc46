//! The beginning of a transaction: on new metadata, and on the last commit.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::block::{BlockNr, BlockStore};
use crate::btree::Btree;
use crate::checksum::BlockKind;
use crate::error::Error;
use crate::num::to_usize;
use crate::space_map::{
    Bitmap, COUNTS_PER_BITMAP, METADATA_BLOCKS_MAX, MetadataMap, OverflowCount, SpaceMapRoot,
    SpaceMapRoots, index_entry,
};
use crate::transaction::{Transaction, first_tree};

/// What a version of metadata that was never committed holds: nothing.
const NOTHING: SpaceMapRoot = SpaceMapRoot {
    nr_blocks: 0,
    nr_allocated: 0,
    bitmap_root: BlockNr(0),
    ref_count_root: BlockNr(0),
};

pub(crate) fn store_blocks(store: &Arc<dyn BlockStore>) -> Result<u64, Error> {
    store.block_count().map_err(|source| Error::Io {
        nr: None,
        op: "measure",
        source,
    })
}

fn check_size(what: &'static str, found: u64, min: u64, max: u64) -> Result<(), Error> {
    if (min..=max).contains(&found) {
        return Ok(());
    }
    Err(Error::BadSize {
        what,
        found,
        min,
        max,
    })
}

pub(crate) fn format(
    store: Arc<dyn BlockStore>,
    metadata_blocks: u64,
    disk_blocks: u64,
) -> Result<Transaction, Error> {
    let max = store_blocks(&store)?.min(METADATA_BLOCKS_MAX);
    check_size("metadata", metadata_blocks, 1, max)?;
    let mut metadata = MetadataMap::new(metadata_blocks);
    let superblock = metadata.alloc()?;
    assert_eq!(superblock, BlockNr(0));
    let roots = SpaceMapRoots {
        disk: NOTHING,
        metadata: NOTHING,
    };
    let mut tx = Transaction::new(store, roots, metadata);
    tx.metadata_overflow = first_tree(&mut tx)?;
    tx.disk.index = first_tree(&mut tx)?;
    tx.disk.overflow = first_tree(&mut tx)?;
    tx.grow_disk(disk_blocks)?;
    Ok(tx)
}

pub(crate) fn open(store: Arc<dyn BlockStore>, roots: SpaceMapRoots) -> Result<Transaction, Error> {
    let root = &roots.metadata;
    let max = store_blocks(&store)?.min(METADATA_BLOCKS_MAX);
    check_size("metadata", root.nr_blocks, 1, max)?;
    // Every bitmap is a metadata block, which bounds what the disk map may ask of memory.
    let disk_max = root.nr_blocks * COUNTS_PER_BITMAP as u64;
    check_size("disk", roots.disk.nr_blocks, 0, disk_max)?;
    let mut tx = Transaction::new(store, roots, MetadataMap::new(0));
    tx.metadata = load_metadata_map(&tx, root)?;
    Ok(tx)
}

fn load_metadata_map(tx: &Transaction, root: &SpaceMapRoot) -> Result<MetadataMap, Error> {
    let read = |nr, kind| tx.reader.read_uncached(nr, kind, root.nr_blocks);
    let index = read(root.bitmap_root, BlockKind::Index)?;
    let mut bitmaps = Vec::new();
    for number in 0..to_usize(root.nr_blocks).div_ceil(COUNTS_PER_BITMAP) {
        let home = index_entry(&index, number).bitmap;
        bitmaps.push((home, Bitmap::decode(&read(home, BlockKind::Bitmap)?)));
    }
    let mut overflow = BTreeMap::new();
    let tree = Btree::<OverflowCount>::from_root(root.ref_count_root);
    tree.for_each(&tx.view(), 0..root.nr_blocks, &mut |nr, count| {
        overflow.insert(nr, count.0);
        ControlFlow::Continue(())
    })?;
    MetadataMap::load(
        root.nr_blocks,
        root.bitmap_root,
        root.ref_count_root,
        bitmaps,
        overflow,
    )
}
