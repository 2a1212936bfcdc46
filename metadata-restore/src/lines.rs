//! The dump as bytes: counts lines, and refuses pieces that would fill memory.

use std::io::{self, BufRead, Read};

/// A tag of a dump has less than 300 bytes; this leaves room for comments.
pub(crate) const PIECE_LEN_MAX: u64 = 64 * 1024;

/// What the XML reader reads from.
pub(crate) struct Lines<R> {
    input: R,
    newlines: u64,
    bytes: u64,
    /// Where the piece began that is being read.
    piece_begin: u64,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(input: R) -> Self {
        Lines {
            input,
            newlines: 0,
            bytes: 0,
            piece_begin: 0,
        }
    }

    /// Begins a new piece, and returns its line, from 1.
    pub(crate) fn begin_piece(&mut self) -> u64 {
        self.piece_begin = self.bytes;
        self.newlines + 1
    }

    /// Whether the piece has grown too long. The reader has been told that the input ends there.
    pub(crate) fn is_too_long(&self) -> bool {
        self.bytes - self.piece_begin > PIECE_LEN_MAX
    }

    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<R: BufRead> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for Lines<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.is_too_long() {
            return Ok(&[]);
        }
        self.input.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        if length == 0 {
            return;
        }
        // What is consumed was returned by `fill_buf`, which returns the same bytes until then.
        if let Ok(consumed) = self.input.fill_buf() {
            let consumed = &consumed[..length.min(consumed.len())];
            let newlines = consumed.iter().filter(|byte| **byte == b'\n').count();
            self.newlines += newlines as u64;
        }
        self.bytes += length as u64;
        self.input.consume(length);
    }
}
