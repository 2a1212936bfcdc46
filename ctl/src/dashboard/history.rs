//! What a pool was like and what was done in it: every ten seconds of the last hour, every five minutes of
//! the last day. It is as long as the daemon lives, and never more than a hundred kilobytes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pool::{DeviceStats, Operation};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval_at};

use crate::service::PoolService;

/// How often a sample is taken.
const INTERVAL: Duration = Duration::from_secs(10);

/// When the first one is: whoever looks at once sees something soon.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// How many samples are kept as they are: an hour.
const RECENT_MAX: usize = 360;

/// How many samples become one that is kept for longer: five minutes.
const MERGED_COUNT: usize = 30;

/// How many of those are kept: a day.
const OLDER_MAX: usize = 288;

/// A pool at a moment, and what was done in it until then.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Sample {
    /// Counts from 1 with each daemon.
    number: u64,
    /// Unix time, in seconds.
    time: i64,
    data_used_bytes: u64,
    data_total_bytes: u64,
    metadata_used_bytes: u64,
    metadata_total_bytes: u64,
    /// Writes that waited for data space; the most at any look.
    queued_writes: u64,
    /// How long the requests below took to come.
    seconds: f64,
    #[serde(flatten)]
    requests: Requests,
}

impl Sample {
    /// This and one that was taken later as one.
    fn merged(&self, later: &Sample) -> Sample {
        Sample {
            queued_writes: self.queued_writes.max(later.queued_writes),
            seconds: self.seconds + later.seconds,
            requests: self.requests.plus(&later.requests),
            ..later.clone()
        }
    }
}

/// Finished requests of all devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
struct Requests {
    reads: u64,
    read_bytes: u64,
    /// Zeroes, too.
    writes: u64,
    written_bytes: u64,
    /// Flushes and discards.
    others: u64,
}

impl Requests {
    fn of_device(stats: &DeviceStats) -> Self {
        let mut requests = Requests::default();
        for operation in Operation::ALL {
            let counted = stats.get(operation);
            let count: u64 = counted.latency().counts().iter().sum();
            match operation {
                Operation::Read => {
                    requests.reads += count;
                    requests.read_bytes += counted.bytes();
                }
                Operation::Write | Operation::WriteZeroes => {
                    requests.writes += count;
                    requests.written_bytes += counted.bytes();
                }
                Operation::Flush | Operation::Discard => requests.others += count,
            }
        }
        requests
    }

    fn plus(&self, other: &Requests) -> Requests {
        self.with(other, u64::saturating_add)
    }

    fn since(&self, before: &Requests) -> Requests {
        self.with(before, u64::saturating_sub)
    }

    fn with(&self, other: &Requests, f: impl Fn(u64, u64) -> u64) -> Requests {
        Requests {
            reads: f(self.reads, other.reads),
            read_bytes: f(self.read_bytes, other.read_bytes),
            writes: f(self.writes, other.writes),
            written_bytes: f(self.written_bytes, other.written_bytes),
            others: f(self.others, other.others),
        }
    }
}

/// A pool's samples.
#[derive(Default)]
pub(super) struct History {
    recent: VecDeque<Sample>,
    older: VecDeque<Sample>,
    /// Samples that are to be one of the older, and how many.
    merging: Option<(Sample, usize)>,
    taken: u64,
}

impl History {
    /// Takes a sample in, and gives it its number.
    fn add(&mut self, mut sample: Sample) {
        self.taken += 1;
        sample.number = self.taken;
        let (merged, count) = match self.merging.take() {
            None => (sample.clone(), 1),
            Some((earlier, count)) => (earlier.merged(&sample), count + 1),
        };
        if count == MERGED_COUNT {
            push_bounded(&mut self.older, merged, OLDER_MAX);
        } else {
            self.merging = Some((merged, count));
        }
        push_bounded(&mut self.recent, sample, RECENT_MAX);
    }

    /// The samples after the one of this number, oldest first. What is older than an hour is in few.
    pub(super) fn after(&self, number: u64) -> Vec<Sample> {
        let first = self.recent.front().map_or(0, |sample| sample.number);
        let older = self.older.iter().filter(|sample| sample.number < first);
        older
            .chain(&self.recent)
            .filter(|sample| sample.number > number)
            .cloned()
            .collect()
    }
}

fn push_bounded(samples: &mut VecDeque<Sample>, sample: Sample, max: usize) {
    if samples.len() == max {
        samples.pop_front();
    }
    samples.push_back(sample);
}

