//! All metadata blocks at a glance, and walks that go around what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::finding::{BlockKind, Role};
use crate::key_range::KeyRange;
use crate::layout::{BLOCK_SIZE, Block, METADATA_BLOCKS_MAX, kind_of};
use crate::node::{Mapping, Node};
use crate::report::Progress;
use crate::source::BlockSource;
use crate::superblock::Superblock;
use crate::tree::LEVELS_MAX;

/// A progress report is due after this many blocks.
const PROGRESS_INTERVAL: u64 = 1024;

/// What a block holds, as far as it can be told from itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing that can be used.
    Unusable,
    Superblock,
    Bitmap,
    MetadataIndex,
    Inner,
    /// A leaf with values of so many bytes.
    Leaf(u8),
}

impl Content {
    fn of(number: u64, block: &Block) -> Self {
        match kind_of(number, block) {
            None => Content::Unusable,
            Some(BlockKind::Superblock) => Content::Superblock,
            Some(BlockKind::Bitmap) => Content::Bitmap,
            Some(BlockKind::MetadataIndex) => Content::MetadataIndex,
            Some(BlockKind::Node) => match Node::of_any_tree(Box::new(*block)) {
                Some(node) if !node.is_ascending() => Content::Unusable,
                Some(node) if node.is_leaf() => Content::Leaf(node.value_size()),
                Some(node) if node.len() > 0 => Content::Inner,
                _ => Content::Unusable,
            },
        }
    }

    /// Whether it is a node of mapping trees, as far as it shows.
    pub(super) fn may_map(self) -> bool {
        matches!(self, Content::Inner | Content::Leaf(8))
    }
}

/// A child of an inner node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Child {
    pub(super) key: u64,
    pub(super) block: u64,
}

/// A node that a walk could not use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    pub(super) block: u64,
    pub(super) range: KeyRange,
    /// Whether it was a leaf, if its siblings tell.
    pub(super) is_leaf: Option<bool>,
}

/// What a walk does with what it meets.
pub(super) trait Visitor {
    /// Something names this block. Whether to look at it.
    fn named(&mut self, _block: u64) -> bool {
        true
    }

    /// A leaf that can be trusted.
    fn leaf(&mut self, block: u64, node: &Node) -> ControlFlow<()>;

    /// A node that cannot be used, whatever the reason.
    fn lost(&mut self, _lost: Lost) {}
}

enum Found {
    Leaf(Node),
    Inner(Vec<Child>),
}

/// The metadata, with what is known to be wrong left out.
pub(super) struct Trees<'a> {
    source: &'a dyn BlockSource,
    contents: Vec<Content>,
    /// Blocks of the data store; mappings to others are not believed.
    data_blocks: u64,
    /// The pool's time; later mappings are not believed.
    time: u32,
    /// Nodes that look right and are not believed.
    doubted: BTreeSet<u64>,
    /// What was below nodes that are lost.
    adopted: BTreeMap<u64, Vec<Child>>,
}

/// Where a walk is.
#[derive(Clone, Copy)]
struct Place {
    block: u64,
    range: KeyRange,
    depth: usize,
    is_leaf: Option<bool>,
}

impl<'a> Trees<'a> {
    /// Looks at each block once.
    pub(super) fn scan(
        source: &'a dyn BlockSource,
        blocks: u64,
        progress: &dyn Fn(Progress),
    ) -> Self {
        let mut contents = Vec::new();
        let mut block = [0; BLOCK_SIZE];
        for number in 0..blocks.min(METADATA_BLOCKS_MAX) {
            let content = match source.read_block(number, &mut block) {
                Ok(()) => Content::of(number, &block),
                Err(_) => Content::Unusable,
            };
            contents.push(content);
            if number.is_multiple_of(PROGRESS_INTERVAL) {
                progress(Progress {
                    blocks_read: number,
                    blocks_expected: blocks,
                });
            }
        }
        Trees {
            source,
            contents,
            data_blocks: u64::MAX,
            time: u32::MAX,
            doubted: BTreeSet::new(),
            adopted: BTreeMap::new(),
        }
    }

    /// Believes in nothing outside of what a superblock says there is.
    pub(super) fn set_limits(&mut self, superblock: &Superblock) {
        let blocks = usize::try_from(superblock.metadata_map.nr_blocks).unwrap_or(usize::MAX);
        if blocks > 0 {
            self.contents.truncate(blocks);
        }
        self.data_blocks = superblock.data_map.nr_blocks;
        self.time = superblock.time;
    }

    pub(super) fn doubt(&mut self, nodes: BTreeSet<u64>) {
        self.doubted = nodes;
    }

    /// Puts `children` in the place of a lost node.
    pub(super) fn adopt(&mut self, lost: u64, children: Vec<Child>) {
        self.adopted.insert(lost, children);
    }

    /// Takes that back.
    pub(super) fn disown(&mut self, lost: u64) {
        self.adopted.remove(&lost);
    }

