//! What has happened to a pool between two looks at its state: a pure decision.

use pool::{Mode, Status};

use super::SpacePolicy;
use crate::events::{Happening, Store};

/// What was seen at the last look.
#[derive(Default)]
pub(super) struct Watch {
    seen: Option<Seen>,
    data: Gauge,
    metadata: Gauge,
}

struct Seen {
    mode: Mode,
    times_out: bool,
}

/// One store's size and whether it is known to have little space.
#[derive(Default)]
struct Gauge {
    total: Option<u64>,
    is_low: bool,
}

impl Watch {
    /// Takes a look. The first one tells what is not as it should be.
    pub(super) fn look(&mut self, status: &Status, policy: &SpacePolicy) -> Vec<Happening> {
        let mut happenings = Vec::new();
        let percent = policy.low_water_percent;
        let data = Level {
            store: Store::Data,
            free: status.data_free_bytes(),
            total: status.data_total_bytes,
        };
        let metadata = Level {
            store: Store::Metadata,
            free: status.metadata_free_bytes(),
            total: status.metadata_total_bytes,
        };
        self.data.look(&data, percent, &mut happenings);
        self.metadata.look(&metadata, percent, &mut happenings);
        let before = self.seen.as_ref().map_or(Mode::Write, |seen| seen.mode);
        if status.mode != before {
            happenings.push(Happening::ModeChanged {
                from: before,
                to: status.mode,
                reason: status.mode_reason.clone(),
            });
        }
        // Only writes that may wait are told that they have waited for too long.
        let lacks = status.mode == Mode::OutOfDataSpace && !policy.error_if_no_space;
        let times_out = lacks && !status.queues_without_space;
        if times_out && !self.seen.as_ref().is_some_and(|seen| seen.times_out) {
            happenings.push(Happening::NoSpaceTimeout {
                seconds: policy.no_space_timeout,
            });
        }
        self.seen = Some(Seen {
            mode: status.mode,
            times_out,
        });
        happenings
    }
}

/// How full a store is, in bytes.
struct Level {
    store: Store,
    free: u64,
    total: u64,
}

impl Gauge {
    fn look(&mut self, level: &Level, percent: u8, happenings: &mut Vec<Happening>) {
        let Level { store, free, total } = *level;
        if let Some(before) = self.total
            && before < total
        {
            let (from_bytes, to_bytes) = (before, total);
            happenings.push(Happening::Grown {
                store,
                from_bytes,
                to_bytes,
            });
            // If that is still too little, it is worth saying again.
            self.is_low = false;
        }
        self.total = Some(total);
        let is_low = u128::from(free) * 100 < u128::from(total) * u128::from(percent);
        if is_low && !self.is_low {
            happenings.push(Happening::LowWater {
                store,
                free_bytes: free,
                total_bytes: total,
                percent,
            });
        }
        self.is_low = is_low;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::space::empty_status as status;

    fn data(used: u64, total: u64) -> Status {
        Status {
            data_used_bytes: used,
            data_total_bytes: total,
            ..status()
        }
    }

    fn low(store: Store, free_bytes: u64, total_bytes: u64) -> Happening {
        Happening::LowWater {
            store,
            free_bytes,
            total_bytes,
            percent: 10,
        }
    }

    fn grown(from_bytes: u64, to_bytes: u64) -> Happening {
        Happening::Grown {
            store: Store::Data,
            from_bytes,
            to_bytes,
        }
    }

    #[test]
    fn little_space_is_told_once_a_crossing() {
        let mut watch = Watch::default();
        let mut look = |status| watch.look(&status, &SpacePolicy::default());
        assert_eq!(look(data(90, 100)), []);
        assert_eq!(look(data(91, 100)), [low(Store::Data, 9, 100)]);
        assert_eq!(look(data(95, 100)), []);
        assert_eq!(look(data(90, 100)), []);
        assert_eq!(look(data(99, 100)), [low(Store::Data, 1, 100)]);
        assert_eq!(look(data(99, 200)), [grown(100, 200)]);
        assert_eq!(look(data(190, 200)), [low(Store::Data, 10, 200)]);
        assert_eq!(
            look(data(190, 201)),
            [grown(200, 201), low(Store::Data, 11, 201)]
        );
    }

    #[test]
    fn metadata_that_is_kept_back_is_not_free() {
        let status = Status {
            metadata_used_bytes: 60,
            metadata_reserve_bytes: 31,
            ..status()
        };
        let told = Watch::default().look(&status, &SpacePolicy::default());
        assert_eq!(told, [low(Store::Metadata, 9, 100)]);
        let never = SpacePolicy {
            low_water_percent: 0,
            ..SpacePolicy::default()
        };
        assert_eq!(Watch::default().look(&status, &never), []);
    }

    #[test]
    fn modes_are_told_as_they_change_and_at_first_unless_all_is_well() {
        let out_of_space = |queues_without_space| Status {
            mode: Mode::OutOfDataSpace,
            mode_reason: "full".to_owned(),
            queues_without_space,
            ..status()
        };
        let changed = |from, to, reason: &str| Happening::ModeChanged {
            from,
            to,
            reason: reason.to_owned(),
        };
        let policy = SpacePolicy::default();
        let mut watch = Watch::default();
        let mut look = |status| watch.look(&status, &policy);
        let lacks = changed(Mode::Write, Mode::OutOfDataSpace, "full");
        assert_eq!(look(out_of_space(true)), std::slice::from_ref(&lacks));
        assert_eq!(look(out_of_space(true)), []);
        let timeout = Happening::NoSpaceTimeout { seconds: 60 };
        assert_eq!(look(out_of_space(false)), std::slice::from_ref(&timeout));
        assert_eq!(look(out_of_space(false)), []);
        let recovered = changed(Mode::OutOfDataSpace, Mode::Write, "");
        assert_eq!(look(status()), [recovered]);
        assert_eq!(look(out_of_space(false)), [lacks.clone(), timeout]);
        let errors = SpacePolicy {
            error_if_no_space: true,
            ..SpacePolicy::default()
        };
        assert_eq!(
            Watch::default().look(&out_of_space(false), &errors),
            [lacks]
        );
    }
}