/// Takes samples as long as the daemon lives.
pub(super) async fn record(service: Arc<PoolService>, history: Arc<Mutex<History>>) {
    let first = tokio::time::Instant::now() + FIRST_DELAY;
    let mut ticks = interval_at(first, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut meter = Meter::start(&service);
    loop {
        ticks.tick().await;
        let sample = meter.sample(&service);
        history.lock().add(sample);
    }
}

/// Knows what had been done when it looked last.
struct Meter {
    at: Instant,
    /// By thin id: a sum would fall when a device is deleted.
    before: BTreeMap<u32, Requests>,
}

impl Meter {
    fn start(service: &PoolService) -> Self {
        Meter {
            at: Instant::now(),
            before: requests_by_device(service),
        }
    }

    fn sample(&mut self, service: &PoolService) -> Sample {
        let at = Instant::now();
        let seconds = at.duration_since(self.at).as_secs_f64();
        let now = requests_by_device(service);
        let requests = done_between(&self.before, &now);
        *self = Meter { at, before: now };
        let status = service.pool.status();
        Sample {
            number: 0,
            time: jiff::Timestamp::now().as_second(),
            data_used_bytes: status.data_used_bytes,
            data_total_bytes: status.data_total_bytes,
            metadata_used_bytes: status.metadata_used_bytes,
            metadata_total_bytes: status.metadata_total_bytes,
            queued_writes: status.queued_writes,
            seconds,
            requests,
        }
    }
}

fn requests_by_device(service: &PoolService) -> BTreeMap<u32, Requests> {
    let devices = service.pool.devices().into_iter();
    devices
        .filter_map(|info| {
            let stats = service.pool.device_stats(&info.name)?;
            Some((info.id, Requests::of_device(&stats)))
        })
        .collect()
}

/// What a device did that was deleted meanwhile is not known any more.
fn done_between(before: &BTreeMap<u32, Requests>, now: &BTreeMap<u32, Requests>) -> Requests {
    now.iter()
        .map(|(id, requests)| requests.since(before.get(id).unwrap_or(&Requests::default())))
        .fold(Requests::default(), |sum, done| sum.plus(&done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(count: u64) -> Requests {
        Requests {
            reads: count,
            read_bytes: count * 4096,
            ..Requests::default()
        }
    }

    /// The sample that is to be the `number`th, ten seconds after the one before.
    fn sample(number: u64) -> Sample {
        Sample {
            number: 0,
            time: i64::try_from(number * 10).unwrap(),
            data_used_bytes: number << 16,
            data_total_bytes: 1 << 40,
            metadata_used_bytes: 4096,
            metadata_total_bytes: 1 << 20,
            queued_writes: u64::from(number % 30 == 7),
            seconds: 10.0,
            requests: reads(number),
        }
    }

    fn history(count: u64) -> History {
        let mut history = History::default();
        (1..=count).for_each(|number| history.add(sample(number)));
        history
    }

    #[test]
    fn an_hour_is_kept_as_it_was_and_a_day_in_pieces_of_five_minutes() {
        let samples = history(3 * 8640).after(0);
        let older = samples.len() - RECENT_MAX;
        // The last hour is there in full, so twelve of the pieces are not needed.
        assert_eq!(older, OLDER_MAX - RECENT_MAX / MERGED_COUNT);
        let numbers: Vec<u64> = samples.iter().map(|sample| sample.number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
        assert_eq!(numbers.last(), Some(&(3 * 8640)));
        assert_eq!(samples[older].number - samples[older - 1].number, 1);
        let piece = &samples[0];
        let last = piece.number;
        assert_eq!(piece.time, sample(last).time);
        assert_eq!(piece.data_used_bytes, last << 16);
        assert_eq!(
            (piece.queued_writes, piece.seconds),
            (1, 300.0),
            "the most of a queue, the sum of the times"
        );
        let sum: u64 = (last - 29..=last).sum();
        assert_eq!(piece.requests, reads(sum));
    }

    #[test]
    fn what_is_known_is_not_sent_again() {
        let history = history(50);
        let all = history.after(0);
        assert_eq!((all.len(), all[0].number), (50, 1));
        let news = history.after(48);
        assert_eq!((news.len(), news[0].number), (2, 49));
        assert!(history.after(50).is_empty());
    }

    #[test]
    fn devices_that_come_and_go_do_not_count_backwards() {
        let before = BTreeMap::from([(1, reads(100)), (2, reads(1000))]);
        let now = BTreeMap::from([(1, reads(130)), (3, reads(5))]);
        assert_eq!(done_between(&before, &now), reads(35));
        let reused = BTreeMap::from([(1, reads(130)), (2, reads(4))]);
        assert_eq!(done_between(&before, &reused), reads(30));
    }
}
