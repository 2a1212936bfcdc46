//! What the present commit says of the blocks of an earlier one.
//!
//! A data block still holds what an earlier commit mapped if it has been in use without a break: then nobody else
//! can have been given it. That is certain where a device that is there in both commits maps it at the same place
//! with the same time. If it alone had the block, it is its own at that place, whatever happened in between; if
//! others shared it, a snapshot was taken after that time, and a block that is given away later gets a later one.
//! Of any other block nothing is certain: it may have been another's meanwhile, or its space given back.
//!
//! Blocks that only one device has are overwritten in place, so what they hold may be younger than the commit.

use std::collections::BTreeMap;
use std::io;

use crate::devices::Details;
use crate::finding::Role;
use crate::layout::{LoadError, le64};
use crate::node::Node;
use crate::source::BlockSource;
use crate::superblock::Superblock;
use crate::tree::LEVELS_MAX;

/// Ranges that are named of a device.
const RANGES_MAX: usize = 16;

/// An earlier commit, beside the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compared {
    /// The devices of the earlier commit, by ascending id.
    pub devices: Vec<ComparedDevice>,
    /// Devices that only the present commit has.
    pub created: Vec<u32>,
}

/// A device of the earlier commit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComparedDevice {
    /// Its number.
    pub id: u32,
    /// Mappings it had.
    pub mappings: u64,
    /// How many of them name data blocks that may be another's by now.
    pub lost: u64,
    /// Those, first and last virtual block of each range; at most 16 ranges.
    pub lost_ranges: Vec<(u64, u64)>,
    /// How many mappings it has now that it had not.
    pub later: u64,
}

/// Compares the commit of the superblock `earlier` with that of `present`. A check must have found both sound.
///
/// # Errors
/// When a block cannot be read, or is not what it was.
pub fn compare(
    source: &dyn BlockSource,
    earlier: &[u8; 4096],
    present: &[u8; 4096],
) -> io::Result<Compared> {
    let earlier = Devices::of(source, earlier)?;
    let present = Devices::of(source, present)?;
    let mut kept = Kept::new(earlier.data_blocks);
    let mut later = BTreeMap::new();
    for (id, device) in &earlier.by_id {
        if let Some(now) = present.same(*id, device) {
            let count = note_kept(source, device.root, now.root, &mut kept)?;
            later.insert(*id, count);
        }
    }
    let mut devices = Vec::new();
    for (id, device) in &earlier.by_id {
        let mut compared = ComparedDevice {
            id: *id,
            mappings: 0,
            lost: 0,
            lost_ranges: Vec::new(),
            later: later.get(id).copied().unwrap_or(0),
        };
        let mut mappings = Entries::of(source, Role::Mapping, device.root)?;
        while let Some((virtual_block, value)) = mappings.next()? {
            compared.mappings += 1;
            if !kept.has(data_block(&value)) {
                compared.note_lost(virtual_block);
            }
        }
        devices.push(compared);
    }
    let is_new = |id: &u32, device: &Device| earlier.same(*id, device).is_none();
    let created = present
        .by_id
        .iter()
        .filter(|(id, device)| is_new(id, device));
    Ok(Compared {
        devices,
        created: created.map(|(id, _)| *id).collect(),
    })
}

impl ComparedDevice {
    fn note_lost(&mut self, virtual_block: u64) {
        self.lost += 1;
        let is_room = self.lost_ranges.len() < RANGES_MAX;
        match self.lost_ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(virtual_block) => *last = virtual_block,
            _ if is_room => self.lost_ranges.push((virtual_block, virtual_block)),
            _ => {}
        }
    }
}

/// Notes which data blocks two versions of a device's tree have at the same place with the same time. Returns how many
/// mappings only the present one has.
fn note_kept(
    source: &dyn BlockSource,
    earlier: u64,
    present: u64,
    kept: &mut Kept,
) -> io::Result<u64> {
    let mut before = Entries::of(source, Role::Mapping, earlier)?;
    let mut now = Entries::of(source, Role::Mapping, present)?;
    let mut later = 0;
    let mut old = before.next()?;
    while let Some((at, value)) = now.next()? {
        while old.is_some_and(|(before, _)| before < at) {
            old = before.next()?;
        }
        if old == Some((at, value)) {
            kept.note(data_block(&value));
        } else {
            later += 1;
        }
    }
    Ok(later)
}

