//! What the pool tells about itself, as plain values.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::name::DeviceName;
use crate::queue::NoSpaceOverride;

/// Whether a thin device is a volume or a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Has a name of its own; writable unless frozen.
    Volume,
    /// Named after its volume; never changes.
    Snapshot,
}

/// One volume or snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `prod` or `prod@nightly`.
    pub name: DeviceName,
    /// Volume or snapshot.
    pub kind: DeviceKind,
    /// The thin id in the metadata, 24 bits.
    pub id: u32,
    /// Identity that survives renaming.
    pub uuid: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes mapped to data blocks, shared ones included.
    pub mapped_bytes: u64,
    /// What it was made from, as that is called now; none when it was created empty, or when that
    /// is gone.
    pub parent: Option<DeviceName>,
    /// When it was created, RFC 3339, UTC.
    pub created: String,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The external origin that shows through where nothing is mapped.
    pub external_origin: Option<PathBuf>,
    /// Where its writes differ from the pool's when there is no data space.
    #[serde(flatten)]
    pub no_space: NoSpaceOverride,
    /// Its writes that wait for data space now.
    pub queued_writes: u64,
    /// How many exports and attachments hold it open now.
    pub open_count: u64,
}

/// What one device uses, exactly, in bytes of whole data blocks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceUsage {
    /// `prod` or `prod@nightly`.
    pub name: DeviceName,
    /// Mapped bytes: exclusive + shared.
    pub mapped_bytes: u64,
    /// Bytes that only this device maps.
    pub exclusive_bytes: u64,
    /// Bytes that another device maps too.
    pub shared_bytes: u64,
    /// Bytes that deleting this device alone would free.
    pub freed_if_deleted_bytes: u64,
}

/// What a part of a device uses that nobody else does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExclusivePiece {
    /// Bytes that only this device maps there.
    pub bytes: u64,
    /// The virtual block that the next part begins with; none when that was the last.
    pub next: Option<u64>,
}

/// The pool's mode, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Everything works.
    Write,
    /// Writes that need a data block wait for space, or fail with ENOSPC.
    OutOfDataSpace,
    /// Nothing that needs metadata works but deleting.
    OutOfMetadataSpace,
    /// Nothing changes: asked for, `needs_check`, or a failed commit.
    ReadOnly,
    /// Nothing works.
    Failed,
}

/// The state of a pool.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Data block size in bytes.
    pub block_size: u64,
    /// Data store: bytes in the pool.
    pub data_total_bytes: u64,
    /// Data store: bytes in allocated blocks.
    pub data_used_bytes: u64,
    /// Metadata store: bytes in the pool.
    pub metadata_total_bytes: u64,
    /// Metadata store: bytes in use.
    pub metadata_used_bytes: u64,
    /// Metadata store: bytes kept back, so that what was begun can always be committed.
    pub metadata_reserve_bytes: u64,
    /// The metadata block of the superblock that a metadata snapshot holds; 0 when there is none.
    pub held_root: u64,
    /// The metadata's transaction id, raised by every change of names or devices.
    pub transaction_id: u64,
    /// The snapshot counter.
    pub time: u32,
    /// The mode, and why when it is not `write`.
    pub mode: Mode,
    /// Why the mode is what it is; empty in write mode.
    pub mode_reason: String,
    /// Whether the superblock asks for a check before it is written again.
    pub needs_check: bool,
    /// Whether the data store is given back the space of blocks that nobody uses any more.
    pub discard_passdown: bool,
    /// How many volumes.
    pub volumes: u64,
    /// How many snapshots.
    pub snapshots: u64,
    /// Deleted devices whose blocks are still being given back.
    pub deleting: u64,
    /// Commits since the pool was opened.
    pub commits: u64,
    /// Times that the intent log was synced for flushes since the pool was opened.
    pub flushes: u64,
    /// Blocks given to writes of unmapped ranges since the pool was opened.
    pub provisioned_blocks: u64,
    /// Blocks given to writes of shared ranges since the pool was opened.
    pub copied_blocks: u64,
    /// Bytes copied from where they were into blocks that were written in part, since the pool was opened.
    pub copied_bytes: u64,
    /// Zeros written into blocks that were written in part, since the pool was opened.
    pub zeroed_bytes: u64,
    /// Blocks of which only the sub-blocks written so far exist: the next commit fills in the rest.
    pub partial_blocks: u64,
    /// Intent log: bytes of its file; 0 when there is none.
    pub log_bytes: u64,
    /// Intent log: records since the last commit began, all of which a start after a crash would replay.
    pub log_records: u64,
    /// Intent log: the records after which a commit must come.
    pub log_records_max: u64,
    /// Writes that wait for data space now.
    pub queued_writes: u64,
    /// Whether a write that lacked data space now would wait for it, unless its volume says otherwise.
    pub queues_without_space: bool,
}

impl Status {
    /// Data store: bytes in blocks that nobody has.
    pub fn data_free_bytes(&self) -> u64 {
        self.data_total_bytes.saturating_sub(self.data_used_bytes)
    }

    /// Metadata store: free bytes, without those that are kept back.
    pub fn metadata_free_bytes(&self) -> u64 {
        let unusable = self.metadata_used_bytes + self.metadata_reserve_bytes;
        self.metadata_total_bytes.saturating_sub(unusable)
    }
}
