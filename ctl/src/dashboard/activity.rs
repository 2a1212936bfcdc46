//! What has been done in a pool since it was opened, as plain values. Rates are the differences of two looks.

use pool::{DeviceInfo, DeviceStats, Operation};
use serde::Serialize;

use crate::protocol::PoolInfo;
use crate::service::PoolService;

/// A pool and its devices at a moment.
#[derive(Serialize)]
pub(super) struct Activity {
    /// The pool's state.
    pool: PoolInfo,
    /// Its volumes and snapshots, by name.
    devices: Vec<DeviceActivity>,
}

/// What has been done with a device.
#[derive(Serialize)]
struct DeviceActivity {
    #[serde(flatten)]
    info: DeviceInfo,
    /// Requests, a kind each; none of those that never came.
    operations: Vec<OperationActivity>,
}

/// Requests of one kind.
#[derive(Serialize)]
struct OperationActivity {
    /// `read`, `write`, `flush`, `discard` or `write_zeroes`.
    operation: &'static str,
    /// How many finished.
    count: u64,
    /// The bytes they asked for.
    bytes: u64,
    /// How many took how long; not cumulative, the longest last.
    latency_counts: Vec<u64>,
}

/// What has been done in a pool so far.
pub(super) fn activity(service: &PoolService) -> Activity {
    let of_device = |info: DeviceInfo| {
        let stats = service.pool.device_stats(&info.name);
        let operations = stats.map(|stats| operations(&stats)).unwrap_or_default();
        DeviceActivity { info, operations }
    };
    Activity {
        pool: service.pool_info(),
        devices: service.pool.devices().into_iter().map(of_device).collect(),
    }
}

fn operations(stats: &DeviceStats) -> Vec<OperationActivity> {
    let all = Operation::ALL.iter().map(|operation| {
        let counted = stats.get(*operation);
        let latency_counts = counted.latency().counts().to_vec();
        OperationActivity {
            operation: operation.name(),
            count: latency_counts.iter().sum(),
            bytes: counted.bytes(),
            latency_counts,
        }
    });
    all.filter(|one| one.count > 0).collect()
}