    pub(super) fn source(&self) -> &'a dyn BlockSource {
        self.source
    }

    pub(super) fn len(&self) -> u64 {
        self.contents.len() as u64
    }

    pub(super) fn content(&self, block: u64) -> Content {
        let content = usize::try_from(block)
            .ok()
            .and_then(|at| self.contents.get(at));
        content.copied().unwrap_or(Content::Unusable)
    }

    /// The node in a block, if it is one of that tree and not doubted.
    pub(super) fn node(&self, role: Role, block: u64) -> Option<Node> {
        let is_usable = match self.content(block) {
            Content::Inner => true,
            Content::Leaf(value_size) => u32::from(value_size) == Node::leaf_value_size(role),
            _ => false,
        };
        if !is_usable || self.doubted.contains(&block) {
            return None;
        }
        let node = Node::load(self.source, role, block).ok()?;
        let is_right = match role {
            Role::Mapping if node.is_leaf() => self.can_map(&node),
            // A mapping leaf that was here before looks alike, but names no metadata.
            Role::TopLevel if node.is_leaf() => {
                (0..node.len()).all(|index| node.pointer(index) < self.len())
            }
            _ => true,
        };
        is_right.then_some(node)
    }

    fn can_map(&self, node: &Node) -> bool {
        // Two are never mapped to one block. A top-level leaf that is taken for one of mappings looks so.
        let blocks = || node.mappings().map(|mapping| mapping.data_block);
        let has_twins = blocks()
            .zip(blocks().skip(1))
            .any(|(one, next)| one == next);
        let is_possible =
            |mapping: Mapping| mapping.data_block < self.data_blocks && mapping.time <= self.time;
        !has_twins && node.mappings().all(is_possible)
    }

    fn find(&self, role: Role, place: Place) -> Option<Found> {
        let found = match self.adopted.get(&place.block) {
            Some(children) => Found::Inner(children.clone()),
            None => {
                let node = self.node(role, place.block)?;
                if node.is_leaf() {
                    Found::Leaf(node)
                } else {
                    Found::Inner(children(&node))
                }
            }
        };
        let (is_leaf, ends) = match &found {
            Found::Leaf(node) => (true, node.first_key().zip(node.last_key())),
            Found::Inner(children) => {
                let ends = children.first().zip(children.last());
                (false, ends.map(|(first, last)| (first.key, last.key)))
            }
        };
        let is_kind = place.is_leaf.is_none_or(|expected| expected == is_leaf);
        let is_inside =
            ends.is_none_or(|(first, last)| place.range.has(first) && place.range.has(last));
        (is_kind && is_inside && place.depth < LEVELS_MAX).then_some(found)
    }

    /// Walks the tree at `root` in the order of its keys.
    pub(super) fn walk(&self, role: Role, root: u64, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        let place = Place {
            block: root,
            range: KeyRange::ALL,
            depth: 0,
            is_leaf: None,
        };
        self.step(role, place, visitor)
    }

    /// At most `LEVELS_MAX` deep. Ends on every input: ranges of siblings do not overlap, so that no node
    /// fits in two of them.
    fn step(&self, role: Role, place: Place, visitor: &mut dyn Visitor) -> ControlFlow<()> {
        if !visitor.named(place.block) {
            return ControlFlow::Continue(());
        }
        match self.find(role, place) {
            Some(Found::Leaf(node)) => visitor.leaf(place.block, &node),
            Some(Found::Inner(children)) => {
                let is_leaf = self.are_leaves(&children);
                for (index, child) in children.iter().enumerate() {
                    let next = children.get(index + 1).map(|next| next.key);
                    let place = Place {
                        block: child.block,
                        range: place.range.of_child(child.key, next),
                        depth: place.depth + 1,
                        is_leaf,
                    };
                    self.step(role, place, visitor)?;
                }
                ControlFlow::Continue(())
            }
            None => {
                visitor.lost(Lost {
                    block: place.block,
                    range: place.range,
                    is_leaf: place.is_leaf,
                });
                ControlFlow::Continue(())
            }
        }
    }

    /// Whether siblings are leaves, as most of them say.
    fn are_leaves(&self, children: &[Child]) -> Option<bool> {
        let (mut leaves, mut inner) = (0, 0);
        for child in children {
            if self.adopted.contains_key(&child.block) {
                inner += 1;
            } else if !self.doubted.contains(&child.block) {
                match self.content(child.block) {
                    Content::Inner => inner += 1,
                    Content::Leaf(_) => leaves += 1,
                    _ => {}
                }
            }
        }
        (leaves != inner).then_some(leaves > inner)
    }

    /// How many entries a mapping tree has; none if part of it is lost.
    pub(super) fn count(&self, root: u64) -> Option<u64> {
        let counted = self.count_what_is_there(root);
        (counted.lost.is_empty()).then_some(counted.entries)
    }

    pub(super) fn count_what_is_there(&self, root: u64) -> Counted {
        let mut counted = Counted::default();
        let _ = self.walk(Role::Mapping, root, &mut counted);
        counted
    }
}

/// What there is of a mapping tree.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) entries: u64,
    pub(super) first: Option<u64>,
    pub(super) last: Option<u64>,
    pub(super) lost: Vec<Lost>,
}

impl Visitor for Counted {
    fn leaf(&mut self, _: u64, node: &Node) -> ControlFlow<()> {
        self.entries += u64::from(node.entries());
        self.first = self.first.or(node.first_key());
        self.last = node.last_key().or(self.last);
        ControlFlow::Continue(())
    }

    fn lost(&mut self, lost: Lost) {
        self.lost.push(lost);
    }
}

/// The children of an inner node.
pub(super) fn children(node: &Node) -> Vec<Child> {
    let child = |index| Child {
        key: node.key(index),
        block: node.pointer(index),
    };
    (0..node.len()).map(child).collect()
}
