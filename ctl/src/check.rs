//! The full check of a pool: metadata, counts, catalog. Reads only.
//!
//! The metadata is verified by `metadata-check`, which shares no code with the writer. The catalog
//! is read here once more, independently of the pool, so that a pool that does not open can be
//! checked too. A pool in use is checked as of a pinned commit.

mod catalog;
mod leaks;
mod losses;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use metadata_btree::{Block, BlockNr, BlockStore};
use metadata_check::{BlockSource, CheckOptions, Cost, DumpError, DumpOptions, Report, Severity};
use pool::CatalogStore;

pub use self::leaks::check_and_reclaim;

use self::catalog::CatalogView;
use self::losses::losses;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{
    CallError, CallErrorKind, CheckCost, CheckFinding, CheckReport, CheckSeverity, Progress,
};
use crate::service::{PoolService, ProgressSink};

/// Bits of the superblock's `incompat_flags` that are ours.
const ALLOWED_INCOMPAT: u32 = pool::INCOMPAT_LOG;

/// How often a check starts anew because the catalog changed between commit and reading it.
const ATTEMPTS_MAX: u32 = 20;

/// Where the superblock has its transaction id.
const TRANSACTION_ID_AT: usize = 48;

/// Where the superblock has its incompat flags.
pub const INCOMPAT_FLAGS_AT: usize = 360;

const SECTOR: u64 = 512;

/// A metadata store seen by the checker.
struct StoreSource<'a>(&'a dyn BlockStore);

impl BlockSource for StoreSource<'_> {
    fn read_block(&self, nr: u64, block: &mut [u8; 4096]) -> io::Result<()> {
        let mut read = Block::zeroed();
        self.0.read(BlockNr(nr), &mut read)?;
        block.copy_from_slice(read.as_bytes());
        Ok(())
    }

    fn block_count(&self) -> io::Result<u64> {
        self.0.block_count()
    }
}

/// Checks a pool that is open.
///
/// # Errors
/// When the check could not be made; what it finds is in the report.
pub async fn check_pool(
    service: &PoolService,
    progress: &ProgressSink,
) -> Result<CheckReport, CallError> {
    for _ in 0..ATTEMPTS_MAX {
        let (dir, progress) = (service.dir.clone(), progress.clone());
        let run = move |store: &dyn BlockStore, superblock: &[u8; 4096]| {
            check_source(&dir, &StoreSource(store), Some(superblock), &progress)
        };
        if let Some(report) = pinned(service, run).await?? {
            return Ok(report);
        }
    }
    let message = format!(
        "{}: the pool changes too fast to be checked: try again when it is quieter",
        service.dir.path.display()
    );
    Err(CallError::new(CallErrorKind::Busy, message))
}

/// Checks a pool that nobody uses, without opening it.
///
/// # Errors
/// `Busy` when it is in use; when the check could not be made.
pub fn check_files(dir: &PoolDir, progress: &ProgressSink) -> Result<CheckReport, CallError> {
    let files = dir.open_stores(Access::Read)?;
    warn_of_log(dir, &files.metadata);
    let report = check_source(dir, &files.metadata, None, progress)?;
    report.ok_or_else(|| {
        let message = format!("{}: the catalog could not be read", dir.path.display());
        CallError::new(CallErrorKind::Io, message)
    })
}

/// Writes a pool's mappings as XML, without opening the pool.
///
/// # Errors
/// `Busy` when it is in use, `Damaged` where the metadata cannot be trusted.
pub fn dump_files(dir: &PoolDir, out: &mut dyn io::Write) -> Result<(), CallError> {
    let files = dir.open_stores(Access::Read)?;
    warn_of_log(dir, &files.metadata);
    dump_source(dir, &files.metadata, None, out)
}

/// Says when a pool's metadata alone is not all of it. What cannot be read is found by what comes next.
fn warn_of_log(dir: &PoolDir, metadata: &impl BlockSource) {
    let mut superblock = [0; 4096];
    let is_read = metadata.read_block(0, &mut superblock).is_ok();
    let flags = &superblock[INCOMPAT_FLAGS_AT..INCOMPAT_FLAGS_AT + 4];
    if is_read && flags == ALLOWED_INCOMPAT.to_le_bytes() {
        tracing::warn!(
            "{}: was not closed: this is its last commit, and its intent log may hold later writes (the next \
             daemon, or any command that changes something, takes them over)",
            dir.path.display()
        );
    }
}

/// Writes an open pool's mappings, as of a commit, as XML.
///
/// # Errors
/// As [`dump_files`].
pub async fn dump_pool(
    service: &PoolService,
    mut out: impl io::Write + Send + 'static,
) -> Result<(), CallError> {
    let dir = service.dir.clone();
    let run = move |store: &dyn BlockStore, superblock: &[u8; 4096]| {
        dump_source(&dir, &StoreSource(store), Some(superblock), &mut out)
    };
    pinned(service, run).await?
}

