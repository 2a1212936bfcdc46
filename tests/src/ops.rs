//! Operations on a pool, and a generator of them.

use pool::{DeviceName, Zeroing};
use serde::{Deserialize, Serialize};

use crate::model::{BLOCK, Model};
use crate::prng::Prng;

/// One operation. Offsets, lengths and sizes are in bytes, growth in blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are what their names say")]
pub enum Op {
    /// Creates a volume.
    Create {
        name: DeviceName,
        size: u64,
        has_origin: bool,
    },
    /// Takes snapshots at one instant.
    Snapshots(Vec<DeviceName>),
    /// Makes a writable volume.
    Clone { from: DeviceName, to: DeviceName },
    /// Removes a device.
    Remove(DeviceName),
    /// Gives back all blocks of removed devices.
    Reclaim,
    /// Renames a device.
    Rename { from: DeviceName, to: DeviceName },
    /// Changes a volume's size.
    Resize { name: DeviceName, size: u64 },
    /// Rolls a volume back.
    Rollback(DeviceName),
    /// Freezes a volume.
    Freeze(DeviceName),
    /// Adds data blocks.
    GrowData(u64),
    /// Adds metadata blocks.
    GrowMetadata(u64),
    /// Reads.
    Read {
        name: DeviceName,
        offset: u64,
        len: u64,
    },
    /// Writes.
    Write {
        name: DeviceName,
        offset: u64,
        len: u64,
        durable: bool,
    },
    /// Flushes a device.
    Flush { name: DeviceName },
    /// Discards.
    Discard {
        name: DeviceName,
        offset: u64,
        len: u64,
        durable: bool,
    },
    /// Zeroes.
    Zeroes {
        name: DeviceName,
        offset: u64,
        len: u64,
        #[serde(with = "ZeroingName")]
        zeroing: Zeroing,
        durable: bool,
    },
    /// Asks what is where.
    Extents {
        name: DeviceName,
        offset: u64,
        len: u64,
    },
    /// Commits.
    Commit,
    /// Opens a device for a while.
    Hold(DeviceName),
    /// Closes all that are held open.
    Release,
    /// Closes and opens the pool.
    Reopen,
}

/// How a script says [`Zeroing`].
#[derive(Serialize, Deserialize)]
#[serde(remote = "Zeroing")]
enum ZeroingName {
    MayUnmap,
    KeepMapped,
    Fast,
    FastKeepMapped,
}

impl Op {
    const CREATE: u64 = 0;
    const WRITE: u64 = 1;

    /// Its kind, as a number below 64.
    fn kind(&self) -> u64 {
        match self {
            Op::Create { .. } => Self::CREATE,
            Op::Write { .. } => Self::WRITE,
            Op::Snapshots(_) => 2,
            Op::Clone { .. } => 3,
            Op::Remove(_) => 4,
            Op::Reclaim => 5,
            Op::Rename { .. } => 6,
            Op::Resize { .. } => 7,
            Op::Rollback(_) => 8,
            Op::Freeze(_) => 9,
            Op::GrowData(_) => 10,
            Op::GrowMetadata(_) => 11,
            Op::Read { .. } => 12,
            Op::Flush { .. } => 13,
            Op::Discard { .. } => 14,
            Op::Zeroes { .. } => 15,
            Op::Extents { .. } => 16,
            Op::Commit => 17,
            Op::Hold(_) => 18,
            Op::Release => 19,
            Op::Reopen => 20,
        }
    }

    /// Whether it is a transaction of its own.
    pub fn is_control(&self) -> bool {
        matches!(
            self,
            Op::Create { .. }
                | Op::Snapshots(_)
                | Op::Clone { .. }
                | Op::Remove(_)
                | Op::Rename { .. }
                | Op::Resize { .. }
                | Op::Rollback(_)
                | Op::Freeze(_)
                | Op::GrowData(_)
                | Op::GrowMetadata(_)
        )
    }

    /// The device it is about, if it reads or changes one device's contents.
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Op::Read { name, .. }
            | Op::Write { name, .. }
            | Op::Flush { name }
            | Op::Discard { name, .. }
            | Op::Zeroes { name, .. }
            | Op::Extents { name, .. }
            | Op::Resize { name, .. }
            | Op::Create { name, .. }
            | Op::Freeze(name)
            | Op::Hold(name) => Some(name),
            Op::Clone { to, .. } | Op::Rename { to, .. } => Some(to),
            _ => None,
        }
    }
}

