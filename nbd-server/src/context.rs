//! Metadata contexts: what BLOCK_STATUS can say about a range.
//!
//! `base:allocation`: where nothing is mapped, a hole that reads as zeros; data elsewhere, also where
//! an external origin shows through. Strictly, data promises that a write needs no new space, which a
//! block shared with a snapshot cannot promise; `qemu:allocation-depth` tells those apart: 0 nothing,
//! 1 this device's own, 2 shared with a snapshot or from the external origin.

use pool::{Extent, ExtentState};

const STATE_HOLE: u32 = 1;
const STATE_ZERO: u32 = 2;

/// A context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Context {
    Allocation,
    Depth,
}

impl Context {
    pub(crate) const ALL: [Context; 2] = [Context::Allocation, Context::Depth];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Depth => "qemu:allocation-depth",
        }
    }

    /// The number a selected context goes by in replies.
    pub(crate) fn id(self) -> u32 {
        match self {
            Context::Allocation => 1,
            Context::Depth => 2,
        }
    }

    /// Whether a query in a list means this context, by name or by a wildcard.
    pub(crate) fn is_listed_by(self, query: &[u8]) -> bool {
        let namespace = self.name().split_inclusive(':').next().unwrap_or_default();
        query == self.name().as_bytes() || query == namespace.as_bytes()
    }

    fn flags(self, state: ExtentState) -> u32 {
        match (self, state) {
            (Context::Allocation, ExtentState::Hole) => STATE_HOLE | STATE_ZERO,
            (Context::Allocation, _) | (Context::Depth, ExtentState::Hole) => 0,
            (Context::Depth, ExtentState::Exclusive) => 1,
            (Context::Depth, ExtentState::Shared | ExtentState::Origin) => 2,
        }
    }

    /// Lengths and flags of extents that lie one behind the other, equal neighbours merged, at most
    /// `max` of them. The extents are shorter than 4 GiB together.
    pub(crate) fn describe(self, extents: &[Extent], max: usize) -> Vec<(u32, u32)> {
        let mut described: Vec<(u32, u32)> = Vec::new();
        for extent in extents {
            let flags = self.flags(extent.state);
            let len = u32::try_from(extent.len)
                .unwrap_or_else(|_| unreachable!("an extent longer than its request"));
            let full = described.len() == max;
            match described.last_mut() {
                Some(last) if last.1 == flags => last.0 += len,
                _ if full => break,
                _ => described.push((len, flags)),
            }
        }
        described
    }
}

/// The contexts a client has selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Selection {
    allocation: bool,
    depth: bool,
}

impl Selection {
    pub(crate) fn contains(self, context: Context) -> bool {
        match context {
            Context::Allocation => self.allocation,
            Context::Depth => self.depth,
        }
    }

    pub(crate) fn insert(&mut self, context: Context) {
        match context {
            Context::Allocation => self.allocation = true,
            Context::Depth => self.depth = true,
        }
    }

    /// The selected contexts, in the order of their ids.
    pub(crate) fn iter(self) -> impl DoubleEndedIterator<Item = Context> {
        Context::ALL
            .into_iter()
            .filter(move |context| self.contains(*context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_described_and_merged() {
        let extents = [
            Extent {
                len: 10,
                state: ExtentState::Exclusive,
            },
            Extent {
                len: 20,
                state: ExtentState::Shared,
            },
            Extent {
                len: 30,
                state: ExtentState::Origin,
            },
            Extent {
                len: 40,
                state: ExtentState::Hole,
            },
        ];
        assert_eq!(
            Context::Allocation.describe(&extents, 9),
            [(60, 0), (40, 3)]
        );
        assert_eq!(
            Context::Depth.describe(&extents, 9),
            [(10, 1), (50, 2), (40, 0)]
        );
        assert_eq!(Context::Depth.describe(&extents, 2), [(10, 1), (50, 2)]);
    }

    #[test]
    fn queries_are_names_or_namespaces() {
        assert!(Context::Allocation.is_listed_by(b"base:"));
        assert!(Context::Allocation.is_listed_by(b"base:allocation"));
        assert!(Context::Depth.is_listed_by(b"qemu:"));
        for query in [
            &b""[..],
            b"base",
            b"base:alloc",
            b"qemu:allocation-depthx",
            b"\xff",
        ] {
            assert!(
                Context::ALL
                    .iter()
                    .all(|context| !context.is_listed_by(query))
            );
        }
    }
}
