//! A file: its bytes, its length and its space, durable and since.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::prng::Prng;
use crate::sim::{Image, Survivors, to_usize};

const PAGE: u64 = 4096;

/// A regular file.
pub(super) struct VolatileFile {
    image: Image,
    len: u64,
    durable_len: u64,
    /// Pages that have their space: a full disk takes writes to no others.
    space: BTreeSet<u64>,
}

/// What a sync makes durable: what there was when it was submitted.
#[derive(Clone, Copy)]
pub(super) struct Covered {
    writes: u64,
    len: u64,
}

impl VolatileFile {
    pub(super) fn new() -> Self {
        VolatileFile {
            image: Image::new(0, 0),
            len: 0,
            durable_len: 0,
            space: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// How many bytes have their space.
    pub(super) fn allocated(&self) -> u64 {
        self.space.len() as u64 * PAGE
    }

    pub(super) fn has_space(&self, at: u64, len: u64) -> bool {
        pages(at, len).all(|page| self.space.contains(&page))
    }

    pub(super) fn read(&self, at: u64, len: u64) -> Vec<u8> {
        let len = len.min(self.len.saturating_sub(at));
        let mut bytes = vec![0; to_usize(len)];
        if !bytes.is_empty() {
            self.image.read(at, &mut bytes);
        }
        bytes
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        let len = bytes.len() as u64;
        if len == 0 {
            return;
        }
        self.space.extend(pages(at, len));
        self.extend(at + len);
        self.image.write(at, bytes);
    }

    /// Gives a range its space; the file then reaches to its end, unless it is to keep its size.
    pub(super) fn allocate(&mut self, at: u64, len: u64, keeps_size: bool) {
        self.space.extend(pages(at, len));
        if !keeps_size {
            self.extend(at + len);
        }
    }

    /// Zeroes what there is of a range, and gives back the space of whole pages.
    pub(super) fn punch(&mut self, at: u64, len: u64) {
        self.zero(at, len);
        let whole = at.div_ceil(PAGE)..(at + len) / PAGE;
        for page in whole {
            self.space.remove(&page);
        }
    }

    /// Zeroes what there is of a range.
    pub(super) fn zero(&mut self, at: u64, len: u64) {
        let end = (at + len).min(self.len);
        if at < end {
            self.image.write(at, &vec![0; to_usize(end - at)]);
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.punch(len, self.len - len);
        }
        self.extend(len);
        self.len = len;
    }

    fn extend(&mut self, len: u64) {
        self.len = self.len.max(len);
        self.image.grow(self.len);
    }

    /// What a sync that is submitted now has to make durable.
    pub(super) fn covered(&self) -> Covered {
        Covered {
            writes: self.image.writes(),
            len: self.len,
        }
    }

    pub(super) fn sync(&mut self, covered: Covered) {
        self.image.sync(covered.writes);
        self.durable_len = covered.len;
    }

    /// A sync fails: some of what it covered will not survive, and nobody will be told again.
    pub(super) fn lose(&mut self, covered: Covered, prng: &mut Prng) {
        self.image.lose(covered.writes, prng);
    }

    /// What a failed sync lost is read no more.
    pub(super) fn evict(&mut self) {
        self.image.evict();
    }

    /// The power goes.
    pub(super) fn cut(&mut self, survivors: &mut Survivors, is_metadata: bool) {
        self.image = self.image.after_cut(survivors, is_metadata);
        let longest = self.len.max(self.durable_len);
        self.len = match survivors.flips() {
            true => self.len,
            false => self.durable_len,
        };
        // Nothing that lay beyond the end comes back when the file is extended again.
        let beyond = to_usize(longest - self.len);
        self.image.write(self.len, &vec![0; beyond]);
        let covered = self.covered();
        self.sync(covered);
    }
}

fn pages(at: u64, len: u64) -> Range<u64> {
    at / PAGE..(at + len).div_ceil(PAGE)
}
