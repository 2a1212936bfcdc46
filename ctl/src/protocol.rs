//! What `thinctl` and the daemon say to each other, one JSON value each.
//!
//! A [`Call`] goes to `POST /v1/call` of the pool's control socket; the answer is a stream of
//! [`Event`]s, one a line: any number of progress events, then a reply or an error. The same calls
//! are executed in process when no daemon serves the pool. Contents of devices and dumps are
//! streams of [`frames`](crate::frame) instead.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use pool::{DeviceInfo, DeviceName, DeviceUsage, NoSpaceOverride, Status};
use serde::{Deserialize, Serialize};

use crate::activity::Activity;
use crate::cli::{DeviceOptions, FileSystem};
use crate::space::SpacePolicy;
use crate::transports::Transport;

/// A request on one pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Call {
    /// Makes an empty volume, or one that shows `origin` until written.
    Create {
        /// Its name.
        name: DeviceName,
        /// Its size in bytes.
        size: u64,
        /// A file or block device, by absolute path.
        origin: Option<PathBuf>,
    },
    /// Takes snapshots, all at one instant.
    CreateSnapshots {
        /// Their names, with the volume's.
        names: Vec<DeviceName>,
    },
    /// Makes a volume with the contents of another device.
    Clone {
        /// A volume or snapshot.
        source: DeviceName,
        /// The new volume.
        name: DeviceName,
    },
    /// Deletes a volume or snapshot.
    Remove {
        /// Which.
        name: DeviceName,
    },
    /// Gives back what deleted devices used.
    Reclaim,
    /// Gives a device another name.
    Rename {
        /// Its name now.
        from: DeviceName,
        /// Its new name.
        to: DeviceName,
    },
    /// Changes a volume's size.
    Resize {
        /// Which.
        name: DeviceName,
        /// The new size in bytes.
        size: u64,
        /// Whether it may lose its end.
        shrink: bool,
    },
    /// Makes the volume show what its snapshot shows.
    Rollback {
        /// The snapshot.
        snapshot: DeviceName,
    },
    /// Makes a volume read only for good.
    Freeze {
        /// Which.
        name: DeviceName,
    },
    /// Enlarges the pool.
    Grow {
        /// New size of the data store in bytes.
        data_size: Option<u64>,
        /// New size of the metadata store in bytes.
        metadata_size: Option<u64>,
    },
    /// Says how the pool deals with its space.
    SetSpace(SpacePolicy),
    /// Says where a volume differs from its pool when there is no space.
    SetNoSpace {
        /// Which.
        name: DeviceName,
        /// Where.
        no_space: NoSpaceOverride,
    },
    /// All volumes and snapshots.
    List,
    /// One volume or snapshot.
    Info {
        /// Which.
        name: DeviceName,
    },
    /// The pool's state.
    Status,
    /// What has been done in the pool since it was opened.
    Activity,
    /// Who uses how much.
    Usage,
    /// Verifies everything.
    Check,
    /// Makes a device a local block device. Only a daemon can.
    Attach(AttachRequest),
    /// Undoes an attachment. Only a daemon can.
    Detach {
        /// Which.
        target: AttachTarget,
    },
}

/// What is to be attached, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Which volume or snapshot.
    pub name: DeviceName,
    /// Where to mount it.
    pub mount: Option<PathBuf>,
    /// The file system to make if there is nothing on it.
    pub mkfs: Option<FileSystem>,
    /// How; the best way that works unless given.
    pub transport: Option<Transport>,
    /// How its block device is to be made.
    #[serde(flatten)]
    pub options: DeviceOptions,
    /// Whether every daemon of the pool is to attach it.
    pub persist: bool,
}

/// How an attachment is named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachTarget {
    /// By the volume or snapshot.
    Name(DeviceName),
    /// By its block device.
    Device(PathBuf),
}

/// What a call brings back.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reply {
    /// It is done; there is nothing to tell.
    Done,
    /// The device made, changed or asked for.
    Device(DeviceInfo),
    /// The volume of another size.
    Resized(Resized),
    /// Devices made or listed.
    Devices(Vec<DeviceInfo>),
    /// The pool's state.
    Pool(PoolInfo),
    /// What has been done in the pool since it was opened.
    Activity(Activity),
    /// Who uses how much.
    Usage(UsageReport),
    /// What a check found.
    Check(CheckReport),
    /// The new attachment.
    Attached(Attachment),
    /// The attachment that is gone.
    Detached(Detached),
}

/// A pool: what it is, where it is, how it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PoolInfo {
    /// The directory.
    pub path: PathBuf,
    /// Identity that survives moving.
    pub uuid: String,
    /// The metadata store.
    pub metadata: PathBuf,
    /// The data store.
    pub data: PathBuf,
    /// The pool's state.
    #[serde(flatten)]
    pub status: Status,
    /// How it deals with its space.
    pub space: SpacePolicy,
    /// The process that serves it, if one does.
    pub daemon_pid: Option<u32>,
}

/// Exact space accounts of a pool, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageReport {
    /// One a device, by name.
    pub devices: Vec<DeviceUsage>,
    /// The pool as a whole.
    pub pool: UsageTotals,
}

