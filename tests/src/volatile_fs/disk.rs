//! The disk: files and names, its power, and the faults that are arranged.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::thread;
use std::time::Duration;

use fuser::{Errno, FileType};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::file::VolatileFile;
use super::names::Names;
use crate::prng::Prng;
use crate::sim::{SECTOR, Shape, Survivors, to_usize};

/// The number of the directory.
pub(super) const ROOT: u64 = 1;

/// The name of the directory in commands.
const DIRECTORY: &str = ".";

/// The longest that a sync takes: writes come in meanwhile, which it does not cover.
const SYNC_MICROS_MAX: u64 = 2000;

/// What may fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Operation {
    Read,
    Write,
    Sync,
}

/// Failures to come: EIO.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Fault {
    operation: Operation,
    /// The name of the file; any when none.
    file: Option<String>,
    /// How many.
    count: u64,
}

/// What a power cut did.
#[derive(Debug, Serialize)]
pub(super) struct Cut {
    shape: Shape,
    unsynced_sectors: u64,
    kept_sectors: u64,
}

/// What is behind a name.
pub(super) struct Node {
    pub(super) kind: FileType,
    pub(super) mode: u16,
    pub(super) file: VolatileFile,
}

struct State {
    nodes: BTreeMap<u64, Node>,
    names: Names,
    next_number: u64,
    prng: Prng,
    /// Power cuts so far: a sync does not outlast one.
    cuts: u64,
    is_off: bool,
    is_full: bool,
    fault: Option<Fault>,
    /// Files whose syncs are answered and not done, by name; [`DIRECTORY`] among them.
    unsynced: Vec<String>,
}

/// A disk with one directory on it.
pub(super) struct Disk(Mutex<State>);

/// How much of a write that fails is done when it gets so far: whole sectors.
fn up_to_a_sector(at: u64, len: usize) -> usize {
    let end = (at + len as u64) / SECTOR * SECTOR;
    to_usize(end.saturating_sub(at))
}

