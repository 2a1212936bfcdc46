//! What happens to a pool, for those who watch it: the latest in memory, and in the daemon's log.

use std::collections::VecDeque;

use parking_lot::Mutex;
use pool::Mode;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::service::now;

/// How many events are kept.
const KEPT_MAX: usize = 1000;

/// One of a pool's stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// What volumes hold.
    Data,
    /// Mappings.
    Metadata,
}

/// What has happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Happening {
    /// A daemon serves the pool now.
    Opened {
        /// Changes that its intent log had kept for it.
        replayed_records: u64,
    },
    /// The pool is in another mode.
    ModeChanged {
        /// The mode before.
        from: Mode,
        /// The mode now.
        to: Mode,
        /// Why, unless that is `write`.
        reason: String,
    },
    /// A store's free space has fallen below the low-water mark.
    LowWater {
        /// Which.
        store: Store,
        /// Its free space in bytes, without what is kept back.
        free_bytes: u64,
        /// Its size in bytes.
        total_bytes: u64,
        /// The mark.
        percent: u8,
    },
    /// A store is larger.
    Grown {
        /// Which.
        store: Store,
        /// Its size before, in bytes.
        from_bytes: u64,
        /// Its size now, in bytes.
        to_bytes: u64,
    },
    /// Writes have waited for space for as long as they may; they have failed, as others do now.
    NoSpaceTimeout {
        /// How long that was.
        seconds: u64,
    },
    /// The data store was to grow by itself.
    AutoGrowFailed {
        /// To which size, in bytes.
        bytes: u64,
        /// Why it did not.
        reason: String,
    },
}

impl Happening {
    /// Whether somebody should do something.
    fn is_bad(&self) -> bool {
        match self {
            Happening::Opened { .. } | Happening::Grown { .. } => false,
            Happening::ModeChanged { to, .. } => *to != Mode::Write,
            Happening::LowWater { .. }
            | Happening::NoSpaceTimeout { .. }
            | Happening::AutoGrowFailed { .. } => true,
        }
    }
}

/// Something that has happened, and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolEvent {
    /// Counts from 1 with each daemon.
    pub number: u64,
    /// RFC 3339, UTC.
    pub time: String,
    /// The pool's directory name, as in metrics and exports.
    pub pool: String,
    /// What has happened.
    #[serde(flatten)]
    pub happening: Happening,
}

/// A pool's latest events.
pub struct Events {
    pool: String,
    kept: Mutex<VecDeque<PoolEvent>>,
    /// The number of the last; none follow once that is [`u64::MAX`].
    last: watch::Sender<u64>,
}

impl Events {
    /// None so far, of the pool of this name.
    pub fn new(pool: String) -> Self {
        Events {
            pool,
            kept: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }

    /// Tells what has happened.
    pub fn tell(&self, happening: Happening) {
        let mut kept = self.kept.lock();
        let event = PoolEvent {
            number: kept.back().map_or(1, |event| event.number + 1),
            time: now(),
            pool: self.pool.clone(),
            happening,
        };
        let line = serde_json::to_string(&event.happening).unwrap_or_default();
        if event.happening.is_bad() {
            tracing::warn!("{}: {line}", self.pool);
        } else {
            tracing::info!("{}: {line}", self.pool);
        }
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        let number = event.number;
        kept.push_back(event);
        self.last.send_if_modified(|last| {
            let goes_on = *last != u64::MAX;
            if goes_on {
                *last = number;
            }
            goes_on
        });
    }

    /// The events after the one with this number, as far as they are kept.
    pub fn after(&self, number: u64) -> Vec<PoolEvent> {
        let kept = self.kept.lock();
        kept.iter()
            .filter(|event| event.number > number)
            .cloned()
            .collect()
    }

    /// Waits for an event after the one with this number. Whether there will be any more.
    pub async fn follow(&self, number: u64) -> bool {
        let mut last = self.last.subscribe();
        let news = last.wait_for(|last| *last > number).await;
        news.is_ok_and(|last| *last != u64::MAX)
    }

    /// Nobody needs to wait any more.
    pub fn end(&self) {
        self.last.send_replace(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(replayed_records: u64) -> Happening {
        Happening::Opened { replayed_records }
    }

    #[tokio::test]
    async fn the_latest_are_kept_and_who_follows_hears_of_each() {
        let events = Events::new("p".to_owned());
        for number in 0..=KEPT_MAX as u64 {
            events.tell(opened(number));
        }
        let kept = events.after(0);
        assert_eq!((kept.len(), kept[0].number), (KEPT_MAX, 2));
        assert!(events.follow(1000).await);
        let last = events.after(1000);
        assert_eq!(last.len(), 1);
        let text = serde_json::to_string(&last[0]).unwrap();
        assert!(text.contains(r#""event":"opened""#), "{text}");
        assert_eq!(serde_json::from_str::<PoolEvent>(&text).unwrap(), last[0]);
        let (more, ()) = tokio::join!(events.follow(1001), async { events.tell(opened(7)) });
        assert!(more);
        let (more, ()) = tokio::join!(events.follow(1002), async { events.end() });
        assert!(!more);
        events.tell(opened(8));
        assert!(!events.follow(1002).await);
    }
}
