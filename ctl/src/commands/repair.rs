//! `repair`: new metadata of what can be trusted in damaged metadata.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use metadata_btree::FileStore;
use metadata_check::{BlockSource, Start};
use metadata_restore::{Hints, MetadataSize, Options, Repaired, RepairedDevice};
use pool::{BlockSize, LogStore, hand_over_log, known_superblocks};
use reactor::FileLog;
use serde::Serialize;

use super::Context;
use super::restore::{failed, shown};
use crate::check::names_in_catalog;
use crate::cli::RepairArgs;
use crate::exit;
use crate::interrupt::Interrupt;
use crate::pool_dir::{Access, PoolDir, StoreFiles, names_pool, open_locked};
use crate::protocol::{CallError, CallErrorKind};

/// Bytes of a metadata block.
const BLOCK_BYTES: u64 = metadata_btree::BLOCK_SIZE as u64;

/// What a repair has come to, as `--json` has it.
#[derive(Serialize)]
struct RepairReport {
    /// Where the new metadata is.
    metadata: PathBuf,
    /// Whether the pool has it now.
    in_place: bool,
    /// What the old metadata is called, if that has changed.
    kept: Option<PathBuf>,
    /// Whether nothing is missing.
    complete: bool,
    /// What the trees were found by: superblock, copy or commit.
    start: &'static str,
    /// Whether the old metadata needed a check.
    needed_check: bool,
    devices: Vec<DeviceReport>,
    orphans: Vec<OrphanReport>,
    doubted_nodes: u64,
    mappings: u64,
    metadata_blocks: u64,
    metadata_blocks_used: u64,
    data_blocks: u64,
    data_blocks_used: u64,
    /// Changes in the intent log, that whoever opens the pool does again.
    log_records: u64,
    notes: Vec<String>,
}

/// A device, and where mappings of it may be missing.
#[derive(Serialize)]
struct DeviceReport {
    id: u32,
    name: Option<String>,
    mappings: u64,
    /// How many mappings are missing, if that is known.
    missing_blocks: Option<u64>,
    missing: Vec<RangeReport>,
}

/// Virtual blocks; up to the device's end if there is no last one.
#[derive(Serialize)]
struct RangeReport {
    first: u64,
    last: Option<u64>,
}

/// Mappings of which it is not certain whose they were.
#[derive(Serialize)]
struct OrphanReport {
    metadata_block: u64,
    mappings: u64,
    first: u64,
    last: u64,
}

/// What is repaired.
struct Damaged {
    /// The pool, unless it is metadata alone.
    dir: Option<PoolDir>,
    metadata: File,
    /// The data store, by which others are kept out.
    data: Option<File>,
    place: String,
}

/// The exit code says whether anything is missing.
pub(super) fn repair(context: &Context, args: &RepairArgs) -> Result<u8, CallError> {
    let damaged = Damaged::open(args)?;
    let to = damaged.target(args)?;
    let log = damaged.log()?;
    let copy = damaged.known_superblock(log.as_ref());
    let (names, transaction_id) = match &damaged.dir {
        Some(dir) => names_in_catalog(dir),
        None => Default::default(),
    };
    let hints = Hints {
        superblock: copy.as_ref(),
        block_size: args.block_size.map(block_size).transpose()?,
        data_bytes: damaged.data_bytes(),
        transaction_id,
    };
    let repaired = salvage(context, &damaged, &to, &hints)?;
    let mut report = report(&repaired, &names);
    match &damaged.dir {
        Some(dir) if args.replace => {
            let old = damaged.superblock(&repaired, copy);
            let placed = put_in_place(dir, args, log.as_ref(), old.as_ref(), &to);
            let (records, kept) = placed.inspect_err(|_| discard(&to))?;
            let dir = PoolDir::open_path(&dir.path)?;
            report.log_records = records;
            report.in_place = true;
            report.metadata = dir.metadata_path();
            report.kept = kept;
        }
        Some(_) => {
            let advice = "the pool is as it was: with --replace, it gets its new metadata";
            report.notes.push(advice.to_owned());
            report.metadata = to;
        }
        None => report.metadata = to,
    }
    context.output.note(&report.notes);
    context.output.print(&report, describe)?;
    Ok(if report.complete {
        exit::DONE
    } else {
        exit::FAILED
    })
}

