//! The bytes of the NBD protocol: numbers, and how headers are read and written. No I/O, no state.
//!
//! All integers are big-endian. Nothing here trusts a length: decoders take arrays of fixed size, and
//! encoders take what the server itself made.

/// The server's first word.
pub(crate) const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Begins the server's second word and every option of the client.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same bits in both directions.
pub(crate) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1;
    pub(crate) const NO_ZEROES: u16 = 2;
}

/// What clients ask for before they use an export.
pub(crate) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Types of option replies.
pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub(crate) const ERR_UNSUP: u32 = ERROR | 1;
    pub(crate) const ERR_POLICY: u32 = ERROR | 2;
    pub(crate) const ERR_INVALID: u32 = ERROR | 3;
    pub(crate) const ERR_TLS_REQD: u32 = ERROR | 5;
    pub(crate) const ERR_UNKNOWN: u32 = ERROR | 6;
    pub(crate) const ERR_SHUTDOWN: u32 = ERROR | 7;
    pub(crate) const ERR_TOO_BIG: u32 = ERROR | 9;
}

/// Pieces of information about an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub(crate) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Types of request.
pub(crate) mod command {
    pub(crate) const READ: u16 = 0;
    pub(crate) const WRITE: u16 = 1;
    pub(crate) const DISCONNECT: u16 = 2;
    pub(crate) const FLUSH: u16 = 3;
    pub(crate) const TRIM: u16 = 4;
    pub(crate) const CACHE: u16 = 5;
    pub(crate) const WRITE_ZEROES: u16 = 6;
    pub(crate) const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_OFFSET_HOLE: u16 = 2;
const CHUNK_BLOCK_STATUS: u16 = 5;
const CHUNK_ERROR: u16 = (1 << 15) | 1;

/// Length of a request's header.
pub(crate) const REQUEST_LEN: usize = 28;
/// Length of a simple reply's header, which is all of it unless it answers a read.
pub(crate) const SIMPLE_REPLY_LEN: usize = 16;
/// Length of a chunk's header.
const CHUNK_HEADER_LEN: usize = 20;
/// Length of what comes before the data in a chunk of data.
pub(crate) const DATA_HEADER_LEN: usize = CHUNK_HEADER_LEN + 8;
/// Length of a chunk that stands for a hole of any size.
pub(crate) const HOLE_CHUNK_LEN: usize = CHUNK_HEADER_LEN + 12;
/// Length of an option's header.
pub(crate) const OPTION_HEADER_LEN: usize = 16;

/// Messages in replies are cut off here; the protocol asks for at most 4096.
const MESSAGE_LEN_MAX: usize = 1024;

/// The errors a reply may carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Errno {
    Permission = 1,
    Io = 5,
    Invalid = 22,
    NoSpace = 28,
    Overflow = 75,
    NotSupported = 95,
    Shutdown = 108,
}

impl Errno {
    pub(crate) fn number(self) -> u32 {
        self as u32
    }
}

/// A request, without the payload of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    /// The client's own mark, sent back unchanged.
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Request {
    /// None when the magic is wrong: the stream is lost.
    pub(crate) fn decode(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        let (flags, command) = (reader.u16()?, reader.u16()?);
        let (cookie, offset, len) = (reader.u64()?, reader.u64()?, reader.u32()?);
        debug_assert!(reader.is_empty());
        (magic == REQUEST_MAGIC).then_some(Request {
            flags,
            command,
            cookie,
            offset,
            len,
        })
    }
}

/// Takes big-endian integers and strings off the front of untrusted bytes. None when too few are
/// left.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// How many bytes are left.
    pub(crate) fn len(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Bytes behind a 32-bit length.
    pub(crate) fn counted(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.bytes(len)
    }
}

/// The length of something that is known to be shorter than 4 GiB.
fn len32(len: usize) -> u32 {
    u32::try_from(len).unwrap_or_else(|_| unreachable!("{len} bytes in one reply"))
}

/// Appends an option reply.
pub(crate) fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&len32(len).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Joins arrays into an array of known length.
fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    let mut rest = &mut out[..];
    for part in parts {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    debug_assert!(rest.is_empty());
    out
}

/// A simple reply's header.
pub(crate) fn simple_reply(cookie: u64, error: u32) -> [u8; SIMPLE_REPLY_LEN] {
    join(&[
        &SIMPLE_REPLY_MAGIC.to_be_bytes(),
        &error.to_be_bytes(),
        &cookie.to_be_bytes(),
    ])
}

fn chunk_header(cookie: u64, kind: u16, done: bool, len: usize) -> [u8; CHUNK_HEADER_LEN] {
    let flags = if done { CHUNK_DONE } else { 0 };
    join(&[
        &CHUNK_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
        &kind.to_be_bytes(),
        &cookie.to_be_bytes(),
        &len32(len).to_be_bytes(),
    ])
}

