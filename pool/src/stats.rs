//! Counters of what was done to one device, cheap enough for every request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kinds of request, as counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write of zeroes.
    WriteZeroes,
}

impl Operation {
    /// All kinds.
    pub const ALL: [Operation; 5] = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Discard,
        Operation::WriteZeroes,
    ];

    /// The name used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Discard => "discard",
            Operation::WriteZeroes => "write_zeroes",
        }
    }
}

/// Upper bounds of the histogram's buckets, in microseconds; a last bucket takes the rest.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000,
    2_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Counts a bucket (not cumulative), in the order of [`LATENCY_BOUNDS_US`], the rest last.
    pub fn counts(&self) -> [u64; LATENCY_BOUNDS_US.len() + 1] {
        std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed))
    }

    /// The sum of all recorded durations.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_nanos.load(Ordering::Relaxed))
    }
}

/// What was done with one kind of request.
#[derive(Debug, Default)]
pub struct OperationStats {
    bytes: AtomicU64,
    errors: AtomicU64,
    latency: Histogram,
}

impl OperationStats {
    /// Bytes asked for by requests that were carried out.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Requests that failed; they count nowhere else.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// How long requests took; its counts add up to the number of requests that were carried out.
    pub fn latency(&self) -> &Histogram {
        &self.latency
    }
}

/// Counters of one device since its pool was opened.
#[derive(Debug, Default)]
pub struct DeviceStats {
    operations: [OperationStats; Operation::ALL.len()],
}

impl DeviceStats {
    /// Counts one request that was carried out.
    pub fn record(&self, operation: Operation, bytes: u64, latency: Duration) {
        let stats = &self.operations[operation as usize];
        stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        stats.latency.record(latency);
    }

    /// Counts one request that failed.
    pub fn record_error(&self, operation: Operation) {
        let stats = &self.operations[operation as usize];
        stats.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters of one kind of request.
    pub fn get(&self, operation: Operation) -> &OperationStats {
        &self.operations[operation as usize]
    }
}
