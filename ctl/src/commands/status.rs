//! `status`: a pool in the fields of the kernel's thin-pool target, for those who read these already.
//!
//! The fields are those of the kernel's documentation, admin-guide/device-mapper/thin-provisioning.

use pool::Mode;

use super::{Context, unexpected};
use crate::pool_dir::Access;
use crate::protocol::{Call, CallError, PoolInfo, Reply};

/// What the kernel counts the size of devices in.
const SECTOR_BYTES: u64 = 512;

const METADATA_BLOCK_BYTES: u64 = metadata_btree::BLOCK_SIZE as u64;

/// The kernel calls less free metadata than this low.
const LOW_WATER_BLOCKS_MAX: u64 = 1024;

pub(super) async fn status(context: &Context, pool: &str) -> Result<(), CallError> {
    match context.call(pool, Access::Write, Call::Status).await? {
        Reply::Pool(info) => context
            .output
            .print(&info, |info| format!("{}\n", line(info))),
        other => Err(unexpected(&other)),
    }
}

fn line(info: &PoolInfo) -> String {
    let status = &info.status;
    let target = format!("0 {} thin-pool", status.data_total_bytes / SECTOR_BYTES);
    let mode = match status.mode {
        Mode::Write => "rw",
        Mode::OutOfDataSpace => "out_of_data_space",
        // The kernel takes lack of metadata for a kind of read only, too.
        Mode::OutOfMetadataSpace | Mode::ReadOnly => "ro",
        Mode::Failed => return format!("{target} Fail"),
    };
    let transaction = status.transaction_id;
    let metadata_total = status.metadata_total_bytes / METADATA_BLOCK_BYTES;
    let unusable = status.metadata_used_bytes + status.metadata_reserve_bytes;
    let metadata_used = (unusable / METADATA_BLOCK_BYTES).min(metadata_total);
    let data_total = status.data_total_bytes / status.block_size;
    let data_used = status.data_used_bytes / status.block_size;
    let held_root = match status.held_root {
        0 => "-".to_owned(),
        block => block.to_string(),
    };
    let discards = match status.discard_passdown {
        true => "discard_passdown",
        false => "no_discard_passdown",
    };
    let check = if status.needs_check {
        "needs_check"
    } else {
        "-"
    };
    // When writes have waited for too long, the kernel says so in this way, too.
    let has_timed_out = status.mode == Mode::OutOfDataSpace
        && info.daemon_pid.is_some()
        && !status.queues_without_space;
    let no_space = if info.space.error_if_no_space || has_timed_out {
        "error_if_no_space"
    } else {
        "queue_if_no_space"
    };
    let low_water = (metadata_total / 4).min(LOW_WATER_BLOCKS_MAX);
    format!(
        "{target} {transaction} {metadata_used}/{metadata_total} {data_used}/{data_total} \
         {held_root} {mode} {discards} {no_space} {check} {low_water}"
    )
}
