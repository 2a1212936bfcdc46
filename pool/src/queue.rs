//! Writes that wait for data space, first come, first served.
//!
//! A write for which no data block can be had, after all has been freed that could be, waits outside of gates
//! and cells. Nothing else waits for it: reads, writes to blocks that are there, discards, flushes, snapshots
//! and commits go on. The first in the queue tries again whenever there may be space: when blocks came free,
//! when the pool grew, and once a second, since a file system below tells nobody that it has space again. No
//! later write takes a block before those that wait, unless it would not wait itself.
//!
//! A lack that a write has met on a store that is full, though blocks are free, ends when a write gets through.
//!
//! A write fails when the pool has been without space for as long as its volume's [`NoSpacePolicy`] lets it
//! wait, and from then on at once, until there is space: as with the kernel's thin pools.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sync::WaitList;

/// What becomes of writes for which there is no data space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NoSpacePolicy {
    /// Whether they fail at once, with ENOSPC, instead of waiting.
    pub error_if_no_space: bool,
    /// How long after the pool has run out of space they wait, in seconds; 0 is for ever.
    pub no_space_timeout: u64,
}

/// The kernel's default.
const NO_SPACE_TIMEOUT_SECONDS: u64 = 60;

impl Default for NoSpacePolicy {
    fn default() -> Self {
        NoSpacePolicy {
            error_if_no_space: false,
            no_space_timeout: NO_SPACE_TIMEOUT_SECONDS,
        }
    }
}

/// Where a volume's [`NoSpacePolicy`] differs from its pool's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NoSpaceOverride {
    /// Instead of the pool's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_if_no_space: Option<bool>,
    /// Instead of the pool's, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_space_timeout: Option<u64>,
}

impl NoSpacePolicy {
    fn with(self, volume: NoSpaceOverride) -> Self {
        NoSpacePolicy {
            error_if_no_space: volume.error_if_no_space.unwrap_or(self.error_if_no_space),
            no_space_timeout: volume.no_space_timeout.unwrap_or(self.no_space_timeout),
        }
    }

    /// Whether a write may wait, `lacking` after the pool was found without space.
    fn waits(self, lacking: Duration) -> bool {
        let timeout = Duration::from_secs(self.no_space_timeout);
        !self.error_if_no_space && (timeout.is_zero() || lacking < timeout)
    }
}

/// Whether writes that come through one handle of a device may wait for data space.
#[derive(Default)]
pub(crate) struct Patience {
    has_ended: AtomicBool,
}

/// That of operations on devices, which fail instead.
pub(crate) static NO_PATIENCE: Patience = Patience {
    has_ended: AtomicBool::new(true),
};

impl Patience {
    /// Whether this has ended it.
    pub(crate) fn end(&self) -> bool {
        !self.has_ended.swap(true, Ordering::SeqCst)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }
}

/// The queue, and what is known of the lack of space.
#[derive(Default)]
pub(crate) struct SpaceQueue {
    /// None while nobody could cure a lack of space, so that waiting would be of no use.
    policy: RwLock<Option<NoSpacePolicy>>,
    /// Nothing waits any more, whatever the policy says.
    has_ended: AtomicBool,
    state: Mutex<State>,
    /// Tickets begin at 1; 0 when nobody waits. Written under the lock of `state`.
    first: AtomicU64,
    /// Whether there is a lack. Written under the lock of `state`.
    is_lacking: AtomicBool,
    /// Raised whenever who waits should look again.
    chances: AtomicU64,
    changed: WaitList,
    /// How often lack of space has begun or ended.
    turns: AtomicU64,
    turned: WaitList,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u64>,
    last_ticket: u64,
    lack: Option<Lack>,
}

/// A pool without space.
struct Lack {
    since: Duration,
    reason: String,
    /// It was met by a write, on a store that takes no more: only a write can tell that it has passed.
    is_met: bool,
}

