//! The mappings of a device, as lines of the dump.
//!
//! The children of a node are read and written down by several threads, a piece of them each. Neighbouring
//! mappings may become one range across two pieces, so the first and the last range of a piece are left to be
//! joined with what is around it. What waits for its turn is at most the children of the nodes on the way.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::num::NonZero;

use super::{DumpError, damaged, failed};
use crate::finding::{FindingKind, Role};
use crate::node::{Mapping, Node};
use crate::parallel;
use crate::source::BlockSource;
use crate::tree::LEVELS_MAX;

const ROLE: Role = Role::Mapping;
/// Nodes that are worth a thread: of leaves, a megabyte of text.
const PIECE_LEN: usize = 63;
/// Bytes of a line, about.
const LINE_LEN: usize = 72;

/// Writes the mappings of the tree at `root`. Fails on a node reached twice and on keys that do not ascend, so
/// it ends on every input.
pub(super) fn dump(
    source: &dyn BlockSource,
    root: u64,
    threads: NonZero<usize>,
    out: &mut dyn Write,
) -> Result<(), DumpError> {
    let mut reader = Reader {
        source,
        threads,
        visited: BTreeSet::new(),
    };
    let mut lines = Lines {
        out,
        last_key: None,
        open: None,
    };
    let mut path = vec![reader.read(vec![root]).into_iter()];
    while let Some(parts) = path.last_mut() {
        match parts.next() {
            None => {
                path.pop();
            }
            Some(Part::Mappings(mappings)) => lines.add(mappings)?,
            Some(Part::Inner(node)) => {
                let children: Vec<u64> = (0..node.len()).map(|index| node.pointer(index)).collect();
                if let Some(first) = children.first().filter(|_| path.len() >= LEVELS_MAX) {
                    let levels = LEVELS_MAX;
                    let kind = FindingKind::TooDeep { role: ROLE, levels };
                    return Err(damaged(*first, kind));
                }
                path.push(reader.read(children).into_iter());
            }
            Some(Part::Failed(error)) => return Err(error),
        }
    }
    Ok(lines.close()?)
}

/// What nodes beside each other come to, in order.
enum Part {
    /// Some leaves.
    Mappings(Mappings),
    Inner(Node),
    /// Nothing follows.
    Failed(DumpError),
}

struct Reader<'a> {
    source: &'a dyn BlockSource,
    threads: NonZero<usize>,
    visited: BTreeSet<u64>,
}

impl Reader<'_> {
    fn read(&mut self, mut blocks: Vec<u64>) -> Vec<Part> {
        let again = blocks.iter().position(|block| !self.visited.insert(*block));
        let twice = again.map(|at| {
            let block = blocks[at];
            blocks.truncate(at);
            Part::Failed(damaged(block, FindingKind::UsedTwice { role: ROLE }))
        });
        let mut sorted = blocks.clone();
        sorted.sort_unstable();
        self.source.will_read(&sorted);
        let pieces: Vec<&[u64]> = blocks.chunks(PIECE_LEN).collect();
        let source = self.source;
        let parts = parallel::map(self.threads, &pieces, |piece| read_piece(source, piece));
        parts.into_iter().flatten().chain(twice).collect()
    }
}

fn read_piece(source: &dyn BlockSource, blocks: &[u64]) -> Vec<Part> {
    let mut parts = Vec::new();
    for block in blocks {
        match Node::load(source, ROLE, *block) {
            Ok(leaf) if leaf.is_leaf() => {
                let mut mappings = match parts.pop() {
                    Some(Part::Mappings(mappings)) => mappings,
                    other => {
                        parts.extend(other);
                        Mappings::with_room(blocks.len() * leaf.len())
                    }
                };
                let added = mappings.add(*block, &leaf);
                parts.push(Part::Mappings(mappings));
                parts.extend(added.err().map(Part::Failed));
            }
            Ok(inner) => parts.push(Part::Inner(inner)),
            Err(error) => parts.push(Part::Failed(failed(*block, error))),
        }
        if let Some(Part::Failed(_)) = parts.last() {
            break;
        }
    }
    parts
}

