//! Who may still be reading a data block that has lost its last mapping.
//!
//! Every operation holds the current epoch from before it looks a block up until its data I/O is
//! done (invariant 2). Blocks that come free are put behind the epoch that was current then: when
//! that epoch and all before it have drained, nobody can hold the blocks' addresses any more.
//! Pool-wide rather than per volume, since a block shared by two volumes may be freed by one while
//! an operation of the other, begun before its own mapping changed, still reads it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::sync::WaitList;
use crate::units::DataBlock;

/// Being inside an epoch. Cheap to take and to drop.
pub(crate) type EpochPass = Arc<Epoch>;

/// One epoch: lives as long as an operation that began in it.
pub(crate) struct Epoch {
    drained: Arc<WaitList>,
}

impl Drop for Epoch {
    fn drop(&mut self) {
        self.drained.wake_all();
    }
}

/// The current epoch, and the blocks that wait for older ones.
pub(crate) struct Epochs {
    current: Mutex<Arc<Epoch>>,
    waiting: Mutex<VecDeque<(Weak<Epoch>, Vec<DataBlock>)>>,
    /// Blocks that were taken out and are on their way to the allocator.
    leaving: AtomicU64,
    drained: Arc<WaitList>,
}

impl Epochs {
    pub(crate) fn new() -> Self {
        let drained = Arc::new(WaitList::default());
        let first = Arc::new(Epoch {
            drained: Arc::clone(&drained),
        });
        Epochs {
            current: Mutex::new(first),
            waiting: Mutex::default(),
            leaving: AtomicU64::new(0),
            drained,
        }
    }

    /// Enters the current epoch.
    pub(crate) fn enter(&self) -> EpochPass {
        Arc::clone(&self.current.lock())
    }

    /// Takes blocks that no mapping names any more, durably. They come back from
    /// [`Epochs::take_drained`].
    pub(crate) fn retire(&self, blocks: Vec<DataBlock>) {
        if blocks.is_empty() {
            return;
        }
        let next = Arc::new(Epoch {
            drained: Arc::clone(&self.drained),
        });
        // Queued before the epoch can drain; the order of the queue is the order of the epochs.
        let mut waiting = self.waiting.lock();
        let old = std::mem::replace(&mut *self.current.lock(), next);
        waiting.push_back((Arc::downgrade(&old), blocks));
        drop(waiting);
        drop(old);
    }

    /// Blocks whose epoch, and every epoch before, has drained.
    pub(crate) fn take_drained(&self) -> Vec<DataBlock> {
        let mut waiting = self.waiting.lock();
        let mut blocks = Vec::new();
        while waiting
            .front()
            .is_some_and(|(epoch, _)| epoch.strong_count() == 0)
        {
            let Some((_, drained)) = waiting.pop_front() else {
                break;
            };
            blocks.extend(drained);
        }
        self.leaving
            .fetch_add(blocks.len() as u64, Ordering::SeqCst);
        blocks
    }

    /// Notes that so many of the blocks taken out have reached the allocator.
    pub(crate) fn released(&self, blocks: u64) {
        self.leaving.fetch_sub(blocks, Ordering::SeqCst);
        self.drained.wake_all();
    }

    /// Waits until [`Epochs::take_drained`] has something, nothing is waiting or on its way, or
    /// there are `enough` blocks anyway.
    pub(crate) async fn some_drained(&self, enough: impl Fn() -> bool) {
        self.drained
            .until(|| {
                if enough() {
                    return Some(());
                }
                let waiting = self.waiting.lock();
                let ready = match waiting.front() {
                    Some((epoch, _)) => epoch.strong_count() == 0,
                    None => self.leaving.load(Ordering::SeqCst) == 0,
                };
                ready.then_some(())
            })
            .await;
    }

    /// How many blocks wait, or are on their way to the allocator.
    pub(crate) fn waiting_blocks(&self) -> u64 {
        let waiting = self.waiting.lock();
        let blocks = waiting.iter().map(|(_, blocks)| blocks.len() as u64);
        blocks.sum::<u64>() + self.leaving.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_wait_for_every_older_epoch() {
        let epochs = Epochs::new();
        let old = epochs.enter();
        epochs.retire(vec![DataBlock(1)]);
        let young = epochs.enter();
        epochs.retire(vec![DataBlock(2)]);
        drop(young);
        assert!(
            epochs.take_drained().is_empty(),
            "an older epoch still runs"
        );
        drop(old);
        assert_eq!(epochs.take_drained(), [DataBlock(1), DataBlock(2)]);
        assert_eq!(epochs.waiting_blocks(), 2, "on their way");
        epochs.released(2);
        assert_eq!(epochs.waiting_blocks(), 0);
    }

    #[test]
    fn an_idle_pool_drains_at_once() {
        let epochs = Epochs::new();
        epochs.retire(vec![DataBlock(7)]);
        assert_eq!(epochs.take_drained(), [DataBlock(7)]);
    }
}
