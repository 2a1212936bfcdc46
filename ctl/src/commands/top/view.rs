//! What has happened between two looks: a pure calculation, and its text.

use std::time::Duration;

use pool::{DeviceKind, DeviceName, Mode, Operation};
use serde::Serialize;

use super::Look;
use crate::activity::{DeviceActivity, OperationActivity, quantile};
use crate::service::now;
use crate::size::format_size;
use crate::table::{Align, render};

/// How long a usage bar is.
const BAR_LEN: u64 = 30;

/// What volumes are sorted by: the largest first, or the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    Requests,
    Throughput,
    Latency,
    Mapped,
    Name,
}

/// A pool between two looks.
#[derive(Serialize)]
pub(super) struct View {
    time: String,
    interval_seconds: f64,
    pool: PoolView,
    devices: Vec<DeviceView>,
}

#[derive(Serialize)]
struct PoolView {
    path: String,
    mode: Mode,
    mode_reason: String,
    data: StoreView,
    metadata: StoreView,
    operations_per_second: f64,
    bytes_per_second: f64,
    commits_per_second: f64,
    log_used_ratio: f64,
    partial_blocks: u64,
    queued_writes: u64,
}

#[derive(Serialize)]
struct StoreView {
    used_bytes: u64,
    total_bytes: u64,
    /// At the present rate; none when it does not fill.
    until_full_seconds: Option<u64>,
}

#[derive(Serialize)]
struct DeviceView {
    name: DeviceName,
    kind: DeviceKind,
    size: u64,
    mapped_bytes: u64,
    /// As counted last; none when that was never.
    exclusive_bytes: Option<u64>,
    shared_bytes: Option<u64>,
    open_count: u64,
    queued_writes: u64,
    /// All kinds of requests.
    operations_per_second: f64,
    /// Read and written.
    bytes_per_second: f64,
    errors_per_second: f64,
    read: Rates,
    write: Rates,
    /// Of reads and writes; none when there were none.
    latency_p50_seconds: Option<f64>,
    latency_p99_seconds: Option<f64>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Rates {
    operations_per_second: f64,
    bytes_per_second: f64,
    #[serde(skip)]
    errors_per_second: f64,
}

impl View {
    /// What has happened between two looks; with the same look twice, nothing.
    pub(super) fn between(before: &Look, after: &Look) -> Self {
        let passed = after.at.saturating_duration_since(before.at);
        let rate = PerSecond::over(passed);
        let device = |now: &DeviceActivity| {
            let earlier = before.activity.devices.iter();
            let earlier = earlier.clone().find(|other| other.info.id == now.info.id);
            DeviceView::between(earlier, now, rate)
        };
        let devices: Vec<DeviceView> = after.activity.devices.iter().map(device).collect();
        View {
            time: now(),
            interval_seconds: passed.as_secs_f64(),
            pool: PoolView::between(before, after, &devices, rate),
            devices,
        }
    }

    pub(super) fn sort(&mut self, by: Sort) {
        let key = |device: &DeviceView| match by {
            Sort::Requests => device.operations_per_second,
            Sort::Throughput => device.bytes_per_second,
            Sort::Latency => device.latency_p99_seconds.unwrap_or(0.0),
            Sort::Mapped => as_f64(device.mapped_bytes),
            Sort::Name => 0.0,
        };
        self.devices.sort_by(|one, other| {
            let by_key = key(other).total_cmp(&key(one));
            by_key.then_with(|| one.name.cmp(&other.name))
        });
    }

