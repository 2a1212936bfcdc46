//! What a check can find, as types whose `Display` is the message for people.

use std::fmt;
use std::io;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// A count is higher than there are references, so that space counts as used for too long. Harmless but
    /// for the space.
    Leak,
    /// The metadata contradicts itself or the format. Writing to the pool may lose data.
    Damage,
}

/// What a fault costs, if nothing else is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cost {
    /// Nothing that a repair does not make anew from the mappings: counts, details, free space.
    Nothing,
    /// The metadata snapshot, which no device needs.
    MetadataSnapshot,
    /// Mappings: [`Report::losses`](crate::Report::losses) and [`Report::lost_ids`](crate::Report::lost_ids)
    /// say which.
    Mappings,
    /// That cannot be told.
    Unknown,
    /// Every device, unless there is a copy of the superblock.
    Everything,
}

/// The four kinds of metadata block, told apart by their checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockKind {
    /// Block 0, or the copy that is a metadata snapshot.
    Superblock,
    /// A node of any tree.
    Node,
    /// 16320 two-bit reference counts.
    Bitmap,
    /// The metadata space map's list of bitmaps.
    MetadataIndex,
}

/// What a metadata block is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Block 0.
    Superblock,
    /// The superblock copy named by `held_root`.
    MetadataSnapshot,
    /// A node of the tree from device ids to mapping tree roots.
    TopLevel,
    /// A node of a device's mapping tree.
    Mapping,
    /// A node of the device details tree.
    Details,
    /// A node of the data space map's index.
    DataIndex,
    /// A bitmap of the data space map.
    DataBitmap,
    /// A node of the data space map's overflow tree.
    DataOverflow,
    /// The metadata space map's index block.
    MetadataIndex,
    /// A bitmap of the metadata space map.
    MetadataBitmap,
    /// A node of the metadata space map's overflow tree.
    MetadataOverflow,
}

/// One of a pool's two space maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpaceMap {
    /// Counts the blocks of the data store.
    Data,
    /// Counts the metadata blocks.
    Metadata,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The metadata block in which the fault is, if it is in one.
    pub block: Option<u64>,
    /// The thin devices that are affected, in ascending order, where that is known. At most 64 are
    /// named.
    pub devices: Vec<u32>,
    /// What it costs.
    pub cost: Cost,
    /// What is wrong.
    pub kind: FindingKind,
}

impl Finding {
    pub(crate) fn new(block: Option<u64>, kind: FindingKind) -> Self {
        let severity = match kind {
            FindingKind::Leaked { .. } => Severity::Leak,
            FindingKind::BadCount {
                stored, expected, ..
            } if stored > expected => Severity::Leak,
            _ => Severity::Damage,
        };
        Self {
            severity,
            block,
            devices: Vec::new(),
            cost: Cost::Everything,
            kind,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(block) = self.block {
            write!(f, "metadata block {block}: ")?;
        }
        write!(f, "{}", self.kind)?;
        match self.devices.as_slice() {
            [] => Ok(()),
            [device] => write!(f, " (affects thin device {device})"),
            devices => {
                write!(f, " (affects thin devices ")?;
                for (index, device) in devices.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(f, "{separator}{device}")?;
                }
                write!(f, ")")
            }
        }
    }
}

/// What is wrong. Fields that name a child, key or index locate the fault inside
/// [`Finding::block`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "each field is explained by the message it appears in"
)]
pub enum FindingKind {
    /// The size of the metadata store could not be found out.
    #[error("cannot find out the size of the metadata store: {cause}")]
    SizeUnknown { cause: io::ErrorKind },
    /// The store failed to deliver the block.
    #[error("cannot read: {cause}")]
    Unreadable { cause: io::ErrorKind },
    /// The contents do not match the checksum.
    #[error("bad checksum ({kind}): expected {expected:#010x}, found {found:#010x}")]
    BadChecksum {
        kind: BlockKind,
        expected: u32,
        found: u32,
    },
    /// An intact block of another kind.
    #[error("wrong kind of block: expected a {expected}, found a {found}")]
    WrongKind {
        expected: BlockKind,
        found: BlockKind,
    },
    /// An intact block that belongs elsewhere.
    #[error("wrong own block number ({kind}): found {found}")]
    WrongOwnNumber { kind: BlockKind, found: u64 },

