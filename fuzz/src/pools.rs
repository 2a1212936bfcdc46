//! Real pools, of which inputs are changes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use metadata_btree::{BLOCK_SIZE, Block, BlockKind, BlockNr};
use pool::{
    BlockSize, DeviceName, DeviceRecord, Identity, MappingRecord, NewDevice, Pool, PoolRecord,
    Restore, ThinId,
};
use reactor::block_on;

use crate::machine::{Bytes, Contents, Host, Image, Machine};

/// Bytes of a data block of these pools.
pub const BLOCK_BYTES: u64 = 65_536;

/// A real pool, and what each of its metadata blocks is.
pub struct RealPool {
    pub contents: Contents,
    pub kinds: BTreeMap<u64, BlockKind>,
}

/// Pools made by the kernel (`pools.py`), as sparse images.
const KERNEL_POOLS: [&[u8]; 2] = [
    include_bytes!("../pools/2-single.blocks"),
    include_bytes!("../pools/6-grown-held-origin.blocks"),
];

/// All pools there are.
pub fn all() -> &'static [RealPool] {
    static POOLS: OnceLock<Vec<RealPool>> = OnceLock::new();
    POOLS.get_or_init(|| {
        let mut contents = vec![empty(), shared(), deep(), many()];
        contents.extend(KERNEL_POOLS.into_iter().map(decode));
        contents.into_iter().map(real_pool).collect()
    })
}

/// A pool that nobody has closed, with its log.
pub fn killed() -> &'static RealPool {
    static POOL: OnceLock<RealPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let machine = Machine::new(shared());
        let pool = machine.open().unwrap();
        for (volume, block) in [("a", 0), ("b", 0), ("b", 1), ("a", 5)] {
            write(&pool, volume, block, 4096);
        }
        block_on(pool.open_device(&name("a")).unwrap().flush()).unwrap();
        block_on(pool.commit()).unwrap();
        write(&pool, "a", 1, 4096);
        write(&pool, "a", 1, 8192);
        write(&pool, "b", 2, 65_536);
        let volume = pool.open_device(&name("b")).unwrap();
        block_on(volume.discard(0, BLOCK_BYTES, false)).unwrap();
        real_pool(machine.contents())
    })
}

fn real_pool(contents: Contents) -> RealPool {
    let kind_of = |(nr, bytes): (&u64, &Arc<Bytes>)| {
        let mut block = Block::zeroed();
        *block.as_bytes_mut() = **bytes;
        let kinds = [
            BlockKind::Superblock,
            BlockKind::Node,
            BlockKind::Bitmap,
            BlockKind::Index,
        ];
        let found = kinds
            .into_iter()
            .find(|kind| kind.verify(&block, BlockNr(*nr)).is_ok());
        found.map(|kind| (*nr, kind))
    };
    let kinds = contents.metadata.blocks.iter().filter_map(kind_of);
    RealPool {
        kinds: kinds.collect(),
        contents,
    }
}

pub fn name(text: &str) -> DeviceName {
    text.parse().unwrap()
}

/// A device to be made.
pub fn new(text: &str) -> NewDevice {
    NewDevice {
        name: name(text),
        identity: Identity {
            uuid: format!("uuid-{text}"),
            created: "2025-01-01T00:00:00Z".to_owned(),
        },
    }
}

fn write(pool: &Arc<Pool<Host>>, volume: &str, block: u64, len: usize) {
    let device = pool.open_device(&name(volume)).unwrap();
    let data = vec![7; len];
    block_on(device.write(block * BLOCK_BYTES, &data, false)).unwrap();
}

fn formatted() -> Machine {
    let machine = Machine::new(Contents::default());
    machine.metadata().0.write().block_count = 256;
    let metadata = machine.metadata();
    Pool::<Host>::format(metadata, BlockSize::DEFAULT, 256, 1000).unwrap();
    machine
}

fn empty() -> Contents {
    formatted().contents()
}

/// Two volumes, of which one has four snapshots, so that some blocks are counted more than three times.
fn shared() -> Contents {
    let machine = formatted();
    let pool = machine.open().unwrap();
    for volume in ["a", "b"] {
        block_on(pool.create_volume(new(volume), 16 * BLOCK_BYTES, None)).unwrap();
        for block in [0, 1, 2, 9] {
            write(&pool, volume, block, 65_536);
        }
    }
    for (index, snapshot) in ["a@1", "a@2", "a@3", "a@4"].into_iter().enumerate() {
        block_on(pool.create_snapshots(vec![new(snapshot)])).unwrap();
        write(&pool, "a", index as u64, 65_536);
        block_on(pool.commit()).unwrap();
    }
    block_on(pool.clone_device(&name("a@2"), new("c"))).unwrap();
    block_on(pool.close()).unwrap();
    machine.contents()
}

/// A pool made of mappings alone, of which no data was ever written.
fn of_mappings(devices: u32, mappings: impl Fn(u32, u64) -> MappingRecord, count: u64) -> Contents {
    let machine = Machine::new(Contents::default());
    machine.metadata().0.write().block_count = 512;
    let record = PoolRecord {
        time: 1,
        transaction_id: 5,
        block_size: BlockSize::DEFAULT,
        // Two bitmaps.
        data_blocks: 16_400,
    };
    let mut restore = Restore::begin(machine.metadata(), record, 512).unwrap();
    for device in 0..devices {
        let record = DeviceRecord {
            id: ThinId::new(device).unwrap(),
            transaction_id: 0,
            creation_time: 0,
            snapshotted_time: 0,
        };
        restore.begin_device(record).unwrap();
        for index in 0..count {
            restore.map(mappings(device, index)).unwrap();
        }
        restore.end_device().unwrap();
    }
    restore.commit().unwrap();
    machine.contents()
}

/// Trees with inner nodes, of which a snapshot shares some.
fn deep() -> Contents {
    let mapping = |device: u32, index| MappingRecord {
        virtual_block: 3 * index,
        data_block: 2 * index + 1500 * u64::from(device),
        time: 0,
    };
    let machine = Machine::new(of_mappings(2, mapping, 700));
    let pool = machine.open().unwrap();
    block_on(pool.create_snapshots(vec![new("thin-0@s")])).unwrap();
    for block in [1, 900] {
        write(&pool, "thin-0", block, 65_536);
    }
    block_on(pool.close()).unwrap();
    machine.contents()
}

/// So many devices that their trees have inner nodes; all map the same blocks.
fn many() -> Contents {
    let mapping = |_, index| MappingRecord {
        virtual_block: index,
        data_block: 7 + index,
        time: 1,
    };
    of_mappings(140, mapping, 3)
}

/// A sparse image: how many blocks there are, then number, length and bytes of each that is not zero.
fn decode(mut bytes: &[u8]) -> Contents {
    fn number<const LEN: usize>(bytes: &mut &[u8]) -> Option<u64> {
        let (field, rest) = bytes.split_first_chunk::<LEN>()?;
        *bytes = rest;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        )
    }
    let mut metadata = Image {
        block_count: number::<4>(&mut bytes).unwrap(),
        ..Image::default()
    };
    while let Some(nr) = number::<4>(&mut bytes) {
        let len = usize::try_from(number::<2>(&mut bytes).unwrap()).unwrap();
        let (block, rest) = bytes.split_at(len.min(BLOCK_SIZE));
        metadata.block_mut(nr)[..len].copy_from_slice(block);
        bytes = rest;
    }
    Contents {
        metadata,
        ..Contents::default()
    }
}
