//! Carrying a request out on a thin device.

use std::time::Instant;

use pool::{ErrorKind, Host, Operation, ThinDevice, Zeroing};
use reactor::yield_now;

use crate::request::{Descriptor, Request, failure};

/// Long discards and zeroings are done in slices of about this many bytes, between which others run.
const SLICE_BYTES: u64 = 32 << 20;

/// Does what a descriptor asks for and returns the answer for the driver. A read leaves its bytes at
/// the front of `buffer`, all of them: what a tag's buffer held before belongs to somebody else.
pub(crate) async fn carry_out<H: Host>(
    device: &ThinDevice<H>,
    descriptor: Descriptor,
    buffer: &mut [u8],
) -> i32 {
    let begun = Instant::now();
    let request = match Request::decode(descriptor, buffer.len()) {
        Ok(request) => request,
        Err(errno) => {
            tracing::warn!("{}: refused {descriptor:?}", device.name());
            return errno;
        }
    };
    let (operation, len, result) = perform(device, request, buffer).await;
    match result {
        Ok(()) => {
            device.stats().record(operation, len, begun.elapsed());
            request.success()
        }
        Err(error) => {
            device.stats().record_error(operation);
            if matches!(error.kind(), ErrorKind::Io | ErrorKind::Damaged) {
                let name = device.name();
                tracing::warn!("{name}: {} failed: {error}", operation.name());
            }
            failure(error.kind())
        }
    }
}

async fn perform<H: Host>(
    device: &ThinDevice<H>,
    request: Request,
    buffer: &mut [u8],
) -> (Operation, u64, Result<(), pool::Error>) {
    match request {
        Request::Read { offset, len } => {
            let result = device.read(offset, &mut buffer[..len]).await;
            (Operation::Read, len as u64, result)
        }
        Request::Write {
            offset,
            len,
            durable,
        } => {
            let result = device.write(offset, &buffer[..len], durable).await;
            (Operation::Write, len as u64, result)
        }
        Request::Flush => (Operation::Flush, 0, device.flush().await),
        Request::Discard {
            offset,
            len,
            durable,
        } => {
            let result = discard(device, offset, len, durable).await;
            (Operation::Discard, len, result)
        }
        Request::WriteZeroes {
            offset,
            len,
            zeroing,
            durable,
        } => {
            let result = write_zeroes(device, offset, len, zeroing, durable).await;
            (Operation::WriteZeroes, len, result)
        }
    }
}

async fn discard<H: Host>(
    device: &ThinDevice<H>,
    offset: u64,
    len: u64,
    durable: bool,
) -> Result<(), pool::Error> {
    for slice in slices(offset, len, device.block_size()) {
        let durable = durable && slice.is_last;
        device.discard(slice.offset, slice.len, durable).await?;
        yield_now().await;
    }
    Ok(())
}

async fn write_zeroes<H: Host>(
    device: &ThinDevice<H>,
    offset: u64,
    len: u64,
    zeroing: Zeroing,
    durable: bool,
) -> Result<(), pool::Error> {
    for slice in slices(offset, len, device.block_size()) {
        let durable = durable && slice.is_last;
        device
            .write_zeroes(slice.offset, slice.len, zeroing, durable)
            .await?;
        yield_now().await;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Slice {
    offset: u64,
    len: u64,
    is_last: bool,
}

/// Cuts a range at multiples of the block size, so that no block is cut in two that could have been
/// unmapped whole. An empty range is one empty slice, for it may have to be durable.
fn slices(offset: u64, len: u64, block_size: u64) -> impl Iterator<Item = Slice> {
    let step = SLICE_BYTES.next_multiple_of(block_size);
    // A range that ends beyond 2^64 is refused by the device, as one slice.
    let end = offset.saturating_add(len);
    let mut next = Some(offset);
    std::iter::from_fn(move || {
        let offset = next?;
        let cut = (offset - offset % step).saturating_add(step).min(end);
        next = (cut < end).then_some(cut);
        Some(Slice {
            offset,
            len: cut - offset,
            is_last: next.is_none(),
        })
    })
}

#[cfg(test)]
mod tests;
