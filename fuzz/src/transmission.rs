//! An NBD client that uses an export: requests one after another, compared with a model, then raw bytes.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use nbd_server::{Config, Exports, Limits, Listen, Server, TcpClients};
use parking_lot::Mutex;
use pool::{Pool, ThinDevice};
use reactor::block_on;
use tempfile::TempDir;

use crate::config::scratch;
use crate::machine::{Host, Machine};
use crate::pools::{self, BLOCK_BYTES, name, new};

const SIZE: u64 = 4 * BLOCK_BYTES;
const BLOCK: usize = 65_536;
/// Bytes of input that make a request.
const REQUEST_LEN: usize = 10;
/// More requests take long and show nothing new.
const REQUESTS_MAX: usize = 64;
/// Raw bytes that fit a socket's buffer, whatever the server does.
const RAW_MAX: usize = 16 * 1024;

const READ: u16 = 0;
const WRITE: u16 = 1;
const TRIM: u16 = 4;
const WRITE_ZEROES: u16 = 6;
/// All but the one that disconnects, and one that there is not.
const COMMANDS: [u16; 8] = [READ, WRITE, 3, TRIM, 5, WRITE_ZEROES, 7, 8];

const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;
const DONE: u16 = 1;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const ERROR: u16 = 1 << 15;

/// One export, of the pool of the current input.
struct Export(Arc<Mutex<Option<ThinDevice<Host>>>>);

impl Exports for Export {
    type Host = Host;

    fn list(&self) -> Vec<String> {
        vec!["prod".to_owned()]
    }

    fn open(&self, _name: &str) -> Result<Option<ThinDevice<Host>>, pool::Error> {
        Ok(self.0.lock().clone())
    }
}

/// A server that lasts as long as the process.
struct Served {
    path: PathBuf,
    device: Arc<Mutex<Option<ThinDevice<Host>>>>,
    _server: Server,
    _scratch: TempDir,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let scratch = scratch();
        let path = scratch.path().join("socket");
        let config = Config {
            listen: Listen::Unix(path.clone()),
            tcp_clients: TcpClients::Local,
            limits: Limits::default(),
        };
        let device = Arc::default();
        let server = Server::start(config, Export(Arc::clone(&device))).unwrap();
        Served {
            path,
            device,
            _server: server,
            _scratch: scratch,
        }
    })
}

/// A pool with a volume of whose data the store has something else.
fn fresh_pool() -> Arc<Pool<Host>> {
    let machine = Machine::new(pools::all()[0].contents.clone());
    let pool = machine.open().unwrap();
    block_on(pool.create_volume(new("prod"), SIZE, None)).unwrap();
    pool
}

pub fn run(input: &[u8]) {
    let Some((mode, mut rest)) = input.split_first() else {
        return;
    };
    let pool = fresh_pool();
    *served().device.lock() = Some(pool.open_device(&name("prod")).unwrap());
    let stream = UnixStream::connect(&served().path).unwrap();
    let mut client = Client {
        stream,
        contents: vec![0; usize::try_from(SIZE).unwrap()],
    };
    client.shake_hands(mode & 1 == 0).expect("the handshake");
    for _ in 0..usize::from(mode >> 1) % REQUESTS_MAX {
        let Some((request, next)) = rest.split_first_chunk() else {
            break;
        };
        client.ask(request).expect("a request that is well formed");
        rest = next;
    }
    // What is no request, or half of one, ends the connection, and nothing else.
    let raw = &rest[..rest.len().min(RAW_MAX)];
    let told = client.stream.write_all(raw);
    let _gone = told.and_then(|()| client.stream.shutdown(Shutdown::Write));
    let _drained = io::copy(&mut client.stream, &mut io::sink());
    *served().device.lock() = None;
    if raw.is_empty() {
        let mut found = vec![0; client.contents.len()];
        let device = pool.open_device(&name("prod")).unwrap();
        block_on(device.read(0, &mut found)).unwrap();
        assert!(
            found == client.contents,
            "the volume is not what was written"
        );
    }
}

/// A client that knows what it must read.
struct Client {
    stream: UnixStream,
    contents: Vec<u8>,
}

/// A request that is well formed; what it asks for need not make sense.
struct Request {
    flags: u16,
    command: u16,
    offset: u64,
    len: u32,
    fill: u8,
}

impl Request {
    /// The offset and the length lie within the volume more often than not.
    fn decode(bytes: &[u8; REQUEST_LEN]) -> Self {
        let offset = u64::from(u32::from_le_bytes([bytes[2], bytes[3], bytes[4], 0]));
        let len = u32::from_le_bytes([bytes[5], bytes[6], bytes[7], 0]);
        let is_extreme = bytes[8] & 0xc0 == 0xc0;
        let command = COMMANDS[usize::from(bytes[0]) % COMMANDS.len()];
        // Those that no command knows come now and then.
        let flags = if bytes[1] & 0xe0 == 0xe0 {
            bytes[1]
        } else {
            bytes[1] & 0x1f
        };
        // What is not believed of a write is its payload, too: it must come.
        let is_long = is_extreme && command != WRITE;
        Request {
            flags: flags.into(),
            command,
            offset: if is_extreme {
                u64::MAX - offset
            } else {
                offset % (SIZE + 4096)
            },
            len: if is_long {
                u32::MAX - len
            } else {
                len % (1 << 17)
            },
            fill: bytes[9],
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.command.to_be_bytes());
        bytes.extend_from_slice(&COOKIE.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.len.to_be_bytes());
        if self.command == WRITE {
            bytes.resize(bytes.len() + self.len as usize, self.fill);
        }
        bytes
    }

