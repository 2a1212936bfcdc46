//! Memory for payloads, used again and again by one connection.

use std::sync::Arc;

use pool::ReadPiece;

use crate::budget::SharedBudget;
use crate::wire::DATA_HEADER_LEN;

/// Room before the payload, for the header that goes out with it.
pub(crate) const HEADROOM: usize = DATA_HEADER_LEN;

/// The smallest buffer that is kept.
const CLASS_LEN_MIN: usize = 4096;
/// How many sizes there are: 4 KiB to 32 MiB.
const CLASSES: usize = 14;
/// How much a connection keeps for later, in bytes, if the others leave it that.
const KEPT_BYTES_MAX: usize = 2 * 1024 * 1024;

/// A payload with room for a header before it.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    len: usize,
    class: usize,
    /// Scratch for reads, kept with the buffer so that it need not be allocated each time.
    pub(crate) pieces: Vec<ReadPiece>,
}

impl Buffer {
    /// Length of the payload.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.bytes[HEADROOM..HEADROOM + self.len]
    }

    pub(crate) fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADROOM..HEADROOM + self.len]
    }

    /// The payload, and the scratch for reading into it.
    pub(crate) fn read_parts(&mut self) -> (&mut [u8], &mut Vec<ReadPiece>) {
        (
            &mut self.bytes[HEADROOM..HEADROOM + self.len],
            &mut self.pieces,
        )
    }

    /// Headroom and payload.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.bytes
    }

    /// Puts bytes at a place counted from the beginning of the headroom.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The buffers a connection does not use at the moment.
pub(crate) struct Buffers {
    free: [Vec<Buffer>; CLASSES],
    kept_bytes: usize,
    shared: Arc<SharedBudget>,
}

impl Buffers {
    pub(crate) fn new(shared: Arc<SharedBudget>) -> Self {
        Buffers {
            free: Default::default(),
            kept_bytes: 0,
            shared,
        }
    }

    /// A buffer for `len` bytes, at most 32 MiB. Its contents are whatever this connection left.
    pub(crate) fn take(&mut self, len: usize) -> Buffer {
        let class = class_of(len);
        if let Some(mut buffer) = self.free[class].pop() {
            self.keep(self.kept_bytes - class_len(class));
            buffer.len = len;
            return buffer;
        }
        let bytes = vec![0; HEADROOM + class_len(class)];
        Buffer {
            bytes,
            len,
            class,
            pieces: Vec::new(),
        }
    }

    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        let kept_bytes = self.kept_bytes + class_len(buffer.class);
        if kept_bytes <= KEPT_BYTES_MAX && self.keep(kept_bytes) {
            self.free[buffer.class].push(buffer);
        }
    }

    fn keep(&mut self, bytes: usize) -> bool {
        let may = self.shared.keep(self.kept_bytes, bytes);
        if may {
            self.kept_bytes = bytes;
        }
        may
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        self.keep(0);
    }
}

/// How much memory a payload of `len` bytes takes.
pub(crate) fn memory_for(len: usize) -> usize {
    class_len(class_of(len))
}

fn class_len(class: usize) -> usize {
    CLASS_LEN_MIN << class
}

fn class_of(len: usize) -> usize {
    let blocks = len.div_ceil(CLASS_LEN_MIN).max(1);
    let class = usize::try_from(blocks.next_power_of_two().trailing_zeros()).unwrap_or(CLASSES);
    assert!(class < CLASSES, "a payload of {len} bytes was not refused");
    class
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_fit_and_are_used_again() {
        let mut buffers = Buffers::new(Arc::new(SharedBudget::new(0)));
        for len in [0, 1, 4096, 4097, 65536, 1 << 20, 32 << 20] {
            let buffer = buffers.take(len);
            assert_eq!(buffer.payload().len(), len);
            buffers.give_back(buffer);
            assert!(buffers.kept_bytes <= KEPT_BYTES_MAX);
        }
        let mut buffer = buffers.take(100);
        buffer.payload_mut().fill(7);
        buffers.give_back(buffer);
        assert_eq!(buffers.take(4000).payload()[..100], [7; 100]);
    }
}