/// A write's place among those that wait for space.
#[derive(Default)]
pub(crate) enum Turn<'a> {
    /// It has not lacked space yet.
    #[default]
    New,
    /// It fails rather than wait, so it need not stand behind those that do.
    AtOnce,
    /// It waits, or has waited.
    Waiting(Ticket<'a>),
}

/// A place in the queue, until dropped.
pub(crate) struct Ticket<'a> {
    queue: &'a SpaceQueue,
    number: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state.lock();
        state.waiting.retain(|ticket| *ticket != self.number);
        self.queue.note_first(&state);
        drop(state);
        self.queue.look_again();
    }
}

impl SpaceQueue {
    pub(crate) fn set_policy(&self, policy: NoSpacePolicy) {
        let before = self.policy.write().replace(policy);
        if before != Some(policy) {
            self.look_again();
        }
    }

    /// Has nothing wait any more.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.look_again();
    }

    pub(crate) fn policy(&self) -> Option<NoSpacePolicy> {
        *self.policy.read()
    }

    /// Whether a write of a volume may wait now for space that the pool lacks.
    pub(crate) fn waits(
        &self,
        volume: NoSpaceOverride,
        patience: &Patience,
        now: Duration,
    ) -> bool {
        let Some(policy) = self.policy() else {
            return false;
        };
        let lack = &self.state.lock().lack;
        let lacking = lack
            .as_ref()
            .map_or(Duration::ZERO, |lack| now.saturating_sub(lack.since));
        let has_ended = patience.has_ended() || self.has_ended.load(Ordering::SeqCst);
        !has_ended && policy.with(volume).waits(lacking)
    }

    /// Whether a write may take a block, in view of others that wait for one.
    pub(crate) fn admits(&self, turn: &Turn<'_>) -> bool {
        let first = self.first.load(Ordering::SeqCst);
        match turn {
            Turn::AtOnce => true,
            Turn::New => first == 0,
            Turn::Waiting(ticket) => first == ticket.number,
        }
    }

    /// Goes to the end of the queue, unless the write is in it.
    pub(crate) fn join<'a>(&'a self, turn: &mut Turn<'a>) {
        if matches!(turn, Turn::Waiting(_)) {
            return;
        }
        let mut state = self.state.lock();
        state.last_ticket += 1;
        let number = state.last_ticket;
        state.waiting.push_back(number);
        self.note_first(&state);
        drop(state);
        *turn = Turn::Waiting(Ticket {
            queue: self,
            number,
        });
    }

    fn note_first(&self, state: &State) {
        let first = state.waiting.front().copied().unwrap_or(0);
        self.first.store(first, Ordering::SeqCst);
    }

    /// A number to hand to [`SpaceQueue::another_chance`], read before it was tried to find space.
    pub(crate) fn chances(&self) -> u64 {
        self.chances.load(Ordering::SeqCst)
    }

    /// Waits until there is a reason to look again since `seen` was read.
    pub(crate) async fn another_chance(&self, seen: u64) {
        let has_come = || (self.chances() != seen).then_some(());
        self.changed.until(has_come).await;
    }

    /// Has everybody who waits look again.
    pub(crate) fn look_again(&self) {
        self.chances.fetch_add(1, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// All that could be freed was, and there is no space.
    pub(crate) fn note_lack(&self, now: Duration, lack: &Error) {
        let lack = Lack {
            since: now,
            reason: lack.to_string(),
            is_met: lack.is_full(),
        };
        let mut state = self.state.lock();
        let is_new = state.lack.is_none();
        state.lack.get_or_insert(lack);
        self.is_lacking.store(true, Ordering::SeqCst);
        drop(state);
        if is_new {
            self.turn();
        }
    }

    fn turn(&self) {
        self.turns.fetch_add(1, Ordering::SeqCst);
        self.turned.wake_all();
    }

    /// Waits until lack of space has begun or ended more often than `seen` times; returns how often.
    pub(crate) async fn next_turn(&self, seen: u64) -> u64 {
        let turns = || Some(self.turns.load(Ordering::SeqCst)).filter(|turns| *turns > seen);
        self.turned.until(turns).await
    }

    /// There may be space: blocks are free.
    pub(crate) fn note_space(&self) {
        self.end_lack(|lack| !lack.is_met);
        self.look_again();
    }

    /// A write that needed space has got it.
    pub(crate) fn note_written(&self) {
        if self.is_lacking.load(Ordering::SeqCst) {
            self.end_lack(|_| true);
        }
    }

    fn end_lack(&self, has_passed: impl Fn(&Lack) -> bool) {
        let mut state = self.state.lock();
        let ended = state.lack.take_if(|lack| has_passed(lack)).is_some();
        self.is_lacking
            .store(state.lack.is_some(), Ordering::SeqCst);
        drop(state);
        if ended {
            self.turn();
        }
    }

    /// Whether a write would wait now, on a volume that follows its pool's policy.
    pub(crate) fn would_wait(&self, now: Duration) -> bool {
        self.waits(NoSpaceOverride::default(), &Patience::default(), now)
    }

    /// Why there is no space, if there is none.
    pub(crate) fn lack(&self) -> Option<String> {
        self.state
            .lock()
            .lack
            .as_ref()
            .map(|lack| lack.reason.clone())
    }

    /// How many writes wait.
    pub(crate) fn len(&self) -> u64 {
        self.state.lock().waiting.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: NoSpaceOverride = NoSpaceOverride {
        error_if_no_space: None,
        no_space_timeout: None,
    };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn writes_wait_until_the_pool_has_lacked_space_for_too_long() {
        let queue = SpaceQueue::default();
        let patience = Patience::default();
        assert!(
            !queue.waits(DEFAULT, &patience, seconds(0)),
            "nobody cures it"
        );
        queue.set_policy(NoSpacePolicy::default());
        assert!(queue.waits(DEFAULT, &patience, seconds(1000)));
        queue.note_lack(seconds(1000), &Error::OutOfDataSpace);
        queue.note_lack(seconds(1030), &Error::OutOfDataSpace);
        assert!(queue.waits(DEFAULT, &patience, seconds(1059)));
        assert!(!queue.waits(DEFAULT, &patience, seconds(1060)));
        queue.note_space();
        queue.note_lack(seconds(1060), &Error::OutOfDataSpace);
        assert!(queue.waits(DEFAULT, &patience, seconds(1119)));
        patience.end();
        assert!(!queue.waits(DEFAULT, &patience, seconds(1061)));
    }

    #[test]
    fn a_volume_may_differ_from_its_pool() {
        let queue = SpaceQueue::default();
        let patience = Patience::default();
        queue.set_policy(NoSpacePolicy {
            error_if_no_space: true,
            no_space_timeout: 10,
        });
        let waits = |error, timeout, now| {
            let volume = NoSpaceOverride {
                error_if_no_space: error,
                no_space_timeout: timeout,
            };
            queue.waits(volume, &patience, seconds(now))
        };
        queue.note_lack(seconds(0), &Error::OutOfDataSpace);
        assert!(!waits(None, None, 1));
        assert!(waits(Some(false), None, 9) && !waits(Some(false), None, 10));
        assert!(waits(Some(false), Some(0), u64::MAX));
        assert!(!waits(None, Some(0), 1));
    }

    #[test]
    fn nobody_overtakes_who_waits() {
        let queue = SpaceQueue::default();
        let (mut first, mut second) = (Turn::New, Turn::New);
        assert!(queue.admits(&first));
        queue.join(&mut first);
        queue.join(&mut second);
        queue.join(&mut first);
        assert_eq!(queue.len(), 2);
        assert!(queue.admits(&first) && !queue.admits(&second) && !queue.admits(&Turn::New));
        assert!(queue.admits(&Turn::AtOnce));
        let seen = queue.chances();
        drop(first);
        assert_ne!(queue.chances(), seen, "the next looks again");
        assert!(queue.admits(&second));
        drop(second);
        assert!(queue.admits(&Turn::New));
    }
}
