//! `rewind`: earlier commits of a pool that nobody uses, and the way back to one.
//!
//! Everything is found out before anything is written, and then it is one write of block 0, whose first sector alone
//! changes: a crash leaves the pool at the one commit or at the other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use metadata_check::{BlockSource, CheckOptions, ComparedDevice, check, compare};
use pool::{
    INCOMPAT_LOG, KeptSuperblock, KnownBy, kept_superblocks, known_superblocks, without_log,
};
use serde::Serialize;

use super::Context;
use crate::check::{INCOMPAT_FLAGS_AT, names_at, transaction_id_of};
use crate::cli::RewindArgs;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{CallError, CallErrorKind};

/// Where the catalog is kept as it was before.
const CATALOG_KEPT: &str = "catalog.before-rewind";

/// What is known of the commits, as `--json` has it.
#[derive(Serialize)]
struct RewindReport {
    /// The number of the commit that was gone back to.
    rewound_to: Option<u64>,
    /// Newest first.
    commits: Vec<CommitReport>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct CommitReport {
    number: u64,
    /// When it was made.
    time: Option<String>,
    transaction_id: u64,
    state: State,
    /// What of the metadata is wrong, at first.
    fault: Option<String>,
    devices: Vec<DeviceReport>,
    /// Devices made since, which would be lost.
    created: Vec<u32>,
    /// What block 0 is to be.
    #[serde(skip)]
    superblock: [u8; 4096],
    /// Whether an intent log is to be taken over first.
    #[serde(skip)]
    has_log: bool,
}

/// What a commit is.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// What the pool is now.
    Present,
    /// All of it is there.
    Whole,
    /// Its metadata is, but data blocks of it may be others' by now.
    Incomplete,
    /// Its metadata has been written over.
    Overwritten,
}

#[derive(Serialize)]
struct DeviceReport {
    id: u32,
    /// None if the catalog does not go back so far.
    name: Option<String>,
    mappings: u64,
    /// Mappings whose data may be another's by now.
    lost: u64,
    /// First and last block of each range of those, at most 16.
    lost_ranges: Vec<(u64, u64)>,
    /// Mappings made since, which would be lost.
    later: u64,
}

impl CommitReport {
    /// Whether something that was written since would be gone.
    fn loses_later_writes(&self) -> bool {
        !self.created.is_empty() || self.devices.iter().any(|device| device.later > 0)
    }
}

pub(super) fn rewind(context: &Context, args: &RewindArgs) -> Result<(), CallError> {
    let dir = PoolDir::open(&args.pool)?;
    let access = match args.to {
        Some(_) => Access::Write,
        None => Access::Read,
    };
    let files = dir.open_stores(access)?;
    let mut report = look(context, &dir, &files.metadata)?;
    if let Some(number) = args.to {
        let commit = chosen(&dir, &report.commits, number, args.lose_later_writes)?;
        go_back(&dir, &files.metadata, &commit.superblock)?;
        report.rewound_to = Some(number);
        report
            .notes
            .push(format!("the catalog as it was is kept as {CATALOG_KEPT}"));
    }
    context.output.note(&report.notes);
    context.output.print(&report, describe)
}

/// Judges what the history has.
fn look(context: &Context, dir: &PoolDir, metadata: &File) -> Result<RewindReport, CallError> {
    let kept = kept_superblocks(&dir.history());
    let kept = kept.map_err(|cause| CallError::pool(&dir.path, &cause))?;
    let mut present = [0; 4096];
    metadata
        .read_block(0, &mut present)
        .map_err(|cause| CallError::io(dir.metadata_path().display(), &cause))?;
    let place = kept.iter().position(|kept| kept.is(&present));
    let mut report = RewindReport {
        rewound_to: None,
        commits: Vec::new(),
        notes: Vec::new(),
    };
    let _progress = context.output.progress("checking commits");
    match place {
        Some(place) => {
            let line = kept[place..].iter();
            let judged = line.map(|kept| judge(dir, metadata, kept, Some(&present)));
            report.commits = judged.collect::<Result<_, _>>()?;
        }
        None if is_damaged(metadata) => {
            let (commit, note) = look_for_last(dir, metadata, &kept)?;
            report.commits.extend(commit);
            report.notes.push(note.to_owned());
        }
        None => report.notes.push(
            "the history has nothing that leads to the present commit: it begins with the next"
                .to_owned(),
        ),
    }
    Ok(report)
}

