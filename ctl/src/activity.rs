//! What has been done in a pool since it was opened, as plain values: for `thinctl top` and others who watch. Rates
//! are the differences of two looks.

use pool::{DeviceInfo, DeviceStats, LATENCY_BOUNDS_US, Operation};
use serde::{Deserialize, Serialize};

use crate::protocol::PoolInfo;
use crate::service::PoolService;
use crate::space::UntilFull;

/// A pool and its devices at a moment.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Activity {
    /// The pool's state.
    pub pool: PoolInfo,
    /// When its stores will be full at the present rate.
    pub until_full: UntilFull,
    /// How old exclusive and shared bytes may be, in seconds; none before they were counted.
    pub usage_age_seconds: Option<u64>,
    /// Its volumes and snapshots, by name.
    pub devices: Vec<DeviceActivity>,
}

/// What has been done with a device.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct DeviceActivity {
    /// The device.
    #[serde(flatten)]
    pub info: DeviceInfo,
    /// Bytes that only this device maps, when they were counted last.
    pub exclusive_bytes: Option<u64>,
    /// Bytes that another device maps, too, when they were counted last.
    pub shared_bytes: Option<u64>,
    /// Requests, a kind each; none of those that never came.
    pub operations: Vec<OperationActivity>,
}

/// Requests of one kind.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct OperationActivity {
    /// `read`, `write`, `flush`, `discard` or `write_zeroes`.
    pub operation: String,
    /// How many were carried out.
    pub count: u64,
    /// The bytes they asked for.
    pub bytes: u64,
    /// How many failed.
    pub errors: u64,
    /// How long they took in all, in seconds.
    pub seconds: f64,
    /// How many took so long: at most 5 us, 10, 20, 50, 100, 200, 500, 1 ms, 2, 5, 10, 20, 50, 100, 500, 2 s, and
    /// longer.
    pub latency_counts: Vec<u64>,
}

/// What has been done in a pool so far.
pub fn activity(service: &PoolService) -> Activity {
    let devices = service.pool.devices().into_iter();
    Activity {
        pool: service.pool_info(),
        until_full: service.until_full(),
        usage_age_seconds: service.usage_counts.age().map(|age| age.as_secs()),
        devices: devices.map(|info| of_device(service, info)).collect(),
    }
}

fn of_device(service: &PoolService, info: DeviceInfo) -> DeviceActivity {
    let usage = service.usage_counts.get(info.id);
    let stats = service.pool.device_stats(&info.name);
    DeviceActivity {
        exclusive_bytes: usage.map(|usage| usage.exclusive_bytes),
        shared_bytes: usage.map(|usage| usage.shared_bytes),
        operations: stats.map(|stats| operations(&stats)).unwrap_or_default(),
        info,
    }
}

fn operations(stats: &DeviceStats) -> Vec<OperationActivity> {
    let all = Operation::ALL.iter().map(|operation| {
        let counted = stats.get(*operation);
        let latency_counts = counted.latency().counts().to_vec();
        OperationActivity {
            operation: operation.name().to_owned(),
            count: latency_counts.iter().sum(),
            bytes: counted.bytes(),
            errors: counted.errors(),
            seconds: counted.latency().sum().as_secs_f64(),
            latency_counts,
        }
    });
    all.filter(|one| one.count > 0 || one.errors > 0).collect()
}

impl DeviceActivity {
    /// Requests of one kind.
    pub fn operation(&self, operation: Operation) -> Option<&OperationActivity> {
        let mut operations = self.operations.iter();
        operations.find(|one| one.operation == operation.name())
    }
}

/// The time, in seconds, that this share of requests did not exceed, from how many took how long: as Prometheus
/// has it, evenly spread within a bucket. None of no requests.
#[expect(clippy::cast_precision_loss, reason = "an estimate between two bounds")]
pub fn quantile(share: f64, counts: &[u64]) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let wanted = share * total as f64;
    let (mut below, mut low) = (0.0, 0.0);
    for (count, bound) in counts.iter().zip(LATENCY_BOUNDS_US) {
        let (count, high) = (*count as f64, bound as f64 / 1e6);
        if count > 0.0 && below + count >= wanted {
            return Some(low + (high - low) * (wanted - below) / count);
        }
        below += count;
        low = high;
    }
    // Longer than the last bound, as far as is known.
    (total > 0).then_some(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let mut counts = [0; LATENCY_BOUNDS_US.len() + 1];
        assert_eq!(quantile(0.5, &counts), None);
        counts[1] = 100;
        let half = quantile(0.5, &counts).unwrap();
        assert!((half - 7.5e-6).abs() < 1e-9, "{half}");
        counts[9] = 100;
        let most = quantile(0.99, &counts).unwrap();
        assert!((2e-3..5e-3).contains(&most), "{most}");
        counts[LATENCY_BOUNDS_US.len()] = 1000;
        assert_eq!(quantile(0.99, &counts), Some(2.0));
    }
}
