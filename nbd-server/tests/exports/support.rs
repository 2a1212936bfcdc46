//! A pool on temporary files, a server over it, and a client of few words.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metadata_btree::MemStore;
use nbd_server::{Config, Exports, Limits, Listen, Server, TcpClients};
use pool::{
    BlockSize, DeviceName, FileCatalog, Identity, NewDevice, OpenOptions, Pool, Stores, ThinDevice,
};
use reactor::{FileHost, FileLog, block_on};

pub const MIB: u64 = 1024 * 1024;
pub const BLOCK: u64 = 65536;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const METADATA_BLOCKS: u64 = 2048;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const WRITE_ZEROES: u16 = 6;
pub const BLOCK_STATUS: u16 = 7;

pub const FUA: u16 = 1;
pub const NO_HOLE: u16 = 2;
pub const DF: u16 = 4;
pub const FAST_ZERO: u16 = 16;

/// The devices of one pool, by their names.
pub struct PoolExports(pub Arc<Pool<FileHost>>);

impl Exports for PoolExports {
    type Host = FileHost;

    fn list(&self) -> Vec<String> {
        self.0
            .devices()
            .into_iter()
            .map(|device| device.name.to_string())
            .collect()
    }

    fn open(&self, name: &str) -> Result<Option<ThinDevice<FileHost>>, pool::Error> {
        let Ok(name) = name.parse::<DeviceName>() else {
            return Ok(None);
        };
        match self.0.open_device(&name) {
            Ok(device) => Ok(Some(device)),
            Err(pool::Error::NotFound(_)) => Ok(None),
            Err(cause) => Err(cause),
        }
    }
}

/// A served pool with an empty volume `vol`. Fields are dropped in order: clients, server, files.
pub struct Served {
    pub server: Server,
    pub pool: Arc<Pool<FileHost>>,
    pub socket: PathBuf,
    _folder: tempfile::TempDir,
}

pub fn new_device(name: &str) -> NewDevice {
    let identity = Identity {
        uuid: format!("uuid-of-{name}"),
        created: "2020-01-01T00:00:00Z".to_owned(),
    };
    NewDevice {
        name: name.parse().unwrap(),
        identity,
    }
}

/// Serves a new pool whose data store and volume have these sizes.
pub fn serve(data_bytes: u64, volume_bytes: u64, limits: Limits) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::File::create(&data)
        .unwrap()
        .set_len(data_bytes)
        .unwrap();
    let metadata = Arc::new(MemStore::new(METADATA_BLOCKS));
    let (block_size, data_blocks) = (BlockSize::DEFAULT, data_bytes / BLOCK);
    Pool::<FileHost>::format(metadata.clone(), block_size, METADATA_BLOCKS, data_blocks).unwrap();
    let host = Arc::new(FileHost::new());
    let stores = Stores {
        metadata,
        data: host.open_data(&data, false).unwrap(),
        catalog: Box::new(FileCatalog::new(folder.path().join("catalog"))),
        log: Box::new(FileLog::new(folder.path().join("log"), &[]).unwrap()),
        history: Box::new(pool::FileHistory::new(folder.path().join("superblocks"))),
    };
    let pool = Pool::open(host, stores, OpenOptions::default()).unwrap();
    block_on(pool.create_volume(new_device("vol"), volume_bytes, None)).unwrap();
    let socket = folder.path().join("socket");
    let config = Config {
        listen: Listen::Unix(socket.clone()),
        tcp_clients: TcpClients::Local,
        limits,
    };
    let server = Server::start(config, PoolExports(Arc::clone(&pool))).unwrap();
    Served {
        server,
        pool,
        socket,
        _folder: folder,
    }
}

pub struct Client {
    pub stream: UnixStream,
    next_cookie: u64,
}

/// What came back for a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub error: u32,
    /// Bytes of a read, holes as zeros.
    pub data: Vec<u8>,
    /// Chunks of data and of holes.
    pub chunks: (usize, usize),
    /// Context id, and its extents.
    pub extents: Vec<(u32, Vec<(u32, u32)>)>,
}

impl Served {
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        // A server that never answers fails the test instead of hanging it.
        stream.set_read_timeout(Some(ANSWER_TIMEOUT)).unwrap();
        stream
    }

    /// A client with structured replies and both contexts.
    pub fn client(&self, export: &str) -> Client {
        let mut stream = self.connect();
        greet(&mut stream);
        option(&mut stream, 8, &[]);
        assert_eq!(option_replies(&mut stream), [1]);
        let mut query = counted(export.as_bytes());
        query.extend(2u32.to_be_bytes());
        query.extend(counted(b"base:allocation"));
        query.extend(counted(b"qemu:allocation-depth"));
        option(&mut stream, 10, &query);
        assert_eq!(option_replies(&mut stream), [4, 4, 1]);
        go(&mut stream, export);
        Client {
            stream,
            next_cookie: 1,
        }
    }
}

pub fn greet(stream: &mut UnixStream) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    stream.write_all(&3u32.to_be_bytes()).unwrap();
}

