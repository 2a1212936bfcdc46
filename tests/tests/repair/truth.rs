//! What an intact image maps, and through which blocks: read here, with nobody's code but this.

use std::collections::{BTreeMap, BTreeSet};

use crate::stores::Image;

/// A mapping: virtual block, data block, time.
pub type Mapping = (u64, u64, u64);

/// Keys, from the first to before the end, if there is one.
pub type KeyRange = (u64, Option<u64>);

/// What a block is in an intact pool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    Superblock,
    TopLevel,
    Details,
    Inner,
    Leaf,
    SpaceMap,
}

/// A leaf of mappings.
#[derive(Clone, Default)]
pub struct Leaf {
    pub block: u64,
    pub mappings: Vec<Mapping>,
}

/// The truth about a pool.
#[derive(Default)]
pub struct Truth {
    /// The leaves of each device, in order.
    pub devices: BTreeMap<u64, Vec<Leaf>>,
    pub roots: BTreeMap<u64, u64>,
    /// What each block in use is.
    pub roles: BTreeMap<u64, Role>,
    /// The most devices that share one inner node or leaf.
    pub shared_by: usize,
    /// The most levels of a mapping tree.
    pub levels: usize,
}

pub fn u32_at(block: &[u8; 4096], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(block[at..at + 4].try_into().unwrap()))
}

pub fn u64_at(block: &[u8; 4096], at: usize) -> u64 {
    u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
}

/// Whether a node is a leaf, and its keys and values, cut to eight bytes.
pub fn entries(block: &[u8; 4096]) -> (bool, Vec<(u64, u64)>) {
    let is_leaf = u32_at(block, 4) == 2;
    let [count, max, size] = [16, 20, 24].map(|at| usize::try_from(u32_at(block, at)).unwrap());
    let entry = |index: usize| {
        let value = 32 + 8 * max + size * index;
        let value = match size {
            4 => u32_at(block, value),
            _ => u64_at(block, value),
        };
        (u64_at(block, 32 + 8 * index), value)
    };
    (is_leaf, (0..count).map(entry).collect())
}

pub fn mapping((key, value): (u64, u64)) -> Mapping {
    (key, value >> 24, value & 0xff_ffff)
}

impl Truth {
    pub fn of(image: &Image) -> Self {
        let mut truth = Truth::default();
        let superblock = &image.0[0];
        truth.roles.insert(0, Role::Superblock);
        let mut roots = Vec::new();
        truth.walk(
            image,
            u64_at(superblock, 320),
            Role::TopLevel,
            0,
            &mut |_, all| roots.extend(all),
        );
        truth.walk(
            image,
            u64_at(superblock, 328),
            Role::Details,
            0,
            &mut |_, _| {},
        );
        for map in [64, 192] {
            let overflow = u64_at(superblock, map + 24);
            truth.walk(image, overflow, Role::SpaceMap, 0, &mut |_, _| {});
        }
        let mut bitmaps = Vec::new();
        let data = u64_at(superblock, 64 + 16);
        truth.walk(image, data, Role::SpaceMap, 0, &mut |_, all| {
            bitmaps.extend(all.into_iter().map(|(_, bitmap)| bitmap));
        });
        let index = u64_at(superblock, 192 + 16);
        bitmaps.push(index);
        bitmaps.push(u64_at(&image.0[at(index)], 16));
        truth
            .roles
            .extend(bitmaps.into_iter().map(|block| (block, Role::SpaceMap)));
        let mut users: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        for (id, root) in roots {
            let mut leaves = Vec::new();
            let seen = truth.walk(image, root, Role::Leaf, 0, &mut |block, all| {
                let mappings = all.into_iter().map(mapping).collect();
                leaves.push(Leaf { block, mappings });
            });
            for block in seen {
                users.entry(block).or_default().insert(id);
            }
            truth.devices.insert(id, leaves);
            truth.roots.insert(id, root);
        }
        truth.shared_by = users.values().map(BTreeSet::len).max().unwrap_or(0);
        truth
    }

    /// Hands out the leaves of a tree in order; returns its blocks.
    fn walk(
        &mut self,
        image: &Image,
        block: u64,
        role: Role,
        depth: usize,
        leaf: &mut dyn FnMut(u64, Vec<(u64, u64)>),
    ) -> Vec<u64> {
        let (is_leaf, entries) = entries(&image.0[at(block)]);
        let is_inner = role == Role::Leaf && !is_leaf;
        self.roles
            .insert(block, if is_inner { Role::Inner } else { role });
        let mut blocks = vec![block];
        if is_leaf {
            leaf(block, entries);
            if role == Role::Leaf {
                self.levels = self.levels.max(depth + 1);
            }
        } else {
            for (_, child) in entries {
                blocks.extend(self.walk(image, child, role, depth + 1, leaf));
            }
        }
        blocks
    }

    pub fn mappings(&self) -> BTreeMap<u64, BTreeSet<Mapping>> {
        let all = |leaves: &Vec<Leaf>| {
            leaves
                .iter()
                .flat_map(|leaf| leaf.mappings.clone())
                .collect()
        };
        self.devices
            .iter()
            .map(|(id, leaves)| (*id, all(leaves)))
            .collect()
    }

    /// Where a node is in the trees of devices: the keys that its parents leave to it, first and end.
    pub fn places(&self, image: &Image, of: u64) -> BTreeMap<u64, Vec<KeyRange>> {
        let mut places: BTreeMap<u64, Vec<KeyRange>> = BTreeMap::new();
        for (id, root) in &self.roots {
            let mut found = Vec::new();
            find_places(image, *root, (0, None), of, &mut found);
            if !found.is_empty() {
                places.insert(*id, found);
            }
        }
        places
    }

    /// How many blocks a device has mapped.
    pub fn count(&self, id: u64) -> usize {
        self.devices[&id]
            .iter()
            .map(|leaf| leaf.mappings.len())
            .sum()
    }

    /// What can be had of each device when one block is lost: all mappings whose leaf is whole, since the
    /// space map tells which leaves belong to the last commit, and keys and details where. Only when the node
    /// is lost that names the roots, nothing tells devices apart but how much each has mapped.
    pub fn recoverable(&self, lost: u64) -> BTreeMap<u64, BTreeSet<Mapping>> {
        let has_roots = self.roles.get(&lost) != Some(&Role::TopLevel);
        let mut all = BTreeMap::new();
        for (id, leaves) in &self.devices {
            let mut others = self
                .roots
                .iter()
                .filter(|(_, root)| **root != self.roots[id]);
            let is_unlike = others.all(|(other, _)| self.count(*other) != self.count(*id));
            if has_roots || is_unlike {
                let whole = leaves.iter().filter(|leaf| leaf.block != lost);
                let mappings = whole.flat_map(|leaf| leaf.mappings.clone());
                all.insert(*id, mappings.collect());
            }
        }
        all
    }
}

fn find_places(image: &Image, block: u64, range: KeyRange, of: u64, found: &mut Vec<KeyRange>) {
    if block == of {
        return found.push(range);
    }
    let (is_leaf, children) = entries(&image.0[at(block)]);
    if is_leaf {
        return;
    }
    for (index, (key, child)) in children.iter().enumerate() {
        let next = children.get(index + 1).map(|(key, _)| *key);
        find_places(image, *child, (*key, next.or(range.1)), of, found);
    }
}

pub fn at(block: u64) -> usize {
    usize::try_from(block).unwrap()
}
