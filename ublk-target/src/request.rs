//! What the driver asks for, and what it must be answered. Pure.
//!
//! The operation is in the lowest eight bits of a descriptor's `op_flags`; the flags are bits of the
//! whole word. Shifting the operation out first, as some programs do, makes FUA invisible.
//!
//! The answer is a number of bytes for reads and writes. A short write of 0 bytes would be sent again
//! for ever and a short read of 0 bytes is an I/O error, so that there is all or an errno here, and
//! nothing between. `-EAGAIN` is never an answer, and `-ENODEV` means that the driver is going.

use pool::{ErrorKind, Zeroing};

/// Bytes in a sector, the driver's unit.
pub(crate) const SECTOR_SIZE: u64 = 512;

/// The operations, in the lowest eight bits.
mod operation {
    pub(crate) const MASK: u32 = 0xff;
    pub(crate) const READ: u32 = 0;
    pub(crate) const WRITE: u32 = 1;
    pub(crate) const FLUSH: u32 = 2;
    pub(crate) const DISCARD: u32 = 3;
    pub(crate) const WRITE_ZEROES: u32 = 5;
}

/// Write through the cache.
const FLAG_FUA: u32 = 1 << 13;
/// Keep what is zeroed allocated.
const FLAG_NO_UNMAP: u32 = 1 << 15;

mod errno {
    pub(crate) const IO: i32 = 5;
    pub(crate) const BUSY: i32 = 16;
    pub(crate) const INVALID: i32 = 22;
    pub(crate) const NO_SPACE: i32 = 28;
    pub(crate) const ILLEGAL_SEQUENCE: i32 = 84;
    pub(crate) const NOT_SUPPORTED: i32 = 95;
}

/// A request as the driver describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Descriptor {
    pub(crate) op_flags: u32,
    pub(crate) sectors: u32,
    pub(crate) start_sector: u64,
}

/// A request that can be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Request {
    Read {
        offset: u64,
        len: usize,
    },
    Write {
        offset: u64,
        len: usize,
        durable: bool,
    },
    Flush,
    Discard {
        offset: u64,
        len: u64,
        durable: bool,
    },
    WriteZeroes {
        offset: u64,
        len: u64,
        zeroing: Zeroing,
        durable: bool,
    },
}

impl Request {
    /// What a descriptor asks for, given how much a buffer holds; else the errno to answer.
    pub(crate) fn decode(descriptor: Descriptor, buffer_len: usize) -> Result<Self, i32> {
        // A flush has no range, and its start means nothing: the kernel sends the highest number.
        if descriptor.op_flags & operation::MASK == operation::FLUSH {
            return Ok(Request::Flush);
        }
        let len = u64::from(descriptor.sectors) * SECTOR_SIZE;
        let offset = descriptor
            .start_sector
            .checked_mul(SECTOR_SIZE)
            .ok_or(-errno::INVALID)?;
        let durable = descriptor.op_flags & FLAG_FUA != 0;
        let in_buffer = || {
            let len = usize::try_from(len).map_err(|_| -errno::INVALID)?;
            if len <= buffer_len {
                Ok(len)
            } else {
                Err(-errno::INVALID)
            }
        };
        match descriptor.op_flags & operation::MASK {
            operation::READ => Ok(Request::Read {
                offset,
                len: in_buffer()?,
            }),
            operation::WRITE => Ok(Request::Write {
                offset,
                len: in_buffer()?,
                durable,
            }),
            operation::DISCARD => Ok(Request::Discard {
                offset,
                len,
                durable,
            }),
            operation::WRITE_ZEROES => {
                let zeroing = if descriptor.op_flags & FLAG_NO_UNMAP == 0 {
                    Zeroing::MayUnmap
                } else {
                    Zeroing::KeepMapped
                };
                Ok(Request::WriteZeroes {
                    offset,
                    len,
                    zeroing,
                    durable,
                })
            }
            _ => Err(-errno::NOT_SUPPORTED),
        }
    }