fn counted(bytes: &[u8]) -> Vec<u8> {
    [
        &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..],
        bytes,
    ]
    .concat()
}

pub fn option(stream: &mut UnixStream, option: u32, payload: &[u8]) {
    stream
        .write_all(&[b"IHAVEOPT", &option.to_be_bytes()[..], &counted(payload)].concat())
        .unwrap();
}

/// The types of an option's replies, up to the last.
pub fn option_replies(stream: &mut UnixStream) -> Vec<u32> {
    let mut kinds = Vec::new();
    loop {
        let mut header = [0; 20];
        stream.read_exact(&mut header).unwrap();
        let kind = number(&header[12..16]);
        let len = usize::try_from(number(&header[16..])).unwrap();
        stream.read_exact(&mut vec![0; len]).unwrap();
        kinds.push(u32::try_from(kind).unwrap());
        if kind == 1 || kind >= 1 << 31 {
            return kinds;
        }
    }
}

pub fn go(stream: &mut UnixStream, export: &str) {
    option(
        stream,
        7,
        &[&counted(export.as_bytes())[..], &[0, 0]].concat(),
    );
    assert_eq!(option_replies(stream), [3, 3, 1]);
}

pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

pub fn request(flags: u16, command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

impl Client {
    pub fn send(&mut self, flags: u16, command: u16, offset: u64, len: u32, payload: &[u8]) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let bytes = [&request(flags, command, cookie, offset, len)[..], payload].concat();
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Sends a request and takes its answer, which must be the next.
    pub fn call(&mut self, flags: u16, command: u16, offset: u64, len: u64) -> Answer {
        let len = u32::try_from(len).unwrap();
        let cookie = self.send(flags, command, offset, len, &[]);
        self.answer(cookie, offset, if command == READ { len } else { 0 })
    }

    pub fn write(&mut self, flags: u16, offset: u64, payload: &[u8]) -> u32 {
        let len = u32::try_from(payload.len()).unwrap();
        let cookie = self.send(flags, WRITE, offset, len, payload);
        self.answer(cookie, 0, 0).error
    }

    pub fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let answer = self.call(0, READ, offset, len);
        assert_eq!(answer.error, 0);
        answer.data
    }

    /// Flags of the extents of a range in one context, with their lengths.
    pub fn status(&mut self, context: u32, offset: u64, len: u64) -> Vec<(u32, u32)> {
        let answer = self.call(0, BLOCK_STATUS, offset, len);
        assert_eq!(answer.error, 0);
        let found = answer.extents.into_iter().find(|(id, _)| *id == context);
        found.expect("the context was selected").1
    }

    pub fn answer(&mut self, cookie: u64, offset: u64, len: u32) -> Answer {
        let len = usize::try_from(len).unwrap();
        let (mut data, mut covered, mut chunks) = (vec![0x55; len], 0, (0, 0));
        let mut extents = Vec::new();
        loop {
            let mut header = [0; 16];
            self.stream.read_exact(&mut header).unwrap();
            assert_eq!(number(&header[8..]), cookie);
            if number(&header[..4]) == 0x6744_6698 {
                let error = u32::try_from(number(&header[4..8])).unwrap();
                return Answer {
                    error,
                    data: Vec::new(),
                    chunks,
                    extents,
                };
            }
            assert_eq!(number(&header[..4]), 0x668e_33ef);
            let (done, kind) = (number(&header[4..6]) == 1, number(&header[6..8]));
            let mut len = [0; 4];
            self.stream.read_exact(&mut len).unwrap();
            let mut payload = vec![0; usize::try_from(number(&len)).unwrap()];
            self.stream.read_exact(&mut payload).unwrap();
            match kind {
                0 => {}
                1 | 2 => {
                    let begin = usize::try_from(number(&payload[..8]) - offset).unwrap();
                    let zeros;
                    let bytes = if kind == 1 {
                        chunks.0 += 1;
                        &payload[8..]
                    } else {
                        chunks.1 += 1;
                        zeros = vec![0; usize::try_from(number(&payload[8..])).unwrap()];
                        &zeros
                    };
                    data[begin..begin + bytes.len()].copy_from_slice(bytes);
                    covered += bytes.len();
                }
                5 => {
                    let runs = payload[4..].chunks(8).map(|run| {
                        let number32 = |bytes| u32::try_from(number(bytes)).unwrap();
                        (number32(&run[..4]), number32(&run[4..]))
                    });
                    let id = u32::try_from(number(&payload[..4])).unwrap();
                    extents.push((id, runs.collect()));
                }
                _ => {
                    let error = u32::try_from(number(&payload[..4])).unwrap();
                    return Answer {
                        error,
                        data: Vec::new(),
                        chunks,
                        extents,
                    };
                }
            }
            if done {
                assert!(
                    chunks == (0, 0) || covered == data.len(),
                    "a read is covered exactly"
                );
                return Answer {
                    error: 0,
                    data,
                    chunks,
                    extents,
                };
            }
        }
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0) | Err(_))
    }
}
