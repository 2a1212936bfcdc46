//! Exclusive and shared bytes of every device, for those who watch a pool all the time.
//!
//! Only a walk through the trees tells them, so they are counted in the background, a few thousand mappings at
//! a time, and never take more than a tenth of one processor. What is told may be older than that takes; how
//! old it is, is told too. While nothing is committed, what was counted stays right, and nothing is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pool::DeviceInfo;
use tokio::time::{MissedTickBehavior, interval};

use crate::service::PoolService;

/// How long a round waits for the one before, at least.
const INTERVAL: Duration = Duration::from_secs(5);

/// How much longer than it works the count rests.
const REST_FACTOR: u32 = 9;

/// The shortest work after which it rests.
const WORK_MIN: Duration = Duration::from_millis(1);

/// What a device had when it was counted last, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UsageCount {
    /// That only this device maps.
    pub exclusive_bytes: u64,
    /// That another maps, too.
    pub shared_bytes: u64,
}

/// What was counted.
#[derive(Default)]
pub struct UsageCounts {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By thin id, which renaming does not change.
    devices: BTreeMap<u32, UsageCount>,
    /// The last whole round: when it began, and how many commits there were then.
    last: Option<(Instant, u64)>,
}

impl UsageCounts {
    /// What a device had; none before it was counted for the first time.
    pub fn get(&self, id: u32) -> Option<UsageCount> {
        self.state.lock().devices.get(&id).copied()
    }

    /// How old the oldest count may be; none before all devices were counted.
    pub fn age(&self) -> Option<Duration> {
        let last = self.state.lock().last;
        last.map(|(began, _)| began.elapsed())
    }
}

/// Counts again and again, as long as the daemon lives.
pub async fn count_usage(service: Arc<PoolService>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let service = Arc::clone(&service);
        let counted = tokio::task::spawn_blocking(move || count_all(&service)).await;
        if let Err(cause) = counted {
            tracing::error!("counting who uses how much: {cause}");
        }
    }
}

/// One round.
fn count_all(service: &PoolService) {
    let began = Instant::now();
    let commits = service.pool.status().commits;
    {
        let mut state = service.usage_counts.state.lock();
        if let Some((at, seen)) = &mut state.last
            && *seen == commits
        {
            *at = began;
            return;
        }
    }
    let devices = service.pool.devices();
    let mut pace = Pace::new();
    let mut counted = BTreeSet::new();
    for info in &devices {
        match count(service, info, &mut pace) {
            Ok(usage) => {
                counted.insert(info.id);
                let mut state = service.usage_counts.state.lock();
                state.devices.insert(info.id, usage);
            }
            // It has gone, or cannot be read; whoever uses it is told.
            Err(cause) => tracing::debug!("{}: not counted: {cause}", info.name),
        }
    }
    let mut state = service.usage_counts.state.lock();
    state.devices.retain(|id, _| counted.contains(id));
    state.last = Some((began, commits));
}

fn count(
    service: &PoolService,
    info: &DeviceInfo,
    pace: &mut Pace,
) -> Result<UsageCount, pool::Error> {
    let (mut exclusive_bytes, mut next) = (0, Some(0));
    while let Some(from) = next {
        let piece = service.pool.count_exclusive(&info.name, from)?;
        exclusive_bytes += piece.bytes;
        next = piece.next;
        pace.rest();
    }
    // Its pieces are of several commits, maybe, and not of this moment.
    let exclusive_bytes = exclusive_bytes.min(info.mapped_bytes);
    Ok(UsageCount {
        exclusive_bytes,
        shared_bytes: info.mapped_bytes - exclusive_bytes,
    })
}

/// Work in short pieces with long rests.
struct Pace {
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Pace {
            since: Instant::now(),
        }
    }

    fn rest(&mut self) {
        let worked = self.since.elapsed();
        if worked >= WORK_MIN {
            thread::sleep(worked * REST_FACTOR);
            self.since = Instant::now();
        }
    }
}