fn data_block(value: &Value) -> u64 {
    le64(value, 0) >> 24
}

/// A bit for each data block.
struct Kept(Vec<u64>);

impl Kept {
    fn new(data_blocks: u64) -> Self {
        let words = usize::try_from(data_blocks.div_ceil(64)).unwrap_or(0);
        Kept(vec![0; words])
    }

    fn place(block: u64) -> (usize, u64) {
        let word = usize::try_from(block / 64).unwrap_or(usize::MAX);
        (word, 1 << (block % 64))
    }

    fn note(&mut self, block: u64) {
        let (word, bit) = Self::place(block);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    fn has(&self, block: u64) -> bool {
        let (word, bit) = Self::place(block);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

struct Device {
    root: u64,
    details: Details,
}

/// The devices of a commit.
struct Devices {
    by_id: BTreeMap<u32, Device>,
    data_blocks: u64,
}

impl Devices {
    fn of(source: &dyn BlockSource, superblock: &[u8; 4096]) -> io::Result<Self> {
        let superblock = Superblock::load(source, Some(superblock)).map_err(changed)?;
        let mut roots = BTreeMap::new();
        let mut top_level = Entries::of(source, Role::TopLevel, superblock.mapping_root)?;
        while let Some((id, value)) = top_level.next()? {
            roots.insert(id, le64(&value, 0));
        }
        let mut by_id = BTreeMap::new();
        let mut details = Entries::of(source, Role::Details, superblock.details_root)?;
        while let Some((id, value)) = details.next()? {
            let (Some(root), Ok(number)) = (roots.get(&id), u32::try_from(id)) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            let details = Details::decode(&value);
            let root = *root;
            by_id.insert(number, Device { root, details });
        }
        Ok(Devices {
            by_id,
            data_blocks: superblock.data_map.nr_blocks,
        })
    }

    /// The device of that number, if it is not another by now: numbers are used again.
    fn same(&self, id: u32, device: &Device) -> Option<&Device> {
        let made = |device: &Device| (device.details.transaction_id, device.details.creation_time);
        let found = self.by_id.get(&id)?;
        (made(found) == made(device)).then_some(found)
    }
}

/// As much of a value as the largest has.
type Value = [u8; 24];

/// The entries of a tree, in order.
struct Entries<'a> {
    source: &'a dyn BlockSource,
    role: Role,
    /// The nodes on the way to the next entry, and where it goes on in each.
    path: Vec<(Node, usize)>,
}

impl<'a> Entries<'a> {
    fn of(source: &'a dyn BlockSource, role: Role, root: u64) -> io::Result<Self> {
        let node = Node::load(source, role, root).map_err(changed)?;
        Ok(Entries {
            source,
            role,
            path: vec![(node, 0)],
        })
    }

    fn next(&mut self) -> io::Result<Option<(u64, Value)>> {
        loop {
            let depth = self.path.len();
            let Some((node, index)) = self.path.last_mut() else {
                return Ok(None);
            };
            let at = *index;
            *index += 1;
            if at >= node.len() {
                self.path.pop();
            } else if node.is_leaf() {
                let mut value = [0; 24];
                let found = node.value(at);
                value[..found.len()].copy_from_slice(found);
                return Ok(Some((node.key(at), value)));
            } else {
                let child = node.pointer(at);
                if depth >= LEVELS_MAX {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let node = Node::load(self.source, self.role, child).map_err(changed)?;
                self.path.push((node, 0));
            }
        }
    }
}

fn changed(cause: LoadError) -> io::Error {
    match cause {
        LoadError::Read(cause) => cause,
        LoadError::Bad(kind) => io::Error::new(io::ErrorKind::InvalidData, kind),
    }
}
