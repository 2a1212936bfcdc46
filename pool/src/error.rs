//! What can go wrong in a pool, one variant a remedy.

use std::io;

use crate::name::DeviceName;

/// An error of a pool. [`Error::errno`] says how a block device reports it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that may not be used.
    #[error("name {name:?} cannot be used: {reason}")]
    BadName {
        /// The name, cut off when very long.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// A size or another value outside what is allowed.
    #[error("{what} is {found}, expected {expected}")]
    BadValue {
        /// Which value.
        what: &'static str,
        /// What was given.
        found: String,
        /// What is allowed.
        expected: String,
    },

    /// No volume or snapshot of that name.
    #[error("{0}: no such volume or snapshot")]
    NotFound(DeviceName),

    /// The name is taken.
    #[error("{0}: the name is already in use")]
    Exists(DeviceName),

    /// The device is exported, attached or open.
    #[error("{0} is in use: detach it, or disconnect its clients, first")]
    InUse(DeviceName),

    /// A write to a snapshot or a frozen volume.
    #[error("{0} is read only: clone it to get a writable volume")]
    DeviceReadOnly(DeviceName),

    /// A change while the pool may not change.
    #[error("the pool is read only: {reason}")]
    PoolReadOnly {
        /// Why it is.
        reason: String,
    },

    /// Changes that no commit can take, since a block they belong to cannot be filled in.
    #[error("what was written to {name} cannot be committed: {reason}")]
    NotCommitted {
        /// The volume.
        name: DeviceName,
        /// What went wrong, and what helps.
        reason: String,
    },

    /// A request outside the device.
    #[error("request of {len} bytes at {offset} ends beyond the device's size {size}")]
    OutOfRange {
        /// Where it begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The device's size in bytes.
        size: u64,
    },

    /// No free data block.
    #[error("the pool is out of data space: grow it, or delete what is not needed")]
    OutOfDataSpace,

    /// The data store cannot get the space of a free data block: the file system below is full.
    #[error("the data store gets no more space: {source}; free some on its file system")]
    DataStoreFull {
        /// The cause.
        source: io::Error,
    },

    /// No free metadata block.
    #[error("the pool is out of metadata space: grow its metadata, or delete what is not needed")]
    OutOfMetadataSpace,

    /// A request that could only be done slowly, where the caller asked for fast or nothing.
    #[error("zeroing this range would not be faster than writing it")]
    NotFast,

    /// The format's snapshot counter is used up.
    #[error("the pool has taken 16777215 snapshots, which is all its format can count")]
    OutOfTime,

    /// All 2^24 thin ids are in use.
    #[error("the pool holds 16777216 thin devices, which is all its format can number")]
    OutOfIds,

    /// The superblock is not one this program can open.
    #[error("superblock: {what} is {found}, expected {expected}")]
    Superblock {
        /// Which field or property.
        what: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },

    /// The records of one device contradict each other.
    #[error("thin device {id}: {reason}")]
    DeviceDamaged {
        /// Its id.
        id: u32,
        /// What is wrong.
        reason: String,
    },

    /// A store is shorter than the superblock says.
    #[error("{store} holds {found} bytes, but the superblock says {expected}")]
    StoreTooShort {
        /// Which store.
        store: &'static str,
        /// Its size in bytes.
        found: u64,
        /// The size it must have at least, in bytes.
        expected: u64,
    },

    /// The catalog cannot be understood.
    #[error("catalog line {line}: {reason}")]
    Catalog {
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },

    /// The intent log of a daemon that has not closed the pool cannot be used.
    #[error(
        "intent log: {reason}; with an empty file in its place (`log`) the pool opens as it was at its last \
         commit, and what was written or flushed after that is lost"
    )]
    Log {
        /// What is wrong with it.
        reason: String,
    },

    /// The metadata is damaged, or its store failed.
    #[error(transparent)]
    Metadata(#[from] metadata_btree::Error),

    /// The data store, the catalog file or an external origin failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done, and to what.
        what: String,
        /// The cause.
        source: io::Error,
    },

    /// The pool was closed, or stopped after a failure; restart it.
    #[error("the pool has stopped: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
}

/// Whether a store is full, as a disk or by quota.
pub(crate) fn is_full(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// What kind of remedy an error asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// It names what does not exist.
    NotFound,
    /// It names what exists already.
    Exists,
    /// What it names is in use.
    Busy,
    /// What it would change is read only.
    ReadOnly,
    /// There is no space.
    NoSpace,
    /// Refused, since it would not be fast.
    NotSupported,
    /// Metadata, catalog or superblock are damaged, or of another format.
    Damaged,
    /// A store failed.
    Io,
}

impl Error {
    /// The kind of remedy it asks for.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::BadName { .. } | Error::BadValue { .. } | Error::OutOfRange { .. } => {
                ErrorKind::Invalid
            }
            Error::NotFound(_) => ErrorKind::NotFound,
            Error::Exists(_) => ErrorKind::Exists,
            Error::InUse(_) => ErrorKind::Busy,
            Error::DeviceReadOnly(_) | Error::PoolReadOnly { .. } => ErrorKind::ReadOnly,
            Error::OutOfDataSpace
            | Error::DataStoreFull { .. }
            | Error::OutOfMetadataSpace
            | Error::OutOfTime
            | Error::OutOfIds => ErrorKind::NoSpace,
            Error::NotFast => ErrorKind::NotSupported,
            Error::Superblock { .. }
            | Error::DeviceDamaged { .. }
            | Error::StoreTooShort { .. }
            | Error::Catalog { .. }
            | Error::Log { .. } => ErrorKind::Damaged,
            Error::Metadata(metadata_btree::Error::OutOfMetadataSpace { .. }) => ErrorKind::NoSpace,
            Error::Metadata(
                metadata_btree::Error::BadBlock { .. }
                | metadata_btree::Error::BadCount { .. }
                | metadata_btree::Error::BadDiskCount { .. }
                | metadata_btree::Error::NoOverflowCount { .. }
                | metadata_btree::Error::NoBitmap { .. },
            ) => ErrorKind::Damaged,
            Error::Io { source, .. } if is_full(source) => ErrorKind::NoSpace,
            Error::Metadata(_)
            | Error::Io { .. }
            | Error::NotCommitted { .. }
            | Error::Stopped { .. } => ErrorKind::Io,
        }
    }

    /// Whether there is no space for data, in the pool or below it: more may come.
    pub(crate) fn is_lack_of_space(&self) -> bool {
        matches!(self, Error::OutOfDataSpace | Error::DataStoreFull { .. }) || self.is_full()
    }

    /// Whether a store is full.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Error::Io { source, .. } if is_full(source))
    }

    /// The Linux errno by which a block device or a file tells it: EPERM 1, EIO 5, EBUSY 16,
    /// EEXIST 17, EINVAL 22, ENOSPC 28, ENOENT 2 or EOPNOTSUPP 95.
    pub fn errno(&self) -> i32 {
        match self.kind() {
            ErrorKind::Invalid => 22,
            ErrorKind::NotFound => 2,
            ErrorKind::Exists => 17,
            ErrorKind::Busy => 16,
            ErrorKind::ReadOnly => 1,
            ErrorKind::NoSpace => 28,
            ErrorKind::NotSupported => 95,
            ErrorKind::Damaged | ErrorKind::Io => 5,
        }
    }
}
