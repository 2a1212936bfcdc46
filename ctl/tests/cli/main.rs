//! The real binaries, as users run them.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod attach;
mod bench;
mod check;
mod daemon;
mod dashboard;
mod lifecycle;
mod refusals;
mod service_manager;
mod stores;
mod watch;