/// The sums of a pool's space accounts, in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UsageTotals {
    /// Size of the data store.
    pub data_total_bytes: u64,
    /// In allocated data blocks.
    pub data_used_bytes: u64,
    /// In data blocks that exactly one device maps.
    pub exclusive_bytes: u64,
    /// In the other allocated data blocks, each counted once: those that several devices map, and
    /// those of deleted devices that are still being given back.
    pub shared_bytes: u64,
    /// What the devices map, summed, shared blocks as often as they are mapped.
    pub mapped_bytes: u64,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether there is nothing to complain about.
    pub clean: bool,
    /// Whether the superblock asks for a check before it is written again.
    pub needs_check: bool,
    /// The faults.
    pub findings: Vec<CheckFinding>,
    /// How many more there are.
    pub findings_dropped: u64,
    /// How many of those are damage.
    pub damage_dropped: u64,
    /// The volumes and snapshots that damage costs mappings, by thin id, and which.
    pub losses: Vec<CheckLoss>,
    /// What was reclaimed of leaked space, before the check that this tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimed: Option<Reclaimed>,
    /// How many thin devices there are.
    pub devices: u64,
    /// Metadata blocks in use, as recounted.
    pub metadata_blocks_used: u64,
    /// Data blocks in use, as recounted.
    pub data_blocks_used: u64,
}

impl CheckReport {
    /// Whether there is more than leaked space. Structure comes before counts, so what was dropped may be
    /// either.
    pub fn is_damaged(&self) -> bool {
        let mut findings = self.findings.iter();
        let is_damage = |finding: &CheckFinding| finding.severity == CheckSeverity::Damage;
        findings.any(is_damage) || self.damage_dropped > 0
    }
}

/// One fault.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckFinding {
    /// `damage` or `leak`.
    pub severity: CheckSeverity,
    /// The metadata block it is in.
    pub block: Option<u64>,
    /// Thin ids that are affected, as far as known.
    pub devices: Vec<u32>,
    /// What it costs, if it lies in the metadata.
    pub costs: Option<CheckCost>,
    /// What is wrong and where, for people.
    pub message: String,
}

/// What a fault costs, if nothing else is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckCost {
    /// Nothing that a repair does not make anew.
    Nothing,
    /// The metadata snapshot, which no volume needs.
    MetadataSnapshot,
    /// What [`CheckReport::losses`] lists.
    Mappings,
    /// That cannot be told.
    Unknown,
    /// Every volume, unless a copy of the superblock is left.
    Everything,
}

/// Parts of a volume or snapshot whose mappings cannot be trusted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckLoss {
    /// Its thin id.
    pub device: u32,
    /// Its name, if the catalog has one.
    pub name: Option<String>,
    /// Whether it is all of it.
    pub is_all: bool,
    /// The parts, in ascending order. At most 65536 of all volumes.
    pub ranges: Vec<CheckRange>,
    /// How many parts there are beyond those.
    pub more_ranges: u64,
}

/// A part of a volume or snapshot. One without a length reaches to an end that nothing tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckRange {
    /// Its first block.
    pub first_block: u64,
    /// Its last block.
    pub last_block: Option<u64>,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes, without what lies beyond the end of the volume.
    pub length: Option<u64>,
}

/// Space that was leaked, and is free again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Reclaimed {
    /// Data blocks whose count was too high.
    pub data_blocks: u64,
    /// Metadata blocks whose count was too high.
    pub metadata_blocks: u64,
}

/// How bad a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckSeverity {
    /// Space is lost, nothing else.
    Leak,
    /// Contents may be wrong or become so.
    Damage,
}

/// A volume that has another size now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resized {
    /// The volume.
    #[serde(flatten)]
    pub volume: DeviceInfo,
    /// Why its local block device, if it has one, keeps the size that it had.
    pub notes: Vec<String>,
}

/// A device that is a local block device now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// The volume or snapshot.
    pub name: DeviceName,
    /// The block device: `/dev/ublkbN`, `/dev/nbdN` or `/dev/loopN`.
    pub device: PathBuf,
    /// The link to it, `/dev/thin/POOL/VOL`, if it could be made.
    pub link: Option<PathBuf>,
    /// How it is served.
    pub transport: Transport,
    /// Why that way.
    pub reason: String,
    /// The file below a loop device.
    pub file: Option<PathBuf>,
    /// Where it is mounted by us.
    pub mountpoint: Option<PathBuf>,
    /// The file system that was made on it.
    pub made: Option<FileSystem>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether a loop device bypasses the page cache of the file below.
    pub direct_io: Option<bool>,
    /// Its queues, if it has any.
    #[serde(flatten)]
    pub queues: Queues,
    /// What differs from what was asked for.
    pub notes: Vec<String>,
}

/// The queues of a block device, as far as its driver lets them be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Queues {
    /// How many there are.
    #[serde(rename = "queues")]
    pub count: Option<u16>,
    /// How many requests each takes at a time.
    pub depth: Option<u16>,
    /// The largest request.
    pub buffer_bytes: Option<u32>,
}

