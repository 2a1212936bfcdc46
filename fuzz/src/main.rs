//! Fuzz targets for everything that understands bytes from outside, in one program.
//!
//! `FUZZ_TARGET` says which one; the rest of the command line is libFuzzer's. `run.py` builds and runs it,
//! and the README says what each target checks.
//!
//! A target is a function of the input that panics when something is wrong. [`patch`] has the form of input
//! that changes a real pool in a few places, and `mutate` how such inputs are varied; [`machine`] the stores
//! in memory, [`pools`] the real pools.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a fuzz target fails by panicking")]
#![allow(clippy::expect_used, reason = "a fuzz target fails by panicking")]

mod block;
mod catalog;
mod config;
mod control;
mod exercise;
mod export;
mod handshake;
mod image;
mod log;
mod machine;
mod mutate;
mod patch;
mod pools;
mod restore;
mod transmission;

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use mutate::Random;
use patch::Patches;

/// How inputs that are patches of something real are varied.
type Vary = fn(&mut Patches, &mut Random);

/// A target: what it does with an input, and how inputs are varied where bytes alone would not do.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    vary: Option<Vary>,
}

const TARGETS: &[Target] = &[
    plain("block", block::run),
    patched("image", image::run, image::mutate),
    plain("catalog", catalog::run),
    patched("log", log::run, log::mutate),
    plain("restore", restore::run),
    plain("handshake", handshake::run),
    plain("transmission", transmission::run),
    plain("control", control::run),
    plain("config", config::run),
    plain("export", export::run),
];

const fn plain(name: &'static str, run: fn(&[u8])) -> Target {
    Target {
        name,
        run,
        vary: None,
    }
}

const fn patched(name: &'static str, run: fn(&[u8]), vary: Vary) -> Target {
    Target {
        name,
        run,
        vary: Some(vary),
    }
}

/// The target that the environment names.
fn target() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| {
            let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            eprintln!(
                "FUZZ_TARGET is {name:?}, expected one of: {}",
                names.join(" ")
            );
            std::process::exit(2)
        })
    })
}

fuzz_target!(|input: &[u8]| (target().run)(input));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    match target().vary {
        Some(vary) if !seed.is_multiple_of(4) => {
            let mut patches = Patches::decode(&data[..size]);
            vary(&mut patches, &mut Random::new(seed));
            let varied = patches.encode();
            let len = varied.len().min(max_size).min(data.len());
            data[..len].copy_from_slice(&varied[..len]);
            len
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
});
