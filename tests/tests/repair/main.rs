//! Repair: of metadata in which each block is damaged in each way, and of the pools that it belongs to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod losses;
mod pools;
mod stores;
mod subject;
mod sweep;
mod truth;
