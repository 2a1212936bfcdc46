//! The reply to a read, made in place.
//!
//! Headers are written into the buffer the data was read into: the first goes to the headroom before
//! it, the others to the ends of holes, whose bytes nobody needs. What leaves is therefore the buffer
//! but for the holes: data, and before it its header, and before that the chunk of the hole before.

use std::ops::Range;

use pool::ReadPiece;

use crate::buffer::{Buffer, HEADROOM};
use crate::outbox::Body;
use crate::wire::{self, DATA_HEADER_LEN, HOLE_CHUNK_LEN, SIMPLE_REPLY_LEN};

/// Shorter holes are sent as data.
const HOLE_LEN_MIN: usize = 4096;
/// Chunks begin and end at multiples of this, but for the ends of the request.
const CHUNK_ALIGNMENT: u64 = 512;

const _: () = assert!(HOLE_LEN_MIN >= DATA_HEADER_LEN + HOLE_CHUNK_LEN);
const _: () = assert!(HEADROOM >= DATA_HEADER_LEN && HEADROOM >= SIMPLE_REPLY_LEN);

/// A simple reply: everything as data.
pub(crate) fn simple(mut buffer: Buffer, cookie: u64) -> Body {
    fill_holes(&mut buffer);
    let begin = HEADROOM - SIMPLE_REPLY_LEN;
    buffer.put(begin, &wire::simple_reply(cookie, 0));
    let first = begin..HEADROOM + buffer.len();
    Body::Parts {
        buffer,
        first,
        more: Vec::new(),
    }
}

/// A structured reply for bytes from `offset` on, at least one. `unfragmented` makes it one chunk.
pub(crate) fn chunks(mut buffer: Buffer, cookie: u64, offset: u64, unfragmented: bool) -> Body {
    let len = buffer.len();
    let one = match &buffer.pieces[..] {
        [only] => Some(only.hole && len > 0),
        _ if unfragmented => Some(false),
        _ => None,
    };
    match one {
        Some(true) => {
            buffer.put(0, &wire::hole_chunk(cookie, offset, len, true));
            Body::Parts {
                buffer,
                first: 0..HOLE_CHUNK_LEN,
                more: Vec::new(),
            }
        }
        Some(false) => {
            fill_holes(&mut buffer);
            buffer.put(
                HEADROOM - DATA_HEADER_LEN,
                &wire::data_header(cookie, offset, len, true),
            );
            Body::Parts {
                buffer,
                first: HEADROOM - DATA_HEADER_LEN..HEADROOM + len,
                more: vec![],
            }
        }
        None => fragments(buffer, cookie, offset),
    }
}

fn fill_holes(buffer: &mut Buffer) {
    let (mut bytes, pieces) = buffer.read_parts();
    for piece in pieces.iter() {
        let (here, rest) = bytes.split_at_mut(piece.len);
        if piece.hole {
            here.fill(0);
        }
        bytes = rest;
    }
}

fn fragments(mut buffer: Buffer, cookie: u64, offset: u64) -> Body {
    let len = buffer.len();
    let holes = holes_worth_a_chunk(&mut buffer, offset);
    let mut parts: Vec<Range<usize>> = Vec::with_capacity(holes.len() + 1);
    // Where the data behind the last hole begins, and where the bytes to send for it do.
    let (mut data, mut begin) = (0, HEADROOM - DATA_HEADER_LEN);
    for hole in holes.iter().cloned().chain(std::iter::once(len..len)) {
        if data < hole.start {
            let header = wire::data_header(
                cookie,
                offset + data as u64,
                hole.start - data,
                hole.start == len,
            );
            buffer.put(HEADROOM + data - DATA_HEADER_LEN, &header);
            parts.push(begin..HEADROOM + hole.start);
        }
        if hole.is_empty() {
            break;
        }
        let done = hole.end == len;
        let chunk = wire::hole_chunk(cookie, offset + hole.start as u64, hole.len(), done);
        begin = HEADROOM + hole.end - DATA_HEADER_LEN - HOLE_CHUNK_LEN;
        buffer.put(begin, &chunk);
        if done {
            parts.push(begin..begin + HOLE_CHUNK_LEN);
        }
        data = hole.end;
    }
    let mut parts = parts.into_iter();
    let Some(first) = parts.next() else {
        unreachable!("a reply without chunks")
    };
    Body::Parts {
        buffer,
        first,
        more: parts.collect(),
    }
}

/// The holes that are sent as such, apart from each other; the others are filled with zeros.
fn holes_worth_a_chunk(buffer: &mut Buffer, offset: u64) -> Vec<Range<usize>> {
    let len = buffer.len();
    let (bytes, pieces) = buffer.read_parts();
    let mut holes: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for &ReadPiece {
        len: piece_len,
        hole,
    } in pieces.iter()
    {
        let piece = at..at + piece_len;
        at = piece.end;
        if !hole {
            continue;
        }
        let start = if piece.start == 0 {
            0
        } else {
            align_up(offset, piece.start)
        };
        let end = if piece.end == len {
            len
        } else {
            align_down(offset, piece.end)
        };
        if end.saturating_sub(start) < HOLE_LEN_MIN {
            bytes[piece].fill(0);
            continue;
        }
        bytes[piece.start..start].fill(0);
        bytes[end..piece.end].fill(0);
        holes.push(start..end);
    }
    debug_assert_eq!(at, len, "the pieces cover the buffer");
    holes
}

/// The first position in the buffer, from `at` on, that is a chunk border on the device.
fn align_up(offset: u64, at: usize) -> usize {
    let beyond = (offset + at as u64) % CHUNK_ALIGNMENT;
    let missing = (CHUNK_ALIGNMENT - beyond) % CHUNK_ALIGNMENT;
    at + usize::try_from(missing).unwrap_or(0)
}

/// The last position in the buffer, up to `at`, that is a chunk border on the device.
fn align_down(offset: u64, at: usize) -> usize {
    let beyond = (offset + at as u64) % CHUNK_ALIGNMENT;
    at.saturating_sub(usize::try_from(beyond).unwrap_or(0))
}

#[cfg(test)]
mod tests;
