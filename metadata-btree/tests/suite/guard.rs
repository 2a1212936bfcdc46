//! A store that watches over the rules of writing and can be told to fail.
//!
//! Watched, by panicking: a protected block is never written; block 0 is written only when every
//! other write was flushed. Injected: from the n-th write, flush or read on, all of that sort fail.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metadata_btree::{Block, BlockNr, BlockStore, MemStore};
use parking_lot::Mutex;

#[derive(Clone)]
pub struct GuardStore(Arc<Guard>);

struct Guard {
    store: MemStore,
    protected: Mutex<BTreeSet<u64>>,
    unflushed: AtomicBool,
    /// Writes and flushes that will still succeed.
    changes_left: AtomicU64,
    reads_left: AtomicU64,
    changes: AtomicU64,
}

impl GuardStore {
    pub fn new(store: MemStore) -> Self {
        Self(Arc::new(Guard {
            store,
            protected: Mutex::default(),
            unflushed: AtomicBool::new(false),
            changes_left: AtomicU64::new(u64::MAX),
            reads_left: AtomicU64::new(u64::MAX),
            changes: AtomicU64::new(0),
        }))
    }

    pub fn memory(&self) -> &MemStore {
        &self.0.store
    }

    pub fn protect(&self, blocks: impl IntoIterator<Item = u64>) {
        *self.0.protected.lock() = blocks.into_iter().filter(|&nr| nr != 0).collect();
    }

    /// Lets this many writes and flushes succeed, then none.
    pub fn fail_changes_after(&self, changes: u64) {
        self.0.changes_left.store(changes, Ordering::Relaxed);
    }

    pub fn fail_reads_after(&self, reads: u64) {
        self.0.reads_left.store(reads, Ordering::Relaxed);
    }

    /// Writes and flushes that were tried so far.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::Relaxed)
    }

    fn change(&self) -> io::Result<()> {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        take(&self.0.changes_left)
    }
}

fn take(left: &AtomicU64) -> io::Result<()> {
    let take = |left: u64| {
        if left == u64::MAX {
            Some(left)
        } else {
            left.checked_sub(1)
        }
    };
    match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::other("injected failure")),
    }
}

impl BlockStore for GuardStore {
    fn read(&self, nr: BlockNr, block: &mut Block) -> io::Result<()> {
        take(&self.0.reads_left)?;
        self.0.store.read(nr, block)
    }

    fn write(&self, nr: BlockNr, block: &Block) -> io::Result<()> {
        assert!(
            !self.0.protected.lock().contains(&nr.0),
            "block {nr} is in use and was written"
        );
        if nr.0 == 0 {
            let unflushed = self.0.unflushed.load(Ordering::Relaxed);
            assert!(!unflushed, "superblock written before the rest was flushed");
        }
        self.change()?;
        self.0.unflushed.store(true, Ordering::Relaxed);
        self.0.store.write(nr, block)
    }

    fn flush(&self) -> io::Result<()> {
        self.change()?;
        self.0.unflushed.store(false, Ordering::Relaxed);
        self.0.store.flush()
    }

    fn block_count(&self) -> io::Result<u64> {
        self.0.store.block_count()
    }
}
