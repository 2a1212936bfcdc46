//! When a store will be full, if it goes on filling as it does: a pure calculation.

use std::time::Duration;

/// How far back "at the present rate" looks: what happened so long ago counts for about a third.
const MEMORY: Duration = Duration::from_secs(120);

/// Beyond this nobody plans; it counts as never.
const HORIZON_SECONDS: f64 = 10.0 * 365.25 * 86_400.0;

/// The rate at which a store fills.
#[derive(Default)]
pub(super) struct Forecast {
    /// When it was looked at last, and how much was used then.
    seen: Option<(Duration, u64)>,
    /// Bytes a second, an exponentially weighted mean; negative while it empties.
    rate: f64,
}

impl Forecast {
    /// Takes a look, at a monotonic time. Returns the seconds until the store is full; none if it does not
    /// fill.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn look(&mut self, now: Duration, used: u64, free: u64) -> Option<u64> {
        if let Some((at, before)) = self.seen {
            let passed = now.saturating_sub(at).as_secs_f64();
            if passed <= 0.0 {
                return self.seconds(free as f64);
            }
            let rate = (used as f64 - before as f64) / passed;
            let weight = 1.0 - (-passed / MEMORY.as_secs_f64()).exp();
            self.rate += weight * (rate - self.rate);
        }
        self.seen = Some((now, used));
        self.seconds(free as f64)
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, between 0 and the horizon"
    )]
    fn seconds(&self, free: f64) -> Option<u64> {
        let seconds = free / self.rate;
        (self.rate > 0.0 && seconds < HORIZON_SECONDS).then_some(seconds as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Fills a store of 10 GiB at so many MiB a second for a while.
    fn fill(forecast: &mut Forecast, from: u64, seconds: u64, rate: u64) -> Option<u64> {
        let mut last = None;
        for second in 0..seconds {
            let used = (from + second) * rate * MIB;
            last = forecast.look(
                Duration::from_secs(from + second),
                used,
                10_240 * MIB - used,
            );
        }
        last
    }

    #[test]
    fn a_steady_rate_is_found_out() {
        let mut forecast = Forecast::default();
        assert_eq!(forecast.look(Duration::ZERO, 0, 10_240 * MIB), None);
        let seconds = fill(&mut forecast, 1, 900, 1).unwrap();
        let right = 10_240 - 900;
        assert!((right..right + right / 50).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_has_ended_is_forgotten() {
        let mut forecast = Forecast::default();
        fill(&mut forecast, 0, 600, 1);
        let (used, free) = (599 * MIB, 9_641 * MIB);
        let soon = forecast.look(Duration::from_secs(660), used, free);
        let later = forecast.look(Duration::from_secs(1200), used, free);
        assert!(soon < later, "{soon:?} {later:?}");
        assert_eq!(forecast.look(Duration::from_secs(7200), used, free), None);
    }

    #[test]
    fn a_store_that_empties_is_never_full() {
        let mut forecast = Forecast::default();
        for second in 0..100 {
            let used = (1000 - second) * MIB;
            assert_eq!(
                forecast.look(Duration::from_secs(second), used, 24 * MIB),
                None
            );
        }
    }

    #[test]
    fn two_looks_at_one_moment_do_no_harm() {
        let mut forecast = Forecast::default();
        forecast.look(Duration::from_secs(1), 0, 100);
        assert_eq!(forecast.look(Duration::from_secs(1), 50, 50), None);
        assert!(forecast.look(Duration::from_secs(2), 50, 50).is_some());
    }
}
