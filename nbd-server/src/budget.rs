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

/// What all connections share.
pub(crate) struct SharedBudget {
    used: AtomicUsize,
    max: usize,
}

impl SharedBudget {
    pub(crate) fn new(max: usize) -> Self {
        SharedBudget {
            used: AtomicUsize::new(0),
            max,
        }
    }

    fn take(&self, bytes: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.max);
        bytes == 0
            || self
                .used
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
        let taken = self
            .shared
            .take(beyond_own(self.used + cost) - beyond_own(self.used));
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
        assert!(second.take(100_000));
        first.give_back(500_000);
        assert!(second.take(500_000));
        drop(first);
        drop(second);
        assert_eq!(shared.used.load(Ordering::Relaxed), 0);
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
