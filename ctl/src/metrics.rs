//! Prometheus metrics of the pools a daemon serves.
//!
//! Nothing is counted here: each scrape reads the pools' own counters. Device metrics appear and
//! disappear with their devices.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use pool::{DeviceStats, Histogram, LATENCY_BOUNDS_US, Mode, Operation, Status};
use prometheus::proto::{self, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};
use tokio::net::TcpListener;

use crate::service::PoolService;

const MODES: [(Mode, &str); 5] = [
    (Mode::Write, "write"),
    (Mode::OutOfDataSpace, "out_of_data_space"),
    (Mode::OutOfMetadataSpace, "out_of_metadata_space"),
    (Mode::ReadOnly, "read_only"),
    (Mode::Failed, "failed"),
];

/// The page `/metrics`, on its own port.
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Binds the port.
    ///
    /// # Errors
    /// When it is taken.
    pub async fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(MetricsServer { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the runtime ends.
    ///
    /// # Errors
    /// When the port fails.
    pub async fn serve(self, pools: Vec<Arc<PoolService>>) -> std::io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(page))
            .with_state(Arc::new(pools));
        axum::serve(self.listener, router).await
    }
}

async fn page(State(pools): State<Arc<Vec<Arc<PoolService>>>>) -> Response {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&families(&pools), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(cause) => (StatusCode::INTERNAL_SERVER_ERROR, cause.to_string()).into_response(),
    }
}

/// Everything there is to tell, by metric.
fn families(pools: &[Arc<PoolService>]) -> Vec<MetricFamily> {
    let mut out = Families::default();
    for service in pools {
        let pool = Labels(vec![("pool", service.dir.label())]);
        pool_metrics(&mut out, &pool, &service.pool.status());
        out.histogram(
            "thinpool_commit_duration_seconds",
            "How long commits took.",
            &pool,
            service.pool.commit_durations(),
        );
        for info in service.pool.devices() {
            let labels = pool.with("volume", info.name.to_string());
            out.gauge(
                "thinpool_device_size_bytes",
                "Size of the volume or snapshot.",
                &labels,
                info.size,
            );
            out.gauge(
                "thinpool_device_mapped_bytes",
                "Bytes of the volume or snapshot that are mapped to data blocks, shared ones included.",
                &labels,
                info.mapped_bytes,
            );
            out.gauge(
                "thinpool_device_openings",
                "Exports, connections and attachments that have the volume or snapshot open.",
                &labels,
                info.open_count,
            );
            if let Some(stats) = service.pool.device_stats(&info.name) {
                device_metrics(&mut out, &labels, &stats);
            }
        }
    }
    out.done()
}

fn pool_metrics(out: &mut Families, pool: &Labels, status: &Status) {
    for (name, help, value) in pool_gauges(status) {
        out.gauge(name, help, pool, value);
    }
    for (mode, name) in MODES {
        out.gauge(
            "thinpool_mode",
            "The mode the pool is in: 1 for that mode, 0 for the others.",
            &pool.with("mode", name.to_owned()),
            u64::from(status.mode == mode),
        );
    }
    for (name, help, value) in [
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
    ] {
        out.counter(name, help, pool, value);
    }
}

/// Name, help and value of what can go up and down.
fn pool_gauges(status: &Status) -> [(&'static str, &'static str, u64); 12] {
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
    ]
}

fn device_metrics(out: &mut Families, device: &Labels, stats: &DeviceStats) {
    for operation in Operation::ALL {
        let counted = stats.get(operation);
        let labels = device.with("operation", operation.name().to_owned());
        let count = counted.latency().counts().iter().sum();
        out.counter(
            "thinpool_operations_total",
            "Requests finished.",
            &labels,
            count,
        );
        out.counter(
            "thinpool_bytes_total",
            "Bytes asked for by finished requests.",
            &labels,
            counted.bytes(),
        );
        // Seventeen series that say nothing for each kind of request that never came.
        if count > 0 {
            out.histogram(
                "thinpool_operation_duration_seconds",
                "How long requests took.",
                &labels,
                counted.latency(),
            );
        }
    }
}

#[derive(Clone)]
struct Labels(Vec<(&'static str, String)>);

impl Labels {
    fn with(&self, name: &'static str, value: String) -> Self {
        let mut labels = self.clone();
        labels.0.push((name, value));
        labels
    }

    fn to_proto(&self) -> Vec<proto::LabelPair> {
        let pair = |(name, value): &(&'static str, String)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.clone());
            pair
        };
        self.0.iter().map(pair).collect()
    }
}

/// Metrics gathered by family, in the order of their first appearance.
#[derive(Default)]
struct Families {
    families: Vec<MetricFamily>,
    index: HashMap<&'static str, usize>,
}

impl Families {
    fn gauge(&mut self, name: &'static str, help: &str, labels: &Labels, value: u64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(as_f64(value));
        let mut metric = proto::Metric::from_label(labels.to_proto());
        metric.set_gauge(gauge);
        self.push(name, help, MetricType::GAUGE, metric);
    }

    fn counter(&mut self, name: &'static str, help: &str, labels: &Labels, value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(as_f64(value));
        let mut metric = proto::Metric::from_label(labels.to_proto());
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, metric);
    }

    fn histogram(&mut self, name: &'static str, help: &str, labels: &Labels, values: &Histogram) {
        let counts = values.counts();
        let mut cumulative = 0;
        let mut buckets = Vec::with_capacity(LATENCY_BOUNDS_US.len());
        for (bound_us, count) in LATENCY_BOUNDS_US.iter().zip(counts) {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(as_f64(*bound_us) / 1e6);
            bucket.set_cumulative_count(cumulative);
            buckets.push(bucket);
        }
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(values.sum().as_secs_f64());
        let mut metric = proto::Metric::from_label(labels.to_proto());
        metric.set_histogram(histogram);
        self.push(name, help, MetricType::HISTOGRAM, metric);
    }

    fn push(&mut self, name: &'static str, help: &str, kind: MetricType, metric: proto::Metric) {
        let index = *self.index.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            self.families.push(family);
            self.families.len() - 1
        });
        self.families[index].mut_metric().push(metric);
    }

    fn done(self) -> Vec<MetricFamily> {
        self.families
    }
}

/// Prometheus has no integers; counts beyond 2^53 lose their last digits.
#[expect(
    clippy::cast_precision_loss,
    reason = "the text format holds floating point numbers"
)]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_once_and_buckets_add_up() {
        let mut out = Families::default();
        let labels = Labels(vec![("pool", "a\"b".to_owned())]);
        out.gauge("x_bytes", "An x.", &labels, 5);
        out.gauge(
            "x_bytes",
            "An x.",
            &labels.with("volume", "v".to_owned()),
            6,
        );
        out.histogram("y_seconds", "A y.", &labels, &Histogram::default());
        let mut text = Vec::new();
        TextEncoder::new().encode(&out.done(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.matches("# TYPE x_bytes gauge").count(), 1);
        assert!(
            text.contains("x_bytes{pool=\"a\\\"b\",volume=\"v\"} 6"),
            "{text}"
        );
        assert!(
            text.contains("y_seconds_bucket{pool=\"a\\\"b\",le=\"0.000005\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("le=\"+Inf\"} 0") && text.contains("y_seconds_count"),
            "{text}"
        );
    }
}
