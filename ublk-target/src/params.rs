//! What a block device looks like to the kernel. Pure.

use crate::error::Error;
use crate::request::SECTOR_SIZE;

/// The driver's limits.
const QUEUES_MAX: u16 = 32;
const DEPTH_MAX: u16 = 1024;
const BUFFER_BYTES_MIN: u32 = 64 * 1024;
const BUFFER_BYTES_MAX: u32 = 32 * 1024 * 1024;

/// The most memory for the buffers of a device: what does not fit in there would be the end of the process.
const BUFFERS_BYTES_MAX: u64 = 1 << 30;

/// Splits that begin at a block's start stay aligned when buffers are multiples of this.
const BUFFER_BYTES_UNIT: u32 = 64 * 1024;

/// The most sectors of one discard or zeroing: what 32 bits of bytes can hold.
const DISCARD_SECTORS_MAX: u32 = u32::MAX >> 9;

/// The smallest unit of a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SectorSize {
    /// 512 bytes.
    S512,
    /// 4096 bytes.
    S4096,
}

impl SectorSize {
    /// In bytes.
    pub fn bytes(self) -> u32 {
        match self {
            SectorSize::S512 => 512,
            SectorSize::S4096 => 4096,
        }
    }
}

/// How a device is served. Memory is `queues * depth * buffer_bytes`, as far as it is used, 1 GiB at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Threads that serve it, 1 to 32; the driver makes no more than there are processors. One is enough
    /// for one submitting thread.
    pub queues: u16,
    /// Requests that each queue takes at a time, 1 to 1024.
    pub depth: u16,
    /// The largest request, a multiple of 64 KiB up to 32 MiB.
    pub buffer_bytes: u32,
    /// 4096 unless given, or 512 when the device's size is no multiple of 4096.
    pub sector_size: Option<SectorSize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            queues: 1,
            depth: 64,
            buffer_bytes: 512 * 1024,
            sector_size: None,
        }
    }
}

impl Options {
    /// Refuses what the driver would.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let within = |what, found: u64, min: u64, max: u64| {
            if (min..=max).contains(&found) {
                return Ok(());
            }
            let expected = format!("{min} to {max}");
            Err(Error::BadOption {
                what,
                found,
                expected,
            })
        };
        within("number of queues", self.queues.into(), 1, QUEUES_MAX.into())?;
        within("queue depth", self.depth.into(), 1, DEPTH_MAX.into())?;
        within(
            "buffer size",
            self.buffer_bytes.into(),
            BUFFER_BYTES_MIN.into(),
            BUFFER_BYTES_MAX.into(),
        )?;
        if !self.buffer_bytes.is_multiple_of(BUFFER_BYTES_UNIT) {
            return Err(Error::BadOption {
                what: "buffer size",
                found: self.buffer_bytes.into(),
                expected: format!("a multiple of {BUFFER_BYTES_UNIT}"),
            });
        }
        within(
            "memory for buffers (queues x depth x buffer size)",
            u64::from(self.queues) * u64::from(self.depth) * u64::from(self.buffer_bytes),
            1,
            BUFFERS_BYTES_MAX,
        )
    }
}

/// What is to become a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// In bytes.
    pub(crate) size: u64,
    /// The pool's block size in bytes.
    pub(crate) block_size: u64,
    pub(crate) read_only: bool,
}

/// The limits a device is started with; sizes as powers of two, and sectors of 512 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Params {
    pub(crate) read_only: bool,
    pub(crate) logical_shift: u8,
    pub(crate) physical_shift: u8,
    pub(crate) minimum_shift: u8,
    pub(crate) optimal_shift: u8,
    pub(crate) sectors_max: u32,
    pub(crate) sectors: u64,
    /// None for a device that takes neither discards nor zeroing.
    pub(crate) discard: Option<Discard>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Discard {
    pub(crate) granularity: u32,
    pub(crate) sectors_max: u32,
}