/// Runs `f` over the last commit, on a thread of its own: it takes long, and its future can be
/// moved between threads only in theory.
async fn pinned<T: Send + 'static>(
    service: &PoolService,
    f: impl FnOnce(&dyn BlockStore, &[u8; 4096]) -> T + Send + 'static,
) -> Result<T, CallError> {
    let pool = Arc::clone(&service.pool);
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(pool.with_pinned_metadata(f)))
        .await
        .map_err(|cause| {
            CallError::new(CallErrorKind::Other, format!("the check failed: {cause}"))
        })?
        .map_err(|cause| service.failed(&cause))
}

fn dump_source(
    dir: &PoolDir,
    source: &dyn BlockSource,
    superblock: Option<&[u8; 4096]>,
    out: &mut dyn io::Write,
) -> Result<(), CallError> {
    let mut out = io::BufWriter::with_capacity(1 << 18, out);
    let options = DumpOptions {
        superblock,
        held: false,
        threads: threads(superblock.is_some()),
    };
    let place = dir.path.display();
    metadata_check::dump(source, &options, &mut out)
        .and_then(|()| io::Write::flush(&mut out).map_err(DumpError::from))
        .map_err(|cause| match cause {
            DumpError::Write(cause) if cause.kind() == io::ErrorKind::BrokenPipe => CallError::new(
                CallErrorKind::OutputClosed,
                "whoever read the dump has gone",
            ),
            DumpError::Write(cause) => CallError::io("writing the dump", &cause),
            DumpError::Read { block, source } => {
                CallError::io(format!("{place}: metadata block {block}"), &source)
            }
            other => CallError::new(
                CallErrorKind::Damaged,
                format!("{place}: {other} (see 'thinctl check {place}')"),
            ),
        })
}

/// What a pool's catalog says of its devices, and the last transaction id in it. Nothing, where it makes no sense.
pub fn names_in_catalog(dir: &PoolDir) -> (BTreeMap<u32, String>, u64) {
    let content = dir.catalog().load().unwrap_or_default();
    let view = CatalogView::read(&content, u64::MAX);
    let named = view.entries.into_iter();
    (
        named.map(|(name, entry)| (entry.id, name)).collect(),
        view.transaction_id,
    )
}

/// What the catalog called devices when the pool had this transaction id, as far as it goes back.
pub fn names_at(dir: &PoolDir, transaction_id: u64) -> BTreeMap<u32, String> {
    let content = dir.catalog().load().unwrap_or_default();
    let named = CatalogView::read(&content, transaction_id)
        .entries
        .into_iter();
    named.map(|(name, entry)| (entry.id, name)).collect()
}

/// Checks metadata and catalog; none when the catalog is already ahead of the superblock.
fn check_source(
    dir: &PoolDir,
    source: &dyn BlockSource,
    superblock: Option<&[u8; 4096]>,
    progress: &ProgressSink,
) -> Result<Option<CheckReport>, CallError> {
    let catalog_bytes = dir
        .catalog()
        .load()
        .map_err(|cause| CallError::io(dir.path.join("catalog").display(), &cause))?;
    let transaction_id = match superblock {
        Some(block) => Some(transaction_id_of(block)),
        None => {
            let mut block = [0; 4096];
            source
                .read_block(0, &mut block)
                .ok()
                .map(|()| transaction_id_of(&block))
        }
    };
    let catalog = CatalogView::read(&catalog_bytes, transaction_id.unwrap_or(u64::MAX));
    if superblock.is_some() && catalog.is_ahead {
        return Ok(None);
    }
    let tell = |at: metadata_check::Progress| {
        progress(Progress {
            done: at.blocks_read,
            total: at.blocks_expected,
            unit: "metadata blocks".to_owned(),
        });
    };
    let options = CheckOptions {
        superblock,
        allowed_incompat: ALLOWED_INCOMPAT,
        threads: threads(superblock.is_some()),
        progress: &tell,
        ..CheckOptions::default()
    };
    let report = metadata_check::check(source, &options);
    let mut findings = store_findings(dir, &report);
    findings.extend(catalog_findings(&catalog, &report));
    Ok(Some(combined(&report, &catalog, findings)))
}

/// How many threads go through metadata: all processors are for the clients of a pool that is served.
fn threads(is_served: bool) -> NonZero<usize> {
    if is_served {
        NonZero::<usize>::MIN
    } else {
        metadata_check::all_processors()
    }
}

/// The transaction id in a superblock.
pub fn transaction_id_of(superblock: &[u8; 4096]) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&superblock[TRANSACTION_ID_AT..TRANSACTION_ID_AT + 8]);
    u64::from_le_bytes(bytes)
}

fn damage(message: String, devices: Vec<u32>) -> CheckFinding {
    CheckFinding {
        severity: CheckSeverity::Damage,
        block: None,
        devices,
        costs: None,
        message,
    }
}

