//! `thinctl`, which asks, and `thinpoold`, which runs pools, their exports, metrics and a page about them.
//!
//! A command makes a `Call` on a pool. One function,
//! `execute`, carries it out: in the tool when nobody serves the pool, in the
//! daemon otherwise. Reading order: `cli` and `serve_args` say what can be asked, `protocol` what
//! travels; `pool_dir` finds and locks a pool, `service` opens it and executes; `session` decides
//! where that happens; `commands` print. `daemon` puts `control`, `exports`, `attach`, `metrics` and
//! `dashboard` around a service, `space` looks after its space and tells `events`, and `service_manager`
//! hears of them.

#![forbid(unsafe_code)]

mod activity;
mod attach;
mod check;
mod cli;
mod client;
mod commands;
mod control;
mod daemon;
mod dashboard;
mod events;
mod exit;
mod exports;
mod external;
mod frame;
#[cfg(fuzzing)]
pub mod fuzzing;
mod interrupt;
mod links;
mod metrics;
mod output;
mod pool_dir;
mod protocol;
mod serve_args;
mod service;
mod service_manager;
mod session;
mod size;
mod space;
mod systemd;
mod table;
mod transfer;
mod transports;
mod usage_counts;

mod programs;

pub use programs::{thinctl, thinpoold};
