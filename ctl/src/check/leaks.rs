//! Leaked space of a pool that nobody serves, and how it is given back.
//!
//! Only where the check has found nothing worse, and in the pool as it is opened for this: what is leaked is
//! counted again there, in a commit that stays the last one, as nobody else can change it.

use std::cell::RefCell;

use metadata_btree::BlockStore;
use metadata_check::{CheckOptions, Leak, SpaceMap};
use pool::{LeakedBlocks, Leaks, MemoryBudget};

use super::{ALLOWED_INCOMPAT, StoreSource, check_files, check_pool, pinned};
use crate::pool_dir::PoolDir;
use crate::protocol::{CallError, CheckReport, Reclaimed};
use crate::service::{PoolService, ProgressSink};

/// Checks a pool that nobody serves and, if leaks are all that is wrong, reclaims them and checks again.
///
/// # Errors
/// As [`check_files`]; what makes the pool impossible to open or to change.
pub async fn check_and_reclaim(
    dir: &PoolDir,
    progress: &ProgressSink,
) -> Result<CheckReport, CallError> {
    let found = check_files(dir, progress)?;
    if found.clean || found.is_damaged() {
        return Ok(found);
    }
    let service = PoolService::open(dir.clone(), MemoryBudget::default())?;
    let reclaimed = reclaim(&service).await;
    let report = match reclaimed {
        Ok(reclaimed) => check_pool(&service, progress)
            .await
            .map(|report| CheckReport {
                reclaimed: Some(reclaimed),
                ..report
            }),
        Err(error) => Err(error),
    };
    let closed = service.close().await;
    report.and_then(|report| closed.map(|()| report))
}

async fn reclaim(service: &PoolService) -> Result<Reclaimed, CallError> {
    let (superblock, leaks) = pinned(service, find).await?;
    if leaks == Leaks::default() {
        return Ok(Reclaimed::default());
    }
    let reclaimed = Reclaimed {
        data_blocks: leaks.data.iter().map(length).sum(),
        metadata_blocks: leaks.metadata.iter().map(length).sum(),
    };
    service
        .pool
        .reclaim_leaks(&superblock, leaks)
        .await
        .map_err(|cause| service.failed(&cause))?;
    Ok(reclaimed)
}

/// All leaks of a commit; none if there is damage, too.
fn find(store: &dyn BlockStore, superblock: &[u8; 4096]) -> ([u8; 4096], Leaks) {
    let leaks = RefCell::new(Leaks::default());
    let options = CheckOptions {
        superblock: Some(superblock),
        allowed_incompat: ALLOWED_INCOMPAT,
        leak: &|leak: Leak| {
            let mut leaks = leaks.borrow_mut();
            let of_map = match leak.map {
                SpaceMap::Data => &mut leaks.data,
                SpaceMap::Metadata => &mut leaks.metadata,
            };
            of_map.push(blocks(&leak));
        },
        ..CheckOptions::default()
    };
    let report = metadata_check::check(&StoreSource(store), &options);
    let found = if report.is_damaged() {
        Leaks::default()
    } else {
        leaks.take()
    };
    (*superblock, found)
}

fn blocks(leak: &Leak) -> LeakedBlocks {
    LeakedBlocks {
        first: leak.first,
        last: leak.last,
        count: leak.stored,
        references: leak.expected,
    }
}

fn length(blocks: &LeakedBlocks) -> u64 {
    blocks.last - blocks.first + 1
}
