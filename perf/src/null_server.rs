//! The server that does nothing: one export of zeroes, every request answered at once, all
//! waiting requests taken with one receive and answered with one send. What it reaches is the
//! most that any server can be measured at.

use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use crate::options::NullServer;
use crate::wire::{
    ACK, CHUNK_DATA, DISCONNECT, DONE, GREETING, INFO, OPT_GO, OPT_STRUCTURED, OPTION,
    OPTION_REPLY, READ, REQUEST, REQUEST_LENGTH, SIMPLE_REPLY, STRUCTURED_REPLY, WRITE, confused,
    u16_at, u32_at, u64_at,
};

const RECEIVE_BYTES: usize = 1 << 20;
const UNSUPPORTED: u32 = 0x8000_0001;
const TRANSMISSION_FLAGS: u16 = 0x0105;

/// Serves until killed.
pub fn run(options: &NullServer) -> Result<()> {
    let listener = UnixListener::bind(&options.socket)?;
    println!("ready");
    for stream in listener.incoming() {
        let (stream, size) = (stream?, options.size);
        thread::spawn(move || match serve(stream, size) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                eprintln!("nbd-load: null-server: {error}");
            }
            _ => {}
        });
    }
    Ok(())
}

fn serve(mut stream: UnixStream, size: u64) -> Result<()> {
    let structured = negotiate(&mut stream, size)?;
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut out = Vec::with_capacity(RECEIVE_BYTES);
    let (mut filled, mut skip) = (0, 0);
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let mut at = 0;
        while at < filled {
            let skipped = usize::min(skip, filled - at);
            at += skipped;
            skip -= skipped;
            let request = &buffer[at..filled];
            if skip > 0 || request.len() < REQUEST_LENGTH {
                break;
            }
            if u32_at(request, 0) != REQUEST {
                return Err(confused("bad request magic"));
            }
            let (command, length) = (u16_at(request, 6), u32_at(request, 24));
            if command == DISCONNECT {
                return Ok(());
            }
            skip = if command == WRITE { length as usize } else { 0 };
            answer(&mut out, structured, request);
            at += REQUEST_LENGTH;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        stream.write_all(&out)?;
        out.clear();
    }
}

/// Appends the reply; the data of a read is zeroes.
fn answer(out: &mut Vec<u8>, structured: bool, request: &[u8]) {
    let (command, length) = (u16_at(request, 6), u32_at(request, 24));
    let cookie = &request[8..16];
    let read_bytes = if command == READ { length } else { 0 };
    if structured && command == READ {
        out.extend_from_slice(&STRUCTURED_REPLY.to_be_bytes());
        out.extend_from_slice(&DONE.to_be_bytes());
        out.extend_from_slice(&CHUNK_DATA.to_be_bytes());
        out.extend_from_slice(cookie);
        out.extend_from_slice(&(length.saturating_add(8)).to_be_bytes());
        out.extend_from_slice(&request[16..24]);
    } else {
        out.extend_from_slice(&SIMPLE_REPLY.to_be_bytes());
        out.extend_from_slice(&0u32.to_be_bytes());
        out.extend_from_slice(cookie);
    }
    out.resize(out.len() + read_bytes as usize, 0);
}

/// The option phase; returns whether structured replies were asked for.
fn negotiate(stream: &mut UnixStream, size: u64) -> Result<bool> {
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