    fn range(&self) -> std::ops::Range<usize> {
        let begin = usize::try_from(self.offset).unwrap();
        begin..begin + self.len as usize
    }
}

const COOKIE: u64 = 0x0123_4567_89ab_cdef;

impl Client {
    fn shake_hands(&mut self, structured: bool) -> io::Result<()> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        self.stream.write_all(&3_u32.to_be_bytes())?;
        if structured {
            self.option(8, &[])?;
            let mut contexts = b"\0\0\0\x04prod\0\0\0\x02".to_vec();
            for context in ["base:allocation", "qemu:allocation-depth"] {
                let len = u32::try_from(context.len()).unwrap();
                contexts.extend_from_slice(&len.to_be_bytes());
                contexts.extend_from_slice(context.as_bytes());
            }
            self.option(10, &contexts)?;
        }
        self.option(7, b"\0\0\0\x04prod\0\0")
    }

    /// Sends an option and waits until it is acknowledged.
    fn option(&mut self, option: u32, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).unwrap();
        let header = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &len.to_be_bytes()];
        self.stream
            .write_all(&[&header.concat(), payload].concat())?;
        loop {
            let _magic = self.number::<8>()?;
            let (_option, kind) = (self.number::<4>()?, self.number::<4>()?);
            let len = self.number::<4>()?;
            self.bytes(len)?;
            assert!(kind >> 31 == 0, "option {option} is refused: {kind:#x}");
            if kind == 1 {
                return Ok(());
            }
        }
    }

    fn number<const LEN: usize>(&mut self) -> io::Result<u64> {
        let mut field = [0; LEN];
        self.stream.read_exact(&mut field)?;
        Ok(field
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn bytes(&mut self, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Sends a request, and fails unless the answer is what the model says.
    fn ask(&mut self, input: &[u8; REQUEST_LEN]) -> io::Result<()> {
        let request = Request::decode(input);
        self.stream.write_all(&request.encode())?;
        let Some(data) = self.answer(&request)? else {
            return Ok(());
        };
        if request.len == 0 && request.command != READ {
            return Ok(());
        }
        match request.command {
            READ => assert!(
                data == self.contents[request.range()],
                "it reads something else"
            ),
            WRITE => self.contents[request.range()].fill(request.fill),
            WRITE_ZEROES => self.contents[request.range()].fill(0),
            TRIM => {
                let range = request.range();
                let blocks = range.start.div_ceil(BLOCK)..range.end / BLOCK;
                for block in blocks {
                    self.contents[block * BLOCK..(block + 1) * BLOCK].fill(0);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The data of an answer, or none if the request was refused.
    fn answer(&mut self, request: &Request) -> io::Result<Option<Vec<u8>>> {
        let mut data = Vec::new();
        let mut covered = 0;
        loop {
            let magic = self.number::<4>()?;
            if magic == u64::from(SIMPLE_REPLY) {
                let errno = self.number::<4>()?;
                assert_eq!(self.number::<8>()?, COOKIE);
                let has_data = errno == 0 && request.command == READ;
                let len = if has_data { request.len.into() } else { 0 };
                let data = self.bytes(len)?;
                return Ok((errno == 0).then_some(data));
            }
            assert_eq!(magic, u64::from(CHUNK), "neither reply nor chunk");
            let flags = u16::try_from(self.number::<2>()?).unwrap();
            let kind = u16::try_from(self.number::<2>()?).unwrap();
            assert_eq!(self.number::<8>()?, COOKIE);
            let len = self.number::<4>()?;
            assert!(len <= 1 << 20, "a chunk of {len} bytes");
            let payload = self.bytes(len)?;
            if kind & ERROR != 0 {
                assert!(flags & DONE != 0, "an error, and more");
                return Ok(None);
            }
            if kind == OFFSET_DATA || kind == OFFSET_HOLE {
                data.resize(request.len as usize, 0);
                covered += place(request, kind, &payload, &mut data);
            }
            if flags & DONE != 0 {
                let expected = if request.command == READ {
                    request.len as usize
                } else {
                    0
                };
                assert_eq!(covered, expected, "bytes in the chunks");
                return Ok(Some(data));
            }
        }
    }
}

/// Puts a chunk of a read where it belongs; says how many bytes it has.
fn place(request: &Request, kind: u16, payload: &[u8], data: &mut [u8]) -> usize {
    let (offset, rest) = payload.split_first_chunk().expect("a chunk has an offset");
    let at = usize::try_from(u64::from_be_bytes(*offset) - request.offset).unwrap();
    if kind == OFFSET_DATA {
        data[at..at + rest.len()].copy_from_slice(rest);
        return rest.len();
    }
    let len = rest.first_chunk().expect("a hole has a length");
    let len = u32::from_be_bytes(*len) as usize;
    assert!(at + len <= data.len(), "a hole beyond the request");
    len
}
