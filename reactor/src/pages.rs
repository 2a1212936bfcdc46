//! Memory that begins where a page does, as I/O past the page cache demands.

use std::ops::{Deref, DerefMut};

/// Bytes in a page. No device asks for more alignment, of memory or of positions.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bytes on the heap, the first of them where a page begins. Moving it does not move them.
#[derive(Default)]
pub(crate) struct Pages {
    memory: Vec<u8>,
    begin: usize,
    len: usize,
}

impl Pages {
    pub(crate) fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + PAGE_BYTES];
        let begin = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Pages { memory, begin, len }
    }

    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut pages = Self::zeroed(bytes.len());
        pages.copy_from_slice(bytes);
        pages
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_begin_where_a_page_does() {
        for len in [0, 1, 4095, 4096, 100_000] {
            let bytes: Vec<u8> = (0..=250).cycle().take(len).collect();
            let pages = Pages::copy_of(&bytes);
            assert_eq!(pages.as_ptr().align_offset(PAGE_BYTES), 0);
            assert_eq!(*pages, *bytes);
        }
    }
}
