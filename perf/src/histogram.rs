//! Latencies in buckets that grow by a sixty-fourth: small, and exact to about 1.5 %.

use std::time::Duration;

const STEP_BITS: u32 = 6;
const STEPS: u64 = 1 << STEP_BITS;
const BUCKETS: usize = 64 << STEP_BITS;

/// Counts of durations.
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    longest: Duration,
}

impl Histogram {
    /// An empty one.
    pub fn new() -> Histogram {
        Histogram {
            counts: vec![0; BUCKETS],
            total: 0,
            longest: Duration::ZERO,
        }
    }

    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)] += 1;
        self.total += 1;
        self.longest = self.longest.max(duration);
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.longest = self.longest.max(other.longest);
    }

    /// The longest duration counted.
    pub fn longest(&self) -> Duration {
        self.longest
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
    let doublings = nanoseconds.ilog2() - STEP_BITS;
    let step = (nanoseconds >> doublings) - STEPS;
    usize::try_from(u64::from(doublings + 1) * STEPS + step).unwrap_or(BUCKETS - 1)
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
        for index in 0..(64 - STEP_BITS as usize) << STEP_BITS {
            assert_eq!(bucket(lower_edge(index)), index);
        }
        assert!(bucket(u64::MAX) < BUCKETS);
    }

    #[test]
    fn percentiles_are_within_a_sixty_fourth() {
        let mut histogram = Histogram::new();
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        let median = histogram.percentile(50);
        assert!((492_000..=500_000).contains(&median), "{median}");
        assert!(histogram.percentile(99) > 974_000);
    }
}