    /// The view for people: a few lines about the pool, a line a device.
    pub(super) fn to_text(&self) -> String {
        let columns = [
            ("NAME", Align::Left),
            ("REQ/s", Align::Right),
            ("READ/s", Align::Right),
            ("WRITE/s", Align::Right),
            ("READ B/s", Align::Right),
            ("WRITE B/s", Align::Right),
            ("P50", Align::Right),
            ("P99", Align::Right),
            ("WAIT", Align::Right),
            ("MAPPED", Align::Right),
            ("EXCLUSIVE", Align::Right),
        ];
        let table = render(&columns, self.devices.iter().map(DeviceView::row));
        format!("{}\n{table}", self.pool.to_text(&self.time))
    }
}

impl PoolView {
    fn between(before: &Look, after: &Look, devices: &[DeviceView], rate: PerSecond) -> Self {
        let (pool, until_full) = (&after.activity.pool, &after.activity.until_full);
        let (status, earlier) = (&pool.status, &before.activity.pool.status);
        PoolView {
            path: pool.path.display().to_string(),
            mode: status.mode,
            mode_reason: status.mode_reason.clone(),
            data: StoreView {
                used_bytes: status.data_used_bytes,
                total_bytes: status.data_total_bytes,
                until_full_seconds: until_full.data_seconds,
            },
            metadata: StoreView {
                used_bytes: status.metadata_used_bytes,
                total_bytes: status.metadata_total_bytes,
                until_full_seconds: until_full.metadata_seconds,
            },
            operations_per_second: total(devices.iter().map(|one| one.operations_per_second)),
            bytes_per_second: total(devices.iter().map(|one| one.bytes_per_second)),
            commits_per_second: rate.of(earlier.commits, status.commits),
            log_used_ratio: as_f64(status.log_records) / as_f64(status.log_records_max.max(1)),
            partial_blocks: status.partial_blocks,
            queued_writes: status.queued_writes,
        }
    }

    fn to_text(&self, time: &str) -> String {
        let mode = match self.mode {
            Mode::Write => "write",
            Mode::OutOfDataSpace => "OUT OF DATA SPACE",
            Mode::OutOfMetadataSpace => "OUT OF METADATA SPACE",
            Mode::ReadOnly => "READ ONLY",
            Mode::Failed => "FAILED",
        };
        let reason = match self.mode_reason.as_str() {
            "" => String::new(),
            reason => format!(" ({reason})"),
        };
        format!(
            "{}  {time}  mode {mode}{reason}\ndata      {}\nmetadata  {}\n{:.0} requests/s, {}/s, {:.1} commits/s, log {:.0} % \
             full, {} partial blocks, {} writes wait\n",
            self.path,
            self.data.to_text(),
            self.metadata.to_text(),
            self.operations_per_second,
            format_size(as_u64(self.bytes_per_second)),
            self.commits_per_second,
            self.log_used_ratio * 100.0,
            self.partial_blocks,
            self.queued_writes,
        )
    }
}

impl StoreView {
    fn to_text(&self) -> String {
        let share = |of: u64| u128::from(self.used_bytes) * u128::from(of);
        let total = u128::from(self.total_bytes.max(1));
        let filled = usize::try_from(share(BAR_LEN) / total).unwrap_or_default();
        let bar = "#".repeat(filled);
        let width = usize::try_from(BAR_LEN).unwrap_or_default();
        let full = match self.until_full_seconds {
            None => String::new(),
            Some(seconds) => format!(", full in {}", in_words(seconds)),
        };
        format!(
            "[{bar:-<width$}] {:>3} %  {} of {}{full}",
            share(100) / total,
            format_size(self.used_bytes),
            format_size(self.total_bytes),
        )
    }
}

impl DeviceView {
    fn between(before: Option<&DeviceActivity>, now: &DeviceActivity, rate: PerSecond) -> Self {
        let of = |operation| {
            let earlier = before.and_then(|before| before.operation(operation));
            now.operation(operation)
                .map(|now| (Rates::between(earlier, now, rate), earlier, now))
        };
        let all = Operation::ALL.map(|operation| of(operation).map(|(rates, ..)| rates));
        let sum = |f: fn(&Rates) -> f64| total(all.iter().flatten().map(f));
        let data = [of(Operation::Read), of(Operation::Write)];
        let mut latencies = Vec::new();
        for (_, earlier, now) in data.into_iter().flatten() {
            add_new(&mut latencies, earlier, now);
        }
        let [read, write] = data.map(|one| one.map(|(rates, ..)| rates).unwrap_or_default());
        DeviceView {
            name: now.info.name.clone(),
            kind: now.info.kind,
            size: now.info.size,
            mapped_bytes: now.info.mapped_bytes,
            exclusive_bytes: now.exclusive_bytes,
            shared_bytes: now.shared_bytes,
            open_count: now.info.open_count,
            queued_writes: now.info.queued_writes,
            operations_per_second: sum(|rates| rates.operations_per_second),
            bytes_per_second: read.bytes_per_second + write.bytes_per_second,
            errors_per_second: sum(|rates| rates.errors_per_second),
            read,
            write,
            latency_p50_seconds: quantile(0.5, &latencies),
            latency_p99_seconds: quantile(0.99, &latencies),
        }
    }