/// The data store must hold every block that the metadata counts.
fn store_findings(dir: &PoolDir, report: &Report) -> Vec<CheckFinding> {
    let Some(summary) = &report.superblock else {
        return Vec::new();
    };
    let expected = summary
        .data_blocks
        .saturating_mul(u64::from(summary.data_block_size) * SECTOR);
    match store_len(&dir.data_path()) {
        Ok(found) if found < expected => vec![damage(
            format!("data store: it holds {found} bytes, but the superblock says {expected}"),
            Vec::new(),
        )],
        Ok(_) => Vec::new(),
        Err(cause) => vec![damage(
            format!("data store: its size cannot be read: {cause}"),
            Vec::new(),
        )],
    }
}

fn store_len(path: &Path) -> io::Result<u64> {
    io::Seek::seek(&mut fs::File::open(path)?, io::SeekFrom::End(0))
}

/// Names and devices must belong together.
fn catalog_findings(catalog: &CatalogView, report: &Report) -> Vec<CheckFinding> {
    let mut findings = Vec::new();
    if let Some((line, reason)) = &catalog.broken {
        findings.push(damage(format!("catalog line {line}: {reason}"), Vec::new()));
        return findings;
    }
    if report.superblock.is_none() {
        return findings;
    }
    let devices: BTreeMap<u32, &metadata_check::Device> = report
        .devices
        .iter()
        .map(|device| (device.id, device))
        .collect();
    let mut named: BTreeMap<u32, &str> = BTreeMap::new();
    for (name, entry) in &catalog.entries {
        if let Some(other) = named.insert(entry.id, name) {
            let message = format!(
                "catalog: {other} and {name} are both thin device {}",
                entry.id
            );
            findings.push(damage(message, vec![entry.id]));
        }
        if entry.size == 0 || !entry.size.is_multiple_of(SECTOR) {
            let message = format!(
                "catalog: the size of {name} is {}, expected a multiple of {SECTOR}",
                entry.size
            );
            findings.push(damage(message, vec![entry.id]));
        }
        match devices.get(&entry.id) {
            None => {
                let message = format!(
                    "catalog: {name} is thin device {}, which does not exist",
                    entry.id
                );
                findings.push(damage(message, vec![entry.id]));
            }
            Some(device) => findings.extend(beyond_the_end(name, entry.size, device, report)),
        }
    }
    for id in devices
        .keys()
        .filter(|id| !named.contains_key(id) && !catalog.deleting.contains(id))
    {
        let message = format!(
            "catalog: thin device {id} has no name; it is called thin-{id} when the pool is opened"
        );
        findings.push(damage(message, vec![*id]));
    }
    findings
}

/// A device must not map what its size says is not there.
fn beyond_the_end(
    name: &str,
    size: u64,
    device: &metadata_check::Device,
    report: &Report,
) -> Option<CheckFinding> {
    let block_size = u64::from(report.superblock.as_ref()?.data_block_size) * SECTOR;
    let highest = device.highest_mapped?;
    (highest >= size.div_ceil(block_size)).then(|| {
        let message =
            format!("catalog: {name} has {size} bytes, but block {highest} of it is mapped");
        damage(message, vec![device.id])
    })
}

fn combined(report: &Report, catalog: &CatalogView, others: Vec<CheckFinding>) -> CheckReport {
    let mut findings: Vec<CheckFinding> = report
        .findings
        .iter()
        .map(|finding| CheckFinding {
            severity: match finding.severity {
                Severity::Leak => CheckSeverity::Leak,
                Severity::Damage => CheckSeverity::Damage,
            },
            block: finding.block,
            devices: finding.devices.clone(),
            costs: Some(cost(finding.cost)),
            message: finding.to_string(),
        })
        .collect();
    findings.extend(others);
    let (metadata_blocks_used, data_blocks_used) =
        report.superblock.as_ref().map_or((0, 0), |summary| {
            (summary.metadata_blocks_used, summary.data_blocks_used)
        });
    CheckReport {
        clean: findings.is_empty() && report.findings_dropped == 0,
        needs_check: report.needs_check,
        findings,
        findings_dropped: report.findings_dropped,
        damage_dropped: damage_dropped(report),
        losses: losses(report, catalog),
        reclaimed: None,
        devices: report.devices.len() as u64,
        metadata_blocks_used,
        data_blocks_used,
    }
}

/// How much damage is not among the findings.
fn damage_dropped(report: &Report) -> u64 {
    let kept = report.findings.iter();
    let kept = kept.filter(|finding| finding.severity == Severity::Damage);
    report.damage_count.saturating_sub(kept.count() as u64)
}

fn cost(cost: Cost) -> CheckCost {
    match cost {
        Cost::Nothing => CheckCost::Nothing,
        Cost::MetadataSnapshot => CheckCost::MetadataSnapshot,
        Cost::Mappings => CheckCost::Mappings,
        Cost::Everything => CheckCost::Everything,
        _ => CheckCost::Unknown,
    }
}