impl Damaged {
    fn open(args: &RepairArgs) -> Result<Self, CallError> {
        let access = if args.replace {
            Access::Write
        } else {
            Access::Read
        };
        let path = Path::new(&args.pool);
        if !names_pool(&args.pool) && path.exists() && !path.is_dir() {
            if args.replace {
                return Err(CallError::invalid(format!(
                    "{}: --replace needs the pool, since what its intent log holds must go along",
                    args.pool
                )));
            }
            return Ok(Damaged {
                dir: None,
                metadata: open_locked(path, access)?,
                data: None,
                place: args.pool.clone(),
            });
        }
        let dir = PoolDir::open(&args.pool)?;
        let StoreFiles { metadata, data } = dir.open_stores(access)?;
        Ok(Damaged {
            place: dir.metadata_path().display().to_string(),
            dir: Some(dir),
            metadata,
            data: Some(data),
        })
    }

    /// Where the new metadata is written.
    fn target(&self, args: &RepairArgs) -> Result<PathBuf, CallError> {
        match (&args.to, &self.dir) {
            (Some(to), _) => Ok(to.clone()),
            (None, Some(dir)) if args.replace => dir.beside_metadata("replacement"),
            (None, Some(dir)) => dir.beside_metadata("repaired"),
            (None, None) => Err(CallError::invalid(format!(
                "{}: say with --to where the new metadata is to be written",
                self.place
            ))),
        }
    }

    fn data_bytes(&self) -> Option<u64> {
        let mut data = self.data.as_ref()?;
        data.seek(SeekFrom::End(0)).ok()
    }

    fn log(&self) -> Result<Option<FileLog>, CallError> {
        self.dir.as_ref().map(PoolDir::log).transpose()
    }

    /// What the last superblock was, for when block 0 is damaged.
    fn known_superblock(&self, log: Option<&FileLog>) -> Option<[u8; 4096]> {
        let history = self.dir.as_ref()?.history();
        let known = known_superblocks(log?, &history).unwrap_or_default();
        known.first().map(|(superblock, _)| *superblock)
    }

    /// The superblock that the trees were found by, if it is known whole.
    fn superblock(&self, repaired: &Repaired, copy: Option<[u8; 4096]>) -> Option<[u8; 4096]> {
        match repaired.pool.start {
            Start::Superblock => {
                let mut block = [0; 4096];
                self.metadata.read_block(0, &mut block).ok()?;
                Some(block)
            }
            Start::Copy => copy,
            Start::Commit => None,
        }
    }
}

fn block_size(bytes: u64) -> Result<BlockSize, CallError> {
    BlockSize::new(bytes).ok_or_else(|| {
        CallError::invalid(format!(
            "--block-size is {bytes}, expected a multiple of 64K, at most 1G"
        ))
    })
}