/// The UUID of the device that operation `number` makes as its `index`-th.
pub fn uuid(number: u64, index: usize) -> String {
    format!("{number}-{index}")
}

/// Draws operations that suit the model's state; now and then ones that must be refused.
#[derive(Clone, Debug)]
pub struct Generator {
    prng: Prng,
    /// Smallest size of a volume in blocks, and how many sizes there are.
    volume_blocks_min: u64,
    volume_blocks: u64,
    /// In percent, how many operations on devices change what is there rather than names.
    requests: u64,
    /// How many names volumes have.
    volumes: u64,
    /// Which kinds of operations there are: a bit each.
    kinds: u64,
    /// What offsets are multiples of, and how long requests are at most.
    units: Vec<u64>,
    lengths: Vec<u64>,
}

/// Blocks of a large volume: more than a leaf has entries.
const LARGE_BLOCKS: u64 = 260;

const VOLUMES: u64 = 6;
const SNAPSHOTS: u64 = 4;

impl Generator {
    /// A generator of any operations for a pool of about this many data blocks.
    pub fn new(mut prng: Prng, data_blocks: u64) -> Self {
        let most = (data_blocks / 2).clamp(4, 40);
        Generator {
            volume_blocks_min: 1,
            volume_blocks: 2 + prng.below(most),
            requests: 60 + prng.below(35),
            volumes: VOLUMES,
            kinds: u64::MAX,
            units: vec![1, 512, 4096, 4096, BLOCK, BLOCK],
            lengths: vec![512, 4096, 16_384, BLOCK, 2 * BLOCK, 5 * BLOCK],
            prng,
        }
    }

    /// A generator of only some kinds of operations, sizes and alignments: what is rare in a mixture of
    /// everything is common in one of these.
    /// Volumes have at most so many blocks.
    pub fn swarm(mut prng: Prng, volume_blocks: u64) -> Self {
        let mut all = Self::new(prng.fork(), 0);
        all.volume_blocks = 2 + prng.below(volume_blocks);
        all.requests = 60 + prng.below(40);
        all.volumes = 1 + prng.below(VOLUMES);
        all.kinds = prng.bits() | prng.bits() | 1 << Op::CREATE | 1 << Op::WRITE;
        let mut some_of = |values: &[u64]| -> Vec<u64> {
            (0..1 + prng.below(3))
                .map(|_| values[prng.index(values.len())])
                .collect()
        };
        all.units = some_of(&all.units);
        all.lengths = some_of(&all.lengths);
        all
    }

    /// A generator for volumes whose mappings do not fit into a node: they are many, and many change at a time.
    pub fn large(prng: Prng) -> Self {
        let mut all = Self::new(prng, 0);
        all.volume_blocks_min = LARGE_BLOCKS;
        all.volumes = 1;
        all.units = vec![BLOCK, BLOCK, LARGE_BLOCKS * BLOCK];
        all.lengths = vec![BLOCK, 20 * BLOCK, 2 * LARGE_BLOCKS * BLOCK];
        all
    }

    /// The next operation.
    pub fn next(&mut self, model: &Model) -> Op {
        loop {
            let op = self.any(model);
            if self.kinds >> op.kind() & 1 == 1 {
                return op;
            }
        }
    }

    fn any(&mut self, model: &Model) -> Op {
        if model.devices.is_empty() || !self.prng.chance(self.requests) {
            return self.control(model);
        }
        let name = self.some_device(model, 85);
        let size = model.devices.get(&name).map_or(BLOCK, |device| device.size);
        let (offset, len) = self.range(size);
        let durable = self.prng.chance(10);
        match self.prng.below(100) {
            0..50 => Op::Write {
                name,
                offset,
                len,
                durable,
            },
            50..62 => Op::Read { name, offset, len },
            62..74 => Op::Discard {
                name,
                offset,
                len,
                durable,
            },
            74..84 => Op::Zeroes {
                name,
                offset,
                len,
                zeroing: self.zeroing(),
                durable,
            },
            84..88 => Op::Extents { name, offset, len },
            88..96 => Op::Flush { name },
            96..98 => Op::Commit,
            _ => Op::Hold(name),
        }
    }

