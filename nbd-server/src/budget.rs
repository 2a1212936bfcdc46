//! How much memory clients may make the server hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Requests of one connection that run or whose replies are not sent yet.
pub(crate) const IN_FLIGHT_MAX: usize = 128;
/// Payload and replies of one connection, in bytes.
pub(crate) const CONNECTION_BYTES_MAX: usize = 64 * 1024 * 1024;
/// What every connection has for itself, in bytes: small requests go on when big ones of others
/// have used everything up.
pub(crate) const OWN_BYTES: usize = 256 * 1024;

const _: () = assert!(OWN_BYTES < CONNECTION_BYTES_MAX);

/// What all connections together may keep for later, in bytes, beside what each has for itself.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What all connections share.
///
/// A connection may hold no more of it than is left, unless it is alone. So however many clients ask for much and take
/// no replies, the next one gets half as much as each of them has.
pub(crate) struct SharedBudget {
    used: AtomicUsize,
    max: usize,
    kept: AtomicUsize,
}

impl SharedBudget {
    pub(crate) fn new(max: usize) -> Self {
        SharedBudget {
            used: AtomicUsize::new(0),
            max,
            kept: AtomicUsize::new(0),
        }
    }

    /// Takes `bytes` for a connection that has `held` then.
    fn take(&self, bytes: usize, held: usize) -> bool {
        let more = |used: usize| {
            let sum = used.checked_add(bytes).filter(|sum| *sum <= self.max)?;
            (held <= self.max - sum || held == sum).then_some(sum)
        };
        bytes == 0
            || self
                .used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
                .is_ok()
    }

    /// Whether a connection that keeps buffers of `before` bytes may keep `after` bytes instead. Less it always may.
    pub(crate) fn keep(&self, before: usize, after: usize) -> bool {
        let (before, after) = (beyond_own(before), beyond_own(after));
        if after <= before {
            if after < before {
                self.kept.fetch_sub(before - after, Ordering::Relaxed);
            }
            return true;
        }
        let more = |kept: usize| Some(kept + (after - before)).filter(|sum| *sum <= KEPT_BYTES_MAX);
        self.kept
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .is_ok()
    }
}

/// What one connection uses.
pub(crate) struct Budget {
    used: usize,
    shared: Arc<SharedBudget>,
}

impl Budget {
    pub(crate) fn new(shared: Arc<SharedBudget>) -> Self {
        Budget { used: 0, shared }
    }

    /// Takes `cost` bytes if they are to be had. A single request is always within the connection's
    /// own limit.
    pub(crate) fn take(&mut self, cost: usize) -> bool {
        if self.used > 0 && self.used + cost > CONNECTION_BYTES_MAX {
            return false;
        }
        let held = beyond_own(self.used + cost);
        let taken = self.shared.take(held - beyond_own(self.used), held);
        if taken {
            self.used += cost;
        }
        taken
    }

    pub(crate) fn give_back(&mut self, cost: usize) {
        assert!(cost <= self.used, "more was given back than taken");
        let left = self.used - cost;
        let shared = beyond_own(self.used) - beyond_own(left);
        if shared > 0 {
            self.shared.used.fetch_sub(shared, Ordering::Relaxed);
        }
        self.used = left;
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.give_back(self.used);
    }
}

fn beyond_own(used: usize) -> usize {
    used.saturating_sub(OWN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_budget_is_never_exceeded_and_comes_back() {
        let shared = Arc::new(SharedBudget::new(1_000_000));
        let mut first = Budget::new(Arc::clone(&shared));
        let mut second = Budget::new(Arc::clone(&shared));
        assert!(first.take(OWN_BYTES + 900_000));
        assert!(second.take(OWN_BYTES), "its own part is always there");
        assert!(!second.take(100_001));
        assert!(!second.take(50_001), "it would have more than is left");
        assert!(second.take(50_000));
        first.give_back(500_000);
        assert!(second.take(200_000));
        drop(first);
        drop(second);
        assert_eq!(shared.used.load(Ordering::Relaxed), 0);
    }

    /// A hundred that take whatever they get leave something for one more.
    #[test]
    fn something_is_always_left() {
        let shared = Arc::new(SharedBudget::new(101_000_000));
        let mut greedy: Vec<_> = (0..100).map(|_| Budget::new(Arc::clone(&shared))).collect();
        for _ in 0..1000 {
            for budget in &mut greedy {
                let _taken = budget.take(100_000);
            }
        }
        assert!(shared.used.load(Ordering::Relaxed) > 90_000_000);
        assert!(Budget::new(shared).take(OWN_BYTES + 400_000));
    }

    #[test]
    fn what_is_kept_is_limited() {
        let shared = SharedBudget::new(0);
        assert!(shared.keep(0, OWN_BYTES), "that much always");
        assert!(shared.keep(OWN_BYTES, OWN_BYTES + KEPT_BYTES_MAX));
        assert!(!shared.keep(OWN_BYTES, OWN_BYTES + 1));
        assert!(shared.keep(OWN_BYTES + 1, 0));
        assert!(shared.keep(OWN_BYTES, OWN_BYTES + 1));
    }

    #[test]
    fn one_connection_has_a_limit() {
        let mut budget = Budget::new(Arc::new(SharedBudget::new(usize::MAX)));
        assert!(budget.take(CONNECTION_BYTES_MAX));
        assert!(!budget.take(1));
        budget.give_back(CONNECTION_BYTES_MAX);
        assert!(budget.take(1));
    }
}
