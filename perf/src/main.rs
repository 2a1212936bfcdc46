//! `nbd-load`: drives an NBD server as fast as it will go, and says how fast that was.
//!
//! One thread a connection. Each takes every reply that waits with one receive and sends all
//! new requests with one send, so that the generator costs little beside any server.
//! `nbd-load limit-server` is the least that a server over a file can do, and `nbd-load null-server`
//! a server that does nothing, to show what the generator can do.
//! Prints one line of JSON.

#![forbid(unsafe_code)]

mod handshake;
mod histogram;
mod load;
mod options;
mod places;
mod server;
mod wire;

use std::process::ExitCode;

use options::Command;

fn main() -> ExitCode {
    let outcome = match options::parse(std::env::args().skip(1)) {
        Ok(Command::Load(options)) => load::run(&options).map(|report| println!("{report}")),
        Ok(Command::Server(options)) => server::run(&options),
        Err(message) => {
            eprintln!("nbd-load: {message}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-load: {error}");
            ExitCode::FAILURE
        }
    }
}