impl State {
    fn node(&mut self, number: u64) -> Result<&mut Node, Errno> {
        self.powered()?;
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn powered(&self) -> Result<(), Errno> {
        match self.is_off {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }

    /// Whether an arranged failure concerns this operation; counts it.
    fn fails(&mut self, operation: Operation, number: u64) -> bool {
        let Some(fault) = &mut self.fault else {
            return false;
        };
        let file = fault.file.as_ref();
        let is_meant = fault.operation == operation
            && fault.count > 0
            && file.is_none_or(|name| self.names.find(OsStr::new(name)) == Some(number));
        fault.count -= u64::from(is_meant);
        is_meant
    }

    /// Whether a sync of this file is answered and not done.
    fn forgets(&self, number: u64) -> bool {
        let is_meant = |name: &String| match name.as_str() {
            DIRECTORY => number == ROOT,
            name => self.names.find(OsStr::new(name)) == Some(number),
        };
        self.unsynced.iter().any(is_meant)
    }

    /// Whether a full disk refuses to give a file this range.
    fn refuses(&mut self, number: u64, at: u64, len: u64) -> Result<bool, Errno> {
        let is_full = self.is_full;
        Ok(is_full && !self.node(number)?.file.has_space(at, len))
    }
}

impl Disk {
    pub(super) fn new(seed: u64) -> Self {
        Disk(Mutex::new(State {
            nodes: BTreeMap::new(),
            names: Names::default(),
            next_number: ROOT + 1,
            prng: Prng::new(seed),
            cuts: 0,
            is_off: false,
            is_full: false,
            fault: None,
            unsynced: Vec::new(),
        }))
    }

    /// The file with this name.
    pub(super) fn find(&self, name: &OsStr) -> Result<u64, Errno> {
        let state = self.0.lock();
        state.powered()?;
        state.names.find(name).ok_or(Errno::ENOENT)
    }

    /// Shows a file to `look`.
    pub(super) fn look<T>(&self, number: u64, look: impl FnOnce(&Node) -> T) -> Result<T, Errno> {
        self.0.lock().node(number).map(|node| look(node))
    }

    pub(super) fn list(&self) -> Result<Vec<(OsString, u64, FileType)>, Errno> {
        let state = self.0.lock();
        state.powered()?;
        let entry = |(name, number): (&OsString, u64)| {
            let kind = state.nodes.get(&number)?.kind;
            Some((name.clone(), number, kind))
        };
        Ok(state.names.iter().filter_map(entry).collect())
    }

    pub(super) fn create(&self, name: &OsStr, kind: FileType, mode: u16) -> Result<u64, Errno> {
        let mut state = self.0.lock();
        state.powered()?;
        if state.names.find(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let number = state.next_number;
        state.next_number += 1;
        let file = VolatileFile::new();
        state.nodes.insert(number, Node { kind, mode, file });
        state.names.insert(name, number);
        Ok(number)
    }

    pub(super) fn remove(&self, name: &OsStr) -> Result<(), Errno> {
        self.rename_or_remove(|names| names.remove(name))
    }

    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        self.rename_or_remove(|names| names.rename(from, to))
    }

    fn rename_or_remove(&self, change: impl FnOnce(&mut Names) -> bool) -> Result<(), Errno> {
        let mut state = self.0.lock();
        state.powered()?;
        match change(&mut state.names) {
            true => Ok(()),
            false => Err(Errno::ENOENT),
        }
    }

    pub(super) fn set_mode(&self, number: u64, mode: u16) -> Result<(), Errno> {
        self.0.lock().node(number)?.mode = mode;
        Ok(())
    }

    pub(super) fn set_len(&self, number: u64, len: u64) -> Result<(), Errno> {
        self.0.lock().node(number)?.file.set_len(len);
        Ok(())
    }

    pub(super) fn read(&self, number: u64, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let mut state = self.0.lock();
        if state.fails(Operation::Read, number) {
            return Err(Errno::EIO);
        }
        Ok(state.node(number)?.file.read(at, len))
    }

    pub(super) fn write(&self, number: u64, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut state = self.0.lock();
        if state.refuses(number, at, bytes.len() as u64)? {
            return Err(Errno::ENOSPC);
        }
        let is_failure = state.fails(Operation::Write, number);
        let part = match is_failure {
            true => up_to_a_sector(at, state.prng.index(bytes.len().max(1))),
            false => bytes.len(),
        };
        state.node(number)?.file.write(at, &bytes[..part]);
        match is_failure {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }

    pub(super) fn allocate(
        &self,
        number: u64,
        at: u64,
        len: u64,
        keeps_size: bool,
    ) -> Result<(), Errno> {
        let mut state = self.0.lock();
        if state.refuses(number, at, len)? {
            return Err(Errno::ENOSPC);
        }
        state.node(number)?.file.allocate(at, len, keeps_size);
        Ok(())
    }

    pub(super) fn zero(&self, number: u64, at: u64, len: u64) -> Result<(), Errno> {
        self.0.lock().node(number)?.file.zero(at, len);
        Ok(())
    }

    pub(super) fn punch(&self, number: u64, at: u64, len: u64) -> Result<(), Errno> {
        self.0.lock().node(number)?.file.punch(at, len);
        Ok(())
    }

    /// Makes durable what there is of a file now, after a while.
    pub(super) fn sync(&self, number: u64) -> Result<(), Errno> {
        let mut state = self.0.lock();
        let covered = state.node(number)?.file.covered();
        let (cuts, takes) = (state.cuts, state.prng.below(SYNC_MICROS_MAX));
        drop(state);
        thread::sleep(Duration::from_micros(takes));
        let mut state = self.0.lock();
        if state.cuts != cuts {
            return Err(Errno::EIO);
        }
        if state.fails(Operation::Sync, number) {
            let mut prng = state.prng.fork();
            state.node(number)?.file.lose(covered, &mut prng);
            return Err(Errno::EIO);
        }
        if !state.forgets(number) {
            state.node(number)?.file.sync(covered);
        }
        Ok(())
    }

    /// Makes durable the names that there are now, after a while.
    pub(super) fn sync_names(&self) -> Result<(), Errno> {
        let mut state = self.0.lock();
        state.powered()?;
        let covered = state.names.covered();
        let (cuts, takes) = (state.cuts, state.prng.below(SYNC_MICROS_MAX));
        drop(state);
        thread::sleep(Duration::from_micros(takes));
        let mut state = self.0.lock();
        if state.cuts != cuts {
            return Err(Errno::EIO);
        }
        if !state.forgets(ROOT) {
            state.names.sync(covered);
        }
        Ok(())
    }

    /// The power goes: what survives is drawn, and nothing is answered any more.
    pub(super) fn cut(&self) -> Cut {
        let mut state = self.0.lock();
        let state = &mut *state;
        let shape = Shape::any(&mut state.prng);
        let mut survivors = Survivors::drawn(shape, &mut state.prng);
        let metadata = state.names.find(OsStr::new("metadata"));
        for (number, node) in &mut state.nodes {
            node.file.cut(&mut survivors, metadata == Some(*number));
        }
        let named = state.names.cut(&mut survivors);
        state.nodes.retain(|number, _| named.contains(number));
        state.cuts += 1;
        state.is_off = true;
        (state.is_full, state.fault) = (false, None);
        Cut {
            shape,
            unsynced_sectors: survivors.asked(),
            kept_sectors: survivors.kept().len() as u64,
        }
    }

    /// The power is back.
    pub(super) fn power_on(&self) {
        self.0.lock().is_off = false;
    }

    /// From now on there is, or is not, space for what has none yet.
    pub(super) fn set_full(&self, is_full: bool) {
        self.0.lock().is_full = is_full;
    }

    /// From now on syncs of these files are answered and not done.
    pub(super) fn ignore_syncs(&self, names: Vec<String>) {
        self.0.lock().unsynced = names;
    }

    /// Arranges failures, or none. Returns how many of those arranged before have not come.
    pub(super) fn set_fault(&self, fault: Option<Fault>) -> u64 {
        let mut state = self.0.lock();
        let before = std::mem::replace(&mut state.fault, fault);
        before.map_or(0, |fault| fault.count)
    }

    /// The page cache lets go of what failed syncs have lost.
    pub(super) fn evict(&self) {
        let mut state = self.0.lock();
        for node in state.nodes.values_mut() {
            node.file.evict();
        }
    }
}
