//! The catalog: names, sizes and lineage, which the metadata has no room for.
//!
//! An append-only file of JSON lines, each one operation, stamped with the transaction id that the
//! metadata has once the operation is done:
//!
//! ```text
//! {"transaction_id":1,"op":"add","id":0,"name":"prod","size":21474836480,...}
//! {"transaction_id":2,"op":"add","id":1,"name":"prod@nightly","parent":"2f...",...}
//! {"transaction_id":3,"op":"rename","from":"prod","to":"live"}
//! ```
//!
//! A line is durable before the commit it belongs to. Lines beyond the superblock's transaction id
//! are cut off when the pool is opened: their commit never happened. Of such a line a power cut may have left
//! any part: zeros stand where nothing reached the disk. A device that the catalog
//! does not know is called `thin-<id>`, so a lost catalog loses names, not data.

mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use probe::{Mark, mark};
use serde::{Deserialize, Serialize};

pub(crate) use store::load_bounded;
pub use store::{CatalogStore, FileCatalog};

use crate::error::Error;
use crate::name::DeviceName;
use crate::queue::NoSpaceOverride;
use crate::units::{DEVICE_SIZE_MAX, ThinId};

/// What is recorded of one device.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) id: u32,
    pub(crate) name: DeviceName,
    pub(crate) size: u64,
    pub(crate) uuid: String,
    pub(crate) created: String,
    pub(crate) read_only: bool,
    /// UUID of the device it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) external_origin: Option<PathBuf>,
    /// Where it differs from its pool.
    #[serde(flatten)]
    pub(crate) no_space: NoSpaceOverride,
}

/// One operation on the catalog.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(crate) enum Operation {
    /// A device is there.
    Add(Entry),
    /// A device has another name, and with a volume's name change those of its snapshots.
    Rename { from: DeviceName, to: DeviceName },
    /// A device has another size.
    Resize { name: DeviceName, size: u64 },
    /// A volume may not be written any more.
    Freeze { name: DeviceName },
    /// What becomes of a volume's writes without data space differs from the pool, here and no longer there.
    NoSpace {
        name: DeviceName,
        #[serde(flatten)]
        no_space: NoSpaceOverride,
    },
    /// A name now means another device, made from `parent`; the old one is being deleted.
    Rollback {
        name: DeviceName,
        id: u32,
        uuid: String,
        parent: String,
        size: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        external_origin: Option<PathBuf>,
    },
    /// A name is gone; its device is being deleted.
    Remove { name: DeviceName },
    /// A deleted device is gone from the metadata.
    Reclaimed { id: u32 },
}

#[derive(Serialize, Deserialize)]
struct Line {
    transaction_id: u64,
    #[serde(flatten)]
    operation: Operation,
}

/// The catalog in memory.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(crate) struct Catalog {
    entries: BTreeMap<DeviceName, Entry>,
    deleting: BTreeSet<ThinId>,
}

/// What reading a catalog file found.
pub(crate) struct Loaded {
    pub(crate) catalog: Catalog,
    /// Lines there are, live and superseded.
    pub(crate) lines: usize,
    /// Their bytes, at the beginning of the file.
    pub(crate) len: u64,
    /// Whether lines or a part of one lay beyond the transaction id.
    pub(crate) has_unfinished: bool,
    /// Whether the catalog is no longer what the lines say.
    pub(crate) is_changed: bool,
}

/// Catalogs with fewer lines are never compacted.
const COMPACT_LINES_MIN: usize = 1024;

