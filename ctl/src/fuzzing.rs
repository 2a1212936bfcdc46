//! What the fuzz targets see of this crate: all that understands bytes from outside.

pub use crate::frame::{Decoder, Frame};
pub use crate::pool_dir::{ATTACHMENTS_FILE, CONFIG_FILE, Persistent, PoolDir};
pub use crate::protocol::{Call, CallError, Event};
