//! The servers that measure the machine: all waiting requests are taken with one receive, served
//! on the connection's thread, and answered with one send. The limit server reads and writes one
//! file: the least that any server with storage can do. The null server has none, and shows
//! what sockets and generator can do.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;

use rustix::fs::Advice;

use crate::handshake::negotiate;
use crate::options::Server;
use crate::wire::{
    CHUNK_DATA, DISCONNECT, DONE, FLUSH, READ, REQUEST, REQUEST_LENGTH, SIMPLE_REPLY,
    STRUCTURED_REPLY, WRITE, confused, u16_at, u32_at, u64_at,
};

const RECEIVE_BYTES: usize = 1 << 20;
const REQUEST_BYTES_MAX: u32 = 1 << 25;
/// So many bytes of replies are not kept from a client for requests that are still to be served.
const SEND_BYTES: usize = 256 << 10;
const INVALID: u32 = 22;

/// Serves until killed.
pub fn run(options: &Server) -> Result<()> {
    let store = Arc::new(Store::open(options)?);
    let listener = UnixListener::bind(&options.socket)?;
    println!("ready");
    for stream in listener.incoming() {
        let (stream, store) = (stream?, Arc::clone(&store));
        thread::spawn(move || match serve(stream, &store) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => {
                eprintln!("nbd-load: server: {error}");
            }
            _ => {}
        });
    }
    Ok(())
}

/// What is served.
struct Store {
    size: u64,
    file: Option<File>,
}

impl Store {
    fn open(options: &Server) -> Result<Store> {
        let Some(path) = &options.file else {
            return Ok(Store {
                size: options.size,
                file: None,
            });
        };
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // Readahead would fill the page cache with large folios, in which small writes are slow.
        rustix::fs::fadvise(&file, 0, None, Advice::Random)?;
        Ok(Store {
            size: file.metadata()?.len(),
            file: Some(file),
        })
    }

    /// Fills `data`; without a file it stays as it is.
    fn read(&self, data: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .as_ref()
            .map_or(Ok(()), |file| file.read_exact_at(data, offset))
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        self.file
            .as_ref()
            .map_or(Ok(()), |file| file.write_all_at(data, offset))
    }

    fn flush(&self) -> Result<()> {
        self.file.as_ref().map_or(Ok(()), File::sync_data)
    }
}

fn serve(mut stream: UnixStream, store: &Store) -> Result<()> {
    let mut replies = Replies {
        structured: negotiate(&mut stream, store.size)?,
        bytes: Vec::new(),
        filled: 0,
    };
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut filled = 0;
    loop {
        let count = stream.read(&mut buffer[filled..])?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
        let mut at = 0;
        while let Some(request) = Request::parse(&buffer[at..filled])? {
            if request.command == DISCONNECT {
                return Ok(());
            }
            at += request.bytes();
            replies.serve(&request, store)?;
            if replies.filled >= SEND_BYTES {
                replies.send(&mut stream)?;
            }
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        if filled == buffer.len() {
            buffer.resize(REQUEST_LENGTH + REQUEST_BYTES_MAX as usize, 0);
        }
        replies.send(&mut stream)?;
    }
}

/// A request that was received whole.
struct Request<'a> {
    command: u16,
    cookie: &'a [u8],
    offset: u64,
    length: u32,
    data: &'a [u8],
}

impl Request<'_> {
    /// The request at the start of `bytes`, unless some of it is still to come.
    fn parse(bytes: &[u8]) -> Result<Option<Request<'_>>> {
        let Some((head, rest)) = bytes.split_at_checked(REQUEST_LENGTH) else {
            return Ok(None);
        };
        let (command, length) = (u16_at(head, 6), u32_at(head, 24));
        if u32_at(head, 0) != REQUEST || length > REQUEST_BYTES_MAX {
            return Err(confused("bad request"));
        }
        let data_bytes = if command == WRITE { length as usize } else { 0 };
        Ok(rest.get(..data_bytes).map(|data| Request {
            command,
            cookie: &head[8..16],
            offset: u64_at(head, 16),
            length,
            data,
        }))
    }

    fn bytes(&self) -> usize {
        REQUEST_LENGTH + self.data.len()
    }
}

/// Replies that wait to be sent. The bytes behind `filled` are left from earlier ones, so that
/// making room costs nothing.
struct Replies {
    structured: bool,
    bytes: Vec<u8>,
    filled: usize,
}

impl Replies {
    /// Does what is asked and appends the answer.
    fn serve(&mut self, request: &Request<'_>, store: &Store) -> Result<()> {
        let end = request.offset.checked_add(u64::from(request.length));
        if end.is_none_or(|end| end > store.size) {
            self.simple(request, INVALID);
            return Ok(());
        }
        match request.command {
            READ => self.read(request, store)?,
            WRITE => {
                store.write(request.data, request.offset)?;
                self.simple(request, 0);
            }
            FLUSH => {
                store.flush()?;
                self.simple(request, 0);
            }
            _ => self.simple(request, INVALID),
        }
        Ok(())
    }

    fn read(&mut self, request: &Request<'_>, store: &Store) -> Result<()> {
        if self.structured {
            self.append(&STRUCTURED_REPLY.to_be_bytes());
            self.append(&DONE.to_be_bytes());
            self.append(&CHUNK_DATA.to_be_bytes());
            self.append(request.cookie);
            self.append(&(request.length + 8).to_be_bytes());
            self.append(&request.offset.to_be_bytes());
        } else {
            self.simple(request, 0);
        }
        let data = self.room(request.length as usize);
        store.read(data, request.offset)
    }

    fn simple(&mut self, request: &Request<'_>, error: u32) {
        self.append(&SIMPLE_REPLY.to_be_bytes());
        self.append(&error.to_be_bytes());
        self.append(request.cookie);
    }

    fn append(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    fn room(&mut self, length: usize) -> &mut [u8] {
        let at = self.filled;
        self.filled += length;
        if self.bytes.len() < self.filled {
            self.bytes.resize(self.filled, 0);
        }
        &mut self.bytes[at..self.filled]
    }

    fn send(&mut self, stream: &mut UnixStream) -> Result<()> {
        stream.write_all(&self.bytes[..self.filled])?;
        self.filled = 0;
        Ok(())
    }
}