impl Catalog {
    /// Reads the file's content up to `transaction_id`. A last line cut short was never finished, nor one
    /// with zero bytes behind all that belongs to `transaction_id`; anything else that cannot be understood is
    /// an error.
    pub(crate) fn decode(content: &[u8], transaction_id: u64) -> Result<Loaded, Error> {
        let mut loaded = Loaded {
            catalog: Catalog::default(),
            lines: 0,
            len: 0,
            has_unfinished: false,
            is_changed: false,
        };
        let lines = content.split_inclusive(|byte| *byte == b'\n');
        let mut last = 0;
        for (index, line) in lines.filter(|line| line.ends_with(b"\n")).enumerate() {
            let len = line.len() as u64;
            if len == 1 {
                loaded.len += len;
                continue;
            }
            let damaged = |reason: String| Error::Catalog {
                line: index + 1,
                reason,
            };
            let line: Line = match serde_json::from_slice(line) {
                Ok(line) => line,
                Err(_) if last == transaction_id && line.contains(&0) => {
                    mark(Mark::CatalogCut);
                    break;
                }
                Err(cause) => return Err(damaged(cause.to_string())),
            };
            if line.transaction_id > transaction_id {
                mark(Mark::CatalogCut);
                break;
            }
            loaded
                .catalog
                .apply(&line.operation)
                .map_err(|cause| damaged(cause.to_string()))?;
            loaded.lines += 1;
            loaded.len += len;
            last = line.transaction_id;
        }
        loaded.has_unfinished = loaded.len < content.len() as u64;
        Ok(loaded)
    }

    /// The lines that say `operations`.
    pub(crate) fn encode_operations(operations: &[Operation], transaction_id: u64) -> Vec<u8> {
        let mut text = Vec::new();
        for operation in operations {
            let line = Line {
                transaction_id,
                operation: operation.clone(),
            };
            // Only maps with keys that are not strings fail to serialise.
            let Ok(line) = serde_json::to_vec(&line) else {
                unreachable!("a line is plain data")
            };
            text.extend_from_slice(&line);
            text.push(b'\n');
        }
        text
    }

    /// The shortest file that says all this.
    pub(crate) fn encode(&self, transaction_id: u64) -> Vec<u8> {
        let mut operations = Vec::new();
        let tombstone = |id: &ThinId| deleting_operations(*id);
        operations.extend(self.deleting.iter().flat_map(tombstone));
        operations.extend(self.entries.values().cloned().map(Operation::Add));
        Self::encode_operations(&operations, transaction_id)
    }

    /// Whether a file of this many lines is worth rewriting.
    pub(crate) fn wants_compaction(&self, lines: usize) -> bool {
        lines > COMPACT_LINES_MIN && lines > 4 * (self.entries.len() + 2 * self.deleting.len())
    }

