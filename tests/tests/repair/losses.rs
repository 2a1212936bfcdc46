//! What check says that a damaged block costs, beside the truth.

use std::collections::BTreeMap;

use metadata_check::{CheckOptions, Cost, Loss, Report, check};

use crate::stores::Image;
use crate::subject::{SMALL, Subject};
use crate::truth::{KeyRange, Role, Truth, at};

/// Whether check names just what the block maps: each range of each device that reaches it, and no more.
pub fn losses_are_named(truth: &Truth, intact: &Image, block: u64, report: &Report) -> bool {
    let mut findings = report.findings.iter();
    let cost = findings.find(|finding| finding.block == Some(block));
    let cost = cost.map(|finding| finding.cost);
    let is_nothing = report.losses.is_empty() && report.lost_ids.is_empty();
    match truth.roles[&block] {
        Role::Superblock => is_nothing && cost == Some(Cost::Everything),
        Role::Details | Role::SpaceMap => is_nothing && cost == Some(Cost::Nothing),
        Role::TopLevel => {
            let mut ids = truth.devices.keys();
            let is_lost = |id: &u64| {
                let mut lost = report.lost_ids.iter();
                lost.any(|(first, last)| (u64::from(*first)..=u64::from(*last)).contains(id))
            };
            report.losses.is_empty() && ids.all(is_lost) && cost == Some(Cost::Mappings)
        }
        Role::Inner | Role::Leaf => {
            let places = truth.places(intact, block);
            report.lost_ids.is_empty()
                && ranges(&report.losses) == places
                && cost == Some(Cost::Mappings)
        }
    }
}

fn ranges(losses: &[Loss]) -> BTreeMap<u64, Vec<KeyRange>> {
    let ranges = losses.iter().map(|loss| {
        let ranges = loss.ranges.iter();
        let ranges = ranges.map(|range| (range.first, range.last.map(|last| last + 1)));
        (u64::from(loss.device), ranges.collect())
    });
    ranges.collect()
}

fn has(ranges: &[KeyRange], key: u64) -> bool {
    let mut ranges = ranges.iter();
    ranges.any(|(first, end)| *first <= key && end.is_none_or(|end| key < end))
}

/// Several blocks at once: leaves and inner nodes, shared and not.
#[test]
fn every_lost_mapping_is_in_a_range() {
    let intact = Subject::closed(SMALL).metadata.image();
    let truth = Truth::of(&intact);
    let of_mappings = truth
        .roles
        .iter()
        .filter(|(_, role)| matches!(role, Role::Inner | Role::Leaf));
    let blocks: Vec<u64> = of_mappings.map(|(block, _)| *block).collect();
    for stride in 2..8 {
        let mut damaged = intact.clone();
        let lost: Vec<u64> = blocks.iter().copied().step_by(stride).collect();
        for block in &lost {
            damaged.0[at(*block)].fill(7);
        }
        let named = ranges(&check(&damaged, &CheckOptions::default()).losses);
        let places = lost.iter().map(|block| truth.places(&intact, *block));
        let places: Vec<_> = places.collect();
        for (id, leaves) in &truth.devices {
            let named = named.get(id).map_or(&[][..], Vec::as_slice);
            for (key, ..) in leaves.iter().flat_map(|leaf| &leaf.mappings) {
                let mut places = places.iter().filter_map(|places| places.get(id));
                let is_lost = places.any(|ranges| has(ranges, *key));
                assert_eq!(has(named, *key), is_lost, "device {id}, block {key}");
            }
        }
    }
}
