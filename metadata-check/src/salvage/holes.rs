//! The mappings of one device, and the ranges in which there may have been more.

use std::ops::ControlFlow;

use super::trees::{Lost, Visitor};
use super::{SalvagedLeaf, SalvagedMapping};
use crate::key_range::MissingRange;
use crate::node::{Mapping, Node};

/// A walk through a device's leaves.
pub(super) struct DeviceWalk<'a> {
    visit: &'a mut dyn FnMut(SalvagedLeaf<'_>) -> ControlFlow<()>,
    mappings: Vec<SalvagedMapping>,
    missing: Vec<MissingRange>,
}

impl<'a> DeviceWalk<'a> {
    pub(super) fn new(visit: &'a mut dyn FnMut(SalvagedLeaf<'_>) -> ControlFlow<()>) -> Self {
        DeviceWalk {
            visit,
            mappings: Vec::new(),
            missing: Vec::new(),
        }
    }

    pub(super) fn missing(self) -> Vec<MissingRange> {
        self.missing
    }
}

impl Visitor for DeviceWalk<'_> {
    fn leaf(&mut self, block: u64, node: &Node) -> ControlFlow<()> {
        let salvaged = |(virtual_block, mapping): (u64, Mapping)| SalvagedMapping {
            virtual_block,
            data_block: mapping.data_block,
            time: mapping.time,
        };
        self.mappings.clear();
        let mappings = node.keys().zip(node.mappings());
        self.mappings.extend(mappings.map(salvaged));
        (self.visit)(SalvagedLeaf {
            block,
            mappings: &self.mappings,
        })
    }

    fn lost(&mut self, lost: Lost) {
        if let Some(range) = MissingRange::of(lost.range) {
            range.add_to(&mut self.missing);
        }
    }
}
