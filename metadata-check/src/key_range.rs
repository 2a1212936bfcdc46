//! Ranges of keys: what a parent leaves to a child, and what is missing when that cannot be used.

/// The keys that may be in a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) first: u64,
    /// One more than the last, unless there is no bound.
    pub(crate) end: Option<u64>,
}

impl KeyRange {
    pub(crate) const ALL: KeyRange = KeyRange {
        first: 0,
        end: None,
    };

    pub(crate) fn has(&self, key: u64) -> bool {
        self.first <= key && self.end.is_none_or(|end| key < end)
    }

    /// What a node with this range leaves to a child: from its key to the next one's, if there is one.
    pub(crate) fn of_child(&self, key: u64, next: Option<u64>) -> KeyRange {
        let ends = [next, self.end].into_iter().flatten();
        KeyRange {
            first: key.max(self.first),
            end: ends.min(),
        }
    }
}

/// Virtual blocks of which it is not known whether they were mapped, or to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingRange {
    /// The first.
    pub first: u64,
    /// The last; none if that is the end of the device.
    pub last: Option<u64>,
}

impl MissingRange {
    /// The whole device.
    pub(crate) const ALL: MissingRange = MissingRange {
        first: 0,
        last: None,
    };

    /// None if no key fits.
    pub(crate) fn of(range: KeyRange) -> Option<Self> {
        let last = match range.end {
            Some(end) => Some(end.checked_sub(1).filter(|last| *last >= range.first)?),
            None => None,
        };
        Some(MissingRange {
            first: range.first,
            last,
        })
    }

    /// Takes in a range that begins where this one ends.
    fn extend(&mut self, next: MissingRange) -> bool {
        let follows = self
            .last
            .is_some_and(|last| last.checked_add(1) == Some(next.first));
        if follows {
            self.last = next.last;
        }
        follows
    }

    /// Adds a range behind all others.
    pub(crate) fn add_to(self, ranges: &mut Vec<MissingRange>) {
        if !ranges.last_mut().is_some_and(|last| last.extend(self)) {
            ranges.push(self);
        }
    }
}