impl Params {
    /// The parameters for a device of this shape.
    pub(crate) fn new(shape: Shape, options: &Options) -> Result<Self, Error> {
        options.check()?;
        let aligned = shape.size.is_multiple_of(4096);
        let sector_size = match options.sector_size {
            Some(SectorSize::S4096) if !aligned => {
                return Err(Error::BadOption {
                    what: "sector size",
                    found: 4096,
                    expected: format!("512, since the device's size is {} bytes", shape.size),
                });
            }
            Some(given) => given,
            None if aligned => SectorSize::S4096,
            None => SectorSize::S512,
        };
        let logical_shift = match sector_size {
            SectorSize::S512 => 9,
            SectorSize::S4096 => 12,
        };
        // Blocks of any multiple of 64 KiB are allowed; the kernel takes a power of two.
        let optimal_shift = u8::try_from(shape.block_size.trailing_zeros()).unwrap_or(16);
        let discard = (!shape.read_only).then(|| Discard {
            granularity: u32::try_from(shape.block_size).unwrap_or(1 << 16),
            sectors_max: DISCARD_SECTORS_MAX,
        });
        Ok(Params {
            read_only: shape.read_only,
            logical_shift,
            // Smaller writes than a page make the kernel read first.
            physical_shift: 12,
            minimum_shift: 12,
            optimal_shift,
            sectors_max: options.buffer_bytes / 512,
            sectors: shape.size / SECTOR_SIZE,
            discard,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size: u64) -> Shape {
        Shape {
            size,
            block_size: 65_536,
            read_only: false,
        }
    }

    #[test]
    fn an_ordinary_volume() {
        let params = Params::new(shape(1 << 30), &Options::default()).unwrap();
        assert_eq!(params.logical_shift, 12);
        assert_eq!(params.optimal_shift, 16);
        assert_eq!(params.sectors_max, 1024);
        assert_eq!(params.sectors, 1 << 21);
        let discard = params.discard.unwrap();
        assert_eq!(discard.granularity, 65_536);
        assert_eq!(u64::from(discard.sectors_max) * 512, 4_294_966_784);
    }

    #[test]
    fn a_snapshot_takes_no_discards() {
        let snapshot = Shape {
            read_only: true,
            ..shape(1 << 20)
        };
        let params = Params::new(snapshot, &Options::default()).unwrap();
        assert!(params.read_only && params.discard.is_none());
    }

    #[test]
    fn odd_sizes_have_small_sectors() {
        let odd = shape((1 << 20) + 512);
        assert_eq!(
            Params::new(odd, &Options::default()).unwrap().logical_shift,
            9
        );
        let large = Options {
            sector_size: Some(SectorSize::S4096),
            ..Options::default()
        };
        assert!(Params::new(odd, &large).is_err());
        let small = Options {
            sector_size: Some(SectorSize::S512),
            ..Options::default()
        };
        assert_eq!(
            Params::new(shape(1 << 20), &small).unwrap().logical_shift,
            9
        );
    }

    #[test]
    fn blocks_that_are_no_power_of_two() {
        let shape = Shape {
            block_size: 3 * 65_536,
            ..shape(1 << 30)
        };
        let params = Params::new(shape, &Options::default()).unwrap();
        assert_eq!(params.optimal_shift, 16);
        assert_eq!(params.discard.unwrap().granularity, 196_608);
    }

    #[test]
    fn options_have_limits() {
        let refused = |options: Options| assert!(options.check().is_err(), "{options:?}");
        let fine = Options::default();
        fine.check().unwrap();
        refused(Options { queues: 0, ..fine });
        refused(Options { queues: 33, ..fine });
        refused(Options { depth: 0, ..fine });
        refused(Options {
            depth: 1025,
            ..fine
        });
        for buffer_bytes in [0, 4096, 65_536 + 4096, u32::MAX] {
            refused(Options {
                buffer_bytes,
                ..fine
            });
        }
        let largest = Options {
            queues: 4,
            depth: 512,
            ..fine
        };
        largest.check().unwrap();
        let error = Options {
            depth: 513,
            ..largest
        };
        let error = error.check().unwrap_err().to_string();
        assert!(error.contains("queues x depth x buffer size"), "{error}");
    }
}
