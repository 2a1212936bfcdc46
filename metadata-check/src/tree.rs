//! Walks trees depth first, without recursion, each node once.
//!
//! What a node proves about all below it is kept as a [`Subtree`], so a parent that shares a child can be
//! verified against it without walking it again: bounds, depth and minimum fill are checked on every edge,
//! the contents of a node once.

use std::collections::BTreeSet;

use crate::ahead::Examined;
use crate::checker::{Checker, Pointer, Referred, Subtree};
use crate::finding::{FindingKind, Role};
use crate::node::Node;

/// Levels that are walked. The largest metadata device holds no sound tree with half as many, since each
/// node but the root has at least 56 children or entries.
pub(crate) const LEVELS_MAX: usize = 16;

/// A node on the way from the root to where the walk is.
struct Step {
    block: u64,
    node: Node,
    /// The next child to look at.
    next: usize,
    subtree: Subtree,
}

impl Checker<'_> {
    /// Walks the tree at `root` and returns what is known of it; `None` if its root is of no use.
    pub(crate) fn walk(&mut self, root: Pointer) -> Option<Subtree> {
        match self.refer(root) {
            Referred::Known(subtree) => Some(subtree),
            Referred::Bad => None,
            Referred::New => {
                let role = root.role;
                let mut path = vec![self.step_into(role, root.target, 0)?];
                loop {
                    if let Some(deeper) = self.advance(role, &mut path) {
                        path.push(deeper);
                        continue;
                    }
                    let Some(done) = path.pop() else {
                        unreachable!("the path is not empty")
                    };
                    let (block, subtree) = (done.block, done.subtree);
                    self.close(block, subtree);
                    if role != Role::Mapping {
                        self.retained.insert(block, done.node);
                    }
                    match path.last_mut() {
                        Some(parent) => self.join(role, parent, Some(subtree)),
                        None => return Some(subtree),
                    }
                }
            }
        }
    }

    /// Goes through the children of the last node of `path` until one has to be walked.
    fn advance(&mut self, role: Role, path: &mut [Step]) -> Option<Step> {
        let depth = path.len();
        let step = path.last_mut()?;
        if step.node.is_leaf() {
            return None;
        }
        while step.next < step.node.len() {
            let target = step.node.pointer(step.next);
            if depth >= LEVELS_MAX {
                self.findings.at(
                    step.block,
                    FindingKind::TooDeep {
                        role,
                        levels: LEVELS_MAX,
                    },
                );
                self.give_up(role);
                step.subtree.damaged = true;
                step.subtree.incomplete = true;
                return None;
            }
            let child = match self.refer(Pointer {
                from: step.block,
                role,
                target,
            }) {
                Referred::New => match self.step_into(role, target, depth) {
                    Some(deeper) => return Some(deeper),
                    None => None,
                },
                Referred::Known(subtree) => Some(subtree),
                Referred::Bad => None,
            };
            self.join(role, step, child);
        }
        None
    }

    /// Reads a new node at this depth and reports what can be told from it alone.
    fn step_into(&mut self, role: Role, block: u64, depth: usize) -> Option<Step> {
        let Examined {
            node,
            subtree,
            faults,
        } = self.read_node(role, block)?;
        for fault in faults {
            self.findings.at(block, fault);
        }
        if role == Role::Mapping && node.is_leaf() {
            self.count_mappings(&node);
        } else if !node.is_leaf() && depth + 1 < LEVELS_MAX {
            self.read_ahead(role, &node);
        }
        Some(Step {
            block,
            node,
            next: 0,
            subtree,
        })
    }

    /// Checks the edge from `parent` to its next child and adds the child to what is known of it.
    fn join(&mut self, role: Role, parent: &mut Step, child: Option<Subtree>) {
        let index = parent.next;
        parent.next += 1;
        let Some(child) = child else {
            parent.subtree.damaged = true;
            parent.subtree.incomplete = true;
            return;
        };
        let target = parent.node.pointer(index);
        let mut faults = Vec::new();
        if let Some(first) = child.first {
            let key = parent.node.key(index);
            if first < key {
                faults.push(FindingKind::KeyTooLarge {
                    role,
                    index,
                    key,
                    child: target,
                    first,
                });
            }
            if index + 1 < parent.node.len() && child.last >= parent.node.key(index + 1) {
                let (key, last) = (parent.node.key(index + 1), child.last);
                let index = index + 1;
                faults.push(FindingKind::KeyTooSmall {
                    role,
                    index,
                    key,
                    child: target,
                    last,
                });
            }
            parent.subtree.last = parent.subtree.last.max(child.last);
        }
        if let Some(found) = child.height {
            let expected = parent.subtree.height.map_or(found, |height| height - 1);
            if found != expected {
                faults.push(FindingKind::UnequalDepth {
                    role,
                    child: target,
                    expected,
                    found,
                });
            }
            parent.subtree.height.get_or_insert(found + 1);
        }
        let under_full = self.check_fill(role, target, child);
        parent.subtree.damaged |= child.damaged || under_full || !faults.is_empty();
        parent.subtree.incomplete |= child.incomplete;
        parent.subtree.entries = parent.subtree.entries.saturating_add(child.entries);
        parent.subtree.time_max = parent.subtree.time_max.max(child.time_max);
        for fault in faults {
            self.findings.at(parent.block, fault);
        }
    }

    /// Checks that `target` is full enough for a node that is not a root. It may be a root elsewhere, which
    /// is why this is a matter of the edge.
    fn check_fill(&mut self, role: Role, target: u64, child: Subtree) -> bool {
        let leaf = child.height == Some(0);
        let capacity = if leaf {
            Node::leaf_capacity(role)
        } else {
            Node::internal_capacity()
        };
        let min = capacity / 3;
        let entries = u32::from(child.node_entries);
        if entries >= min {
            return false;
        }
        let seen = self.seen_mut(target);
        seen.summary.damaged = true;
        if !seen.under_full_reported {
            seen.under_full_reported = true;
            self.findings
                .at(target, FindingKind::UnderFull { role, entries, min });
        }
        true
    }

    /// The leaves of a retained tree in the order of their keys, each once. Ends on every input, as no node
    /// is visited twice. Nodes that belong to a tree of another kind are left out: their values are not
    /// what the caller takes them for.
    pub(crate) fn leaves(&self, role: Role, root: u64) -> Vec<u64> {
        let mut leaves = Vec::new();
        let mut visited = BTreeSet::new();
        let mut waiting = vec![root];
        while let Some(block) = waiting.pop() {
            let Some(node) = self.retained.get(&block) else {
                continue;
            };
            if self.seen_as(role, block).is_none() || !visited.insert(block) {
                continue;
            }
            if node.is_leaf() {
                leaves.push(block);
            } else {
                waiting.extend((0..node.len()).rev().map(|index| node.pointer(index)));
            }
        }
        leaves
    }
}
