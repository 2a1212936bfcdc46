//! Contents of devices in bounded pieces, in and out.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use pool::{DeviceName, ReadPiece, ThinDevice, Zeroing};
use reactor::FileHost;

use crate::frame::Frame;
use crate::protocol::CallError;
use crate::service::PoolService;

/// How much is in memory at a time, for each end.
pub const PIECE_LEN: usize = 1 << 20;

/// Runs of zeros are told apart from data in this unit.
const ZERO_UNIT: usize = 64 * 1024;

/// The contents of a range of a device, piece by piece.
pub struct Reading {
    service: Arc<PoolService>,
    device: ThinDevice<FileHost>,
    at: u64,
    end: u64,
}

impl Reading {
    /// Begins to read `length` bytes from `offset`, or to the end.
    ///
    /// # Errors
    /// `NotFound`, or `Invalid` for a range that is not inside the device.
    pub fn begin(
        service: &Arc<PoolService>,
        name: &DeviceName,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Self, CallError> {
        let device = service.open_device(name)?;
        let end = end_of_range(service, &device, offset, length)?;
        Ok(Reading {
            service: Arc::clone(service),
            device,
            at: offset,
            end,
        })
    }

    /// How many bytes are left.
    pub fn left(&self) -> u64 {
        self.end - self.at
    }

    /// The next frames, or none at the end.
    ///
    /// # Errors
    /// What stopped the read.
    pub async fn next(&mut self) -> Result<Option<Vec<Frame>>, CallError> {
        let len = usize::try_from(self.left())
            .unwrap_or(PIECE_LEN)
            .min(PIECE_LEN);
        if len == 0 {
            return Ok(None);
        }
        let mut buffer = BytesMut::zeroed(len);
        let mut pieces: Vec<ReadPiece> = Vec::new();
        self.device
            .read_sparse(self.at, &mut buffer, &mut pieces)
            .await
            .map_err(|cause| self.service.failed(&cause))?;
        let mut frames = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let bytes = buffer.split_to(piece.len).freeze();
            self.at += piece.len as u64;
            frames.push(if piece.hole {
                Frame::Zeros(piece.len as u64)
            } else {
                Frame::Data(bytes)
            });
        }
        assert!(buffer.is_empty(), "pieces of a read cover it exactly");
        Ok(Some(frames))
    }
}

/// Where the range ends, if it lies inside the device.
fn end_of_range(
    service: &PoolService,
    device: &ThinDevice<FileHost>,
    offset: u64,
    length: Option<u64>,
) -> Result<u64, CallError> {
    let size = device.size();
    let end = match length {
        None => Some(size),
        Some(length) => offset.checked_add(length),
    };
    end.filter(|end| offset <= *end && *end <= size)
        .ok_or_else(|| {
            let length = length.map_or_else(
                || "what follows".to_owned(),
                |length| format!("{length} bytes"),
            );
            CallError::invalid(format!(
                "{}/{}: {length} from {offset} on is not inside its {size} bytes",
                service.dir.path.display(),
                device.name()
            ))
        })
}

/// Bytes on their way into a volume.
pub struct Writing {
    service: Arc<PoolService>,
    device: ThinDevice<FileHost>,
    at: u64,
}

impl Writing {
    /// Begins to write at `offset`. With a `length` that is known, what does not fit is refused
    /// before anything is written.
    ///
    /// # Errors
    /// `NotFound`, `ReadOnly`, or `Invalid` for a range that is not inside the device.
    pub fn begin(
        service: &Arc<PoolService>,
        name: &DeviceName,
        offset: u64,
        length: Option<u64>,
    ) -> Result<Self, CallError> {
        let device = service.open_device(name)?;
        if device.read_only() {
            return Err(service.failed(&pool::Error::DeviceReadOnly(name.clone())));
        }
        end_of_range(service, &device, offset, length)?;
        Ok(Writing {
            service: Arc::clone(service),
            device,
            at: offset,
        })
    }

    /// Has the writes fail that wait for data space: nobody wants them any more.
    pub fn end_waiting(&self) -> impl FnOnce() + use<> {
        let device = self.device.clone();
        move || device.end_waiting()
    }

    /// Writes the next bytes. Runs of zeros take no space where the pool can do without.
    ///
    /// # Errors
    /// What stopped the write; `Invalid` when the volume is full.
    pub async fn put(&mut self, bytes: Bytes) -> Result<(), CallError> {
        let room = self.device.size().saturating_sub(self.at);
        let fits = usize::try_from(room).unwrap_or(usize::MAX).min(bytes.len());
        for run in runs(&bytes[..fits]) {
            let len = run.bytes.len() as u64;
            let written = if run.zeros {
                self.device
                    .write_zeroes(self.at, len, Zeroing::MayUnmap, false)
                    .await
            } else {
                self.device.write(self.at, run.bytes, false).await
            };
            written.map_err(|cause| self.service.failed(&cause))?;
            self.at += len;
        }
        if fits < bytes.len() {
            return Err(CallError::invalid(format!(
                "{}/{}: the input is longer than the volume: written up to its end at {} bytes",
                self.service.dir.path.display(),
                self.device.name(),
                self.device.size()
            )));
        }
        Ok(())
    }

    /// Makes everything written durable.
    ///
    /// # Errors
    /// What stopped that.
    pub async fn finish(&self) -> Result<(), CallError> {
        self.device
            .flush()
            .await
            .map_err(|cause| self.service.failed(&cause))
    }
}

struct Run<'a> {
    bytes: &'a [u8],
    zeros: bool,
}

/// Cuts bytes into runs of zeros, of whole units, and of data.
fn runs(bytes: &[u8]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    let mut begin = 0;
    let mut kind = None;
    for (index, unit) in bytes.chunks(ZERO_UNIT).enumerate() {
        let zeros = unit.len() == ZERO_UNIT && unit.iter().all(|byte| *byte == 0);
        let here = index * ZERO_UNIT;
        match kind {
            Some(kind) if kind != zeros => {
                runs.push(Run {
                    bytes: &bytes[begin..here],
                    zeros: kind,
                });
                begin = here;
            }
            _ => {}
        }
        kind = Some(zeros);
    }
    if let Some(zeros) = kind {
        runs.push(Run {
            bytes: &bytes[begin..],
            zeros,
        });
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_the_bytes_in_order() {
        let mut bytes = vec![0; 5 * ZERO_UNIT + 7];
        bytes[2 * ZERO_UNIT + 1] = 1;
        let lens: Vec<(usize, bool)> = runs(&bytes)
            .iter()
            .map(|run| (run.bytes.len(), run.zeros))
            .collect();
        assert_eq!(
            lens,
            [
                (2 * ZERO_UNIT, true),
                (ZERO_UNIT, false),
                (2 * ZERO_UNIT, true),
                (7, false)
            ]
        );
        assert!(runs(&[]).is_empty());
        assert_eq!(runs(&[0; 3]).len(), 1);
    }
}
