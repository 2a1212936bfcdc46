//! Reading, and telling what is where.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::chunks::{Chunk, chunk_of};
use crate::device::{Device, Extent, ExtentState};
use crate::error::Error;
use crate::host::{DataIo, Host};
use crate::map::{self, BlockPart, Place, Source};
use crate::pool::Pool;
use crate::serve::{check_range, data_error, usize_of};
use crate::sync::yield_now;

/// A part of what was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPiece {
    /// Length in bytes.
    pub len: usize,
    /// Whether it reads as zeros because nothing is there.
    pub hole: bool,
}

impl<H: Host> Pool<H> {
    pub(crate) async fn read(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        offset: u64,
        buf: &mut [u8],
        pieces: &mut Vec<ReadPiece>,
    ) -> Result<(), Error> {
        pieces.clear();
        let mut range = check_range(device, offset, buf.len() as u64)?;
        self.check_readable()?;
        let _epoch = self.epochs.enter();
        let mut rest = buf;
        while range.start < range.end {
            let (source, len) = self.next_source(device, &range).await?;
            let (bytes, next) = rest.split_at_mut(usize_of(len));
            let hole = match source {
                Source::Hole => true,
                Source::Origin => Box::pin(self.read_origin(device, range.start, bytes)).await?,
                Source::Data(at) => {
                    self.data
                        .read(at, bytes)
                        .await
                        .map_err(data_error("reading"))?;
                    false
                }
            };
            match pieces.last_mut() {
                Some(last) if last.hole == hole => last.len += bytes.len(),
                _ => pieces.push(ReadPiece {
                    len: bytes.len(),
                    hole,
                }),
            }
            rest = next;
            range.start += len;
        }
        Ok(())
    }

    /// Where the first bytes of a range are, and for how long one I/O reads them.
    async fn next_source(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        range: &Range<u64>,
    ) -> Result<(Source, u64), Error> {
        let mut parts = map::parts(range.clone(), self.block_size);
        let Some(first) = parts.next() else {
            unreachable!("the range is not empty")
        };
        let mut chunk = self.chunk(device, first.block).await?;
        let (source, mut len) = self.source_of(device, &chunk, &first);
        let mut is_to_its_end = len == first.len;
        for part in parts {
            if !is_to_its_end {
                break;
            }
            if chunk_of(part.block) != chunk_of(first.block) {
                chunk = self.chunk(device, part.block).await?;
            }
            let (next, next_len) = self.source_of(device, &chunk, &part);
            if !map::continues(source, len, next) {
                break;
            }
            len += next_len;
            is_to_its_end = next_len == part.len;
        }
        Ok((source, len))
    }

    /// Where a part of a block begins, and how much of it lies there together.
    fn source_of(
        &self,
        device: &Device<H::Data>,
        chunk: &Chunk,
        part: &BlockPart,
    ) -> (Source, u64) {
        match device.lookup(chunk, part.block) {
            Some((_, Some(partial))) => {
                self.source_in_partial(device, partial, part.begin, part.len)
            }
            Some((mapping, None)) => {
                let at = self.block_size.position(mapping.block) + part.begin;
                (Source::Data(at), part.len)
            }
            None if device.origin.is_some() => (Source::Origin, part.len),
            None => (Source::Hole, part.len),
        }
    }

    /// Fills `buf` from the external origin, with zeros beyond its end. Whether all of it lies
    /// beyond.
    pub(super) async fn read_origin(
        &self,
        device: &Device<H::Data>,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<bool, Error> {
        let Some(origin) = &device.origin else {
            return Ok(true);
        };
        let present = origin.len.saturating_sub(offset).min(buf.len() as u64);
        if present == 0 {
            return Ok(true);
        }
        let (inside, beyond) = buf.split_at_mut(usize_of(present));
        beyond.fill(0);
        let what = format!("reading the external origin of {}", device.name());
        let failed = |source| Error::Io { what, source };
        origin.data.read(offset, inside).await.map_err(failed)?;
        Ok(false)
    }

    pub(crate) async fn extents(
        self: &Arc<Self>,
        device: &Arc<Device<H::Data>>,
        offset: u64,
        len: u64,
        max: usize,
    ) -> Result<Vec<Extent>, Error> {
        let range = check_range(device, offset, len)?;
        self.check_readable()?;
        let snapshotted = device.snapshotted_time.load(Ordering::Acquire);
        let mut extents: Vec<Extent> = Vec::new();
        let mut loaded: Option<(u64, Arc<Chunk>)> = None;
        for part in map::parts(range, self.block_size) {
            let index = chunk_of(part.block);
            let chunk = match &loaded {
                Some((at, chunk)) if *at == index => Arc::clone(chunk),
                _ => {
                    yield_now().await;
                    self.chunk(device, part.block).await?
                }
            };
            let state = match map::place(chunk.get(part.block), snapshotted) {
                Place::Exclusive(_) => ExtentState::Exclusive,
                Place::MaybeShared(_) => ExtentState::Shared,
                Place::Unmapped => {
                    let start = self.block_size.start_of(part.block);
                    let origin = device
                        .origin
                        .as_ref()
                        .is_some_and(|origin| start < origin.len);
                    if origin {
                        ExtentState::Origin
                    } else {
                        ExtentState::Hole
                    }
                }
            };
            loaded = Some((index, chunk));
            let full = extents.len() == max.max(1);
            match extents.last_mut() {
                Some(last) if last.state == state => last.len += part.len,
                _ if full => break,
                _ => extents.push(Extent {
                    len: part.len,
                    state,
                }),
            }
        }
        Ok(extents)
    }
}
