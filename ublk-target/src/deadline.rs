//! A time limit for commands that have none of their own.
//!
//! The driver answers a control command when it likes, and some kernels never do. Each therefore runs
//! on a thread of its own, which is given up when the time is over.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::Error;

/// How long a control command may take.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Runs `job` on a thread of its own and waits until it is done, at most `limit`.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    what: &str,
    job: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("ublk-control".to_owned())
        .spawn(move || {
            // Nobody may be waiting any more.
            let _ = sender.send(job());
        })
        .map_err(Error::io("cannot start a thread"))?;
    match receiver.recv_timeout(limit) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(Error::Hung {
            what: what.to_owned(),
            seconds: limit.as_secs(),
        }),
        Err(RecvTimeoutError::Disconnected) => {
            unreachable!("a control command panicked: {what}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_given_up() {
        let (hold, held) = channel::<()>();
        let hung = within(Duration::from_millis(20), "testing", move || {
            // Ends when the test does.
            let _ = held.recv();
            Ok(())
        });
        assert!(matches!(hung, Err(Error::Hung { .. })));
        drop(hold);
        assert_eq!(within(COMMAND_LIMIT, "testing", || Ok(7)).unwrap(), 7);
    }
}
