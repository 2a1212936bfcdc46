use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use metadata_btree::MemStore;
use pool::{BlockSize, FileCatalog, Identity, NewDevice, OpenOptions, Pool, Stores};
use reactor::{FileHost, FileLog, block_on};

use super::*;

const MIB: u64 = 1024 * 1024;
const METADATA_BLOCKS: u64 = 256;
const READ: u16 = 0;
const WRITE: u16 = 1;
const REPLY_LEN: usize = 16;

/// A pool with the empty volume `vol`, in a folder.
fn volume() -> (tempfile::TempDir, Arc<Pool<FileHost>>, ThinDevice<FileHost>) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::File::create(&data)
        .unwrap()
        .set_len(8 * MIB)
        .unwrap();
    let metadata = Arc::new(MemStore::new(METADATA_BLOCKS));
    let block_size = BlockSize::DEFAULT;
    Pool::<FileHost>::format(metadata.clone(), block_size, METADATA_BLOCKS, 128).unwrap();
    let host = Arc::new(FileHost::new());
    let stores = Stores {
        metadata,
        data: host.open_data(&data, false).unwrap(),
        catalog: Box::new(FileCatalog::new(folder.path().join("catalog"))),
        log: Box::new(FileLog::new(folder.path().join("log"), &[]).unwrap()),
        history: Box::new(pool::FileHistory::new(folder.path().join("superblocks"))),
    };
    let pool = Pool::open(host, stores, OpenOptions::default()).unwrap();
    let name: pool::DeviceName = "vol".parse().unwrap();
    let new = NewDevice {
        name: name.clone(),
        identity: Identity {
            uuid: "uuid".to_owned(),
            created: "2020-01-01T00:00:00Z".to_owned(),
        },
    };
    block_on(pool.create_volume(new, 4 * MIB, None)).unwrap();
    let device = pool.open_device(&name).unwrap();
    (folder, pool, device)
}

fn client(connections: &DirectConnections<FileHost>) -> UnixStream {
    let stream = UnixStream::from(connections.open().unwrap());
    // A server that never answers fails the test instead of hanging it.
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream
}

fn send(stream: &mut UnixStream, command: u16, offset: u64, len: u32, payload: &[u8]) {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(0u16.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes.extend(payload);
    stream.write_all(&bytes).unwrap();
}

/// The errno of a simple reply to the request on this offset.
fn answer(stream: &mut UnixStream, offset: u64) -> u32 {
    let mut reply = [0; REPLY_LEN];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
    assert_eq!(reply[8..], offset.to_be_bytes());
    u32::from_be_bytes(*reply[4..].first_chunk().unwrap())
}

#[test]
fn connections_show_one_device_without_a_handshake() {
    let (_folder, _pool, device) = volume();
    let connections = DirectConnections::new(device);
    // Flags, flush, FUA, trim, zeroing, fast zeroing, several connections, cache.
    assert_eq!(connections.flags(), 0b1101_0110_1101);
    let (mut writer, mut reader) = (client(&connections), client(&connections));
    assert_eq!(connections.count(), 2);
    send(&mut writer, WRITE, 4096, 5, b"hello");
    assert_eq!(answer(&mut writer, 4096), 0);
    send(&mut reader, READ, 4096, 5, b"");
    assert_eq!(answer(&mut reader, 4096), 0);
    let mut read = [0; 5];
    reader.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"hello");
    drop(reader);
    connections.wait_below(2);
    assert_eq!(connections.count(), 1);
}

#[test]
fn what_the_device_has_grown_by_can_be_used_at_once() {
    let (_folder, pool, device) = volume();
    let connections = DirectConnections::new(device);
    let mut stream = client(&connections);
    send(&mut stream, WRITE, 4 * MIB, 5, b"hello");
    assert_eq!(answer(&mut stream, 4 * MIB), 28, "no space behind the end");
    block_on(pool.resize(&"vol".parse().unwrap(), 8 * MIB)).unwrap();
    send(&mut stream, WRITE, 8 * MIB - 5, 5, b"hello");
    assert_eq!(answer(&mut stream, 8 * MIB - 5), 0);
    send(&mut stream, WRITE, 8 * MIB - 4, 5, b"hello");
    assert_eq!(answer(&mut stream, 8 * MIB - 4), 28);
}

#[test]
fn closing_carries_out_what_has_arrived_and_refuses_nothing() {
    let (_folder, _pool, device) = volume();
    let connections = DirectConnections::new(device.clone());
    let mut stream = client(&connections);
    for at in 0..64 {
        send(&mut stream, WRITE, at * 4096, 4096, &[7; 4096]);
    }
    // The beginning of one that is never complete.
    stream.write_all(&[0x25, 0x60]).unwrap();
    connections.close();
    assert_eq!(connections.count(), 0);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), 64 * REPLY_LEN);
    let all_done = bytes.chunks(REPLY_LEN).all(|reply| reply[4..8] == [0; 4]);
    assert!(all_done, "{bytes:?}");
    let mut written = vec![0; 64 * 4096];
    block_on(device.read(0, &mut written)).unwrap();
    assert!(written.iter().all(|byte| *byte == 7));
}

/// The kernel repeats a request on another connection when it has given up the first: were it begun
/// before the first one is over, an old write could end after a newer one.
#[test]
fn nothing_is_begun_while_a_connection_that_was_cut_off_goes_on() {
    let (_folder, _pool, device) = volume();
    let connections = DirectConnections::new(device);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stuck = Member::join(&connections.siblings, u64::MAX, ours.into());
    let mut stream = client(&connections);
    send(&mut stream, READ, 0, 1, b"");
    assert_eq!(answer(&mut stream, 0), 0);
    stream.read_exact(&mut [0]).unwrap();
    // As the kernel does it: both directions, with the socket still open.
    theirs.shutdown(std::net::Shutdown::Both).unwrap();
    send(&mut stream, READ, 4096, 1, b"");
    let is_over = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&is_over);
    let end = thread::spawn(move || {
        // Time for a wrong answer; a right one waits however long this takes.
        thread::sleep(Duration::from_millis(300));
        ends.store(true, Ordering::Release);
        drop(stuck);
    });
    assert_eq!(answer(&mut stream, 4096), 0);
    assert!(is_over.load(Ordering::Acquire), "it was begun too early");
    end.join().unwrap();
}

/// As when this process was stopped for a while: none of them may wait for another.
#[test]
fn connections_that_were_all_cut_off_end() {
    let (_folder, _pool, device) = volume();
    let connections = Arc::new(DirectConnections::new(device.clone()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stuck = Member::join(&connections.siblings, u64::MAX, ours.into());
    drop(theirs);
    let mut streams = [client(&connections), client(&connections)];
    for stream in &mut streams {
        send(stream, WRITE, 0, 4, b"late");
        stream.shutdown(std::net::Shutdown::Both).unwrap();
    }
    drop(stuck);
    let (ended, told) = std::sync::mpsc::channel();
    let theirs = Arc::clone(&connections);
    thread::spawn(move || {
        theirs.wait_below(1);
        ended.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(60))
        .expect("they wait for each other");
    let mut written = [1; 4];
    block_on(device.read(0, &mut written)).unwrap();
    assert_eq!(written, [0; 4], "begun although it was cut off");
}
