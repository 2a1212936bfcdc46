//! What a volume may hold once the power has gone or the daemon was killed, sector by sector.
//!
//! Every write puts other words into its sectors, so that what is found tells which write it came from.
//! Requests of one volume may run side by side as long as no two of them change the same sector.

use std::cell::RefCell;
use std::ops::Range;

use pool::{Error, ThinDevice};

use crate::sim::SimHost;

/// Sectors of a data block.
pub const BLOCK: usize = 128;

/// Sectors of what a partial block may own.
pub const SUB_BLOCK: usize = 8;

const SECTOR_BYTES: usize = 512;

/// What must be there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kept {
    /// What was flushed, or something younger.
    Flushed,
    /// What was acknowledged, or something younger.
    Acknowledged,
}

/// The versions of a sector.
#[derive(Clone)]
struct Sector {
    /// What each of its words was, in order.
    versions: Vec<u64>,
    /// The youngest that was acknowledged.
    acknowledged: usize,
    /// The youngest that was flushed.
    flushed: usize,
}

struct State {
    sectors: Vec<Sector>,
    next_word: u64,
}

/// All that a volume may hold.
pub struct Truth {
    name: String,
    state: RefCell<State>,
}

impl Truth {
    /// A new volume of so many blocks. The words of its sectors begin with `tag`, which no other has.
    pub fn new(name: &str, tag: u64, blocks: usize) -> Self {
        let zero = Sector {
            versions: vec![0],
            acknowledged: 0,
            flushed: 0,
        };
        Truth {
            name: name.to_owned(),
            state: RefCell::new(State {
                sectors: vec![zero; blocks * BLOCK],
                next_word: tag << 48 | 1,
            }),
        }
    }

    fn begin(&self, sectors: Range<usize>, is_zero: bool) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        let mut bytes = Vec::new();
        for index in sectors {
            let word = if is_zero { 0 } else { state.next_word };
            state.next_word += 1;
            state.sectors[index].versions.push(word);
            bytes.extend_from_slice(&word.to_le_bytes().repeat(SECTOR_BYTES / 8));
        }
        bytes
    }

    fn acknowledge(&self, sectors: Range<usize>, is_flushed: bool) {
        for sector in &mut self.state.borrow_mut().sectors[sectors] {
            sector.acknowledged = sector.versions.len() - 1;
            if is_flushed {
                sector.flushed = sector.acknowledged;
            }
        }
    }

    fn acknowledged(&self) -> Vec<usize> {
        let state = self.state.borrow();
        let sectors = state.sectors.iter();
        sectors.map(|sector| sector.acknowledged).collect()
    }

    fn note_flushed(&self, covered: &[usize]) {
        let mut state = self.state.borrow_mut();
        for (sector, covered) in state.sectors.iter_mut().zip(covered) {
            sector.flushed = sector.flushed.max(*covered);
        }
    }

    /// Everything acknowledged is durable: a commit has it.
    pub fn note_all_flushed(&self) {
        self.note_flushed(&self.acknowledged());
    }

    /// Which version each sector of these bytes is.
    fn versions(&self, who: &str, bytes: &[u8], kept: Kept) -> Vec<usize> {
        let state = self.state.borrow();
        assert_eq!(bytes.len(), state.sectors.len() * SECTOR_BYTES);
        let all = state.sectors.iter().zip(bytes.chunks(SECTOR_BYTES));
        let version = |(index, (sector, bytes)): (usize, (&Sector, &[u8]))| {
            let words = bytes
                .as_chunks()
                .0
                .iter()
                .map(|word| u64::from_le_bytes(*word));
            let words: Vec<u64> = words.collect();
            let oldest = match kept {
                Kept::Flushed => sector.flushed,
                Kept::Acknowledged => sector.acknowledged,
            };
            let may_be = &sector.versions[oldest..];
            let found = may_be.iter().rposition(|word| *word == words[0]);
            match found {
                Some(found) if words.iter().all(|word| *word == words[0]) => oldest + found,
                _ => panic!(
                    "{who}: sector {} of block {} of {} holds {:x}, and not one of {may_be:x?} \
                     (before: {:x?})",
                    index % BLOCK,
                    index / BLOCK,
                    self.name,
                    words[0],
                    &sector.versions[..oldest],
                ),
            }
        };
        all.enumerate().map(version).collect()
    }

    /// Fails unless it may hold these bytes.
    ///
    /// # Panics
    /// When it may not.
    pub fn expect(&self, who: &str, bytes: &[u8], kept: Kept) {
        self.versions(who, bytes, kept);
    }

    /// Takes what was found after a power cut for what there is, durably.
    ///
    /// # Panics
    /// When it may not hold that.
    pub fn settle_after_cut(&self, bytes: &[u8]) {
        let found = self.versions("after a power cut", bytes, Kept::Flushed);
        let mut state = self.state.borrow_mut();
        for (sector, found) in state.sectors.iter_mut().zip(found) {
            *sector = Sector {
                versions: vec![sector.versions[found]],
                acknowledged: 0,
                flushed: 0,
            };
        }
    }

    /// Takes what was found after a kill for what there is.
    ///
    /// # Panics
    /// When it may not hold that.
    pub fn settle_after_kill(&self, bytes: &[u8]) {
        let found = self.versions("after a kill", bytes, Kept::Acknowledged);
        let mut state = self.state.borrow_mut();
        for (sector, found) in state.sectors.iter_mut().zip(found) {
            sector.versions.truncate(found + 1);
            sector.acknowledged = found;
        }
    }
}

/// An open volume whose requests are noted.
pub struct Volume<'a> {
    device: ThinDevice<SimHost>,
    truth: &'a Truth,
}

impl<'a> Volume<'a> {
    /// Has the requests to a device noted.
    pub fn new(device: ThinDevice<SimHost>, truth: &'a Truth) -> Self {
        Volume { device, truth }
    }

    /// Writes to these sectors.
    ///
    /// # Errors
    /// The device's.
    pub async fn write(&self, sectors: Range<usize>) -> Result<(), Error> {
        self.change(sectors, false, false).await
    }

    /// Writes to these sectors, durably.
    ///
    /// # Errors
    /// The device's.
    pub async fn write_durably(&self, sectors: Range<usize>) -> Result<(), Error> {
        self.change(sectors, false, true).await
    }

    /// Discards these blocks.
    ///
    /// # Errors
    /// The device's.
    pub async fn discard(&self, blocks: Range<usize>) -> Result<(), Error> {
        let sectors = blocks.start * BLOCK..blocks.end * BLOCK;
        self.change(sectors, true, false).await
    }

    async fn change(
        &self,
        sectors: Range<usize>,
        is_discard: bool,
        is_durable: bool,
    ) -> Result<(), Error> {
        let at = (sectors.start * SECTOR_BYTES) as u64;
        let bytes = self.truth.begin(sectors.clone(), is_discard);
        if is_discard {
            let len = bytes.len() as u64;
            self.device.discard(at, len, is_durable).await?;
        } else {
            self.device.write(at, &bytes, is_durable).await?;
        }
        self.truth.acknowledge(sectors, is_durable);
        Ok(())
    }

    /// Flushes.
    ///
    /// # Errors
    /// The device's.
    pub async fn flush(&self) -> Result<(), Error> {
        let covered = self.truth.acknowledged();
        self.device.flush().await?;
        self.truth.note_flushed(&covered);
        Ok(())
    }

    /// Flushes, for the sake of what is flushed already alone.
    ///
    /// # Errors
    /// The device's.
    pub async fn flush_again(&self) -> Result<(), Error> {
        self.device.flush().await
    }
}
