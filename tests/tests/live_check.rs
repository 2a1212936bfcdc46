//! A check of a pool in use: what it reads stays as it was, however much changes meanwhile.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::Arc;

use metadata_btree::{Block, BlockNr, BlockStore};
use metadata_check::{BlockSource, CheckOptions, Report, check};
use parking_lot::Mutex;
use pool::{INCOMPAT_LOG, Pool};
use tests::Prng;
use tests::executor::block_on;
use tests::setup::{expect_true_space, geometry, name, new};
use tests::sim::{Geometry, Machine, SimHost};

const BLOCK: u64 = 65_536;
const BLOCKS: u64 = 900;
/// Few, so that they are used again soon.
const METADATA_BLOCKS: u64 = 400;

/// Changes the pool before each block that it reads.
struct Busy<'a> {
    store: &'a dyn BlockStore,
    pool: &'a Arc<Pool<SimHost>>,
    work: Mutex<Work>,
}

struct Work {
    prng: Prng,
    snapshots: u64,
}

impl Work {
    /// Writes here and there, a snapshot now and then, and takes the one before away; all of it committed.
    fn go_on(&mut self, pool: &Arc<Pool<SimHost>>) {
        let volume = pool.open_device(&name("v")).unwrap();
        for _ in 0..8 {
            let at = self.prng.below(BLOCKS) * BLOCK;
            if self.prng.below(4) == 0 {
                block_on(volume.discard(at, BLOCK, true)).unwrap();
            } else {
                block_on(volume.write(at, &[1; 4096], false)).unwrap();
            }
        }
        if self.prng.below(3) == 0 {
            let last = self.snapshots;
            self.snapshots += 1;
            let next = new(format!("v@{}", self.snapshots));
            block_on(pool.create_snapshots(vec![next])).unwrap();
            block_on(pool.remove(&name(&format!("v@{last}")))).unwrap();
            block_on(pool.reclaim()).unwrap();
        }
        block_on(pool.commit()).unwrap();
    }
}

impl BlockSource for Busy<'_> {
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> io::Result<()> {
        let mut work = self.work.lock();
        (0..5).for_each(|_| work.go_on(self.pool));
        let mut read = Block::zeroed();
        self.store.read(BlockNr(nr), &mut read)?;
        block.copy_from_slice(read.as_bytes());
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        self.store.block_count()
    }
}

fn check_while_busy(pool: &Arc<Pool<SimHost>>, work: Work) -> (Report, Work) {
    let busy = Arc::clone(pool);
    let run = move |store: &dyn BlockStore, superblock: &[u8; 4096]| {
        let source = Busy {
            store,
            pool: &busy,
            work: Mutex::new(work),
        };
        let options = CheckOptions {
            superblock: Some(superblock),
            allowed_incompat: INCOMPAT_LOG,
            ..CheckOptions::default()
        };
        let report = check(&source, &options);
        (report, source.work.into_inner())
    };
    block_on(pool.with_pinned_metadata(run)).unwrap()
}

#[test]
fn a_check_finds_nothing_wrong_while_everything_changes() {
    let geometry = Geometry {
        metadata_blocks: METADATA_BLOCKS,
        ..geometry(4 * BLOCKS)
    };
    let machine = Machine::new(geometry, Prng::new(1));
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("v"), BLOCKS * BLOCK, None)).unwrap();
    block_on(pool.create_snapshots(vec![new("v@0")])).unwrap();
    let mut work = Work {
        prng: Prng::new(2),
        snapshots: 0,
    };
    (0..20).for_each(|_| work.go_on(&pool));
    for _ in 0..8 {
        let before = machine.metadata.writes();
        let (report, done) = check_while_busy(&pool, work);
        work = done;
        assert!(report.is_sound(), "{:#?}", report.findings);
        let summary = report.superblock.unwrap();
        assert_eq!(summary.metadata_blocks, METADATA_BLOCKS);
        // More than there are: without the pin, what is read would have been written over; and the pool would be
        // out of metadata space if the check kept back what it does not reach.
        let written = machine.metadata.writes() - before;
        assert!(written > METADATA_BLOCKS, "{written}");
    }
    expect_true_space(&machine, &pool);
}
