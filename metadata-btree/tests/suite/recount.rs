//! Counts everything anew from the bytes of an image, and compares with what is stored.
//!
//! Shares nothing with the crate but the checksums: fields are read at their documented offsets.

use std::collections::{BTreeMap, BTreeSet};

use metadata_btree::{Block, BlockKind, BlockNr};

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[derive(Clone, Copy, PartialEq)]
enum Names {
    Trees,
    DiskBlocks,
    Bitmaps,
    Nothing,
}

/// What a commit consists of.
pub struct Recount<'a> {
    image: &'a [u8],
    /// Metadata blocks by number of references.
    pub counts: BTreeMap<u64, u32>,
    disk_counts: BTreeMap<u64, u32>,
    seen: BTreeSet<u64>,
    /// Contents of each named tree: key, disk block, note.
    pub trees: BTreeMap<u64, Vec<(u64, u64, u64)>>,
    leaves: Vec<(u64, Vec<u8>)>,
    /// Entries of all leaves of named trees, and how many there are.
    pub leaf_fill: (usize, usize),
}

/// Recounts the last commit of an image and panics if anything is wrong with it.
pub fn recount(image: &[u8]) -> Recount<'_> {
    let mut recount = Recount {
        image,
        counts: BTreeMap::new(),
        disk_counts: BTreeMap::new(),
        seen: BTreeSet::new(),
        trees: BTreeMap::new(),
        leaves: Vec::new(),
        leaf_fill: (0, 0),
    };
    let superblock = recount.block(0, BlockKind::Superblock);
    recount.counts.insert(0, 1);
    recount.tree(u64_at(superblock, 320), 8, Names::Trees);
    for (name, value) in std::mem::take(&mut recount.leaves) {
        let entries = recount.list(u64_at(&value, 0));
        recount.trees.insert(name, entries);
    }
    let (disk, metadata) = (&superblock[64..96], &superblock[192..224]);
    let disk_bitmaps = recount.disk_bitmaps(u64_at(disk, 16));
    let disk_overflow = recount.overflow(u64_at(disk, 24));
    let metadata_bitmaps = recount.metadata_bitmaps(u64_at(metadata, 16), u64_at(metadata, 0));
    let metadata_overflow = recount.overflow(u64_at(metadata, 24));
    let stored = recount.stored(u64_at(disk, 0), &disk_bitmaps, &disk_overflow);
    assert_eq!(stored, recount.disk_counts, "disk counts");
    assert_eq!(
        u64_at(disk, 8),
        stored.len() as u64,
        "disk blocks allocated"
    );
    let stored = recount.stored(u64_at(metadata, 0), &metadata_bitmaps, &metadata_overflow);
    assert_eq!(stored, recount.counts, "metadata counts");
    assert_eq!(
        u64_at(metadata, 8),
        stored.len() as u64,
        "metadata blocks allocated"
    );
    recount
}

