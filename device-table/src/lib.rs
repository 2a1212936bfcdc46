//! The devices of a pool, remembered for the process that comes after this one.
//!
//! A JSON file in a directory that is emptied when the machine starts, as its drivers are. A record is
//! written, durably, before its device is started, and removed after it was deleted, so that no device
//! lives without one. The opposite happens: whoever reads a record finds out whether the device is
//! still there and still the one meant, which its token tells. What cannot be understood is an error, for
//! guessing would let a mounted device hang, or take over somebody else's.
//!
//! What a record holds is the business of the crate whose devices they are: it implements [`Record`].

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The only version so far.
const VERSION: u32 = 1;

/// The largest table that is read.
const TABLE_SIZE_MAX: u64 = 4 << 20;

/// One device, in the words of its driver.
pub trait Record: Clone + Serialize + DeserializeOwned {
    /// What its block devices are called, as a pattern of a shell.
    const BLOCK_DEVICES: &'static str;

    /// The identity of the volume or snapshot that it shows.
    fn volume(&self) -> &str;

    /// The driver's number of it.
    fn device(&self) -> u32;

    /// What is wrong with it, if anything.
    ///
    /// # Errors
    /// The fault.
    fn check(&self) -> Result<(), String>;

    /// Forgets where its file system was mounted: that path is no text, and cannot be written down.
    fn forget_mountpoint(&mut self);
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be understood.
    #[error(
        "{path}: {reason}: remove it if no device of the pool is left (ls {block_devices})",
        path = .path.display()
    )]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What its devices are called.
        block_devices: &'static str,
    },

    /// A volume is to have a second device.
    #[error("{path}: its volume is device {device} already", path = .path.display())]
    Taken {
        /// Its file.
        path: PathBuf,
        /// The device that it has.
        device: u32,
    },

    /// A system call failed.
    #[error("{path}: {source}", path = .path.display())]
    Io {
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents<R> {
    version: u32,
    devices: Vec<R>,
}

/// The devices of one pool.
#[derive(Debug)]
pub struct Table<R> {
    path: PathBuf,
    records: Vec<R>,
}

impl<R: Record> Table<R> {
    /// Reads the table at `path`; without one, there are no devices.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let records = match read_bounded(path) {
            Ok(text) => decode(&text).map_err(|reason| Error::Damaged {
                path: path.to_owned(),
                reason,
                block_devices: R::BLOCK_DEVICES,
            })?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                let path = path.to_owned();
                return Err(Error::Io { path, source });
            }
        };
        Ok(Table {
            path: path.to_owned(),
            records,
        })
    }

    /// The devices, in the order they were added.
    pub fn records(&self) -> &[R] {
        &self.records
    }

    /// Adds a device, durably.
    ///
    /// # Errors
    /// When the table cannot be written, or its volume has another device.
    pub fn insert(&mut self, record: R) -> Result<(), Error> {
        let mut records = self.records.clone();
        records.retain(|other| other.device() != record.device());
        let is_its = |other: &&R| other.volume() == record.volume();
        if let Some(other) = records.iter().find(is_its) {
            return Err(Error::Taken {
                path: self.path.clone(),
                device: other.device(),
            });
        }
        records.push(record);
        self.replace(records)
    }

    /// Removes a device, durably.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn remove(&mut self, device: u32) -> Result<(), Error> {
        let mut records = self.records.clone();
        records.retain(|record| record.device() != device);
        self.replace(records)
    }

    fn replace(&mut self, records: Vec<R>) -> Result<(), Error> {
        let failed = |source| Error::Io {
            path: self.path.clone(),
            source,
        };
        if records.is_empty() {
            match fs::remove_file(&self.path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(failed(cause)),
                _ => {}
            }
        } else {
            write_whole(&self.path, encode(&records).as_bytes()).map_err(failed)?;
        }
        self.records = records;
        Ok(())
    }
}

fn encode<R: Record>(records: &[R]) -> String {
    let contents = Contents {
        version: VERSION,
        devices: records.to_vec(),
    };
    // Numbers, text and flags cannot fail to become JSON; a path that is no text can, and is left out.
    serde_json::to_string_pretty(&contents).unwrap_or_else(|_| {
        let mut contents = contents;
        contents
            .devices
            .iter_mut()
            .for_each(Record::forget_mountpoint);
        serde_json::to_string_pretty(&contents).unwrap_or_default()
    })
}

