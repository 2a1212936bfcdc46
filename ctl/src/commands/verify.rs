//! The metadata as a whole: `check`, `dump`.

use std::io;

use super::{Context, unexpected};
use crate::check::{check_files, dump_files};
use crate::client::Client;
use crate::exit;
use crate::frame::Frame;
use crate::output::write_out;
use crate::pool_dir::PoolDir;
use crate::protocol::{Call, CallError, CheckReport, CheckSeverity, Progress, Reply};
use crate::session::patiently;

/// Without a daemon the pool is not opened: one that cannot be opened can be checked.
pub(super) async fn check(context: &Context, pool: &str) -> Result<u8, CallError> {
    let dir = PoolDir::open(pool)?;
    let progress = context.output.progress("checking");
    let report = patiently(async || match Client::connect(&dir).await? {
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
    Ok(if is_damaged(&report) {
        exit::FAILED
    } else {
        exit::DONE
    })
}

/// Whether there is more than leaked space. Structure comes before counts, so what was dropped may be either.
fn is_damaged(report: &CheckReport) -> bool {
    let mut findings = report.findings.iter();
    findings.any(|finding| finding.severity == CheckSeverity::Damage) || report.findings_dropped > 0
}

fn describe(report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            CheckSeverity::Damage => "damage",
            CheckSeverity::Leak => "leak",
        };
        text.push_str(&format!("{severity}: {}\n", finding.message));
    }
    if report.findings_dropped > 0 {
        text.push_str(&format!("and {} more\n", report.findings_dropped));
    }
    if report.needs_check {
        text.push_str("needs_check is set: a metadata operation failed; the pool can only be read until it is repaired\n");
    }
    let verdict = match (report.clean, is_damaged(report)) {
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
