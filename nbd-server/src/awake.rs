//! Waiting awake for a client that sends its next request at once.
//!
//! Falling asleep in a receive and being woken by the client costs more than a warm read does. So a
//! connection whose client was quick the last time keeps looking for a moment before it sleeps. The
//! client that is not quick any more costs one such moment. At most one connection of the process
//! does so at a time, and none where there is but one processor, which the client needs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a connection looks before it sleeps: about what being woken twice takes.
const AWAKE_MAX: Duration = Duration::from_micros(100);

/// Whether a connection of this process is looking.
static LOOKING: AtomicBool = AtomicBool::new(false);

/// How one connection waits for its next request.
pub(crate) struct Wait {
    may_look: bool,
    client_is_quick: bool,
}

impl Wait {
    pub(crate) fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, |count| count.get());
        Wait {
            may_look: processors > 1,
            client_is_quick: false,
        }
    }

    /// Calls `receive` until it has news: without waiting as long as it pays, then with. `receive`
    /// is told whether to wait, and tells whether there was news.
    pub(crate) fn until_news(&mut self, mut receive: impl FnMut(bool) -> bool) {
        let begun = Instant::now();
        if self.may_look && self.client_is_quick && !LOOKING.swap(true, Ordering::Acquire) {
            let mut found = false;
            while !found && begun.elapsed() < AWAKE_MAX {
                found = receive(false);
                if !found {
                    thread::yield_now();
                }
            }
            LOOKING.store(false, Ordering::Release);
            if found {
                return;
            }
        }
        receive(true);
        self.client_is_quick = begun.elapsed() < AWAKE_MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each kind of receive is called until one has news.
    fn calls(wait: &mut Wait, news_after: usize) -> (usize, usize) {
        let (mut looks, mut sleeps) = (0, 0);
        wait.until_news(|sleep| {
            looks += usize::from(!sleep);
            sleeps += usize::from(sleep);
            sleep || looks == news_after
        });
        (looks, sleeps)
    }

    #[test]
    fn only_a_quick_client_is_waited_for_awake() {
        let mut wait = Wait {
            may_look: true,
            client_is_quick: false,
        };
        assert_eq!(calls(&mut wait, 1), (0, 1), "nothing is known of it yet");
        wait.client_is_quick = true;
        assert_eq!(calls(&mut wait, 1), (1, 0));
        let (looks, sleeps) = calls(&mut wait, usize::MAX);
        assert!(looks > 0);
        assert_eq!(sleeps, 1);
        assert!(!wait.client_is_quick, "it took longer than a look");
        assert_eq!(calls(&mut wait, 1), (0, 1));
    }

    #[test]
    fn one_processor_is_left_to_the_client() {
        let mut wait = Wait {
            may_look: false,
            client_is_quick: true,
        };
        assert_eq!(calls(&mut wait, 1), (0, 1));
    }
}
