//! Metrics of a volume or snapshot.

use pool::{DeviceInfo, DeviceStats, Operation};

use super::families::{Families, Labels};
use crate::service::PoolService;

/// What there is to tell of one device.
pub(super) fn metrics(
    out: &mut Families,
    device: &Labels,
    service: &PoolService,
    info: &DeviceInfo,
) {
    for (name, help, value) in gauges(info) {
        out.gauge(name, help, device, value);
    }
    if let Some(usage) = service.usage_counts.get(info.id) {
        out.gauge(
            "thinpool_device_exclusive_bytes",
            "Bytes that only this volume or snapshot maps, as old as thinpool_usage_age_seconds says.",
            device,
            usage.exclusive_bytes,
        );
        out.gauge(
            "thinpool_device_shared_bytes",
            "Bytes that another volume or snapshot maps, too, as old as thinpool_usage_age_seconds says.",
            device,
            usage.shared_bytes,
        );
    }
    if let Some(stats) = service.pool.device_stats(&info.name) {
        operations(out, device, &stats);
    }
}

/// Name, help and value.
fn gauges(info: &DeviceInfo) -> [(&'static str, &'static str, u64); 4] {
    [
        (
            "thinpool_device_size_bytes",
            "Size of the volume or snapshot.",
            info.size,
        ),
        (
            "thinpool_device_mapped_bytes",
            "Bytes of the volume or snapshot that are mapped to data blocks, shared ones included.",
            info.mapped_bytes,
        ),
        (
            "thinpool_device_queued_writes",
            "Writes to the volume that wait for data space.",
            info.queued_writes,
        ),
        (
            "thinpool_device_openings",
            "Exports, connections and attachments that have the volume or snapshot open.",
            info.open_count,
        ),
    ]
}

fn operations(out: &mut Families, device: &Labels, stats: &DeviceStats) {
    for operation in Operation::ALL {
        let counted = stats.get(operation);
        let labels = device.with("operation", operation.name().to_owned());
        let count = counted.latency().counts().iter().sum();
        for (name, help, value) in [
            (
                "thinpool_device_operations_total",
                "Requests carried out.",
                count,
            ),
            (
                "thinpool_device_bytes_total",
                "Bytes asked for by requests that were carried out.",
                counted.bytes(),
            ),
            (
                "thinpool_device_errors_total",
                "Requests that failed.",
                counted.errors(),
            ),
        ] {
            out.counter(name, help, &labels, value);
        }
        // Nineteen series that say nothing for each kind of request that never came.
        if count > 0 {
            out.histogram(
                "thinpool_device_operation_duration_seconds",
                "How long requests took that were carried out.",
                &labels,
                counted.latency(),
            );
        }
    }
}
