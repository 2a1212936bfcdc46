//! The metadata as a whole: `check`, `dump`.

use std::io;

use super::{Context, unexpected};
use crate::check::{check_and_reclaim, check_files, dump_files};
use crate::cli::CheckArgs;
use crate::client::Client;
use crate::exit;
use crate::frame::Frame;
use crate::output::write_out;
use crate::pool_dir::PoolDir;
use crate::protocol::{
    Call, CallError, CallErrorKind, CheckCost, CheckLoss, CheckRange, CheckReport, CheckSeverity,
    Progress, Reply,
};
use crate::session::patiently;

/// Volumes and snapshots that the text names; `--json` has all.
const LOSSES_SHOWN: usize = 100;

/// Ranges of each that the text names.
const RANGES_SHOWN: usize = 8;

/// Without a daemon the pool is not opened: one that cannot be opened can be checked.
pub(super) async fn check(context: &Context, args: &CheckArgs) -> Result<u8, CallError> {
    let dir = PoolDir::open(&args.pool)?;
    let progress = context.output.progress("checking");
    let report = patiently(async || match Client::connect(&dir).await? {
        Some(_) if args.reclaim_leaks => Err(is_served(&dir)),
        None if args.reclaim_leaks => check_and_reclaim(&dir, &progress.sink()).await,
        None => check_files(&dir, &progress.sink()),
        Some(mut client) => {
            let tell = |at: Progress| progress.tell(&at);
            match client.call(&Call::Check, &tell).await? {
                Reply::Check(report) => Ok(report),
                other => Err(unexpected(&other)),
            }
        }
    })
    .await?;
    drop(progress);
    context.output.print(&report, describe)?;
    Ok(if report.is_damaged() {
        exit::FAILED
    } else {
        exit::DONE
    })
}

fn is_served(dir: &PoolDir) -> CallError {
    let message = format!(
        "{}: a daemon serves the pool: end it before leaks are reclaimed (without --reclaim-leaks, a pool that is \
         served can be checked)",
        dir.path.display()
    );
    CallError::new(CallErrorKind::Busy, message)
}

fn describe(report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            CheckSeverity::Damage => "damage",
            CheckSeverity::Leak => "leak",
        };
        let cost = finding
            .costs
            .filter(|_| severity != "leak")
            .map_or("", cost);
        text.push_str(&format!("{severity}: {}{cost}\n", finding.message));
    }
    if report.findings_dropped > 0 {
        text.push_str(&format!("and {} more\n", report.findings_dropped));
    }
    for loss in report.losses.iter().take(LOSSES_SHOWN) {
        text.push_str(&describe_loss(loss));
    }
    let more = report.losses.len().saturating_sub(LOSSES_SHOWN);
    if more > 0 {
        text.push_str(&format!("and {more} more volumes and snapshots\n"));
    }
    if report.needs_check {
        text.push_str("needs_check is set: a metadata operation failed; the pool can only be read until it is repaired\n");
    }
    if let Some(reclaimed) = &report.reclaimed {
        text.push_str(&format!(
            "reclaimed: {} data blocks and {} metadata blocks\n",
            reclaimed.data_blocks, reclaimed.metadata_blocks
        ));
    }
    let verdict = match (report.clean, report.is_damaged()) {
        (true, _) => "clean",
        (false, false) => "sound, with leaks",
        (false, true) => "damaged",
    };
    let found = report.findings.len() as u64 + report.findings_dropped;
    text.push_str(&format!(
        "{verdict}: {} devices, {} data blocks and {} metadata blocks in use, {found} findings\n",
        report.devices, report.data_blocks_used, report.metadata_blocks_used
    ));
    text
}

/// What follows the message of a fault that a damaged pool has.
fn cost(cost: CheckCost) -> &'static str {
    match cost {
        CheckCost::Nothing => "; costs nothing: a repair makes it anew",
        CheckCost::MetadataSnapshot => "; costs the metadata snapshot alone",
        CheckCost::Mappings => "",
        CheckCost::Unknown => "; what it costs is not known",
        CheckCost::Everything => "; costs everything, unless a copy of the superblock is left",
    }
}

fn describe_loss(loss: &CheckLoss) -> String {
    let who = match &loss.name {
        Some(name) => format!("{name} (thin device {})", loss.device),
        None => format!("thin device {}", loss.device),
    };
    let ranges = loss.ranges.iter().take(RANGES_SHOWN).map(describe_range);
    let what = if loss.is_all {
        "all of it".to_owned()
    } else {
        ranges.collect::<Vec<_>>().join("; ")
    };
    let more = loss.ranges.len().saturating_sub(RANGES_SHOWN) as u64 + loss.more_ranges;
    let more = match more {
        0 => String::new(),
        more => format!("; and {more} more ranges"),
    };
    format!("cannot be trusted: {who}: {what}{more}\n")
}

fn describe_range(range: &CheckRange) -> String {
    let (first, offset) = (range.first_block, range.offset);
    match (range.last_block, range.length) {
        (Some(last), Some(length)) => {
            format!("{length} bytes from {offset} (blocks {first} to {last})")
        }
        _ => format!("from {offset} to the end (from block {first})"),
    }
}

pub(super) async fn dump(_context: &Context, pool: &str) -> Result<(), CallError> {
    let dir = PoolDir::open(pool)?;
    let mut take = |frame: Frame| match frame {
        Frame::Data(bytes) => write_out(&bytes),
        _ => Ok(()),
    };
    patiently(async || match Client::connect(&dir).await? {
        None => dump_files(&dir, &mut io::stdout().lock()),
        Some(mut client) => client.dump(&mut take).await,
    })
    .await
}