/// The only commit that a damaged superblock can be written anew from, and what is to be said of it.
fn look_for_last(
    dir: &PoolDir,
    metadata: &File,
    kept: &[KeptSuperblock],
) -> Result<(Option<CommitReport>, &'static str), CallError> {
    let known = known_superblocks(&dir.log()?, &dir.history());
    let known = known.map_err(|cause| CallError::pool(&dir.path, &cause))?;
    let Some((superblock, known_by)) = known.first() else {
        let note = "the superblock is damaged, and neither log nor history knows it: see 'thinctl help repair'";
        return Ok((None, note));
    };
    let place = kept.iter().find(|kept| kept.is(superblock));
    // As the history would have it.
    let next = kept
        .first()
        .map_or(0, |newest| newest.sequence.wrapping_add(1));
    let last = KeptSuperblock {
        sequence: place.map_or(next, |kept| kept.sequence),
        time: place.map_or(0, |kept| kept.time),
        superblock: *superblock,
    };
    let mut commit = judge(dir, metadata, &last, None)?;
    let note = match known_by {
        KnownBy::Log => {
            // The log goes on from it as it is.
            commit.superblock = *superblock;
            commit.has_log = false;
            "the superblock is damaged: the last commit is the one that the intent log goes on from, and the next to \
             open the pool does again what the log holds"
        }
        KnownBy::History(_) => {
            "the superblock is damaged: only the newest commit can be gone back to, and nothing is known of changes \
             by anything but this program"
        }
    };
    Ok((Some(commit), note))
}

fn is_damaged(metadata: &File) -> bool {
    check(metadata, &CheckOptions::default())
        .superblock
        .is_none()
}

/// What there is of a commit, beside the present one if that is known.
fn judge(
    dir: &PoolDir,
    metadata: &File,
    kept: &KeptSuperblock,
    present: Option<&[u8; 4096]>,
) -> Result<CommitReport, CallError> {
    let superblock = &kept.superblock;
    let transaction_id = transaction_id_of(superblock);
    let mut commit = CommitReport {
        number: kept.sequence,
        time: time_of(kept.time),
        transaction_id,
        state: State::Overwritten,
        fault: None,
        devices: Vec::new(),
        created: Vec::new(),
        superblock: without_log(superblock),
        has_log: has_log(superblock),
    };
    let options = CheckOptions {
        superblock: Some(superblock),
        allowed_incompat: INCOMPAT_LOG,
        ..CheckOptions::default()
    };
    let checked = check(metadata, &options);
    if !checked.is_sound() {
        commit.fault = checked.findings.first().map(ToString::to_string);
        return Ok(commit);
    }
    // Of a damaged superblock, what is newest is the present.
    let compared = compare(metadata, superblock, present.unwrap_or(superblock))
        .map_err(|cause| CallError::io(dir.metadata_path().display(), &cause))?;
    let names = names_at(dir, transaction_id);
    let is_whole = compared.devices.iter().all(|device| device.lost == 0);
    commit.state = match is_whole {
        _ if present.is_some_and(|present| kept.is(present)) => State::Present,
        true => State::Whole,
        false => State::Incomplete,
    };
    let devices = compared.devices.into_iter();
    commit.devices = devices.map(|device| report_of(device, &names)).collect();
    commit.created = compared.created;
    Ok(commit)
}

fn report_of(device: ComparedDevice, names: &BTreeMap<u32, String>) -> DeviceReport {
    DeviceReport {
        id: device.id,
        name: names.get(&device.id).cloned(),
        mappings: device.mappings,
        lost: device.lost,
        lost_ranges: device.lost_ranges,
        later: device.later,
    }
}

fn time_of(seconds: u64) -> Option<String> {
    let seconds = i64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.to_string())
}

