//! The mappings of one device, and the ranges in which there may have been more.

use std::ops::ControlFlow;

use super::SalvagedMapping;
use super::trees::{Lost, Visitor};
use crate::key_range::MissingRange;
use crate::node::Node;

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
        if let Some(range) = MissingRange::of(lost.range) {
            range.add_to(&mut self.missing);
        }
    }
}
