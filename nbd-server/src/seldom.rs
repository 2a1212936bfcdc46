//! Saying what clients can cause as often as they like without filling the log with it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long one line stands for all that follow.
const INTERVAL: Duration = Duration::from_secs(10);

/// One kind of line in the log, written at most once in ten seconds.
#[derive(Default)]
pub(crate) struct Seldom {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    pub(crate) fn warn(&self, line: impl FnOnce() -> String) {
        if let Some(line) = self.next(Instant::now(), line) {
            tracing::warn!("{line}");
        }
    }

    pub(crate) fn info(&self, line: impl FnOnce() -> String) {
        if let Some(line) = self.next(Instant::now(), line) {
            tracing::info!("{line}");
        }
    }

    /// The line, if it is time for one.
    fn next(&self, now: Instant, line: impl FnOnce() -> String) -> Option<String> {
        let mut state = self.state.lock();
        if state.last.is_some_and(|last| now - last < INTERVAL) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(match std::mem::take(&mut state.left_out) {
            0 => line(),
            left_out => format!("{} (and {left_out} times before)", line()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_stands_for_many() {
        let (seldom, begin) = (Seldom::default(), Instant::now());
        let line = |after| seldom.next(begin + Duration::from_secs(after), || "full".to_owned());
        assert_eq!(line(0).as_deref(), Some("full"));
        assert_eq!((line(1), line(9)), (None, None));
        assert_eq!(line(10).as_deref(), Some("full (and 2 times before)"));
        assert_eq!(line(30).as_deref(), Some("full"));
    }
}
