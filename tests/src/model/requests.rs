//! Requests on one device.

use std::ops::Range;

use pool::{DeviceName, ErrorKind, Zeroing};

use super::Model;
use super::device::{BLOCK, Device};
use super::unit::Content;
use crate::ops::Op;

/// The virtual blocks inside a range; the last one of the device counts even if its size cuts it
/// off.
pub(super) fn whole_blocks(device: &Device, range: Range<u64>) -> Range<u64> {
    let begin = range.start.div_ceil(BLOCK);
    let end = if range.end == device.size {
        range.end.div_ceil(BLOCK)
    } else {
        range.end / BLOCK
    };
    begin..end.max(begin)
}

/// The parts of a range, block by block.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    let end = if range.is_empty() {
        range.start / BLOCK
    } else {
        range.end.div_ceil(BLOCK)
    };
    (range.start / BLOCK..end).map(move |block| {
        let part = range.start.max(block * BLOCK)..range.end.min((block + 1) * BLOCK);
        (block, part)
    })
}

impl Model {
    /// The range of a request on a device, if it lies within.
    pub(super) fn range(
        &self,
        name: &DeviceName,
        offset: u64,
        len: u64,
    ) -> Result<Range<u64>, ErrorKind> {
        let size = self.device(name)?.size;
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(offset..end),
            _ => Err(ErrorKind::Invalid),
        }
    }

    fn writable(&self, name: &DeviceName) -> Result<(), ErrorKind> {
        if self.device(name)?.read_only {
            return Err(ErrorKind::ReadOnly);
        }
        Ok(())
    }

    pub(super) fn request(&mut self, op: &Op, number: u64) -> Result<(), ErrorKind> {
        match op {
            Op::Flush { name } => self.device(name).map(|_| ()),
            Op::Write {
                name, offset, len, ..
            } => {
                let range = self.range(name, *offset, *len)?;
                self.writable(name)?;
                self.write(name, range, Content::Write(number))
            }
            Op::Discard {
                name, offset, len, ..
            } => {
                let range = self.range(name, *offset, *len)?;
                self.writable(name)?;
                let blocks = whole_blocks(self.device(name)?, range);
                self.unmap(name, blocks)
            }
            Op::Zeroes {
                name,
                offset,
                len,
                zeroing,
                ..
            } => {
                let range = self.range(name, *offset, *len)?;
                self.writable(name)?;
                self.zeroes(name, range, *zeroing)
            }
            _ => unreachable!("{op:?} is no request"),
        }
    }

    fn write(
        &mut self,
        name: &DeviceName,
        range: Range<u64>,
        content: Content,
    ) -> Result<(), ErrorKind> {
        for (block, part) in parts(range) {
            if self.device(name)?.needs_block(block) {
                self.take_block(name, block)?;
            }
            self.device_mut(name)?.put(block, part, content);
        }
        Ok(())
    }

    fn unmap(&mut self, name: &DeviceName, blocks: Range<u64>) -> Result<(), ErrorKind> {
        for block in blocks {
            let before = self.device(name)?.mappings.get(&block).copied();
            if before.is_some() {
                self.device_mut(name)?.unmap(block);
                self.drop_reference(before);
            }
        }
        Ok(())
    }

    fn zeroes(
        &mut self,
        name: &DeviceName,
        range: Range<u64>,
        zeroing: Zeroing,
    ) -> Result<(), ErrorKind> {
        let device = self.device(name)?;
        let whole = whole_blocks(device, range.clone());
        let has_origin = device.has_origin;
        if matches!(zeroing, Zeroing::Fast | Zeroing::FastKeepMapped) {
            let is_fast = parts(range.clone()).all(|(block, _)| match zeroing {
                Zeroing::FastKeepMapped => whole.contains(&block) && !device.needs_block(block),
                _ if has_origin => false,
                _ => whole.contains(&block) || !device.mappings.contains_key(&block),
            });
            if !is_fast {
                return Err(ErrorKind::NotSupported);
            }
        }
        let keep = matches!(zeroing, Zeroing::KeepMapped | Zeroing::FastKeepMapped);
        if keep || has_origin || whole.is_empty() {
            return self.zero_mapped(name, range, keep);
        }
        self.zero_mapped(name, range.start..whole.start * BLOCK, keep)?;
        self.unmap(name, whole.clone())?;
        self.zero_mapped(name, range.end.min(whole.end * BLOCK)..range.end, keep)
    }

    pub(super) fn zero_mapped(
        &mut self,
        name: &DeviceName,
        range: Range<u64>,
        keep: bool,
    ) -> Result<(), ErrorKind> {
        for (block, part) in parts(range) {
            let device = self.device(name)?;
            if keep || device.has_origin || device.mappings.contains_key(&block) {
                self.write(name, part, Content::Zeros)?;
            }
        }
        Ok(())
    }
}