fn salvage(
    context: &Context,
    damaged: &Damaged,
    to: &Path,
    hints: &Hints<'_>,
) -> Result<Repaired, CallError> {
    let size = damaged.metadata.block_count();
    let size = size.map_err(|cause| CallError::io(&damaged.place, &cause))? * BLOCK_BYTES;
    let view = context.output.progress("repairing");
    let watch = |at| {
        view.tell(&shown(at, 0));
        if context.interrupt.is_set() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let options = Options {
        // As large as it was; more if devices no longer share parts of their trees.
        size: MetadataSize::ForDataBlocks(&|_| size),
        watch: &watch,
    };
    metadata_restore::repair(&damaged.metadata, to, hints, &options).map_err(|cause| {
        if context.interrupt.is_set() {
            return Interrupt::error("nothing was repaired");
        }
        failed(&damaged.place, to, &cause)
    })
}

/// Gives the pool its new metadata, and that the log. Returns how many changes the log holds, and what the
/// old metadata is called now.
fn put_in_place(
    dir: &PoolDir,
    args: &RepairArgs,
    log: Option<&FileLog>,
    old: Option<&[u8; 4096]>,
    new: &Path,
) -> Result<(u64, Option<PathBuf>), CallError> {
    let records = match (log, old) {
        (Some(log), Some(old)) => {
            let store = File::options().read(true).write(true).open(new);
            let store = store.and_then(FileStore::new);
            let store = store.map_err(|cause| CallError::io(new.display(), &cause))?;
            hand_over_log(log, old, &store).map_err(|cause| lost_log(dir, &cause.to_string()))?
        }
        (Some(log), None) if has_content(log)? => {
            return Err(lost_log(dir, "the superblock that it belongs to is lost"));
        }
        _ => 0,
    };
    if args.to.is_some() {
        dir.use_metadata(new)?;
        return Ok((records, None));
    }
    Ok((records, Some(dir.replace_metadata(new)?)))
}

fn has_content(log: &FileLog) -> Result<bool, CallError> {
    let content = log.load();
    let content = content.map_err(|cause| CallError::io("the intent log", &cause))?;
    Ok(content.is_some_and(|content| !content.is_empty()))
}

/// Removes metadata that nobody can use, if it is a file. What stopped it from being used is told already.
fn discard(new: &Path) {
    if new.is_file() {
        let _ = std::fs::remove_file(new);
    }
}

/// What was flushed must not be lost without a word.
fn lost_log(dir: &PoolDir, reason: &str) -> CallError {
    let message = format!(
        "{}: the pool is left as it was: its intent log may hold changes that were flushed, and cannot be carried \
         over: {reason} (to do without them, save the file 'log' and put an empty one in its place)",
        dir.path.display()
    );
    CallError::new(CallErrorKind::Damaged, message)
}

fn report(repaired: &Repaired, names: &BTreeMap<u32, String>) -> RepairReport {
    let device = |device: &RepairedDevice| DeviceReport {
        id: device.id,
        name: names.get(&device.id).cloned(),
        mappings: device.mappings,
        missing_blocks: device.missing_count(),
        missing: device
            .missing
            .iter()
            .map(|range| RangeReport {
                first: range.first,
                last: range.last,
            })
            .collect(),
    };
    let orphans = repaired.orphans.iter().map(|orphan| OrphanReport {
        metadata_block: orphan.block,
        mappings: orphan.mappings,
        first: orphan.first,
        last: orphan.last,
    });
    let lost = names.keys().filter(|id| {
        let mut devices = repaired.devices.iter();
        !devices.any(|device| device.id == **id)
    });
    let restored = &repaired.restored;
    RepairReport {
        metadata: PathBuf::new(),
        in_place: false,
        kept: None,
        complete: repaired.is_complete() && lost.clone().next().is_none(),
        start: match repaired.pool.start {
            Start::Superblock => "superblock",
            Start::Copy => "copy",
            Start::Commit => "commit",
        },
        needed_check: repaired.pool.needs_check,
        devices: repaired.devices.iter().map(device).collect(),
        orphans: orphans.collect(),
        doubted_nodes: repaired.doubted_nodes,
        mappings: restored.mappings,
        metadata_blocks: restored.metadata_blocks,
        metadata_blocks_used: restored.metadata_blocks_used,
        data_blocks: restored.data_blocks,
        data_blocks_used: restored.data_blocks_used,
        log_records: 0,
        notes: lost
            .map(|id| format!("{} is lost: nothing is left of thin device {id}", names[id]))
            .collect(),
    }
}

fn describe(report: &RepairReport) -> String {
    let mut text = String::new();
    for device in &report.devices {
        text.push_str(&describe_missing(device));
    }
    for orphan in &report.orphans {
        text.push_str(&format!(
            "not given: {} mappings of blocks {} to {} (metadata block {}): it is not certain whose they were\n",
            orphan.mappings, orphan.first, orphan.last, orphan.metadata_block
        ));
    }
    if report.log_records > 0 {
        text.push_str(&format!(
            "the intent log holds {} changes: whoever opens the pool does them again\n",
            report.log_records
        ));
    }
    if let Some(kept) = &report.kept {
        text.push_str(&format!("the old metadata is {}\n", kept.display()));
    }
    let verdict = if report.complete {
        "nothing is missing"
    } else {
        "incomplete"
    };
    let place = if report.in_place {
        "repaired"
    } else {
        "written"
    };
    text.push_str(&format!(
        "{place}: {}: {} devices, {} mappings, {verdict}\n",
        report.metadata.display(),
        report.devices.len(),
        report.mappings
    ));
    text
}

fn describe_missing(device: &DeviceReport) -> String {
    let who = match &device.name {
        Some(name) => name.clone(),
        None => format!("thin device {}", device.id),
    };
    let count = match device.missing_blocks {
        Some(count) => format!("{count} mappings are missing"),
        None => "how many mappings are missing is not known".to_owned(),
    };
    let ranges: Vec<String> = device
        .missing
        .iter()
        .map(|range| match range.last {
            Some(last) => format!("{} to {last}", range.first),
            None => format!("{} to the end", range.first),
        })
        .collect();
    match (device.missing_blocks, ranges.is_empty()) {
        (None | Some(0), true) => String::new(),
        (_, true) => format!("missing: {who}: {count}, it is not known where\n"),
        (_, false) => format!("missing: {who}: {count}, of blocks {}\n", ranges.join(", ")),
    }
}