/// The records in a table's text, or what is wrong with it.
fn decode<R: Record>(text: &str) -> Result<Vec<R>, String> {
    // The version first: a newer table may well have other fields.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|cause| format!("not a table of devices: {cause}"))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        let found = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(format!("its version is {found}, expected {VERSION}"));
    }
    let contents: Contents<R> = serde_json::from_value(value)
        .map_err(|cause| format!("not a table of devices: {cause}"))?;
    for (index, record) in contents.devices.iter().enumerate() {
        let is_again =
            |other: &R| other.device() == record.device() || other.volume() == record.volume();
        if contents.devices[..index].iter().any(is_again) {
            return Err(format!("device {} is there twice", record.device()));
        }
        record
            .check()
            .map_err(|fault| format!("device {}: {fault}", record.device()))?;
    }
    Ok(contents.devices)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(TABLE_SIZE_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Replaces a file, durably, all or nothing.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Device {
        volume: String,
        device: u32,
        depth: u16,
        mountpoint: Option<PathBuf>,
    }

    impl Record for Device {
        const BLOCK_DEVICES: &'static str = "/dev/test*";

        fn volume(&self) -> &str {
            &self.volume
        }

        fn device(&self) -> u32 {
            self.device
        }

        fn check(&self) -> Result<(), String> {
            if self.depth == 0 {
                return Err("its depth is 0".to_owned());
            }
            Ok(())
        }

        fn forget_mountpoint(&mut self) {
            self.mountpoint = None;
        }
    }

    fn record(device: u32) -> Device {
        Device {
            volume: format!("uuid-{device}"),
            device,
            depth: 64,
            mountpoint: Some("/mnt/a b".into()),
        }
    }

    fn decode_devices(text: &str) -> Result<Vec<Device>, String> {
        decode(text)
    }

    #[test]
    fn a_path_that_is_no_text_is_left_out() {
        let bytes: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"/mnt/\xff");
        let odd = Device {
            mountpoint: Some(bytes.into()),
            ..record(1)
        };
        let kept = decode_devices(&encode(&[odd])).unwrap();
        assert_eq!((kept[0].device, &kept[0].mountpoint), (1, &None));
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("devices.json");
        let mut table = Table::<Device>::open(&path).unwrap();
        assert!(table.records().is_empty());
        table.insert(record(0)).unwrap();
        table.insert(record(7)).unwrap();
        let again = Table::<Device>::open(&path).unwrap();
        assert_eq!(again.records(), [record(0), record(7)]);
        // The driver gives a number again only when the device that had it is gone.
        let other = Device {
            volume: "other".to_owned(),
            ..record(7)
        };
        table.insert(other.clone()).unwrap();
        assert_eq!(table.records(), [record(0), other]);
        table.remove(7).unwrap();
        table.remove(99).unwrap();
        assert_eq!(Table::<Device>::open(&path).unwrap().records(), [record(0)]);
        table.remove(0).unwrap();
        assert!(!path.exists());
        assert!(Table::<Device>::open(&path).unwrap().records().is_empty());
    }

    #[test]
    fn a_damaged_table_is_an_error() {
        let good = encode(&[record(0), record(1)]);
        assert!(decode_devices(&good).is_ok());
        for len in 0..good.len() {
            assert!(decode_devices(&good[..len]).is_err(), "cut at {len}");
        }
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"version\": 1,", ""),
            ("\"device\": 1", "\"device\": 0"),
            ("\"device\": 1", "\"device\": -1"),
            ("uuid-1", "uuid-0"),
            ("\"depth\": 64", "\"depth\": 0"),
            ("\"depth\"", "\"depths\""),
            ("\"depth\": 64", "\"depth\": 70000"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            assert!(decode_devices(&bad).is_err(), "{from} -> {to}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("devices.json");
        fs::write(&path, [0xff; 100]).unwrap();
        assert!(Table::<Device>::open(&path).is_err());
        fs::write(&path, "{}").unwrap();
        let error = Table::<Device>::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("devices.json") && error.contains("version is none"),
            "{error}"
        );
    }
}