    /// Block 0 is all zero.
    #[error("not formatted: the superblock is all zero")]
    NotFormatted,
    /// Not thin pool metadata.
    #[error("bad magic: expected 27022010, found {found}")]
    BadMagic { found: u64 },
    /// Not version 2.
    #[error("unsupported version: expected 2, found {found}")]
    BadVersion { found: u32 },
    /// A superblock's `metadata_block_size` is not 8 sectors.
    #[error("bad metadata block size: expected 8 sectors, found {found}")]
    BadMetadataBlockSize { found: u32 },
    /// A superblock's `data_block_size` is out of range.
    #[error(
        "bad data block size: expected a multiple of 128 from 128 to 2097152 sectors, found {found}"
    )]
    BadDataBlockSize { found: u32 },
    /// Bytes that must be zero are not.
    #[error("byte {offset} of the superblock is {found:#04x} but must be zero")]
    SuperblockTail { offset: usize, found: u8 },
    /// Bits are set in a flags field that this version does not know or does not allow.
    #[error("unknown bits in {field}: {bits:#x}")]
    UnknownFlags { field: &'static str, bits: u32 },
    /// `metadata_nr_blocks` is zero or larger than the metadata space map.
    #[error(
        "metadata_nr_blocks is {found}: expected 1 to {nr_blocks}, the size of the metadata space map"
    )]
    BadFormatSize { found: u64, nr_blocks: u64 },
    /// The pool's time no longer fits in a mapping.
    #[error("the pool's time is {found}: expected at most {max}")]
    BadTime { found: u32, max: u32 },
    /// A space map covers more blocks than there are, or none where there must be some.
    #[error("the {map} space map covers {nr_blocks} blocks: expected {min} to {max}")]
    BadMapSize {
        map: SpaceMap,
        nr_blocks: u64,
        min: u64,
        max: u64,
    },
    /// A metadata snapshot names another metadata snapshot.
    #[error("the metadata snapshot names metadata snapshot {held_root} itself")]
    NestedSnapshot { held_root: u64 },
    /// A field of the metadata snapshot contradicts the pool's.
    #[error("{field} of the metadata snapshot is {found}: expected {expected}, as in the pool")]
    SnapshotDiffers {
        field: &'static str,
        found: u64,
        expected: u64,
    },
    /// The metadata snapshot is newer than the pool.
    #[error("the metadata snapshot has time {found}, later than the pool's {pool_time}")]
    SnapshotTime { found: u32, pool_time: u32 },
    /// The metadata snapshot names a space map.
    #[error("the metadata snapshot's {map} space map root is not zero")]
    SnapshotSpaceMap { map: SpaceMap },

    /// A pointer leads outside the metadata.
    #[error("points to metadata block {target} as {role}: expected a number below {limit}")]
    OutOfRange { role: Role, target: u64, limit: u64 },
    /// A block is used in two ways.
    #[error("used both as {first} and as {second}")]
    TwoRoles { first: Role, second: Role },
    /// A block that cannot be shared has two references.
    #[error("referred to twice as {role}")]
    UsedTwice { role: Role },
    /// A node is its own descendant.
    #[error("part of a cycle ({role})")]
    Cycle { role: Role },
    /// A tree has more levels than the metadata could fill.
    #[error("tree deeper than {levels} levels ({role})")]
    TooDeep { role: Role, levels: usize },

    /// A node is neither exactly internal nor exactly leaf.
    #[error("bad node flags ({role}): expected 1 or 2, found {found}")]
    BadNodeFlags { role: Role, found: u32 },
    /// A node's value size is not its tree's.
    #[error("bad value size ({role}): expected {expected}, found {found}")]
    BadValueSize {
        role: Role,
        expected: u32,
        found: u32,
    },
    /// A node's capacity is not the one its value size demands.
    #[error("bad max_entries ({role}): expected {expected}, found {found}")]
    BadMaxEntries {
        role: Role,
        expected: u32,
        found: u32,
    },
    /// A node claims more entries than it has room for.
    #[error("bad nr_entries ({role}): expected at most {max}, found {found}")]
    BadNrEntries { role: Role, max: u32, found: u32 },
    /// An internal node has no children.
    #[error("internal node without entries ({role})")]
    EmptyInternal { role: Role },
    /// Keys do not strictly ascend.
    #[error("keys out of order ({role}): key {index} is {key}, the one before it {previous}")]
    KeyOrder {
        role: Role,
        index: usize,
        key: u64,
        previous: u64,
    },
    /// A child holds a key below its parent's key for it.
    #[error(
        "key {index} is {key} but its child, metadata block {child}, begins at {first} ({role})"
    )]
    KeyTooLarge {
        role: Role,
        index: usize,
        key: u64,
        child: u64,
        first: u64,
    },
    /// A child holds a key at or above its right neighbour's key: lookups miss it.
    #[error(
        "key {index} is {key} but the child before it, metadata block {child}, reaches {last} ({role})"
    )]
    KeyTooSmall {
        role: Role,
        index: usize,
        key: u64,
        child: u64,
        last: u64,
    },
    /// Leaves at different depths.
    #[error(
        "unequal depth ({role}): child metadata block {child} has {found} levels below it, expected {expected}"
    )]
    UnequalDepth {
        role: Role,
        child: u64,
        expected: u8,
        found: u8,
    },
    /// A node that is not a root is less than a third full.
    #[error("under-full node ({role}): {entries} entries, expected at least {min}")]
    UnderFull { role: Role, entries: u32, min: u32 },

    /// A device id needs more than 24 bits.
    #[error("device id {id} does not fit in 24 bits ({role})")]
    BadDeviceId { role: Role, id: u64 },
    /// A device has mappings but no details.
    #[error("thin device {id} has a mapping tree but no details")]
    DetailsMissing { id: u64 },
    /// A device has details but no mapping tree.
    #[error("thin device {id} has details but no mapping tree")]
    MappingsMissing { id: u64 },
    /// `mapped_blocks` is not the number of entries.
    #[error(
        "thin device {id} says {found} mapped blocks: expected {expected}, the mappings it has"
    )]
    BadMappedBlocks { id: u64, found: u64, expected: u64 },
    /// A device's time lies ahead of the pool's.
    #[error("thin device {id} has {field} {found}, later than the time {pool_time}")]
    DeviceTime {
        id: u64,
        field: &'static str,
        found: u32,
        pool_time: u32,
    },
    /// A device was last snapshotted before it existed.
    #[error(
        "thin device {id} has snapshotted_time {snapshotted}, before its creation at {created}"
    )]
    SnapshottedBeforeCreation {
        id: u64,
        snapshotted: u32,
        created: u32,
    },
    /// Mappings name data blocks that do not exist.
    #[error(
        "virtual block {virtual_block} is mapped to data block {data_block}: expected a number below {nr_blocks} ({mappings} such mappings in this node)"
    )]
    MappingOutside {
        virtual_block: u64,
        data_block: u64,
        nr_blocks: u64,
        mappings: usize,
    },
    /// Mappings made later than now.
    #[error(
        "the mapping of virtual block {virtual_block} has time {found}, later than the pool's {pool_time} ({mappings} such mappings in this node)"
    )]
    MappingTime {
        virtual_block: u64,
        found: u32,
        pool_time: u32,
        mappings: usize,
    },
    /// A metadata snapshot reaches mappings made after it was taken.
    #[error(
        "the mapping tree of thin device {id} in the metadata snapshot has a mapping of time {found}, later than the snapshot's {held_time}"
    )]
    HeldMappingTime { id: u64, found: u32, held_time: u32 },

    /// Bitmaps that the size of the space map demands are not in its index.
    #[error("the {map} space map has no bitmaps {first} to {last}")]
    BitmapMissing {
        map: SpaceMap,
        first: u64,
        last: u64,
    },
    /// The index names a bitmap beyond the size of the space map.
    #[error("the {map} space map has a bitmap {index}: expected only {bitmaps}")]
    BitmapBeyondEnd {
        map: SpaceMap,
        index: u64,
        bitmaps: u64,
    },
    /// An index entry's number of free blocks is wrong.
    #[error("bitmap {index} of the {map} space map has nr_free {found}: expected {expected}")]
    BadNrFree {
        map: SpaceMap,
        index: u64,
        found: u32,
        expected: u32,
    },
    /// An index entry's hint hides free blocks.
    #[error(
        "bitmap {index} of the {map} space map has none_free_before {found}: expected at most {max}"
    )]
    BadNoneFreeBefore {
        map: SpaceMap,
        index: u64,
        found: u32,
        max: u32,
    },
    /// The number of blocks in use is wrong.
    #[error("the {map} space map has nr_allocated {found}: expected {expected}")]
    BadNrAllocated {
        map: SpaceMap,
        found: u64,
        expected: u64,
    },
    /// Counts of blocks that do not exist.
    #[error(
        "the {map} space map has a count of {stored} for {map} block {first}, beyond its end at {nr_blocks} ({blocks} such counts in this bitmap)"
    )]
    CountBeyondEnd {
        map: SpaceMap,
        first: u64,
        stored: u32,
        nr_blocks: u64,
        blocks: u64,
    },
    /// Reference counts that do not match the references.
    #[error("{}: reference count {stored}, expected {expected}", blocks(*map, *first, *last))]
    BadCount {
        map: SpaceMap,
        first: u64,
        last: u64,
        stored: u32,
        expected: u32,
    },
    /// Blocks that are counted as used although nothing refers to them.
    #[error("{}: leaked, reference count {stored}, expected 0", blocks(*map, *first, *last))]
    Leaked {
        map: SpaceMap,
        first: u64,
        last: u64,
        stored: u32,
    },
    /// Counts are higher than the references found, but not all references could be found.
    #[error(
        "{blocks} {map} blocks have a higher reference count than could be verified, as part of the metadata is unusable"
    )]
    CountsUnverified { map: SpaceMap, blocks: u64 },
    /// The bitmap says three or more, the overflow tree nothing.
    #[error(
        "the {map} space map has no overflow entry for {map} block {block}: expected {expected}"
    )]
    OverflowMissing {
        map: SpaceMap,
        block: u64,
        expected: u32,
    },
    /// An overflow entry for a count that the bitmap holds by itself.
    #[error(
        "the {map} space map has an overflow entry of {found} for {map} block {block}, whose bitmap says {stored}"
    )]
    OverflowNeedless {
        map: SpaceMap,
        block: u64,
        found: u32,
        stored: u32,
    },
    /// An overflow entry below three.
    #[error(
        "the {map} space map has an overflow entry of {found} for {map} block {block}: expected 3 or more"
    )]
    OverflowTooSmall {
        map: SpaceMap,
        block: u64,
        found: u32,
    },
    /// An overflow entry for a block that does not exist.
    #[error(
        "the {map} space map has an overflow entry for {map} block {block}: expected a number below {nr_blocks}"
    )]
    OverflowBeyondEnd {
        map: SpaceMap,
        block: u64,
        nr_blocks: u64,
    },
}

