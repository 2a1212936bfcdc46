//! Metrics gathered by family, as Prometheus wants them.

use std::collections::HashMap;

use pool::{Histogram, LATENCY_BOUNDS_US};
use prometheus::proto::{self, MetricFamily, MetricType};

#[derive(Clone)]
pub(super) struct Labels(pub(super) Vec<(&'static str, String)>);

impl Labels {
    pub(super) fn with(&self, name: &'static str, value: String) -> Self {
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
pub(super) struct Families {
    families: Vec<MetricFamily>,
    index: HashMap<&'static str, usize>,
}

impl Families {
    pub(super) fn gauge(&mut self, name: &'static str, help: &str, labels: &Labels, value: u64) {
        self.gauge_f64(name, help, labels, as_f64(value));
    }

    pub(super) fn gauge_f64(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        value: f64,
    ) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        let mut metric = proto::Metric::from_label(labels.to_proto());
        metric.set_gauge(gauge);
        self.push(name, help, MetricType::GAUGE, metric);
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &str, labels: &Labels, value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(as_f64(value));
        let mut metric = proto::Metric::from_label(labels.to_proto());
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, metric);
    }

    pub(super) fn histogram(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &Labels,
        values: &Histogram,
    ) {
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

    pub(super) fn done(self) -> Vec<MetricFamily> {
        self.families
    }
}

/// Prometheus has no integers; counts beyond 2^53 lose their last digits.
#[expect(
    clippy::cast_precision_loss,
    reason = "the text format holds floating point numbers"
)]
pub(super) fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use prometheus::{Encoder, TextEncoder};

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
