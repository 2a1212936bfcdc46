//! What the next process must know of a device.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The most connections that a device is ever given.
pub(crate) const CONNECTIONS_MAX: u16 = 64;

/// One device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it shows: the identity of a volume or snapshot, which survives renaming.
    pub volume: String,
    /// The driver's number of it, the N of `/dev/nbdN`.
    pub device: u32,
    /// A number that nobody else gives a device, kept by the driver too.
    pub token: u64,
    /// How many connections it has.
    pub connections: u16,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Where its file system was mounted for the user.
    pub mountpoint: Option<PathBuf>,
}

impl Record {
    /// `/dev/nbdN`.
    pub fn path(&self) -> PathBuf {
        block_device(self.device)
    }

    /// What the driver is told of who is behind the device, and shows in sysfs.
    pub(crate) fn backend(&self) -> String {
        format!("thinpool:{:016x}", self.token)
    }

    /// How large its sectors are, in bytes.
    pub(crate) fn sector_size(&self) -> io::Result<u32> {
        let place = format!("/sys/block/nbd{}/queue/logical_block_size", self.device);
        let text = fs::read_to_string(place)?;
        text.trim_end().parse().map_err(io::Error::other)
    }

    /// Whether the driver still has the device, and it is this one.
    pub fn is_there(&self) -> bool {
        let backend = format!("/sys/block/nbd{}/backend", self.device);
        fs::read_to_string(backend).is_ok_and(|found| found.trim_end() == self.backend())
    }
}

/// `/dev/nbdN`.
pub(crate) fn block_device(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/nbd{device}"))
}

impl device_table::Record for Record {
    const BLOCK_DEVICES: &'static str = "/dev/nbd*";

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
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(format!(
                "number of connections is {}, expected 1 to {CONNECTIONS_MAX}",
                self.connections
            ));
        }
        Ok(())
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
    fn records_are_within_limits() {
        let good = Record {
            volume: "uuid".to_owned(),
            device: 1,
            token: 0x0123_4567_89ab,
            connections: 2,
            read_only: false,
            mountpoint: None,
        };
        good.check().unwrap();
        assert_eq!(good.backend(), "thinpool:00000123456789ab");
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), good);
        let bad: [fn(&mut Record); 3] = [
            |record| record.device = u32::MAX,
            |record| record.connections = 0,
            |record| record.connections = CONNECTIONS_MAX + 1,
        ];
        for spoil in bad {
            let mut record = good.clone();
            spoil(&mut record);
            assert!(record.check().is_err(), "{record:?}");
        }
    }
}
