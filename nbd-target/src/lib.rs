//! Thin devices as block devices of the kernel's NBD client, `/dev/nbdN`.
//!
//! The kernel's client is told over generic netlink which sockets lead to a device's server. Here the
//! server is this process: each device has a few pairs of sockets, of which the driver is handed one
//! end, and [`nbd_server::DirectConnections`] serves the other. A pair, not a connection to a listening
//! socket: both sides are ours, so there is nothing to negotiate, nothing that others could connect to,
//! and a device needs no address that a daemon must listen on.
//!
//! Reading order: `record` is what is remembered of a device, `message` what is said to the driver; both
//! are pure. `driver` says it, `device` makes, takes over and removes devices, `keeper` replaces
//! connections that are lost, and `probe` finds out whether all this is there.
//!
//! # What survives the process
//!
//! With its sockets gone a device waits (`DEAD_CONNECTION_TIMEOUT`, a week), and so do its openers and
//! its mounts. The next process finds it in the [`Table`] and hands it new sockets with
//! [`NbdDevice::recover`]. What the driver had sent and got no answer for, it sends again once the request
//! is half a minute old, and not sooner, whatever happens to the sockets: after the death of a process a
//! few requests take that long. Every request is idempotent, so that doing it twice is right.
//!
//! The driver also sends a request again, on another connection, when a living process takes longer than
//! that; `nbd_server::DirectConnections` tells why this does no harm.

#![forbid(unsafe_code)]

mod device;
mod driver;
mod error;
mod keeper;
mod message;
mod probe;
mod record;

pub use device::{Identity, NbdDevice, Options, SectorSize};
pub use error::Error;
pub use probe::{Missing, probe};
pub use record::Record;

/// The devices of one pool.
pub type Table = device_table::Table<Record>;