/// A chunk that only ends a reply.
pub(crate) fn none_chunk(cookie: u64) -> Vec<u8> {
    chunk_header(cookie, CHUNK_NONE, true, 0).to_vec()
}

/// What comes before `len` bytes of data.
pub(crate) fn data_header(
    cookie: u64,
    offset: u64,
    len: usize,
    done: bool,
) -> [u8; DATA_HEADER_LEN] {
    join(&[
        &chunk_header(cookie, CHUNK_OFFSET_DATA, done, 8 + len),
        &offset.to_be_bytes(),
    ])
}

/// A hole.
pub(crate) fn hole_chunk(cookie: u64, offset: u64, len: usize, done: bool) -> [u8; HOLE_CHUNK_LEN] {
    join(&[
        &chunk_header(cookie, CHUNK_OFFSET_HOLE, done, 12),
        &offset.to_be_bytes(),
        &len32(len).to_be_bytes(),
    ])
}

/// An error that ends a reply.
pub(crate) fn error_chunk(cookie: u64, errno: Errno, message: &str) -> Vec<u8> {
    let message = &message.as_bytes()[..message.floor_char_boundary(MESSAGE_LEN_MAX)];
    let len = u16::try_from(message.len()).unwrap_or_else(|_| unreachable!("it was cut off"));
    [
        &chunk_header(cookie, CHUNK_ERROR, true, 6 + message.len())[..],
        &errno.number().to_be_bytes(),
        &len.to_be_bytes(),
        message,
    ]
    .concat()
}

/// Appends the extents of one context: lengths and flags.
pub(crate) fn put_block_status(
    out: &mut Vec<u8>,
    cookie: u64,
    context: u32,
    extents: &[(u32, u32)],
    done: bool,
) {
    let header = chunk_header(cookie, CHUNK_BLOCK_STATUS, done, 4 + extents.len() * 8);
    out.extend_from_slice(&header);
    out.extend_from_slice(&context.to_be_bytes());
    for (len, flags) in extents {
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_decoded() {
        let bytes: [u8; REQUEST_LEN] = join(&[
            &[0x25, 0x60, 0x95, 0x13, 0, 1, 0, 6],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            &[0, 0, 0, 1, 0, 0, 0, 2],
            &[0xff, 0xff, 0xff, 0xfe],
        ]);
        let expected = Request {
            flags: command_flag::FUA,
            command: command::WRITE_ZEROES,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1_0000_0002,
            len: 0xffff_fffe,
        };
        assert_eq!(Request::decode(&bytes), Some(expected));
        for at in 0..4 {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert_eq!(Request::decode(&bad), None, "magic is wrong at {at}");
        }
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let cookie = 0x1122_3344_5566_7788;
        assert_eq!(
            simple_reply(cookie, 28),
            [
                0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88
            ]
        );
        let data = data_header(cookie, 512, 4096, true);
        assert_eq!(data[..8], [0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1]);
        assert_eq!(data[16..], [0, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 2, 0]);
        let hole = hole_chunk(cookie, 512, 1 << 20, false);
        assert_eq!(hole[4..8], [0, 0, 0, 2]);
        assert_eq!(
            hole[16..],
            [0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0x10, 0, 0]
        );
        let error = error_chunk(cookie, Errno::Io, "no");
        assert_eq!(error[4..8], [0, 1, 0x80, 1]);
        assert_eq!(error[16..], [0, 0, 0, 8, 0, 0, 0, 5, 0, 2, b'n', b'o']);
        assert_eq!(none_chunk(cookie)[4..8], [0, 1, 0, 0]);
        let mut status = Vec::new();
        put_block_status(&mut status, cookie, 7, &[(65536, 3)], true);
        assert_eq!(status[4..8], [0, 1, 0, 5]);
        assert_eq!(
            status[16..],
            [0, 0, 0, 12, 0, 0, 0, 7, 0, 1, 0, 0, 0, 0, 0, 3]
        );
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let chunk = error_chunk(0, Errno::Io, &"é".repeat(2000));
        assert!(chunk.len() <= CHUNK_HEADER_LEN + 6 + MESSAGE_LEN_MAX);
        assert!(std::str::from_utf8(&chunk[CHUNK_HEADER_LEN + 6..]).is_ok());
    }

    #[test]
    fn a_reader_never_goes_beyond_the_end() {
        let mut reader = Reader::new(&[0, 0, 0, 9, 1]);
        assert_eq!(reader.counted(), None);
        let mut reader = Reader::new(&[0xff; 7]);
        assert_eq!(reader.u64(), None);
        assert_eq!(reader.counted(), None);
        assert_eq!(reader.len(), 3);
    }
}
