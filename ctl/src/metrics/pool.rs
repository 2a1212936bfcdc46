//! Metrics of a pool as a whole.

use pool::{DeviceInfo, Mode, Status};

use super::families::{Families, Labels, as_f64};
use crate::service::PoolService;
use crate::transports::ORDER;

const MODES: [(Mode, &str); 5] = [
    (Mode::Write, "write"),
    (Mode::OutOfDataSpace, "out_of_data_space"),
    (Mode::OutOfMetadataSpace, "out_of_metadata_space"),
    (Mode::ReadOnly, "read_only"),
    (Mode::Failed, "failed"),
];

/// A metric's name, its help text, and its value.
type Told<T> = (&'static str, &'static str, T);

/// What there is to tell of a pool with these devices.
pub(super) fn metrics(
    out: &mut Families,
    labels: &Labels,
    service: &PoolService,
    devices: &[DeviceInfo],
) {
    let status = service.pool.status();
    let gauges = stores(&status).into_iter().chain(gauges(&status));
    for (name, help, value) in gauges {
        out.gauge(name, help, labels, value);
    }
    for (name, help, value) in forecast(service, &status, devices) {
        out.gauge_f64(name, help, labels, value);
    }
    for (name, help, value) in counters(&status) {
        out.counter(name, help, labels, value);
    }
    for (mode, name) in MODES {
        out.gauge(
            "thinpool_mode",
            "The mode the pool is in: 1 for that mode, 0 for the others.",
            &labels.with("mode", name.to_owned()),
            u64::from(status.mode == mode),
        );
    }
    out.histogram(
        "thinpool_commit_duration_seconds",
        "How long commits took.",
        labels,
        service.pool.commit_durations(),
    );
    if let Some(age) = service.usage_counts.age() {
        out.gauge_f64(
            "thinpool_usage_age_seconds",
            "How old exclusive and shared bytes may be: when the last count of all devices began.",
            labels,
            age.as_secs_f64(),
        );
    }
    attachments(out, labels, service);
}

fn attachments(out: &mut Families, labels: &Labels, service: &PoolService) {
    let Some(attached) = service.attachments.transports() else {
        return;
    };
    for transport in ORDER {
        let count = attached.iter().filter(|one| **one == transport).count();
        out.gauge(
            "thinpool_attachments",
            "Local block devices of the pool.",
            &labels.with("transport", transport.name().to_owned()),
            count as u64,
        );
    }
}

/// How large and how full the stores are.
fn stores(status: &Status) -> [Told<u64>; 7] {
    [
        (
            "thinpool_block_size_bytes",
            "Size of a data block.",
            status.block_size,
        ),
        (
            "thinpool_data_size_bytes",
            "Size of the data store.",
            status.data_total_bytes,
        ),
        (
            "thinpool_data_used_bytes",
            "Bytes in allocated data blocks.",
            status.data_used_bytes,
        ),
        (
            "thinpool_data_free_bytes",
            "Bytes in data blocks that nobody has.",
            status.data_free_bytes(),
        ),
        (
            "thinpool_metadata_size_bytes",
            "Size of the metadata store.",
            status.metadata_total_bytes,
        ),
        (
            "thinpool_metadata_used_bytes",
            "Bytes of the metadata store in use.",
            status.metadata_used_bytes,
        ),
        (
            "thinpool_metadata_free_bytes",
            "Free bytes of the metadata store, without those that are kept back.",
            status.metadata_free_bytes(),
        ),
    ]
}

/// What else can go up and down.
fn gauges(status: &Status) -> [Told<u64>; 9] {
    [
        (
            "thinpool_transaction_id",
            "Transaction id of the metadata, raised by every change of names or devices.",
            status.transaction_id,
        ),
        (
            "thinpool_needs_check",
            "Whether the pool asks for a check before it is written again.",
            u64::from(status.needs_check),
        ),
        ("thinpool_volumes", "Volumes in the pool.", status.volumes),
        (
            "thinpool_snapshots",
            "Snapshots in the pool.",
            status.snapshots,
        ),
        (
            "thinpool_partial_blocks",
            "Data blocks of which only written sub-blocks exist; the next commit fills in the rest.",
            status.partial_blocks,
        ),
        (
            "thinpool_queued_writes",
            "Writes that wait for data space.",
            status.queued_writes,
        ),
        (
            "thinpool_deleting_devices",
            "Deleted devices whose blocks are being given back.",
            status.deleting,
        ),
        (
            "thinpool_log_size_bytes",
            "Size of the intent log's file; 0 when there is none.",
            status.log_bytes,
        ),
        (
            "thinpool_log_records",
            "Records in the intent log that no commit has taken yet.",
            status.log_records,
        ),
    ]
}

/// What is worked out from the state: marks, ratios, times.
fn forecast(service: &PoolService, status: &Status, devices: &[DeviceInfo]) -> [Told<f64>; 7] {
    let (space, until_full) = (service.space(), service.until_full());
    let virtual_size: u64 = devices.iter().map(|info| info.size).sum();
    let low_water = |total| as_f64(space.low_water_bytes(total));
    let seconds = |seconds: Option<u64>| seconds.map_or(f64::INFINITY, as_f64);
    [
        (
            "thinpool_data_low_water_bytes",
            "Free bytes of the data store below which space is little.",
            low_water(status.data_total_bytes),
        ),
        (
            "thinpool_metadata_low_water_bytes",
            "Free bytes of the metadata store below which space is little.",
            low_water(status.metadata_total_bytes),
        ),
        (
            "thinpool_data_until_full_seconds",
            "Until the data store is full at the present rate, a mean of the last minutes; +Inf unless it fills.",
            seconds(until_full.data_seconds),
        ),
        (
            "thinpool_metadata_until_full_seconds",
            "Until the metadata store is full at the present rate, a mean of the last minutes; +Inf unless it fills.",
            seconds(until_full.metadata_seconds),
        ),
        (
            "thinpool_virtual_size_bytes",
            "Sizes of all volumes and snapshots, summed.",
            as_f64(virtual_size),
        ),
        (
            "thinpool_overcommit_ratio",
            "Sizes of all volumes and snapshots as a multiple of the data store's.",
            as_f64(virtual_size) / as_f64(status.data_total_bytes.max(1)),
        ),
        (
            "thinpool_log_used_ratio",
            "Records in the intent log as a share of those after which a commit must come.",
            as_f64(status.log_records) / as_f64(status.log_records_max.max(1)),
        ),
    ]
}

fn counters(status: &Status) -> [Told<u64>; 6] {
    [
        (
            "thinpool_commits_total",
            "Commits since the pool was opened.",
            status.commits,
        ),
        (
            "thinpool_log_flushes_total",
            "Syncs of the intent log for flushes since the pool was opened.",
            status.flushes,
        ),
        (
            "thinpool_provisioned_blocks_total",
            "Data blocks given to writes of unmapped ranges since the pool was opened.",
            status.provisioned_blocks,
        ),
        (
            "thinpool_copied_blocks_total",
            "Data blocks given to writes of shared ranges since the pool was opened.",
            status.copied_blocks,
        ),
        (
            "thinpool_copied_bytes_total",
            "Bytes copied to fill in blocks that were written in part, since the pool was opened.",
            status.copied_bytes,
        ),
        (
            "thinpool_zeroed_bytes_total",
            "Zeros written to fill in blocks that were written in part, since the pool was opened.",
            status.zeroed_bytes,
        ),
    ]
}
