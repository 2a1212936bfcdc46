//! The memory through which a tag's bytes pass.

/// A page: the driver pins whole ones, so that a buffer that begins within one costs one more.
const ALIGNMENT: usize = 4096;

/// Page-aligned memory, zero at first. Zeroed memory of this size comes from the kernel as it is, so
/// that pages no request has used take no memory.
pub(crate) struct PageBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl PageBuffer {
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        assert!(start <= ALIGNMENT, "bytes can be aligned to a page");
        PageBuffer { memory, start, len }
    }

    /// Where the kernel copies to and from. It does so only between a command's submission and its
    /// completion, when nobody here looks.
    pub(crate) fn address(&mut self) -> *const u8 {
        self.bytes().as_mut_ptr()
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zero_and_whole() {
        for len in [1, 4096, 65_536, 524_288] {
            let mut buffer = PageBuffer::new(len);
            assert_eq!(buffer.address().addr() % ALIGNMENT, 0);
            assert_eq!(buffer.bytes().len(), len);
            assert!(buffer.bytes().iter().all(|byte| *byte == 0));
            buffer.bytes().fill(7);
            assert_eq!(buffer.bytes()[len - 1], 7);
        }
    }
}
