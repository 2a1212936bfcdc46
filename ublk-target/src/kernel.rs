//! All that knows libublk, and so the driver's commands.
//!
//! [`Control`] is the driver's view of a device: made, started, stopped, deleted. [`CharDevice`] is
//! the open character device through which its queues are served. [`serve_queue`] is the thread of a queue.
//!
//! libublk's ready-made loop is not used: it cannot be woken by other threads, and it spins for ever when a
//! command is refused while the queue is stopping. Nor is its `run_target`: when starting fails, that
//! leaves threads behind that keep the device from being deleted.

mod control;
mod queue;

pub(crate) use control::{CONTROL_DEVICE, CharDevice, Control, Features, Info, Spec, State};
pub(crate) use queue::{QueueEnd, QueueJob, StartLine, Switch, serve_queue};
