//! Thin devices as ublk block devices, `/dev/ublkbN`.
//!
//! The kernel's ublk driver hands the requests of a block device to a process. Here each queue of a
//! device is a thread with an io_uring, on which the driver's commands, the pool's data I/O and the
//! doorbell of the thread's executor meet; a request stays on that thread from beginning to end.
//!
//! Reading order: `request` says what the driver asks for and what it must be answered, `params` what a
//! device looks like; both are pure. `serve` carries a request out on a thin device. `record` is what is
//! remembered of a device, `device` makes, takes over and removes them, `kernel` is all that knows the
//! driver, and `probe` finds out whether it is there.
//!
//! # What survives the process
//!
//! Devices are made with user recovery and re-issue: when the process dies, `/dev/ublkbN`, its
//! openers and its mounts stay, and new I/O waits. The next process finds the device in the
//! [`Table`] and takes it over with [`UblkDevice::recover`]; requests that were under way are sent
//! again. Every request is idempotent, so that doing it twice is right.
//!
//! # Rules that keep the machine alive
//!
//! - A request that is never answered blocks the removal of its device, and with it every control
//!   command on the machine. So tasks always answer, and a queue's thread ends only when nothing it
//!   took is unanswered, or leaves it all to be sent again.
//! - A control command may wait for requests: starting a device reads its partition table, through us.
//!   So control commands have threads of their own, with a time limit, since the driver sets none.
//! - A device is deleted only after its character device, mapping and rings are gone, else the
//!   deletion waits for them for ever.
//! - Stopping a device that can be recovered throws dirty pages away. [`UblkDevice::detach`] claims it
//!   for itself, writes it out, and only then stops it.

mod buffer;
mod deadline;
mod device;
mod error;
#[expect(unsafe_code, reason = "completions of the ring that libublk owns")]
mod kernel;
mod params;
mod probe;
mod record;
mod request;
mod serve;

pub use device::{Identity, UblkDevice};
pub use error::Error;
pub use params::{Options, SectorSize};
pub use probe::{Missing, probe};
pub use record::Record;

/// The devices of one pool.
pub type Table = device_table::Table<Record>;
