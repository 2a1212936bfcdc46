//! How many changes are in memory only, by what became of them.

use parking_lot::Mutex;

/// Changes that wait for a commit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Waiting {
    /// Mappings changed.
    pub(crate) changes: u64,
    /// Chunks they lie in.
    pub(crate) chunks: u64,
}

impl Waiting {
    fn plus(self, other: Waiting) -> Waiting {
        Waiting {
            changes: self.changes + other.changes,
            chunks: self.chunks + other.chunks,
        }
    }

    fn minus(self, other: Waiting) -> Waiting {
        debug_assert!(self.changes >= other.changes && self.chunks >= other.chunks);
        Waiting {
            changes: self.changes.saturating_sub(other.changes),
            chunks: self.chunks.saturating_sub(other.chunks),
        }
    }
}

/// All changes that are not committed yet. What is changed twice may count twice.
#[derive(Default)]
pub(crate) struct Backlog(Mutex<Parts>);

#[derive(Default)]
struct Parts {
    /// No commit has collected them.
    uncommitted: Waiting,
    /// A commit that runs has.
    committing: Waiting,
    /// The last commit has left them out.
    left_out: Waiting,
    /// About to be made.
    permitted: u64,
}

impl Backlog {
    /// A mapping was changed, perhaps the first of its chunk.
    pub(crate) fn add(&self, is_first: bool) {
        let one = Waiting {
            changes: 1,
            chunks: u64::from(is_first),
        };
        let mut parts = self.0.lock();
        parts.uncommitted = parts.uncommitted.plus(one);
    }

    /// A commit collects everything.
    pub(crate) fn begin_commit(&self) {
        let mut parts = self.0.lock();
        let collected = parts.uncommitted.plus(parts.left_out);
        parts.committing = collected;
        parts.uncommitted = Waiting::default();
        parts.left_out = Waiting::default();
    }

    /// A commit leaves out some of what it has collected.
    pub(crate) fn leave_out(&self, waiting: Waiting) {
        let mut parts = self.0.lock();
        parts.committing = parts.committing.minus(waiting);
        parts.left_out = parts.left_out.plus(waiting);
    }

    /// A commit is durable, and the room is known that it has left.
    pub(crate) fn end_commit(&self) {
        self.0.lock().committing = Waiting::default();
    }

    /// Whether there is something that no commit has tried yet.
    pub(crate) fn has_untried(&self) -> bool {
        self.0.lock().uncommitted.changes > 0
    }

    /// What the last commit has left out.
    pub(crate) fn left_out(&self) -> Waiting {
        self.0.lock().left_out
    }

    /// All of it.
    pub(crate) fn waiting(&self) -> Waiting {
        self.0.lock().waiting()
    }

    /// Lets one more change be made, if `admits` says so of all that waits and all that may still come.
    pub(crate) fn permit(
        &self,
        admits: impl FnOnce(Waiting, u64) -> bool,
    ) -> Option<ChangePermit<'_>> {
        let mut parts = self.0.lock();
        if !admits(parts.waiting(), parts.permitted + 1) {
            return None;
        }
        parts.permitted += 1;
        Some(ChangePermit(self))
    }
}

impl Parts {
    fn waiting(&self) -> Waiting {
        self.uncommitted.plus(self.committing).plus(self.left_out)
    }
}

/// One change that may be made.
pub(crate) struct ChangePermit<'a>(&'a Backlog);

impl Drop for ChangePermit<'_> {
    fn drop(&mut self) {
        self.0.0.lock().permitted -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_commit_leaves_out_goes_on_counting() {
        let backlog = Backlog::default();
        backlog.add(true);
        backlog.add(false);
        backlog.begin_commit();
        backlog.add(true);
        assert_eq!(backlog.waiting().changes, 3);
        let one = Waiting {
            changes: 1,
            chunks: 1,
        };
        backlog.leave_out(one);
        assert_eq!(
            (backlog.waiting().changes, backlog.left_out().changes),
            (3, 1)
        );
        backlog.end_commit();
        assert_eq!(
            (backlog.waiting().changes, backlog.waiting().chunks),
            (2, 2)
        );
        backlog.begin_commit();
        assert!(!backlog.has_untried());
        backlog.end_commit();
        assert_eq!(backlog.waiting().changes, 0);
    }

    #[test]
    fn permits_count_until_they_are_dropped() {
        let backlog = Backlog::default();
        let permit = |most: u64| backlog.permit(|waiting, more| waiting.changes + more <= most);
        let first = permit(1);
        assert!(first.is_some() && permit(1).is_none());
        drop(first);
        assert!(permit(1).is_some());
    }
}
