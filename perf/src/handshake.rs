//! The server's half of the option phase: one export, whatever name is asked for.

use std::io::{Read, Result, Write};
use std::os::unix::net::UnixStream;

use crate::wire::{
    ACK, GREETING, INFO, OPT_GO, OPT_STRUCTURED, OPTION, OPTION_REPLY, confused, u32_at, u64_at,
};

const UNSUPPORTED: u32 = 0x8000_0001;
// Flags are there, and flush is served.
const TRANSMISSION_FLAGS: u16 = 0x0005;

/// Negotiates; returns whether structured replies were asked for.
pub fn negotiate(stream: &mut UnixStream, size: u64) -> Result<bool> {
    stream.write_all(&GREETING.to_be_bytes())?;
    stream.write_all(&OPTION.to_be_bytes())?;
    stream.write_all(&3u16.to_be_bytes())?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let mut structured = false;
    loop {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let (option, length) = (u32_at(&head, 8), u32_at(&head, 12));
        if u64_at(&head, 0) != OPTION || length > 1 << 16 {
            return Err(confused("malformed option"));
        }
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload)?;
        match option {
            OPT_STRUCTURED => {
                structured = true;
                reply(stream, option, ACK, &[])?;
            }
            OPT_GO => {
                let mut facts = vec![0, 0];
                facts.extend_from_slice(&size.to_be_bytes());
                facts.extend_from_slice(&TRANSMISSION_FLAGS.to_be_bytes());
                reply(stream, option, INFO, &facts)?;
                reply(stream, option, ACK, &[])?;
                return Ok(structured);
            }
            _ => reply(stream, option, UNSUPPORTED, &[])?,
        }
    }
}

fn reply(stream: &mut UnixStream, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len()).map_err(|_| confused("reply too long"))?;
    let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
    bytes.extend_from_slice(&option.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    stream.write_all(&bytes)
}
