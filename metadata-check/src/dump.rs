//! Writes mappings as the XML that `thin_restore` reads, byte for byte as `thin_dump` 0.9.0 does.
//!
//! Each device is an element with its mappings in order. Neighbouring mappings with consecutive data blocks
//! and equal times become one range. Nodes are read as they come up; only those beside the path, as text, and
//! the numbers of the current tree's nodes are kept. A dump is refused at the first thing that is not as it
//! should be, so what has been written before an error is not to be used.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::num::NonZero;

use crate::devices::Details;
use crate::finding::{Finding, FindingKind, Role};
use crate::layout::{DEVICE_IDS, LoadError};
use crate::node::Node;
use crate::parallel::all_processors;
use crate::source::BlockSource;
use crate::superblock::Superblock;
use crate::tree::LEVELS_MAX;

mod mappings;

/// What to dump.
#[derive(Debug, Clone, Copy)]
pub struct DumpOptions<'a> {
    /// The superblock to start from, instead of block 0: a pinned commit of a live pool.
    pub superblock: Option<&'a [u8; 4096]>,
    /// Dump the metadata snapshot instead of the pool as it is.
    pub held: bool,
    /// How many threads read metadata and write it down at a time.
    pub threads: NonZero<usize>,
}

impl Default for DumpOptions<'_> {
    fn default() -> Self {
        Self {
            superblock: None,
            held: false,
            threads: all_processors(),
        }
    }
}

/// Why a dump could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The metadata cannot be trusted as far as it is needed here; see the finding.
    #[error("{0}")]
    Damaged(Finding),
    /// A metadata block could not be read.
    #[error("metadata block {block}: cannot read")]
    Read {
        /// The block.
        block: u64,
        /// Why.
        source: io::Error,
    },
    /// The metadata snapshot was asked for but there is none.
    #[error("the pool has no metadata snapshot")]
    NoMetadataSnapshot,
    /// The dump could not be written.
    #[error("cannot write the dump")]
    Write(#[from] io::Error),
}

/// Writes the mappings of all devices to `out`, which should be buffered.
///
/// # Errors
///
/// See [`DumpError`]. Reference counts are not looked at; use [`crate::check`] for a judgement.
pub fn dump(
    source: &dyn BlockSource,
    options: &DumpOptions<'_>,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let mut superblock =
        Superblock::load(source, options.superblock).map_err(|error| failed(0, error))?;
    if options.held {
        let held_root = superblock.held_root;
        if held_root == 0 {
            return Err(DumpError::NoMetadataSnapshot);
        }
        superblock =
            Superblock::load_held(source, held_root).map_err(|error| failed(held_root, error))?;
    }
    let devices = read_devices(source, &superblock)?;
    let Superblock {
        time,
        transaction_id,
        flags,
        version,
        data_block_size,
        ..
    } = superblock;
    writeln!(
        out,
        "<superblock uuid=\"\" time=\"{time}\" transaction=\"{transaction_id}\" flags=\"{flags}\" \
         version=\"{version}\" data_block_size=\"{data_block_size}\" nr_data_blocks=\"{}\">",
        superblock.data_map.nr_blocks
    )?;
    for device in devices {
        dump_device(source, &device, options.threads, out)?;
    }
    writeln!(out, "</superblock>")?;
    Ok(out.flush()?)
}

struct DumpedDevice {
    id: u64,
    root: u64,
    details: Details,
}

fn read_devices(
    source: &dyn BlockSource,
    superblock: &Superblock,
) -> Result<Vec<DumpedDevice>, DumpError> {
    let mut details = Vec::new();
    walk(
        source,
        Role::Details,
        superblock.details_root,
        &mut |_, node, index| {
            details.push((node.key(index), Details::decode(node.value(index))));
            Ok(())
        },
    )?;
    let mut devices = Vec::new();
    walk(
        source,
        Role::TopLevel,
        superblock.mapping_root,
        &mut |leaf, node, index| {
            let id = node.key(index);
            if id >= DEVICE_IDS {
                return Err(damaged(
                    leaf,
                    FindingKind::BadDeviceId {
                        role: Role::TopLevel,
                        id,
                    },
                ));
            }
            // Both walks are in ascending order, so the next one belongs to this device or none does.
            match details.get(devices.len()) {
                Some((details_id, details)) if *details_id == id => {
                    devices.push(DumpedDevice {
                        id,
                        root: node.pointer(index),
                        details: *details,
                    });
                    Ok(())
                }
                Some((details_id, _)) if *details_id < id => {
                    let id = *details_id;
                    Err(damaged(
                        superblock.details_root,
                        FindingKind::MappingsMissing { id },
                    ))
                }
                _ => Err(damaged(leaf, FindingKind::DetailsMissing { id })),
            }
        },
    )?;
    match details.get(devices.len()) {
        Some((id, _)) => {
            let kind = FindingKind::MappingsMissing { id: *id };
            Err(damaged(superblock.details_root, kind))
        }
        None => Ok(devices),
    }
}

fn dump_device(
    source: &dyn BlockSource,
    device: &DumpedDevice,
    threads: NonZero<usize>,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let Details {
        mapped_blocks,
        transaction_id,
        creation_time,
        snapshotted_time,
    } = device.details;
    writeln!(
        out,
        "  <device dev_id=\"{}\" mapped_blocks=\"{mapped_blocks}\" \
         transaction=\"{transaction_id}\" creation_time=\"{creation_time}\" \
         snap_time=\"{snapshotted_time}\">",
        device.id
    )?;
    mappings::dump(source, device.root, threads, out)?;
    writeln!(out, "  </device>")?;
    Ok(())
}

/// Hands every entry of a small tree to `visit`, with its leaf, in ascending order. Fails on a node reached
/// twice and on keys that do not ascend, so it ends on every input.
fn walk(
    source: &dyn BlockSource,
    role: Role,
    root: u64,
    visit: &mut dyn FnMut(u64, &Node, usize) -> Result<(), DumpError>,
) -> Result<(), DumpError> {
    let mut visited = BTreeSet::new();
    let mut last_key = None;
    let mut path: Vec<(Node, usize)> = Vec::new();
    let mut next = Some(root);
    loop {
        if let Some(block) = next.take() {
            if path.len() >= LEVELS_MAX {
                return Err(damaged(
                    block,
                    FindingKind::TooDeep {
                        role,
                        levels: LEVELS_MAX,
                    },
                ));
            }
            if !visited.insert(block) {
                return Err(damaged(block, FindingKind::UsedTwice { role }));
            }
            let node = Node::load(source, role, block).map_err(|error| failed(block, error))?;
            if node.is_leaf() {
                for index in 0..node.len() {
                    let key = node.key(index);
                    if let Some(previous) = last_key.filter(|previous| *previous >= key) {
                        let kind = FindingKind::KeyOrder {
                            role,
                            index,
                            key,
                            previous,
                        };
                        return Err(damaged(block, kind));
                    }
                    last_key = Some(key);
                    visit(block, &node, index)?;
                }
            } else {
                path.push((node, 0));
            }
        }
        let Some((node, index)) = path.last_mut() else {
            return Ok(());
        };
        if *index < node.len() {
            next = Some(node.pointer(*index));
            *index += 1;
        } else {
            path.pop();
        }
    }
}

fn damaged(block: u64, kind: FindingKind) -> DumpError {
    DumpError::Damaged(Finding::new(Some(block), kind))
}

fn failed(block: u64, error: LoadError) -> DumpError {
    match error {
        LoadError::Read(source) => DumpError::Read { block, source },
        LoadError::Bad(kind) => damaged(block, kind),
    }
}
