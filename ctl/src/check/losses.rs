//! What damage costs, in the words of who owns the volumes: names and bytes instead of thin ids and keys.

use std::collections::{BTreeMap, BTreeSet};

use metadata_check::{MissingRange, Report};

use super::SECTOR;
use super::catalog::CatalogView;
use crate::protocol::{CheckLoss, CheckRange};

/// A device as the catalog has it.
struct Named<'a> {
    name: &'a str,
    size: u64,
}

/// The devices that lost mappings. Those that are being deleted lose nothing.
pub(super) fn losses(report: &Report, catalog: &CatalogView) -> Vec<CheckLoss> {
    let Some(summary) = &report.superblock else {
        return Vec::new();
    };
    let block_size = u64::from(summary.data_block_size) * SECTOR;
    let named = catalog.entries.iter().map(|(name, entry)| {
        let size = entry.size;
        (entry.id, Named { name, size })
    });
    let named: BTreeMap<u32, Named<'_>> = named.collect();
    let mut losses = BTreeMap::new();
    for id in ids_without_tree(report, &named) {
        let whole = MissingRange {
            first: 0,
            last: None,
        };
        losses.insert(id, loss(id, named.get(&id), block_size, &[whole], 0));
    }
    for lost in &report.losses {
        let (id, more) = (lost.device, lost.more_ranges);
        let loss = loss(id, named.get(&id), block_size, &lost.ranges, more);
        losses.insert(id, loss);
    }
    losses.retain(|id, loss| {
        let is_something = !loss.ranges.is_empty() || loss.more_ranges > 0;
        is_something && !catalog.deleting.contains(id)
    });
    losses.into_values().collect()
}

/// Devices, known by their details or by name, that a damaged node of the top-level tree may have had.
fn ids_without_tree(report: &Report, named: &BTreeMap<u32, Named<'_>>) -> BTreeSet<u32> {
    let with_details = report.devices.iter().map(|device| device.id);
    let mut ids: BTreeSet<u32> = with_details.chain(named.keys().copied()).collect();
    ids.retain(|id| {
        let mut lost = report.lost_ids.iter();
        lost.any(|(first, last)| (*first..=*last).contains(id))
    });
    ids
}

fn loss(
    device: u32,
    named: Option<&Named<'_>>,
    block_size: u64,
    ranges: &[MissingRange],
    more_ranges: u64,
) -> CheckLoss {
    let size = named.map(|named| named.size);
    let ranges = ranges
        .iter()
        .filter_map(|range| clipped(range, size, block_size));
    let ranges: Vec<CheckRange> = ranges.collect();
    let is_all = match ranges.as_slice() {
        [only] => only.offset == 0 && only.length == size,
        _ => false,
    };
    CheckLoss {
        device,
        name: named.map(|named| named.name.to_owned()),
        is_all,
        ranges,
        more_ranges,
    }
}

/// The range in blocks and bytes, as far as the volume goes; none if it lies behind its end.
fn clipped(range: &MissingRange, size: Option<u64>, block_size: u64) -> Option<CheckRange> {
    let offset = range.first.checked_mul(block_size)?;
    let end = range
        .last
        .and_then(|last| last.checked_add(1)?.checked_mul(block_size));
    let end = [end, size].into_iter().flatten().min();
    if end.is_some_and(|end| end <= offset) {
        return None;
    }
    Some(CheckRange {
        first_block: range.first,
        last_block: end.map(|end| (end - 1) / block_size),
        offset,
        length: end.map(|end| end - offset),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 65_536;

    fn range(first: u64, last: Option<u64>) -> MissingRange {
        MissingRange { first, last }
    }

    #[test]
    fn ranges_end_with_the_volume() {
        let size = Some(10 * BLOCK + 512);
        let of = |first, last| clipped(&range(first, last), size, BLOCK);
        let found = of(2, Some(4)).unwrap();
        assert_eq!((found.first_block, found.last_block), (2, Some(4)));
        assert_eq!((found.offset, found.length), (2 * BLOCK, Some(3 * BLOCK)));
        let found = of(9, None).unwrap();
        assert_eq!(
            (found.last_block, found.length),
            (Some(10), Some(BLOCK + 512))
        );
        assert_eq!(of(11, Some(20)), None);
        assert_eq!(of(u64::MAX, None), None);
    }

    #[test]
    fn without_a_name_there_is_no_end() {
        let found = clipped(&range(3, None), None, BLOCK).unwrap();
        assert_eq!((found.last_block, found.length), (None, None));
        let whole = loss(7, None, BLOCK, &[range(0, None)], 0);
        assert!(whole.is_all && whole.name.is_none());
        let part = loss(7, None, BLOCK, &[range(0, Some(3))], 0);
        assert!(!part.is_all);
    }
}