    fn row(&self) -> Vec<String> {
        let per_second = |rate: f64| format!("{rate:.0}");
        let size = |rate: f64| format_size(as_u64(rate));
        let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), short_time);
        vec![
            self.name.to_string(),
            per_second(self.operations_per_second),
            per_second(self.read.operations_per_second),
            per_second(self.write.operations_per_second),
            size(self.read.bytes_per_second),
            size(self.write.bytes_per_second),
            time(self.latency_p50_seconds),
            time(self.latency_p99_seconds),
            self.queued_writes.to_string(),
            format_size(self.mapped_bytes),
            self.exclusive_bytes
                .map_or_else(|| "-".to_owned(), format_size),
        ]
    }
}

impl Rates {
    fn between(
        before: Option<&OperationActivity>,
        now: &OperationActivity,
        rate: PerSecond,
    ) -> Self {
        let grown = |f: fn(&OperationActivity) -> u64| rate.of(before.map_or(0, f), f(now));
        Rates {
            operations_per_second: grown(|one| one.count),
            bytes_per_second: grown(|one| one.bytes),
            errors_per_second: grown(|one| one.errors),
        }
    }
}

/// Adds what came since to how many requests took how long.
fn add_new(sum: &mut Vec<u64>, before: Option<&OperationActivity>, now: &OperationActivity) {
    let known = before.map_or(&[][..], |before| &before.latency_counts);
    sum.resize(sum.len().max(now.latency_counts.len()), 0);
    for (index, count) in now.latency_counts.iter().enumerate() {
        sum[index] += count.saturating_sub(known.get(index).copied().unwrap_or(0));
    }
}

/// How fast counters grow.
#[derive(Clone, Copy)]
struct PerSecond(f64);

impl PerSecond {
    fn over(passed: Duration) -> Self {
        let seconds = passed.as_secs_f64();
        PerSecond(if seconds > 0.0 { 1.0 / seconds } else { 0.0 })
    }

    /// A counter that has become less is that of a new daemon: all of it is new.
    fn of(self, before: u64, now: u64) -> f64 {
        as_f64(now.checked_sub(before).unwrap_or(now)) * self.0
    }
}

/// The sum; of nothing it is 0, where the standard library has -0.
fn total(rates: impl Iterator<Item = f64>) -> f64 {
    rates.fold(0.0, |sum, rate| sum + rate)
}

/// `87 us`, `1.4 ms`, `2.0 s`.
fn short_time(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1e-3 => format!("{:.0} us", seconds * 1e6),
        _ if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.1} s"),
    }
}

