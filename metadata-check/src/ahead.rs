//! Reads and examines the children of a node at once, before the walk comes to them.
//!
//! Reading is most of the work of a check, and what can be told of a node from itself needs nothing of what
//! the walk knows. So threads share that; the walk takes the results one by one and is as it would be
//! without. What waits for it is at most the children of the nodes on its way.

use crate::checker::{Checker, Subtree};
use crate::finding::{FindingKind, Role};
use crate::layout::LoadError;
use crate::mapping::MappingLimits;
use crate::node::Node;
use crate::parallel;
use crate::source::BlockSource;

/// Nodes that are worth a thread.
const PIECE_LEN: usize = 16;

/// A node, and what can be told from it alone.
pub(crate) struct Examined {
    pub(crate) node: Node,
    pub(crate) subtree: Subtree,
    pub(crate) faults: Vec<FindingKind>,
}

impl Examined {
    fn load(
        source: &dyn BlockSource,
        role: Role,
        block: u64,
        limits: MappingLimits,
    ) -> Result<Self, LoadError> {
        let node = Node::load(source, role, block)?;
        let mut subtree = Subtree {
            first: node.first_key(),
            last: node.keys().max().unwrap_or(0),
            node_entries: u16::try_from(node.entries()).unwrap_or(u16::MAX),
            ..Subtree::default()
        };
        let mut faults = Vec::new();
        if node.is_leaf() {
            subtree.height = Some(0);
            subtree.entries = u64::from(node.entries());
        } else if node.len() == 0 {
            faults.push(FindingKind::EmptyInternal { role });
        }
        faults.extend(key_order(role, &node));
        if role == Role::Mapping && node.is_leaf() {
            let (time_max, mapping_faults) = limits.faults(&node);
            subtree.time_max = time_max;
            faults.extend(mapping_faults);
        }
        subtree.damaged = !faults.is_empty();
        Ok(Self {
            node,
            subtree,
            faults,
        })
    }
}

/// The first key that does not ascend.
fn key_order(role: Role, node: &Node) -> Option<FindingKind> {
    let pairs = node.keys().zip(node.keys().skip(1));
    let (index, (previous, key)) = (1..).zip(pairs).find(|(_, (key, next))| key >= next)?;
    Some(FindingKind::KeyOrder {
        role,
        index,
        key,
        previous,
    })
}

impl Checker<'_> {
    /// Reads those children of `node` that nothing has referred to.
    pub(crate) fn read_ahead(&mut self, role: Role, node: &Node) {
        let children = (0..node.len()).map(|index| node.pointer(index));
        let mut blocks: Vec<u64> = children.filter(|block| self.is_unknown(*block)).collect();
        blocks.sort_unstable();
        blocks.dedup();
        let (source, limits) = (self.source(), self.mapping_limits());
        source.will_read(&blocks);
        let pieces: Vec<&[u64]> = blocks.chunks(PIECE_LEN).collect();
        let examined = parallel::map(self.options.threads, &pieces, |piece| {
            let load = |block: &u64| (*block, Examined::load(source, role, *block, limits));
            piece.iter().map(load).collect::<Vec<_>>()
        });
        self.ahead.extend(examined.into_iter().flatten());
    }

    /// What was read ahead, or is read now.
    pub(crate) fn examined(&mut self, role: Role, block: u64) -> Result<Examined, LoadError> {
        match self.ahead.remove(&block) {
            Some(examined) => examined,
            None => Examined::load(self.source(), role, block, self.mapping_limits()),
        }
    }

    fn mapping_limits(&self) -> MappingLimits {
        MappingLimits {
            data_blocks: self.data_blocks,
            pool_time: self.pool_time,
        }
    }
}
