//! A log that goes over to new metadata, made of what a repair could salvage.
//!
//! Entries say by its bytes to which superblock they belong. One more is written, for the superblock of the
//! new metadata, in the page that the one leaves free by which the log is replayed; before that, this one and its
//! records are made durable, as a daemon does that goes on in a log (`term.rs`). So the log belongs to both until
//! the new metadata is in the old one's place, whatever happens in between. New metadata maps nothing that the
//! old did not, so that all blocks which the log maps are free there as well.

use metadata_btree::{Block, BlockKind, BlockStore};

use super::load::load;
use super::record::Entry;
use super::{LogStore, log_error};
use crate::error::Error;
use crate::superblock::{LOCATION, Superblock};

/// The superblocks to which a log belongs, newest first, as far as it knows them: all but flags.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn logged_superblocks(log: &dyn LogStore) -> Result<Vec<[u8; 4096]>, Error> {
    let content = log.load().map_err(log_error)?.unwrap_or_default();
    let entries = [0, 1].map(|page| Entry::decode(&content, page));
    let mut entries: Vec<Entry> = entries.into_iter().flatten().collect();
    entries.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.durable.generation));
    let image = |entry: &Entry| {
        let mut block = entry.superblock_image();
        BlockKind::Superblock.seal(&mut block, LOCATION);
        *block.as_bytes()
    };
    Ok(entries.iter().map(image).collect())
}

/// Whether what a log holds can be done again with this superblock.
pub(crate) fn agrees_with(log: &dyn LogStore, superblock: &[u8; 4096]) -> bool {
    let mut block = Block::zeroed();
    block.as_bytes_mut().copy_from_slice(superblock);
    Superblock::decode(&block).is_ok_and(|superblock| load(log, &superblock).is_ok())
}

/// Makes what a log holds for the superblock `old` belong to the metadata in `new` as well, durably. Returns
/// how many changes that are. Whoever opens the pool with the new metadata does them again.
///
/// # Errors
/// When the log cannot be read, or is not that of `old`; nothing is lost then, and `new` must not be used.
pub fn hand_over_log(
    log: &dyn LogStore,
    old: &[u8; 4096],
    new: &dyn BlockStore,
) -> Result<u64, Error> {
    let mut block = Block::zeroed();
    block.as_bytes_mut().copy_from_slice(old);
    BlockKind::Superblock.seal(&mut block, LOCATION);
    let old = Superblock::decode(&block)?;
    let left = load(log, &old)?;
    let records = left.records.len() as u64;
    let relied_on = match left.relied_on {
        Some(relied_on) if records > 0 => relied_on,
        _ => return Ok(0),
    };
    let superblock = announce(new).map_err(|source| Error::Io {
        what: "writing the new superblock".into(),
        source,
    })??;
    let entry = Entry {
        superblock: Entry::superblock(&superblock),
        ..relied_on.entry.clone()
    };
    let handed_over = || {
        relied_on.write_again(log)?;
        log.sync()?;
        log.write(relied_on.other_page(), &entry.encode())?;
        log.sync()
    };
    handed_over().map_err(log_error)?;
    Ok(records)
}

/// Has new metadata say that there is a log.
fn announce(new: &dyn BlockStore) -> std::io::Result<Result<Block, Error>> {
    let mut block = Block::zeroed();
    new.read(LOCATION, &mut block)?;
    let mut superblock = match Superblock::decode(&block) {
        Ok(superblock) => superblock,
        Err(cause) => return Ok(Err(cause)),
    };
    superblock.has_log = true;
    let mut block = superblock.block();
    BlockKind::Superblock.seal(&mut block, LOCATION);
    new.write(LOCATION, &block)?;
    new.flush()?;
    Ok(Ok(block))
}
