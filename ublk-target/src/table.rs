//! The devices of a pool, remembered for the process that comes after this one.
//!
//! A JSON file in a directory that is emptied when the machine starts, as the driver is. A record is
//! written, durably, before its device is started, and removed after it was deleted, so that no device
//! lives without one. The opposite happens: whoever reads a record finds out whether the device is
//! still there and still the one meant, which its token tells. What cannot be understood is an error, for
//! guessing would let a mounted device hang, or take over somebody else's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::params::Options;

/// The only version so far.
const VERSION: u32 = 1;

/// The largest table that is read.
const TABLE_SIZE_MAX: u64 = 4 << 20;

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
}

/// `/dev/ublkbN`.
pub(crate) fn block_device(device: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{device}"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    devices: Vec<Record>,
}

/// The devices of one pool.
#[derive(Debug)]
pub struct Table {
    path: PathBuf,
    records: Vec<Record>,
}

impl Table {
    /// Reads the table at `path`; without one, there are no devices.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let records = match read_bounded(path) {
            Ok(text) => decode(&text).map_err(|reason| Error::DamagedTable {
                path: path.to_owned(),
                reason,
            })?,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(cause) => return Err(Error::io(path.display().to_string())(cause)),
        };
        Ok(Table {
            path: path.to_owned(),
            records,
        })
    }

    /// The devices, in the order they were added.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Adds a device, durably.
    pub(crate) fn insert(&mut self, record: Record) -> Result<(), Error> {
        let mut records = self.records.clone();
        records.retain(|other| other.device != record.device);
        records.push(record);
        self.replace(records)
    }

    /// Removes a device, durably.
    pub fn remove(&mut self, device: u32) -> Result<(), Error> {
        let mut records = self.records.clone();
        records.retain(|record| record.device != device);
        self.replace(records)
    }

    fn replace(&mut self, records: Vec<Record>) -> Result<(), Error> {
        let failed = |cause| Error::io(self.path.display().to_string())(cause);
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

fn encode(records: &[Record]) -> String {
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
            .for_each(|record| record.mountpoint = None);
        serde_json::to_string_pretty(&contents).unwrap_or_default()
    })
}

/// The records in a table's text, or what is wrong with it.
fn decode(text: &str) -> Result<Vec<Record>, String> {
    // The version first: a newer table may well have other fields.
    let value: serde_json::Value =
        serde_json::from_str(text).map_err(|cause| format!("not a table of devices: {cause}"))?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        let found = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(format!("its version is {found}, expected {VERSION}"));
    }
    let contents: Contents = serde_json::from_value(value)
        .map_err(|cause| format!("not a table of devices: {cause}"))?;
    for (index, record) in contents.devices.iter().enumerate() {
        let options = Options {
            queues: record.queues,
            depth: record.depth,
            buffer_bytes: record.buffer_bytes,
            sector_size: None,
        };
        let is_again =
            |other: &Record| other.device == record.device || other.volume == record.volume;
        if contents.devices[..index].iter().any(is_again) {
            return Err(format!("device {} is there twice", record.device));
        }
        if i32::try_from(record.device).is_err() {
            return Err(format!("device number {} is too large", record.device));
        }
        options
            .check()
            .map_err(|cause| format!("device {}: {cause}", record.device))?;
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

    fn record(device: u32) -> Record {
        Record {
            volume: format!("uuid-{device}"),
            device,
            token: u64::MAX - u64::from(device),
            queues: 1,
            depth: 64,
            buffer_bytes: 524_288,
            read_only: false,
            mountpoint: Some("/mnt/a b".into()),
        }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ublk.json");
        let mut table = Table::open(&path).unwrap();
        assert!(table.records().is_empty());
        table.insert(record(0)).unwrap();
        table.insert(record(7)).unwrap();
        let again = Table::open(&path).unwrap();
        assert_eq!(again.records(), [record(0), record(7)]);
        // The driver gives a number again only when the device that had it is gone.
        let other = Record {
            volume: "other".to_owned(),
            ..record(7)
        };
        table.insert(other.clone()).unwrap();
        assert_eq!(table.records(), [record(0), other]);
        table.remove(7).unwrap();
        table.remove(99).unwrap();
        assert_eq!(Table::open(&path).unwrap().records(), [record(0)]);
        table.remove(0).unwrap();
        assert!(!path.exists());
        assert!(Table::open(&path).unwrap().records().is_empty());
    }

    #[test]
    fn a_damaged_table_is_an_error() {
        let good = encode(&[record(0), record(1)]);
        assert!(decode(&good).is_ok());
        for len in 0..good.len() {
            assert!(decode(&good[..len]).is_err(), "cut at {len}");
        }
        for (from, to) in [
            ("\"version\": 1", "\"version\": 2"),
            ("\"version\": 1,", ""),
            ("\"device\": 1", "\"device\": 0"),
            ("\"device\": 1", "\"device\": -1"),
            ("\"device\": 1", "\"device\": 4294967295"),
            ("uuid-1", "uuid-0"),
            ("\"depth\": 64", "\"depth\": 0"),
            ("\"depth\": 64", "\"depth\": 70000"),
            ("\"queues\": 1", "\"queues\": 33"),
            ("\"read_only\": false", "\"read_only\": 0"),
            ("\"read_only\"", "\"readonly\""),
            ("524288", "524289"),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_ne!(bad, good, "{from}");
            assert!(decode(&bad).is_err(), "{from} -> {to}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ublk.json");
        fs::write(&path, [0xff; 100]).unwrap();
        assert!(Table::open(&path).is_err());
        fs::write(&path, "{}").unwrap();
        let error = Table::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("ublk.json") && error.contains("version is none"),
            "{error}"
        );
    }
}
