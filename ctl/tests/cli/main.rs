//! The real binaries, as users run them.

mod attach;
mod bench;
mod daemon;
mod lifecycle;
mod refusals;
mod stores;
