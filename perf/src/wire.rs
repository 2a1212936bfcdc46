//! The few NBD bytes a load generator says and hears.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Before the first option, from the server.
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Before each option.
pub const OPTION: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST: u32 = 0x2560_9513;
/// Before each simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Set on the last chunk of a reply.
pub const DONE: u16 = 1;
/// From here on chunk types are errors.
pub const CHUNK_ERRORS: u16 = 0x8000;
/// A chunk of data.
pub const CHUNK_DATA: u16 = 1;
/// Selects an export and begins transmission.
pub const OPT_GO: u32 = 7;
/// Asks for structured replies.
pub const OPT_STRUCTURED: u32 = 8;
/// The end of the replies to an option.
pub const ACK: u32 = 1;
/// A fact about an export.
pub const INFO: u32 = 3;
/// A read request.
pub const READ: u16 = 0;
/// A write request.
pub const WRITE: u16 = 1;
/// The end of a connection.
pub const DISCONNECT: u16 = 2;
/// A request to make durable what completed.
pub const FLUSH: u16 = 3;
/// Bytes of a request without its data.
pub const REQUEST_LENGTH: usize = 28;

/// The server said something else than the protocol does.
pub fn confused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, what.into())
}

/// Connects, negotiates, and returns the stream in transmission with the export's size.
pub fn connect(socket: &Path, export: &str, structured: bool) -> Result<(UnixStream, u64)> {
    let mut stream = UnixStream::connect(socket)?;
    let greeting: [u8; 18] = take(&mut stream)?;
    if u64_at(&greeting, 0) != GREETING || u64_at(&greeting, 8) != OPTION {
        return Err(confused("no fixed newstyle NBD server"));
    }
    stream.write_all(&3u32.to_be_bytes())?;
    if structured {
        send_option(&mut stream, OPT_STRUCTURED, &[])?;
        option_replies(&mut stream, OPT_STRUCTURED)?;
    }
    let length = u32::try_from(export.len()).map_err(|_| confused("export name too long"))?;
    let mut payload = length.to_be_bytes().to_vec();
    payload.extend_from_slice(export.as_bytes());
    payload.extend_from_slice(&[0, 0]);
    send_option(&mut stream, OPT_GO, &payload)?;
    let size = option_replies(&mut stream, OPT_GO)?.ok_or_else(|| confused("GO told no size"))?;
    Ok((stream, size))
}

fn send_option(stream: &mut UnixStream, option: u32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| confused("option too long"))?;
    let mut bytes = OPTION.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes)
}

/// Takes replies up to the `ACK`; returns the export's size when it was told.
fn option_replies(stream: &mut UnixStream, option: u32) -> Result<Option<u64>> {
    let mut size = None;
    loop {
        let head: [u8; 20] = take(stream)?;
        let (kind, length) = (u32_at(&head, 12), u32_at(&head, 16));
        if u64_at(&head, 0) != OPTION_REPLY || u32_at(&head, 8) != option || length > 1 << 17 {
            return Err(confused("malformed reply to an option"));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match kind {
            ACK => return Ok(size),
            INFO if payload.len() == 12 && payload[..2] == [0, 0] => {
                size = Some(u64_at(&payload, 2));
            }
            INFO => {}
            _ => return Err(confused(format!("option {option} was answered {kind:#x}"))),
        }
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Appends a request header.
pub fn push_request(out: &mut Vec<u8>, command: u16, cookie: u64, offset: u64, length: u32) {
    out.extend_from_slice(&REQUEST.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&command.to_be_bytes());
    out.extend_from_slice(&cookie.to_be_bytes());
    out.extend_from_slice(&offset.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

/// A big-endian number at `at`; the caller has checked that it lies within.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array_at(bytes, at))
}

/// As `u16_at`.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array_at(bytes, at))
}

/// As `u16_at`.
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
