//! The pool whose metadata is damaged: six volumes and their snapshots, which share trees.

use std::sync::Arc;

use metadata_btree::BlockStore;
use pool::{BlockSize, OpenOptions, Pool, Stores};
use tests::Prng;
use tests::executor::block_on;
use tests::setup::{name, new};

use crate::stores::{History, Idle, Image, Memory, NoData};

pub const BLOCK: u64 = 65_536;
const METADATA_BLOCKS: usize = 300;

/// How large the pool is.
#[derive(Clone, Copy)]
pub struct Size {
    pub data_blocks: u64,
    /// Blocks that the first volume maps at first.
    pub mapped: u64,
}

/// Inner nodes in all trees of mappings, and few free metadata blocks, so that these are used again.
pub const SMALL: Size = Size {
    data_blocks: 12_000,
    mapped: 1000,
};

/// A pool, and what its stores hold.
pub struct Subject {
    pub size: Size,
    pub metadata: Arc<History>,
    pub catalog: Memory,
    pub log: Memory,
}

impl Subject {
    /// A pool that was used for a while, and closed.
    pub fn closed(size: Size) -> Self {
        let subject = Subject::formatted(size);
        let pool = subject.open().unwrap();
        subject.fill(&pool);
        block_on(pool.close()).unwrap();
        subject
    }

    pub fn formatted(size: Size) -> Self {
        let metadata = History::of(Image(vec![[0; 4096]; METADATA_BLOCKS]));
        let blocks = METADATA_BLOCKS as u64;
        let store = Arc::clone(&metadata) as Arc<dyn BlockStore>;
        Pool::<Idle>::format(store, BlockSize::DEFAULT, blocks, size.data_blocks).unwrap();
        Subject {
            size,
            metadata,
            catalog: Memory::default(),
            log: Memory::default(),
        }
    }

    pub fn open(&self) -> Result<Arc<Pool<Idle>>, pool::Error> {
        self.open_on(Arc::clone(&self.metadata))
    }

    /// The pool, with other metadata.
    pub fn open_on(&self, metadata: Arc<History>) -> Result<Arc<Pool<Idle>>, pool::Error> {
        let stores = Stores {
            metadata,
            data: NoData(self.size.data_blocks * BLOCK),
            catalog: Box::new(self.catalog.clone()),
            log: Box::new(self.log.clone()),
            // Repair is to do without.
            history: Box::new(Memory::default()),
        };
        Pool::open(Arc::new(Idle), stores, OpenOptions::default())
    }

    /// Writes, takes snapshots of volumes, snapshots' clones, discards, and writes on.
    pub fn fill(&self, pool: &Arc<Pool<Idle>>) {
        let mut prng = Prng::new(8);
        let mapped = self.size.mapped;
        for (volume, of) in [("a", 1), ("b", 2), ("c", 5)] {
            block_on(pool.create_volume(new(volume), 4 * mapped * BLOCK, None)).unwrap();
            let first = prng.below(mapped);
            write(pool, volume, first..first + mapped / of);
            scatter(pool, volume, &mut prng, mapped / 8);
        }
        for (snapshot, clone, of) in [("a@1", "d", "a"), ("d@1", "e", "d"), ("e@1", "f", "e")] {
            block_on(pool.create_snapshots(vec![new(snapshot)])).unwrap();
            scatter(pool, of, &mut prng, mapped / 16);
            block_on(pool.clone_device(&name(snapshot), new(clone))).unwrap();
            scatter(pool, clone, &mut prng, mapped / 16);
            let begin = prng.below(2 * mapped);
            discard(pool, clone, begin..begin + mapped / 10);
        }
        block_on(pool.create_snapshots(vec![new("a@2"), new("b@2"), new("f@2")])).unwrap();
        for volume in ["a", "b", "c", "f"] {
            scatter(pool, volume, &mut prng, mapped / 20);
        }
    }
}

pub fn write(pool: &Arc<Pool<Idle>>, volume: &str, blocks: std::ops::Range<u64>) {
    let device = pool.open_device(&name(volume)).unwrap();
    let bytes = vec![1; usize::try_from(BLOCK).unwrap()];
    for block in blocks {
        block_on(device.write(block * BLOCK, &bytes, false)).unwrap();
        if block % 512 == 0 {
            block_on(pool.commit()).unwrap();
        }
    }
    block_on(pool.commit()).unwrap();
}

fn discard(pool: &Arc<Pool<Idle>>, volume: &str, blocks: std::ops::Range<u64>) {
    let device = pool.open_device(&name(volume)).unwrap();
    let (at, len) = (blocks.start * BLOCK, (blocks.end - blocks.start) * BLOCK);
    block_on(device.discard(at, len, false)).unwrap();
    block_on(pool.commit()).unwrap();
}

/// Runs of blocks here and there.
fn scatter(pool: &Arc<Pool<Idle>>, volume: &str, prng: &mut Prng, count: u64) {
    let end = pool.info(&name(volume)).unwrap().size / BLOCK;
    let mut left = count;
    while left > 0 {
        let begin = prng.below(end - 32);
        let length = (1 + prng.below(24)).min(left);
        write(pool, volume, begin..begin + length);
        left -= length;
    }
}