    /// The answer to a request that was carried out.
    pub(crate) fn success(&self) -> i32 {
        match self {
            // A buffer's length always fits.
            Request::Read { len, .. } | Request::Write { len, .. } => {
                i32::try_from(*len).unwrap_or(-errno::INVALID)
            }
            Request::Flush | Request::Discard { .. } | Request::WriteZeroes { .. } => 0,
        }
    }
}

/// The answer to a request that failed. Only errnos the block layer has a word of its own for; it
/// makes an I/O error of every other.
pub(crate) fn failure(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Invalid => -errno::INVALID,
        ErrorKind::NoSpace => -errno::NO_SPACE,
        ErrorKind::NotSupported => -errno::NOT_SUPPORTED,
        ErrorKind::Busy => -errno::BUSY,
        // The block layer's word for contents that are not what was written.
        ErrorKind::Damaged => -errno::ILLEGAL_SEQUENCE,
        _ => -errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: usize = 512 * 1024;

    fn decode(op_flags: u32, sectors: u32, start_sector: u64) -> Result<Request, i32> {
        let descriptor = Descriptor {
            op_flags,
            sectors,
            start_sector,
        };
        Request::decode(descriptor, BUFFER)
    }

    /// Words as the kernel was seen to send them.
    #[test]
    fn flags_are_bits_of_the_whole_word() {
        let write = |durable| Request::Write {
            offset: 4096,
            len: 4096,
            durable,
        };
        assert_eq!(decode(0x1, 8, 8), Ok(write(false)));
        assert_eq!(decode(0x2001, 8, 8), Ok(write(true)));
        let zeroes = |zeroing| Request::WriteZeroes {
            offset: 0,
            len: 65_536,
            zeroing,
            durable: false,
        };
        assert_eq!(decode(0x8005, 128, 0), Ok(zeroes(Zeroing::KeepMapped)));
        assert_eq!(decode(0x5, 128, 0), Ok(zeroes(Zeroing::MayUnmap)));
        // Readahead, with its fail-fast bits.
        let read = Request::Read {
            offset: 0,
            len: 4096,
        };
        assert_eq!(decode(0x700, 8, 0), Ok(read));
        assert_eq!(decode(0x2, 0, u64::MAX), Ok(Request::Flush));
        assert_eq!(decode(0x4_0002, 0, 0), Ok(Request::Flush));
    }

    #[test]
    fn a_discard_may_be_four_gigabytes() {
        let discard = Request::Discard {
            offset: 4096,
            len: (u64::from(u32::MAX) / 512) * 512,
            durable: false,
        };
        assert_eq!(decode(0x3, u32::MAX >> 9, 8), Ok(discard));
        assert!(decode(0x3, u32::MAX, 0).is_ok());
    }

    #[test]
    fn what_the_driver_should_never_send_is_refused() {
        assert_eq!(decode(0x0, 1025, 0), Err(-22), "beyond the buffer");
        assert_eq!(decode(0x1, u32::MAX, 0), Err(-22));
        assert_eq!(decode(0x1, 8, u64::MAX), Err(-22), "offset overflows");
        assert_eq!(decode(0x4, 8, 0), Err(-95));
        assert_eq!(decode(0xff, 8, 0), Err(-95));
    }

    #[test]
    fn answers_are_all_or_an_errno() {
        assert_eq!(decode(0x0, 1024, 0).unwrap().success(), 524_288);
        assert_eq!(decode(0x1, 1, 0).unwrap().success(), 512);
        assert_eq!(decode(0x5, 128, 0).unwrap().success(), 0);
        assert_eq!(decode(0x2, 0, 0).unwrap().success(), 0);
        let forbidden = [-11, -19];
        for kind in [
            ErrorKind::Invalid,
            ErrorKind::NotFound,
            ErrorKind::Exists,
            ErrorKind::Busy,
            ErrorKind::ReadOnly,
            ErrorKind::NoSpace,
            ErrorKind::NotSupported,
            ErrorKind::Damaged,
            ErrorKind::Io,
        ] {
            let answer = failure(kind);
            assert!(answer < 0 && !forbidden.contains(&answer), "{kind:?}");
        }
        assert_eq!(failure(ErrorKind::NoSpace), -28);
    }
}
