//! One bitmap: 16320 counts of two bits.
//!
//! The block has a 16-byte header, then four counts a byte, lowest position in the lowest pair.
//! Within a pair the *lower-numbered* bit is the high bit of the count: a count of 1 reads as raw
//! 2 and a count of 2 as raw 1. Raw 3 means three or more.

use crate::block::{BLOCK_SIZE, Block};
use crate::num::to_u32;
use crate::space_map::IndexEntry;
use crate::{BlockNr, codec::get_u64};

const HEADER_SIZE: usize = 16;
const BYTES: usize = BLOCK_SIZE - HEADER_SIZE;
const COUNTS_PER_WORD: usize = 32;

/// Counts in one bitmap.
pub(crate) const COUNTS_PER_BITMAP: usize = BYTES * 4;
const _: () = assert!(COUNTS_PER_BITMAP == 16320 && BYTES.is_multiple_of(8));

/// The count that stands for itself and everything above it.
pub(crate) const MANY: u32 = 3;

#[derive(Clone)]
pub(crate) struct Bitmap {
    bytes: Box<[u8; BYTES]>,
    /// Differs from what its block held at the last commit.
    changed: bool,
}

impl Bitmap {
    /// A bitmap of zero counts that no block holds yet.
    pub(crate) fn new() -> Self {
        Self {
            bytes: Box::new([0; BYTES]),
            changed: true,
        }
    }

    pub(crate) fn decode(block: &Block) -> Self {
        let mut bytes = Box::new([0; BYTES]);
        bytes.copy_from_slice(&block.as_bytes()[HEADER_SIZE..]);
        Self {
            bytes,
            changed: false,
        }
    }

    pub(crate) fn encode(&self, block: &mut Block) {
        block.as_bytes_mut()[..HEADER_SIZE].fill(0);
        block.as_bytes_mut()[HEADER_SIZE..].copy_from_slice(&self.bytes[..]);
    }

    /// The count at a position, [`MANY`] if it is that or more.
    pub(crate) fn get(&self, position: usize) -> u32 {
        count_at(&self.bytes[..], position)
    }

    /// The count at a position of a bitmap block, or none if it is [`MANY`] or more.
    pub(crate) fn peek(block: &Block, position: usize) -> Option<u32> {
        let count = count_at(&block.as_bytes()[HEADER_SIZE..], position);
        (count != MANY).then_some(count)
    }

    /// Sets a count, cut off at [`MANY`]. Returns whether this is the bitmap's first change.
    pub(crate) fn set(&mut self, position: usize, count: u32) -> bool {
        let raw: u8 = match count {
            0 => 0,
            1 => 2,
            2 => 1,
            _ => 3,
        };
        let shift = 2 * (position % 4);
        let byte = &mut self.bytes[position / 4];
        *byte = *byte & !(3 << shift) | raw << shift;
        !std::mem::replace(&mut self.changed, true)
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.changed
    }

    pub(crate) fn mark_saved(&mut self) {
        self.changed = false;
    }

    /// The index entry of this bitmap when block `bitmap` holds it.
    pub(crate) fn index_entry(&self, bitmap: BlockNr) -> IndexEntry {
        let mut nr_free = 0;
        let mut first_free = None;
        for index in 0..BYTES / 8 {
            let free = self.free_in_word(index);
            nr_free += free.count_ones();
            if free != 0 && first_free.is_none() {
                first_free = Some(to_u32(index * COUNTS_PER_WORD) + free.trailing_zeros() / 2);
            }
        }
        let none_free_before = first_free.unwrap_or(to_u32(COUNTS_PER_BITMAP));
        IndexEntry {
            bitmap,
            nr_free,
            none_free_before,
        }
    }

    /// Calls `f` with each maximal run of zero counts below `end`, as start and end.
    pub(crate) fn for_each_free_run(&self, end: usize, f: &mut dyn FnMut(usize, usize)) {
        let mut position = 0;
        let mut run_start = None;
        while position < end {
            let at_word = position.is_multiple_of(COUNTS_PER_WORD);
            let whole_word = at_word && position + COUNTS_PER_WORD <= end;
            if whole_word && self.free_in_word(position / COUNTS_PER_WORD) == ALL_FREE {
                run_start.get_or_insert(position);
                position += COUNTS_PER_WORD;
                continue;
            }
            if self.get(position) == 0 {
                run_start.get_or_insert(position);
            } else if let Some(start) = run_start.take() {
                f(start, position);
            }
            position += 1;
        }
        if let Some(start) = run_start {
            f(start, end);
        }
    }

    /// Bit `2 * k` is set if the k-th of the word's 32 counts is zero.
    fn free_in_word(&self, index: usize) -> u64 {
        let word = get_u64(&self.bytes[..], index * 8);
        !(word | word >> 1) & ALL_FREE
    }
}

fn count_at(bytes: &[u8], position: usize) -> u32 {
    let raw = bytes[position / 4] >> (2 * (position % 4)) & 3;
    u32::from(raw >> 1 | (raw & 1) << 1)
}

const ALL_FREE: u64 = 0x5555_5555_5555_5555;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_stored_high_bit_first() {
        let mut bitmap = Bitmap::new();
        for (position, count) in [(0, 1), (1, 2), (2, 3), (3, 0), (5, 7)] {
            bitmap.set(position, count);
        }
        assert_eq!(bitmap.bytes[0], 0b00_11_01_10);
        assert_eq!(bitmap.bytes[1], 0b11_00);
        assert_eq!(
            (0..6).map(|p| bitmap.get(p)).collect::<Vec<_>>(),
            [1, 2, 3, 0, 0, 3]
        );
        let entry = bitmap.index_entry(BlockNr(9));
        assert_eq!((entry.nr_free, entry.none_free_before), (16316, 3));
        bitmap.set(0, 0);
        assert_eq!(bitmap.index_entry(BlockNr(9)).none_free_before, 0);
    }

    #[test]
    fn full_bitmap_has_no_free_position() {
        let mut bitmap = Bitmap::new();
        (0..COUNTS_PER_BITMAP).for_each(|position| {
            bitmap.set(position, 1);
        });
        let entry = bitmap.index_entry(BlockNr(9));
        assert_eq!((entry.nr_free, entry.none_free_before), (0, 16320));
        bitmap.set(16319, 0);
        let entry = bitmap.index_entry(BlockNr(9));
        assert_eq!((entry.nr_free, entry.none_free_before), (1, 16319));
    }

    #[test]
    fn free_runs_stop_at_the_end() {
        let mut bitmap = Bitmap::new();
        for position in [0, 31, 32, 100, 200] {
            bitmap.set(position, 1);
        }
        let mut runs = Vec::new();
        bitmap.for_each_free_run(150, &mut |start, end| runs.push((start, end)));
        assert_eq!(runs, [(1, 31), (33, 100), (101, 150)]);
    }
}