impl FindingKind {
    /// What the block is, or was to be, that cannot be used for it.
    pub(crate) fn role(&self) -> Option<Role> {
        match self {
            Self::OutOfRange { role, .. }
            | Self::TwoRoles { second: role, .. }
            | Self::UsedTwice { role }
            | Self::Cycle { role }
            | Self::TooDeep { role, .. }
            | Self::BadNodeFlags { role, .. }
            | Self::BadValueSize { role, .. }
            | Self::BadMaxEntries { role, .. }
            | Self::BadNrEntries { role, .. }
            | Self::EmptyInternal { role }
            | Self::KeyOrder { role, .. }
            | Self::KeyTooLarge { role, .. }
            | Self::KeyTooSmall { role, .. }
            | Self::UnequalDepth { role, .. }
            | Self::UnderFull { role, .. }
            | Self::BadDeviceId { role, .. } => Some(*role),
            _ => None,
        }
    }
}

/// Names one block or a run of them.
fn blocks(map: SpaceMap, first: u64, last: u64) -> String {
    if first == last {
        format!("{map} block {first}")
    } else {
        format!("{map} blocks {first} to {last}")
    }
}

impl fmt::Display for BlockKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::Node => "btree node",
            Self::Bitmap => "bitmap",
            Self::MetadataIndex => "metadata index",
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Superblock => "superblock",
            Self::MetadataSnapshot => "metadata snapshot",
            Self::TopLevel => "top-level mapping tree",
            Self::Mapping => "mapping tree",
            Self::Details => "device details tree",
            Self::DataIndex => "data bitmap index",
            Self::DataBitmap => "data bitmap",
            Self::DataOverflow => "data overflow tree",
            Self::MetadataIndex => "metadata index",
            Self::MetadataBitmap => "metadata bitmap",
            Self::MetadataOverflow => "metadata overflow tree",
        })
    }
}

impl fmt::Display for SpaceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Metadata => "metadata",
        })
    }
}