/// `45 s`, `12 min`, `3 h`, `80 days`.
fn in_words(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate, which is not negative"
)]
fn as_u64(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Instant;

    use pool::DeviceInfo;

    use super::*;
    use crate::activity::Activity;
    use crate::protocol::PoolInfo;
    use crate::space::{SpacePolicy, UntilFull, empty_status};

    fn device(id: u32, name: &str, writes: u64) -> DeviceActivity {
        let mut latency_counts = vec![0; 17];
        latency_counts[4] = writes;
        DeviceActivity {
            info: DeviceInfo {
                name: name.parse().unwrap(),
                kind: DeviceKind::Volume,
                id,
                uuid: String::new(),
                size: 1 << 30,
                mapped_bytes: 1 << 20,
                parent: None,
                created: String::new(),
                read_only: false,
                external_origin: None,
                no_space: pool::NoSpaceOverride::default(),
                queued_writes: 0,
                open_count: 1,
            },
            exclusive_bytes: Some(1 << 19),
            shared_bytes: Some(1 << 19),
            operations: vec![OperationActivity {
                operation: "write".to_owned(),
                count: writes,
                bytes: writes * 4096,
                errors: 0,
                seconds: 1.0,
                latency_counts,
            }],
        }
    }

    fn look(at: Instant, devices: Vec<DeviceActivity>) -> Look {
        let mut status = empty_status();
        status.data_used_bytes = 50;
        Look {
            at,
            activity: Activity {
                pool: PoolInfo {
                    path: PathBuf::from("/p"),
                    uuid: String::new(),
                    metadata: PathBuf::new(),
                    data: PathBuf::new(),
                    status,
                    space: SpacePolicy::default(),
                    daemon_pid: None,
                },
                until_full: UntilFull {
                    data_seconds: Some(7300),
                    metadata_seconds: None,
                },
                usage_age_seconds: Some(0),
                devices,
            },
        }
    }

    #[test]
    fn rates_are_differences() {
        let begun = Instant::now();
        let before = look(begun, vec![device(1, "a", 100), device(2, "b", 500)]);
        let after = look(
            begun + Duration::from_secs(2),
            // b has a new daemon's counters, and c is new.
            vec![
                device(1, "a", 300),
                device(2, "b", 40),
                device(3, "c", 1000),
            ],
        );
        let mut view = View::between(&before, &after);
        view.sort(Sort::Requests);
        let told: Vec<_> = view
            .devices
            .iter()
            .map(|one| (one.name.to_string(), one.operations_per_second))
            .collect();
        let expected = [("c", 500.0), ("a", 100.0), ("b", 20.0)];
        assert_eq!(told, expected.map(|(name, rate)| (name.to_owned(), rate)));
        let a = &view.devices[1];
        assert!((a.write.bytes_per_second - 409_600.0).abs() < 1e-6);
        assert!((50e-6..100e-6).contains(&a.latency_p50_seconds.unwrap()));
        view.sort(Sort::Name);
        assert_eq!(view.devices[0].name.to_string(), "a");
    }

    #[test]
    fn nothing_happens_in_no_time() {
        let mut never = device(2, "b", 0);
        never.operations.clear();
        let once = look(Instant::now(), vec![device(1, "a", 100), never]);
        let view = View::between(&once, &once);
        for row in view.devices.iter().map(DeviceView::row) {
            assert_eq!(row[1..8], ["0", "0", "0", "0 B", "0 B", "-", "-"]);
        }
    }

    #[test]
    fn a_view_says_how_full_the_pool_is_and_when_it_will_be() {
        let once = look(Instant::now(), vec![device(1, "a", 100)]);
        let text = View::between(&once, &once).to_text();
        let bar = format!("[{}{}]  50 %", "#".repeat(15), "-".repeat(15));
        assert!(
            text.contains(&bar) && text.contains("full in 2 h"),
            "{text}"
        );
        assert!(text.lines().last().unwrap().starts_with("a "), "{text}");
    }

    #[test]
    fn times_for_people() {
        assert_eq!(short_time(87e-6), "87 us");
        assert_eq!(short_time(1.44e-3), "1.4 ms");
        assert_eq!(short_time(2.0), "2.0 s");
        assert_eq!(in_words(119), "119 s");
        assert_eq!(in_words(7199), "119 min");
        assert_eq!(in_words(80 * 86_400), "80 days");
    }
}