/// The mappings of leaves beside each other.
struct Mappings {
    /// The first key, and the leaf that has it.
    first_key: Option<(u64, u64)>,
    last_key: Option<u64>,
    /// The first range, when others follow.
    first: Option<Range>,
    /// The ranges between the first and the last.
    text: Vec<u8>,
    last: Option<Range>,
}

impl Mappings {
    fn with_room(mappings: usize) -> Self {
        Self {
            first_key: None,
            last_key: None,
            first: None,
            text: Vec::with_capacity(mappings * LINE_LEN),
            last: None,
        }
    }

    fn add(&mut self, block: u64, leaf: &Node) -> Result<(), DumpError> {
        for (index, (key, mapping)) in leaf.keys().zip(leaf.mappings()).enumerate() {
            ascends(block, self.last_key, index, key)?;
            self.first_key.get_or_insert((key, block));
            self.last_key = Some(key);
            let next = Range {
                virtual_block: key,
                mapping,
                length: 1,
            };
            let Some(done) = Range::join(&mut self.last, next) else {
                continue;
            };
            if self.first.is_none() {
                self.first = Some(done);
            } else {
                done.write(&mut self.text);
            }
        }
        Ok(())
    }
}

fn ascends(block: u64, last_key: Option<u64>, index: usize, key: u64) -> Result<(), DumpError> {
    match last_key {
        Some(previous) if previous >= key => {
            let kind = FindingKind::KeyOrder {
                role: ROLE,
                index,
                key,
                previous,
            };
            Err(damaged(block, kind))
        }
        _ => Ok(()),
    }
}

/// The dump as it grows.
struct Lines<'a> {
    out: &'a mut dyn Write,
    last_key: Option<u64>,
    /// The last range, which may go on.
    open: Option<Range>,
}

impl Lines<'_> {
    fn add(&mut self, mappings: Mappings) -> Result<(), DumpError> {
        if let Some((key, leaf)) = mappings.first_key {
            ascends(leaf, self.last_key, 0, key)?;
        }
        self.last_key = mappings.last_key.or(self.last_key);
        if let Some(first) = mappings.first {
            self.join(first)?;
            self.close()?;
            self.out.write_all(&mappings.text)?;
        }
        if let Some(last) = mappings.last {
            self.join(last)?;
        }
        Ok(())
    }

    fn join(&mut self, next: Range) -> io::Result<()> {
        match Range::join(&mut self.open, next) {
            Some(done) => self.write(&done),
            None => Ok(()),
        }
    }

    /// Ends the last range.
    fn close(&mut self) -> io::Result<()> {
        match self.open.take() {
            Some(done) => self.write(&done),
            None => Ok(()),
        }
    }

    fn write(&mut self, range: &Range) -> io::Result<()> {
        let mut line = Vec::with_capacity(2 * LINE_LEN);
        range.write(&mut line);
        self.out.write_all(&line)
    }
}

/// Mappings that are written as one.
#[derive(Clone, Copy)]
struct Range {
    virtual_block: u64,
    mapping: Mapping,
    length: u64,
}

impl Range {
    /// Adds `next` to `open`, or takes its place; then what was there is done.
    fn join(open: &mut Option<Range>, next: Range) -> Option<Range> {
        match open {
            Some(range) if range.goes_on_with(&next) => {
                range.length += next.length;
                None
            }
            _ => open.replace(next),
        }
    }

    fn goes_on_with(&self, next: &Range) -> bool {
        next.virtual_block.checked_sub(self.virtual_block) == Some(self.length)
            && next.mapping.data_block.checked_sub(self.mapping.data_block) == Some(self.length)
            && next.mapping.time == self.mapping.time
    }

    fn write(&self, text: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        let mut field = |before: &str, number: u64| {
            text.extend_from_slice(before.as_bytes());
            text.extend_from_slice(digits.format(number).as_bytes());
        };
        let Mapping { data_block, time } = self.mapping;
        if self.length == 1 {
            field("    <single_mapping origin_block=\"", self.virtual_block);
            field("\" data_block=\"", data_block);
        } else {
            field("    <range_mapping origin_begin=\"", self.virtual_block);
            field("\" data_begin=\"", data_block);
            field("\" length=\"", self.length);
        }
        field("\" time=\"", u64::from(time));
        text.extend_from_slice(b"\"/>\n");
    }
}