/// The commit of a number, if it can be gone back to.
fn chosen<'a>(
    dir: &PoolDir,
    commits: &'a [CommitReport],
    number: u64,
    may_lose: bool,
) -> Result<&'a CommitReport, CallError> {
    let place = dir.path.display();
    let Some(commit) = commits.iter().find(|commit| commit.number == number) else {
        let message = format!(
            "{place}: no commit {number} in the history: 'thinctl rewind {place}' lists what there is"
        );
        return Err(CallError::new(CallErrorKind::NotFound, message));
    };
    // The first is what the pool is now.
    if commits[0].has_log {
        return Err(CallError::invalid(format!(
            "{place}: was not closed, and its intent log may hold flushed writes: let 'thinctl ls {place}' take \
             them over first"
        )));
    }
    let (kind, reason) = match commit.state {
        State::Whole if may_lose || !commit.loses_later_writes() => return Ok(commit),
        State::Whole => (
            CallErrorKind::Invalid,
            "would lose what was written to new blocks since, and volumes made since, as listed without --to; \
             volumes written since would be a mix of old and new: add --lose-later-writes if that is meant",
        ),
        State::Present => (CallErrorKind::Invalid, "is what the pool is now"),
        State::Incomplete => (
            CallErrorKind::Damaged,
            "is not whole: data blocks of it may have been given to others since, as listed without --to",
        ),
        State::Overwritten => (
            CallErrorKind::Damaged,
            "is not whole: its metadata has been written over",
        ),
    };
    Err(CallError::new(
        kind,
        format!("{place}: commit {number} {reason}"),
    ))
}

fn has_log(superblock: &[u8; 4096]) -> bool {
    superblock[INCOMPAT_FLAGS_AT..INCOMPAT_FLAGS_AT + 4] == INCOMPAT_LOG.to_le_bytes()
}

/// Makes an earlier commit the last one.
fn go_back(dir: &PoolDir, metadata: &File, superblock: &[u8; 4096]) -> Result<(), CallError> {
    // Lines of later commits are cut off when the pool is opened.
    let catalog = dir.path.join("catalog");
    let kept = fs::copy(&catalog, dir.path.join(CATALOG_KEPT));
    kept.map_err(|cause| CallError::io(catalog.display(), &cause))?;
    metadata
        .write_all_at(superblock, 0)
        .and_then(|()| metadata.sync_all())
        .map_err(|cause| CallError::io(dir.metadata_path().display(), &cause))
}

fn describe(report: &RewindReport) -> String {
    if let Some(number) = report.rewound_to {
        return format!("the pool is as commit {number} had it\n");
    }
    report.commits.iter().map(describe_commit).collect()
}

fn describe_commit(commit: &CommitReport) -> String {
    let state = match commit.state {
        State::Present => "present",
        State::Whole if commit.loses_later_writes() => "whole, without what was written since",
        State::Whole => "whole",
        State::Incomplete => "not whole",
        State::Overwritten => "overwritten",
    };
    let time = commit.time.as_deref().unwrap_or("time unknown");
    let mut text = format!(
        "commit {}, {time}, transaction {}: {state}\n",
        commit.number, commit.transaction_id
    );
    if let Some(fault) = &commit.fault {
        text.push_str(&format!("  {fault}\n"));
    }
    for device in &commit.devices {
        let name = match &device.name {
            Some(name) => name.clone(),
            None => format!("thin device {}", device.id),
        };
        text.push_str(&format!("  {name}: {} mappings", device.mappings));
        if device.lost > 0 {
            let ranges = device.lost_ranges.iter();
            let ranges: Vec<_> = ranges
                .map(|(first, last)| format!("{first} to {last}"))
                .collect();
            let ranges = ranges.join(", ");
            text.push_str(&format!(
                ", {} may be others' by now: blocks {ranges}",
                device.lost
            ));
        }
        if device.later > 0 {
            text.push_str(&format!(", {} made since would be lost", device.later));
        }
        text.push('\n');
    }
    for id in &commit.created {
        text.push_str(&format!(
            "  thin device {id} was made since, and would be lost\n"
        ));
    }
    text
}
