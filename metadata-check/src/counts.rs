//! Reference counts as recounted: a byte a block, in pieces the size of a bitmap.
//!
//! Only regions that were declared beforehand can hold counts, and a region takes memory when the
//! first reference into it is counted. So a wild block number costs nothing, and the memory is at most
//! four times that of the bitmaps on disk, plus an entry for each block with 255 references or more.

use std::collections::BTreeMap;

use crate::layout::{BITMAP_ENTRIES, BITMAP_ENTRIES_U64};

#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By ascending number.
    regions: Vec<Region>,
    /// Full counts of the blocks whose byte says 255.
    large: BTreeMap<u64, u32>,
    used: u64,
}

/// As many blocks as a bitmap counts.
#[derive(Debug)]
struct Region {
    number: u64,
    bytes: Option<Box<[u8]>>,
}

impl Counts {
    /// Allows blocks of bitmap number `number` to be counted.
    pub(crate) fn declare(&mut self, number: u64) {
        if let Err(at) = self.find(number) {
            let bytes = None;
            self.regions.insert(at, Region { number, bytes });
        }
    }

    /// Where a region is, or belongs. In a sound pool all are declared, and each has its number's place.
    fn find(&self, number: u64) -> Result<usize, usize> {
        match usize::try_from(number) {
            Ok(at)
                if self
                    .regions
                    .get(at)
                    .is_some_and(|region| region.number == number) =>
            {
                Ok(at)
            }
            _ => self
                .regions
                .binary_search_by_key(&number, |region| region.number),
        }
    }

    /// Counts a reference to `block`, if its region was declared.
    pub(crate) fn add(&mut self, block: u64) {
        let Ok(at) = self.find(block / BITMAP_ENTRIES_U64) else {
            return;
        };
        let region = &mut self.regions[at].bytes;
        let bytes = region.get_or_insert_with(|| vec![0; BITMAP_ENTRIES].into_boxed_slice());
        let byte = &mut bytes[position(block)];
        if *byte == 0 {
            self.used += 1;
        }
        *byte = byte.saturating_add(1);
        if *byte == u8::MAX {
            let large = self.large.entry(block).or_insert(u32::from(u8::MAX) - 1);
            *large = large.saturating_add(1);
        }
    }

    /// Takes off a reference to `block` that was counted.
    pub(crate) fn take_off(&mut self, block: u64) {
        let before = self.get(block);
        let at = self.find(block / BITMAP_ENTRIES_U64);
        let region = at.ok().and_then(|at| self.regions[at].bytes.as_mut());
        let Some(bytes) = region else {
            return;
        };
        let byte = &mut bytes[position(block)];
        match before.checked_sub(1) {
            Some(left) if before >= u32::from(u8::MAX) => {
                self.large.remove(&block);
                *byte = u8::try_from(left).unwrap_or(u8::MAX);
                if *byte == u8::MAX {
                    self.large.insert(block, left);
                }
            }
            Some(_) => *byte -= 1,
            None => unreachable!("block {block} was not counted"),
        }
        if *byte == 0 {
            self.used -= 1;
        }
    }

    /// The references to `block` that were counted.
    pub(crate) fn get(&self, block: u64) -> u32 {
        let region = self.region(block / BITMAP_ENTRIES_U64);
        match region.map_or(0, |bytes| bytes[position(block)]) {
            u8::MAX => self
                .large
                .get(&block)
                .copied()
                .unwrap_or(u32::from(u8::MAX)),
            small => u32::from(small),
        }
    }

    /// The references to each block of a region, as far as they fit a byte; none if there are no references.
    pub(crate) fn region(&self, number: u64) -> Option<&[u8]> {
        let at = self.find(number).ok()?;
        self.regions[at].bytes.as_deref()
    }

    /// The blocks with at least one reference, in ascending order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.regions.iter().flat_map(|region| {
            let bytes = region.bytes.iter().flat_map(|bytes| bytes.iter());
            let counted = bytes.zip(region.number * BITMAP_ENTRIES_U64..);
            let named = counted.filter(|(count, _)| **count > 0);
            named.map(|(_, block)| block)
        })
    }

    /// How many blocks have at least one reference.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

/// Where in its bitmap `block` is.
fn position(block: u64) -> usize {
    let Ok(position) = usize::try_from(block % BITMAP_ENTRIES_U64) else {
        unreachable!("less than 16320")
    };
    position
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_a_byte() {
        let mut counts = Counts::default();
        counts.declare(1);
        for expected in 1..=1000 {
            counts.add(16321);
            assert_eq!(counts.get(16321), expected);
        }
        assert_eq!(counts.used(), 1);
        assert_eq!(counts.get(16320), 0);
    }

    #[test]
    fn undeclared_regions_take_nothing() {
        let mut counts = Counts::default();
        counts.declare(0);
        counts.add(u64::MAX);
        counts.add(16320);
        assert_eq!(
            (counts.get(u64::MAX), counts.get(16320), counts.used()),
            (0, 0, 0)
        );
    }

    #[test]
    fn regions_are_found_wherever_they_are() {
        let mut counts = Counts::default();
        let regions = [7, 1, (1 << 40) / BITMAP_ENTRIES_U64, 0];
        for region in regions {
            counts.declare(region);
            counts.declare(region);
            counts.add(region * BITMAP_ENTRIES_U64 + 5);
        }
        let mut expected = regions.map(|region| region * BITMAP_ENTRIES_U64 + 5);
        expected.sort_unstable();
        assert_eq!(counts.blocks().collect::<Vec<_>>(), expected);
        counts.take_off(5);
        assert_eq!((counts.get(5), counts.used()), (0, 3));
    }
}
