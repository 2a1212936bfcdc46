//! Promises of the crate, tested from outside: trees against a model, counts against a recount,
//! commits against failing stores, reads against damage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their helpers may panic"
)]

mod build;
mod damage;
mod faults;
mod forest;
mod guard;
mod model;
mod recount;
mod space;
mod views;
