//! Thin devices as NBD exports.
//!
//! A [`Server`] listens on a Unix socket or a TCP address, there with TLS, and serves whatever [`Exports`] names:
//! fixed newstyle negotiation, structured replies with holes, the contexts `base:allocation` and
//! `qemu:allocation-depth`, and any number of connections to one export.
//!
//! One thread accepts and does the handshakes. Afterwards a connection has a thread of its own, on
//! which its requests run from the first byte to the last, with TLS or without. `wire.rs`, `handshake.rs`, `command.rs`
//! and `sparse.rs` are pure: bytes or values in, bytes or values out.
//!
//! [`DirectConnections`] serves a client that is handed its sockets, the kernel's, without a handshake.
//!
//! Nothing a client sends is trusted. Every length is bounded before memory is taken for it, and the
//! limits are where they are enforced: `handshake.rs`, `intake.rs`, `budget.rs`, [`Limits`].

#![forbid(unsafe_code)]

mod accept;
mod awake;
mod budget;
mod buffer;
mod command;
mod connection;
mod context;
mod direct;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handshake;
mod intake;
mod listen;
mod outbox;
mod seldom;
mod server;
mod sparse;
mod stream;
mod tls;
mod transmission;
mod wire;

pub use direct::DirectConnections;
pub use error::Error;
pub use listen::Listen;
pub use server::{Config, Exports, Limits, Server, TcpClients};