/// An attachment that is gone, or will not come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detached {
    /// The volume or snapshot.
    pub name: DeviceName,
    /// The block device it was; none when a daemon to come would have attached it.
    pub device: Option<PathBuf>,
    /// Whether the daemon, started for attachments only, now ends.
    pub daemon_ends: bool,
}

/// How far long work has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all, as far as known; 0 when not.
    pub total: u64,
    /// What a step is: `metadata blocks`, `bytes`.
    pub unit: String,
}

/// One line of an answer.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// How far it has come.
    Progress(Progress),
    /// Done; nothing follows.
    Reply(Box<Reply>),
    /// Failed; nothing follows.
    Error(CallError),
}

/// What kind of remedy a failure asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CallErrorKind {
    /// None of the others.
    Other,
    /// The request itself is wrong.
    Invalid,
    /// It names what does not exist.
    NotFound,
    /// It names what exists already.
    Exists,
    /// What it names is in use.
    Busy,
    /// There is no space.
    NoSpace,
    /// What it would change is read only.
    ReadOnly,
    /// Damaged, or of another format.
    Damaged,
    /// Input or output failed.
    Io,
    /// Whoever read the output has seen enough; no failure.
    OutputClosed,
    /// Stopped by a signal.
    Interrupted,
    /// A process that may be about to let go has the pool, and nothing has happened: another one
    /// locks it, or its daemon ended before it took the request.
    PoolHeld,
}

/// A failed call: one line for people, and the kind that decides the exit code.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What kind of remedy it asks for.
    pub kind: CallErrorKind,
    /// What went wrong, where, and what to do.
    pub message: String,
}

impl CallError {
    /// An error of this kind.
    pub fn new(kind: CallErrorKind, message: impl Into<String>) -> Self {
        CallError {
            kind,
            message: one_line(&message.into()),
        }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(CallErrorKind::Invalid, message)
    }

    /// A failed system call on the thing that `place` names.
    pub fn io(place: impl std::fmt::Display, cause: &io::Error) -> Self {
        let kind = match cause.kind() {
            io::ErrorKind::NotFound => CallErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => CallErrorKind::Exists,
            io::ErrorKind::ResourceBusy | io::ErrorKind::AddrInUse => CallErrorKind::Busy,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CallErrorKind::NoSpace,
            io::ErrorKind::ReadOnlyFilesystem => CallErrorKind::ReadOnly,
            _ => CallErrorKind::Io,
        };
        Self::new(kind, format!("{place}: {}", plain(cause)))
    }

    /// An error of a table of block devices.
    pub fn table(cause: &device_table::Error) -> Self {
        let kind = match cause {
            device_table::Error::Damaged { .. } => CallErrorKind::Damaged,
            device_table::Error::Io { source, .. } => Self::io("", source).kind,
            _ => CallErrorKind::Other,
        };
        Self::new(kind, cause.to_string())
    }

    /// An error of the pool in the directory `pool`.
    pub fn pool(pool: &Path, cause: &pool::Error) -> Self {
        let mut message = format!("{}: {cause}", pool.display());
        let mut source = cause.source();
        while let Some(error) = source {
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        let kind = CallErrorKind::from(cause.kind());
        if kind == CallErrorKind::Damaged {
            message = format!("{message} (see 'thinctl check {}')", pool.display());
        }
        Self::new(kind, message)
    }
}

/// The cause without the number that the standard library adds.
fn plain(cause: &io::Error) -> String {
    let text = cause.to_string();
    let without_number = text
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned();
    let mut chars = without_number.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

/// Messages are one line, whatever they quote.
fn one_line(text: &str) -> String {
    text.split(['\n', '\r'])
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::SectorSize;

    #[test]
    fn calls_and_events_round_trip() {
        let name: DeviceName = "prod@nightly".parse().unwrap();
        for call in [
            Call::Status,
            Call::Info { name: name.clone() },
            Call::Grow {
                data_size: Some(1),
                metadata_size: None,
            },
            Call::Attach(AttachRequest {
                name: name.clone(),
                mount: Some("/mnt".into()),
                mkfs: Some(FileSystem::Xfs),
                transport: Some(Transport::Nbd),
                options: DeviceOptions {
                    sector_size: Some(SectorSize::S512),
                    queues: Some(2),
                    depth: None,
                    buffer_bytes: Some(65_536),
                },
                persist: true,
            }),
            Call::Detach {
                target: AttachTarget::Device("/dev/loop0".into()),
            },
        ] {
            let text = serde_json::to_string(&call).unwrap();
            assert_eq!(serde_json::from_str::<Call>(&text).unwrap(), call);
        }
        let event = Event::Error(CallError::invalid("two\nlines\n"));
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.contains("two; lines"), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }

    #[test]
    fn names_that_are_paths_do_not_pass() {
        assert!(serde_json::from_str::<Call>(r#"{"info":{"name":"../x"}}"#).is_err());
    }

    #[test]
    fn a_full_disk_is_no_space() {
        let error = CallError::io("/pool/data", &io::Error::from_raw_os_error(28));
        assert_eq!(error.kind, CallErrorKind::NoSpace);
        assert_eq!(error.message, "/pool/data: no space left on device");
    }
}
