//! A set of metadata blocks with a quick way to the next member.

use crate::num::to_usize;

/// A set of block numbers, one bit each.
#[derive(Default)]
pub(super) struct BlockSet {
    words: Vec<u64>,
    len: u64,
}

impl BlockSet {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn grow(&mut self, nr_blocks: u64) {
        self.words.resize(to_usize(nr_blocks.div_ceil(64)), 0);
    }

    pub(super) fn contains(&self, nr: u64) -> bool {
        self.words[to_usize(nr / 64)] >> (nr % 64) & 1 == 1
    }

    pub(super) fn insert(&mut self, nr: u64) {
        self.len += u64::from(!self.contains(nr));
        self.words[to_usize(nr / 64)] |= 1 << (nr % 64);
    }

    pub(super) fn remove(&mut self, nr: u64) {
        self.len -= u64::from(self.contains(nr));
        self.words[to_usize(nr / 64)] &= !(1 << (nr % 64));
    }

    pub(super) fn clear(&mut self) {
        self.words.fill(0);
        self.len = 0;
    }

    pub(super) fn first_from(&self, nr: u64) -> Option<u64> {
        let start = to_usize(nr / 64);
        let first = self.words.get(start)? >> (nr % 64) << (nr % 64);
        if first != 0 {
            return Some(start as u64 * 64 + u64::from(first.trailing_zeros()));
        }
        let rest = self.words[start + 1..].iter().position(|&word| word != 0)?;
        let word = start + 1 + rest;
        Some(word as u64 * 64 + u64::from(self.words[word].trailing_zeros()))
    }
}
