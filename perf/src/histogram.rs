//! Latencies in buckets that grow by an eighth: small, and exact to about 12 %.

use std::time::Duration;

const STEPS: u64 = 8;
const BUCKETS: usize = 64 * 8;

/// Counts of durations.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Histogram {
        Histogram {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
    }

    /// The lower edge, in nanoseconds, of the bucket in which `percent` of all lie at or below.
    pub fn percentile(&self, percent: u64) -> u64 {
        let wanted = self.total.saturating_mul(percent).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return lower_edge(index);
            }
        }
        0
    }
}

fn bucket(nanoseconds: u64) -> usize {
    if nanoseconds < STEPS {
        return usize::try_from(nanoseconds).unwrap_or(0);
    }
    let exponent = u64::from(nanoseconds.ilog2());
    let step = (nanoseconds >> (exponent - 3)) - STEPS;
    usize::try_from((exponent - 2) * STEPS + step).unwrap_or(BUCKETS - 1)
}

fn lower_edge(index: usize) -> u64 {
    let index = index as u64;
    if index < STEPS {
        return index;
    }
    (STEPS + index % STEPS) << (index / STEPS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_lie_in_their_own_buckets() {
        for index in 0..61 * 8 {
            assert_eq!(bucket(lower_edge(index)), index);
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_within_an_eighth() {
        let mut histogram = Histogram::new();
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        let median = histogram.percentile(50);
        assert!((437_500..=500_000).contains(&median), "{median}");
        assert!(histogram.percentile(99) > 860_000);
    }
}
