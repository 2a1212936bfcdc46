//! The names in the one directory, durable and since.
//!
//! This is the least that POSIX says, and less than ext4 does: of the changes since the directory was synced,
//! each survives a power cut or not on its own, in no order. A rename does so whole. A synced file whose name does not
//! survive is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use crate::sim::{Survivors, to_usize};

/// A change: what is no name any more, and what one leads to.
struct Change {
    removed: Option<OsString>,
    set: Option<(OsString, u64)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<OsString, u64>) {
        if let Some(removed) = &self.removed {
            names.remove(removed);
        }
        if let Some((name, file)) = &self.set {
            names.insert(name.clone(), *file);
        }
    }
}

/// Which file each name leads to.
#[derive(Default)]
pub(super) struct Names {
    current: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    changes: Vec<Change>,
    /// How many changes have been synced and taken off `changes`.
    synced: u64,
}

impl Names {
    pub(super) fn find(&self, name: &OsStr) -> Option<u64> {
        self.current.get(name).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&OsString, u64)> {
        self.current.iter().map(|(name, file)| (name, *file))
    }

    pub(super) fn insert(&mut self, name: &OsStr, file: u64) {
        self.change(None, Some((name.to_owned(), file)));
    }

    /// Whether there was such a name.
    pub(super) fn remove(&mut self, name: &OsStr) -> bool {
        let is_there = self.find(name).is_some();
        if is_there {
            self.change(Some(name.to_owned()), None);
        }
        is_there
    }

    /// Whether there was such a name.
    pub(super) fn rename(&mut self, from: &OsStr, to: &OsStr) -> bool {
        let Some(file) = self.find(from) else {
            return false;
        };
        if from != to {
            self.change(Some(from.to_owned()), Some((to.to_owned(), file)));
        }
        true
    }

    fn change(&mut self, removed: Option<OsString>, set: Option<(OsString, u64)>) {
        let change = Change { removed, set };
        change.apply(&mut self.current);
        self.changes.push(change);
    }

    /// What a sync that is submitted now has to make durable.
    pub(super) fn covered(&self) -> u64 {
        self.synced + self.changes.len() as u64
    }

    pub(super) fn sync(&mut self, covered: u64) {
        let count = to_usize(covered.saturating_sub(self.synced));
        for change in self.changes.drain(..count) {
            change.apply(&mut self.durable);
        }
        self.synced = self.synced.max(covered);
    }

    /// The power goes. Returns the files that still have a name.
    pub(super) fn cut(&mut self, survivors: &mut Survivors) -> BTreeSet<u64> {
        let mut names = std::mem::take(&mut self.durable);
        for change in self.changes.drain(..) {
            if survivors.flips() {
                change.apply(&mut names);
            }
        }
        *self = Names {
            current: names.clone(),
            durable: names,
            ..Names::default()
        };
        self.current.values().copied().collect()
    }
}