    fn control(&mut self, model: &Model) -> Op {
        match self.prng.below(100) {
            0..14 => Op::Create {
                name: self.volume_name(),
                size: self.size(),
                has_origin: self.prng.chance(15),
            },
            14..32 => {
                let count = if self.prng.chance(30) {
                    1 + self.prng.below(3)
                } else {
                    1
                };
                Op::Snapshots((0..count).map(|_| self.new_snapshot(model)).collect())
            }
            32..42 => Op::Clone {
                from: self.some_device(model, 40),
                to: self.volume_name(),
            },
            42..56 => Op::Remove(self.some_device(model, 50)),
            56..64 => Op::Reclaim,
            64..68 => {
                let from = self.some_device(model, 60);
                let to = if from.is_snapshot() && self.prng.chance(90) {
                    self.snapshot_of(&crate::model::volume_of(&from))
                } else {
                    self.volume_name()
                };
                Op::Rename { from, to }
            }
            68..76 => Op::Resize {
                name: self.some_device(model, 95),
                size: self.size(),
            },
            76..82 => Op::Rollback(self.some_snapshot(model)),
            82..83 => Op::Freeze(self.some_device(model, 90)),
            83..85 => Op::GrowData(1 + self.prng.below(8)),
            85..86 => Op::GrowMetadata(1 + self.prng.below(8)),
            86..90 => Op::Release,
            90..94 => Op::Reopen,
            _ => Op::Commit,
        }
    }

    fn volume_name(&mut self) -> DeviceName {
        let text = format!("v{}", self.prng.below(self.volumes));
        let Ok(name) = DeviceName::volume(&text) else {
            unreachable!("{text} is a name")
        };
        name
    }

    fn snapshot_of(&mut self, volume: &DeviceName) -> DeviceName {
        let text = format!("s{}", self.prng.below(SNAPSHOTS));
        let Ok(name) = volume.at(&text) else {
            unreachable!("{text} is a name")
        };
        name
    }

    fn new_snapshot(&mut self, model: &Model) -> DeviceName {
        let of = self.some_device(model, 100);
        self.snapshot_of(&crate::model::volume_of(&of))
    }

    /// A device that mostly exists, and is a volume in so many percent.
    fn some_device(&mut self, model: &Model, volumes: u64) -> DeviceName {
        if self.prng.chance(2) || model.devices.is_empty() {
            return self.volume_name();
        }
        let wants_snapshot = !self.prng.chance(volumes);
        let fitting: Vec<_> = model
            .devices
            .keys()
            .filter(|name| name.is_snapshot() == wants_snapshot)
            .collect();
        if fitting.is_empty() {
            let names: Vec<_> = model.devices.keys().collect();
            return names[self.prng.index(names.len())].clone();
        }
        fitting[self.prng.index(fitting.len())].clone()
    }

    fn some_snapshot(&mut self, model: &Model) -> DeviceName {
        let name = self.some_device(model, 0);
        if name.is_snapshot() {
            name
        } else {
            self.snapshot_of(&name)
        }
    }

    fn size(&mut self) -> u64 {
        let blocks = self.volume_blocks_min + self.prng.below(self.volume_blocks);
        match self.prng.below(4) {
            0 => blocks * BLOCK - 512 * self.prng.below(128),
            _ => blocks * BLOCK,
        }
    }

    fn range(&mut self, size: u64) -> (u64, u64) {
        if self.prng.chance(1) {
            return (self.prng.below(size + 1), 1 + self.prng.below(2 * BLOCK));
        }
        let unit = self.units[self.prng.index(self.units.len())];
        let most = self.lengths[self.prng.index(self.lengths.len())];
        let offset = self.prng.below(size) / unit * unit;
        let len = (1 + self.prng.below(most)).div_ceil(unit) * unit;
        (offset, len.min(size - offset))
    }

    fn zeroing(&mut self) -> Zeroing {
        [
            Zeroing::MayUnmap,
            Zeroing::KeepMapped,
            Zeroing::Fast,
            Zeroing::FastKeepMapped,
        ][self.prng.index(4)]
    }
}
