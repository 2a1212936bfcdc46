//! What the tests of promises share: a simulated machine, an executor, and a model of the truth.

#![forbid(unsafe_code)]

pub mod crowd;
pub mod driver;
pub mod episode;
pub mod executor;
pub mod history;
pub mod image;
pub mod latent;
pub mod model;
pub mod ops;
mod prng;
pub mod runs;
pub mod scene;
pub mod setup;
pub mod sim;
#[cfg(feature = "probes")]
pub mod simulate;
pub mod truth;
pub mod volatile_fs;

pub use prng::Prng;
