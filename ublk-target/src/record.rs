//! What the next process must know of a device.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::params::Options;

/// One device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it shows: the identity of a volume or snapshot, which survives renaming.
    pub volume: String,
    /// The driver's number of it, the N of `/dev/ublkbN`.
    pub device: u32,
    /// A number that nobody else gives a device, kept by the driver too.
    pub token: u64,
    /// How many queues it has.
    pub queues: u16,
    /// How many requests each takes at a time.
    pub depth: u16,
    /// The largest request in bytes.
    pub buffer_bytes: u32,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Where its file system was mounted for the user.
    pub mountpoint: Option<PathBuf>,
}

impl Record {
    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        block_device(self.device)
    }

    /// Whether the driver has a block device of that number, be there a node for it or not.
    pub fn is_there(&self) -> bool {
        Path::new(&format!("/sys/block/ublkb{}", self.device)).exists()
    }
}

/// `/dev/ublkbN`.
pub(crate) fn block_device(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{device}"))
}

impl device_table::Record for Record {
    const BLOCK_DEVICES: &'static str = "/dev/ublkb*";

    fn volume(&self) -> &str {
        &self.volume
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn check(&self) -> Result<(), String> {
        if i32::try_from(self.device).is_err() {
            return Err("its number is too large".to_owned());
        }
        let options = Options {
            queues: self.queues,
            depth: self.depth,
            buffer_bytes: self.buffer_bytes,
            sector_size: None,
        };
        options.check().map_err(|cause| cause.to_string())
    }

    fn forget_mountpoint(&mut self) {
        self.mountpoint = None;
    }
}

#[cfg(test)]
mod tests {
    use device_table::Record as _;

    use super::*;

    #[test]
    fn records_are_within_the_limits_of_the_driver() {
        let good = Record {
            volume: "uuid".to_owned(),
            device: 1,
            token: u64::MAX,
            queues: 1,
            depth: 64,
            buffer_bytes: 524_288,
            read_only: false,
            mountpoint: None,
        };
        good.check().unwrap();
        let bad: [fn(&mut Record); 5] = [
            |record| record.device = u32::MAX,
            |record| record.depth = 0,
            |record| record.depth = 2_000,
            |record| record.queues = 33,
            |record| record.buffer_bytes = 524_289,
        ];
        for spoil in bad {
            let mut record = good.clone();
            spoil(&mut record);
            assert!(record.check().is_err(), "{record:?}");
        }
    }
}
