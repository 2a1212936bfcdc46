//! The mappings of one device, and the ranges in which there may have been more.

use std::ops::ControlFlow;

use super::SalvagedMapping;
use super::trees::{KeyRange, Lost, Visitor};
use crate::node::Node;

/// Virtual blocks of which it is not known whether they were mapped, or to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRange {
    /// The first.
    pub first: u64,
    /// The last; none if that is the end of the device.
    pub last: Option<u64>,
}

impl MissingRange {
    /// The whole device.
    pub(super) const ALL: MissingRange = MissingRange {
        first: 0,
        last: None,
    };

    fn of(range: KeyRange) -> Self {
        MissingRange {
            first: range.first,
            last: range.end.map(|end| end - 1),
        }
    }

    /// Takes in a range that begins where this one ends.
    fn extend(&mut self, next: MissingRange) -> bool {
        let follows = self.last.is_some_and(|last| last + 1 == next.first);
        if follows {
            self.last = next.last;
        }
        follows
    }
}

/// A walk through a device's mappings.
pub(super) struct DeviceWalk<'a> {
    visit: &'a mut dyn FnMut(SalvagedMapping) -> ControlFlow<()>,
    missing: Vec<MissingRange>,
}

impl<'a> DeviceWalk<'a> {
    pub(super) fn new(visit: &'a mut dyn FnMut(SalvagedMapping) -> ControlFlow<()>) -> Self {
        DeviceWalk {
            visit,
            missing: Vec::new(),
        }
    }

    pub(super) fn missing(self) -> Vec<MissingRange> {
        self.missing
    }
}

impl Visitor for DeviceWalk<'_> {
    fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
        for index in 0..node.len() {
            let mapping = node.mapping(index);
            (self.visit)(SalvagedMapping {
                virtual_block: node.key(index),
                data_block: mapping.data_block,
                time: mapping.time,
            })?;
        }
        ControlFlow::Continue(())
    }

    fn lost(&mut self, lost: Lost) {
        let range = MissingRange::of(lost.range);
        let is_part = self
            .missing
            .last_mut()
            .is_some_and(|last| last.extend(range));
        if !is_part {
            self.missing.push(range);
        }
    }
}