    pub(crate) fn get(&self, name: &DeviceName) -> Result<&Entry, Error> {
        self.entries
            .get(name)
            .ok_or_else(|| Error::NotFound(name.clone()))
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    pub(crate) fn deleting(&self) -> &BTreeSet<ThinId> {
        &self.deleting
    }

    /// The ids of all devices, those being deleted included.
    pub(crate) fn ids(&self) -> Result<BTreeSet<ThinId>, Error> {
        let mut ids = self.deleting.clone();
        for entry in self.entries.values() {
            ids.insert(thin_id(entry.id)?);
        }
        Ok(ids)
    }

    /// A free name for a device that has none: `thin-<id>`, with a number behind it if need be.
    pub(crate) fn name_for(&self, id: ThinId) -> Result<DeviceName, Error> {
        let mut name = DeviceName::volume(&format!("thin-{id}"))?;
        let mut number = 1;
        while self.entries.contains_key(&name) {
            name = DeviceName::volume(&format!("thin-{id}-{number}"))?;
            number += 1;
        }
        Ok(name)
    }

    /// Forgets devices that are not there. Whether there were such.
    pub(crate) fn retain(&mut self, is_there: impl Fn(ThinId) -> bool) -> bool {
        let before = self.entries.len() + self.deleting.len();
        self.entries
            .retain(|_, entry| ThinId::new(entry.id).is_some_and(&is_there));
        self.deleting.retain(|id| is_there(*id));
        self.entries.len() + self.deleting.len() < before
    }

    /// Whether the name can be given to a new device.
    pub(crate) fn expect_free(&self, name: &DeviceName) -> Result<(), Error> {
        if self.entries.contains_key(name) {
            return Err(Error::Exists(name.clone()));
        }
        Ok(())
    }

    /// The names a rename changes: that of the device, and for a volume those of its snapshots.
    pub(crate) fn renames(
        &self,
        from: &DeviceName,
        to: &DeviceName,
    ) -> Result<Vec<(DeviceName, DeviceName)>, Error> {
        self.get(from)?;
        if from.is_snapshot() != to.is_snapshot()
            || (from.is_snapshot() && from.volume_part() != to.volume_part())
        {
            return Err(Error::BadValue {
                what: "the new name",
                found: to.to_string(),
                expected: "a volume's name for a volume, VOL@NAME with the same VOL for a snapshot"
                    .into(),
            });
        }
        let of_volume =
            |name: &&DeviceName| !from.is_snapshot() && name.volume_part() == from.volume_part();
        let names = self
            .entries
            .keys()
            .filter(|name| *name == from || of_volume(name));
        let mut renames = Vec::new();
        for name in names {
            let renamed = match name.snapshot_part() {
                Some(snapshot) if !from.is_snapshot() => to.at(snapshot)?,
                _ => to.clone(),
            };
            self.expect_free(&renamed)?;
            renames.push((name.clone(), renamed));
        }
        Ok(renames)
    }

    /// Applies one operation, or says why it makes no sense.
    pub(crate) fn apply(&mut self, operation: &Operation) -> Result<(), Error> {
        match operation {
            Operation::Add(entry) => {
                self.expect_free(&entry.name)?;
                thin_id(entry.id)?;
                check_bound(entry.size)?;
                self.entries.insert(entry.name.clone(), entry.clone());
            }
            Operation::Rename { from, to } => {
                for (old, new) in self.renames(from, to)? {
                    if let Some(mut entry) = self.entries.remove(&old) {
                        entry.name = new.clone();
                        self.entries.insert(new, entry);
                    }
                }
            }
            Operation::Resize { name, size } => {
                check_bound(*size)?;
                self.entry_mut(name)?.size = *size;
            }
            Operation::Freeze { name } => self.entry_mut(name)?.read_only = true,
            Operation::NoSpace { name, no_space } => self.entry_mut(name)?.no_space = *no_space,
            Operation::Rollback {
                name,
                id,
                uuid,
                parent,
                size,
                external_origin,
            } => {
                thin_id(*id)?;
                check_bound(*size)?;
                let entry = self.entry_mut(name)?;
                let old = thin_id(std::mem::replace(&mut entry.id, *id))?;
                entry.uuid.clone_from(uuid);
                entry.parent = Some(parent.clone());
                entry.size = *size;
                entry.external_origin.clone_from(external_origin);
                self.deleting.insert(old);
            }
            Operation::Remove { name } => {
                let id = thin_id(self.get(name)?.id)?;
                self.entries.remove(name);
                self.deleting.insert(id);
            }
            Operation::Reclaimed { id } => {
                self.deleting.remove(&thin_id(*id)?);
            }
        }
        Ok(())
    }

    fn entry_mut(&mut self, name: &DeviceName) -> Result<&mut Entry, Error> {
        self.entries
            .get_mut(name)
            .ok_or_else(|| Error::NotFound(name.clone()))
    }
}

/// A device that is being deleted has no name left; in a compacted file it gets one for two lines.
fn deleting_operations(id: ThinId) -> Vec<Operation> {
    let Ok(name) = DeviceName::volume(&format!("deleting-{id}")) else {
        unreachable!("a number makes a valid name")
    };
    let entry = Entry {
        id: id.get(),
        name: name.clone(),
        size: 0,
        uuid: String::new(),
        created: String::new(),
        read_only: true,
        parent: None,
        external_origin: None,
        no_space: NoSpaceOverride::default(),
    };
    vec![Operation::Add(entry), Operation::Remove { name }]
}

/// Keeps arithmetic on sizes from the file within bounds.
fn check_bound(size: u64) -> Result<(), Error> {
    if size <= DEVICE_SIZE_MAX {
        return Ok(());
    }
    Err(Error::BadValue {
        what: "a size",
        found: format!("{size} bytes"),
        expected: format!("at most {DEVICE_SIZE_MAX}"),
    })
}

pub(crate) fn thin_id(id: u32) -> Result<ThinId, Error> {
    ThinId::new(id).ok_or_else(|| Error::BadValue {
        what: "a thin id",
        found: id.to_string(),
        expected: format!("at most {}", ThinId::MAX),
    })
}
