//! What a request amounts to: pure decisions, no I/O.

use std::ops::Range;

use crate::trees::Mapping;
use crate::units::{BlockSize, DataBlock, VirtualBlock};

/// How a range is to be made zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zeroing {
    /// Whole blocks may be unmapped.
    MayUnmap,
    /// The range is mapped afterwards, so that later writes need no space.
    KeepMapped,
    /// As `MayUnmap`, but only if no data has to be written; else [`crate::Error::NotFast`] before
    /// anything changed.
    Fast,
    /// As `KeepMapped`, but only if no data has to be written; else [`crate::Error::NotFast`]
    /// before anything changed.
    FastKeepMapped,
}

/// What a mapping means for a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Nothing is mapped: provision.
    Unmapped,
    /// Only this device can reach the block: write in place.
    Exclusive(DataBlock),
    /// Mapped before the last snapshot: break sharing.
    MaybeShared(DataBlock),
}

/// The rule of sharing: a mapping older than the device's last snapshot may be shared. It may say
/// yes too often, and never no wrongly.
pub(crate) fn place(mapping: Option<Mapping>, snapshotted_time: u32) -> Place {
    match mapping {
        None => Place::Unmapped,
        Some(mapping) if snapshotted_time > mapping.time => Place::MaybeShared(mapping.block),
        Some(mapping) => Place::Exclusive(mapping.block),
    }
}

/// The part of a byte range that lies in one virtual block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct BlockPart {
    pub(crate) block: VirtualBlock,
    /// Where the part begins inside the block, in bytes.
    pub(crate) begin: u64,
    /// Its length in bytes.
    pub(crate) len: u64,
}

impl BlockPart {
    /// The first part of a range that is not empty.
    pub(crate) fn first(range: &Range<u64>, block_size: BlockSize) -> Self {
        assert!(range.start < range.end);
        let block = block_size.block_of(range.start);
        let start = block_size.start_of(block);
        let end = range.end.min(start + block_size.bytes());
        BlockPart {
            block,
            begin: range.start - start,
            len: end - range.start,
        }
    }
}

/// The parts of a byte range, block by block.
pub(crate) fn parts(range: Range<u64>, block_size: BlockSize) -> impl Iterator<Item = BlockPart> {
    let mut rest = range;
    std::iter::from_fn(move || {
        if rest.start >= rest.end {
            return None;
        }
        let part = BlockPart::first(&rest, block_size);
        rest.start += part.len;
        Some(part)
    })
}

/// The virtual blocks wholly inside a byte range. The last block of a device, perhaps cut off by
/// its size, counts as inside when the range reaches the device's end.
pub(crate) fn whole_blocks(range: &Range<u64>, block_size: BlockSize, size: u64) -> Range<u64> {
    let begin = range.start.div_ceil(block_size.bytes());
    let end = if range.end == size {
        range.end.div_ceil(block_size.bytes())
    } else {
        range.end / block_size.bytes()
    };
    begin..end.max(begin)
}

/// Where a read finds its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// Nowhere: zeros.
    Hole,
    /// The external origin, at the device's own offset.
    Origin,
    /// The data store, at this position in bytes.
    Data(u64),
}

/// Whether bytes from `next` come right behind `len` bytes from `first`, so that one I/O does both.
pub(crate) fn continues(first: Source, len: u64, next: Source) -> bool {
    match (first, next) {
        (Source::Hole, Source::Hole) | (Source::Origin, Source::Origin) => true,
        (Source::Data(first), Source::Data(next)) => first + len == next,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: BlockSize = BlockSize::DEFAULT;

    #[test]
    fn a_mapping_is_shared_only_when_strictly_older_than_the_snapshot() {
        let at = |time| {
            Some(Mapping {
                block: DataBlock(9),
                time,
            })
        };
        assert_eq!(place(None, 5), Place::Unmapped);
        assert_eq!(place(at(4), 5), Place::MaybeShared(DataBlock(9)));
        assert_eq!(place(at(5), 5), Place::Exclusive(DataBlock(9)));
        assert_eq!(place(at(6), 5), Place::Exclusive(DataBlock(9)));
    }

    #[test]
    fn parts_cover_a_range_exactly() {
        let parts: Vec<_> = parts(65_000..200_000, K64).collect();
        assert_eq!(parts.iter().map(|part| part.len).sum::<u64>(), 135_000);
        assert_eq!((parts[0].begin, parts[0].len), (65_000, 536));
        assert_eq!((parts[1].block, parts[1].begin), (VirtualBlock(1), 0));
    }

    #[test]
    fn whole_blocks_are_rounded_inwards_but_for_the_device_end() {
        assert_eq!(whole_blocks(&(1..65_536), K64, 1 << 30), 1..1);
        assert_eq!(whole_blocks(&(1..200_000), K64, 1 << 30), 1..3);
        assert_eq!(whole_blocks(&(0..100_000), K64, 100_000), 0..2);
    }
}