impl<'a> Recount<'a> {
    fn block(&self, nr: u64, kind: BlockKind) -> &'a [u8] {
        let at = usize::try_from(nr).unwrap() * 4096;
        let bytes = &self.image[at..at + 4096];
        let mut block = Block::zeroed();
        block.as_bytes_mut().copy_from_slice(bytes);
        kind.verify(&block, BlockNr(nr)).unwrap();
        bytes
    }

    /// Counts a reference; returns whether it is the first.
    fn refer(&mut self, nr: u64) -> bool {
        *self.counts.entry(nr).or_default() += 1;
        self.seen.insert(nr)
    }

    fn tree(&mut self, root: u64, value_size: u32, names: Names) {
        let mut depths = BTreeSet::new();
        if self.refer(root) {
            self.node(root, value_size, names, (0, u64::MAX), 0, &mut depths);
            // None, when all leaves were counted as another tree's.
            assert!(
                depths.len() <= 1,
                "leaves of tree {root} at different depths"
            );
        }
    }

    fn node(
        &mut self,
        nr: u64,
        value_size: u32,
        names: Names,
        (low, high): (u64, u64),
        depth: usize,
        depths: &mut BTreeSet<usize>,
    ) {
        let bytes = self.block(nr, BlockKind::Node);
        let (flags, len) = (u32_at(bytes, 4), u32_at(bytes, 16) as usize);
        let size = u32_at(bytes, 24);
        let max = u32_at(bytes, 20) as usize;
        assert!(
            depth == 0 || len >= max / 3,
            "node {nr} has {len} of {max} entries"
        );
        let key = |index| u64_at(bytes, 32 + 8 * index);
        for index in 0..len {
            assert!(
                (low..=high).contains(&key(index)),
                "node {nr}: key {} misplaced",
                key(index)
            );
        }
        if flags == 1 {
            assert!(len >= 2, "internal node {nr} with {len} children");
            for index in 0..len {
                let end = if index + 1 < len {
                    key(index + 1) - 1
                } else {
                    high
                };
                let child = u64_at(bytes, 32 + 8 * max + 8 * index);
                if self.refer(child) {
                    let span = (key(index), end);
                    self.node(child, value_size, names, span, depth + 1, depths);
                }
            }
            return;
        }
        assert_eq!(size, value_size, "value size of leaf {nr}");
        depths.insert(depth);
        for index in 0..len {
            let at = 32 + 8 * max + size as usize * index;
            let value = &bytes[at..at + size as usize];
            match names {
                Names::Trees => self.tree(u64_at(value, 0), 8, Names::DiskBlocks),
                Names::DiskBlocks => {
                    *self.disk_counts.entry(u64_at(value, 0) >> 24).or_default() += 1;
                }
                Names::Bitmaps => assert!(self.refer(u64_at(value, 0)), "bitmap shared"),
                Names::Nothing => {}
            }
            if names != Names::DiskBlocks {
                self.leaves.push((key(index), value.to_vec()));
            } else if index == 0 {
                self.leaf_fill.0 += len;
                self.leaf_fill.1 += 1;
            }
        }
    }

    fn list(&self, nr: u64) -> Vec<(u64, u64, u64)> {
        let bytes = self.block(nr, BlockKind::Node);
        let (len, max) = (u32_at(bytes, 16) as usize, u32_at(bytes, 20) as usize);
        let entry = |i| {
            (
                u64_at(bytes, 32 + 8 * i),
                u64_at(bytes, 32 + 8 * max + 8 * i),
            )
        };
        if u32_at(bytes, 4) == 2 {
            let split = |(key, value)| (key, value >> 24, value & 0xFF_FFFF);
            return (0..len).map(entry).map(split).collect();
        }
        (0..len)
            .flat_map(|index| self.list(entry(index).1))
            .collect()
    }

    fn bitmap(&self, entry: &[u8]) -> &'a [u8] {
        let bytes = self.block(u64_at(entry, 0), BlockKind::Bitmap);
        let raw = |p: usize| bytes[16 + p / 4] >> (2 * (p % 4)) & 3;
        let free = (0..16320).filter(|&p| raw(p) == 0).count();
        assert_eq!(u32_at(entry, 8) as usize, free, "nr_free");
        let first = (0..16320).find(|&p| raw(p) == 0).unwrap_or(16320);
        assert_eq!(u32_at(entry, 12) as usize, first, "none_free_before");
        &bytes[16..]
    }

    fn disk_bitmaps(&mut self, root: u64) -> Vec<&'a [u8]> {
        self.tree(root, 16, Names::Bitmaps);
        let entries = std::mem::take(&mut self.leaves);
        assert!(
            entries
                .iter()
                .enumerate()
                .all(|(i, (key, _))| i as u64 == *key),
            "gap in index"
        );
        entries
            .iter()
            .map(|(_, entry)| self.bitmap(entry))
            .collect()
    }

    fn metadata_bitmaps(&mut self, index: u64, nr_blocks: u64) -> Vec<&'a [u8]> {
        assert!(self.refer(index));
        let bytes = self.block(index, BlockKind::Index);
        let used = usize::try_from(nr_blocks.div_ceil(16320)).unwrap();
        assert!(
            bytes[16 + 16 * used..].iter().all(|&byte| byte == 0),
            "stray index entries"
        );
        let entries: Vec<_> = bytes[16..16 + 16 * used].chunks(16).collect();
        for entry in &entries {
            assert!(self.refer(u64_at(entry, 0)), "bitmap shared");
        }
        entries.iter().map(|entry| self.bitmap(entry)).collect()
    }

    fn overflow(&mut self, root: u64) -> BTreeMap<u64, u32> {
        self.tree(root, 4, Names::Nothing);
        let entries = std::mem::take(&mut self.leaves);
        entries
            .iter()
            .map(|(block, value)| (*block, u32_at(value, 0)))
            .collect()
    }

    /// The counts as stored, leaving out zeroes.
    fn stored(
        &self,
        nr_blocks: u64,
        bitmaps: &[&[u8]],
        overflow: &BTreeMap<u64, u32>,
    ) -> BTreeMap<u64, u32> {
        assert_eq!(bitmaps.len() as u64, nr_blocks.div_ceil(16320));
        let mut overflow = overflow.clone();
        let mut counts = BTreeMap::new();
        for block in 0..bitmaps.len() as u64 * 16320 {
            let (bitmap, p) = (block / 16320, usize::try_from(block % 16320).unwrap());
            let raw = bitmaps[usize::try_from(bitmap).unwrap()][p / 4] >> (2 * (p % 4)) & 3;
            let count = match raw {
                0 => continue,
                2 => 1,
                1 => 2,
                _ => overflow
                    .remove(&block)
                    .expect("an overflow entry for raw 3"),
            };
            assert!(
                raw != 3 || count >= 3,
                "block {block}: overflow count {count}"
            );
            assert!(block < nr_blocks, "count beyond the end");
            counts.insert(block, count);
        }
        assert!(
            overflow.is_empty(),
            "overflow entries without need: {overflow:?}"
        );
        counts
    }
}
