//! Limits, clients that misbehave, and the end of a server.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use nbd_server::{Config, Error, Limits, Listen, Server, TcpClients};
use pool::Operation;
use reactor::block_on;

use crate::support::{
    BLOCK, Client, FLUSH, MIB, PoolExports, READ, WRITE, WRITE_ZEROES, go, greet, new_device,
    number, option, option_replies, request, serve,
};

const ESHUTDOWN: u32 = 108;

/// Waits for what another thread is about to do; a hang fails by the runner's own limit.
fn eventually(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn exports_come_and_go_without_a_restart() {
    let served = serve(64 * MIB, MIB, Limits::default());
    assert!(block_on(served.pool.remove(&"vol".parse().unwrap())).is_ok());
    let mut stream = served.connect();
    greet(&mut stream);
    option(&mut stream, 3, &[]);
    assert_eq!(option_replies(&mut stream), [1]);
    block_on(served.pool.create_volume(new_device("other"), MIB, None)).unwrap();
    option(&mut stream, 3, &[]);
    assert_eq!(option_replies(&mut stream), [2, 1]);
    go(&mut stream, "");
    let other = "other".parse().unwrap();
    assert!(matches!(
        block_on(served.pool.remove(&other)),
        Err(pool::Error::InUse(_))
    ));
    drop(stream);
    eventually(|| block_on(served.pool.remove(&other)).is_ok());
}

/// Takes the reply to a write of `hello`, and reads it back. Not sent together: replies, and so
/// the requests' effects, come in any order.
fn expect_hello(stream: &mut (impl Read + Write)) {
    let mut written = [0; 16];
    stream.read_exact(&mut written).unwrap();
    stream.write_all(&request(0, READ, 2, 0, 5)).unwrap();
    let mut read = [0; 16 + 5];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(&read[16..], b"hello");
}

#[test]
fn go_and_the_first_request_may_come_together() {
    let served = serve(64 * MIB, MIB, Limits::default());
    let mut stream = served.connect();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x09\0\0\0\x03vol\0\0");
    bytes.extend(request(0, WRITE, 1, 0, 5));
    bytes.extend(b"hello");
    stream.write_all(&bytes).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(option_replies(&mut stream), [3, 3, 1]);
    expect_hello(&mut stream);
}

#[test]
fn tcp_clients_are_served() {
    let served = serve(64 * MIB, MIB, Limits::default());
    let listen = Listen::Tcp("127.0.0.1:0".parse().unwrap());
    let config = Config {
        listen,
        tcp_clients: TcpClients::Local,
        limits: Limits::default(),
    };
    let server = Server::start(config, PoolExports(Arc::clone(&served.pool))).unwrap();
    let Listen::Tcp(address) = server.address() else {
        panic!("it listens elsewhere")
    };
    let mut stream = TcpStream::connect(address).unwrap();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\x03vol");
    bytes.extend(request(0, WRITE, 1, 0, 5));
    bytes.extend(b"hello");
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 18 + 10];
    stream.read_exact(&mut answer).unwrap();
    expect_hello(&mut stream);
    server.shutdown();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn addresses_of_other_machines_take_a_decision() {
    let served = serve(64 * MIB, MIB, Limits::default());
    let start = |address: &str, tcp_clients| {
        let config = Config {
            listen: Listen::Tcp(address.parse().unwrap()),
            tcp_clients,
            limits: Limits::default(),
        };
        Server::start(config, PoolExports(Arc::clone(&served.pool)))
    };
    for address in ["0.0.0.0:0", "192.0.2.1:10809", "[::]:0"] {
        let refused = start(address, TcpClients::Local);
        assert!(matches!(refused, Err(Error::NotLoopback(_))), "{address}");
    }
    let nowhere = TcpClients::WithCertificate("/nonexistent".into());
    let refused = start("127.0.0.1:0", nowhere).err().unwrap().to_string();
    assert!(
        refused.contains("/nonexistent/server-cert.pem"),
        "{refused}"
    );
    assert!(start("0.0.0.0:0", TcpClients::Anybody).is_ok());
}

#[test]
fn slow_handshakes_are_ended() {
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = serve(64 * MIB, MIB, limits);
    let mut silent: Vec<_> = (0..6).map(|_| served.connect()).collect();
    for stream in &mut silent {
        let mut bytes = Vec::new();
        let _ended = stream.read_to_end(&mut bytes);
        assert_eq!(bytes.len(), 18);
    }
    assert_eq!(served.client("vol").read(0, 4), [0; 4]);
}

#[test]
fn unfinished_handshakes_keep_nobody_out() {
    let limits = Limits {
        handshakes_max: 2,
        handshake_timeout: Duration::from_secs(1_000_000),
        ..Limits::default()
    };
    let served = serve(64 * MIB, MIB, limits);
    let mut silent: Vec<_> = (0..6).map(|_| served.connect()).collect();
    assert_eq!(served.client("vol").read(0, 4), [0; 4]);
    // All but the last, which there was room for besides the client.
    for stream in &mut silent[..5] {
        let _ended = stream.read_to_end(&mut Vec::new());
    }
}

#[test]
fn connections_are_limited() {
    let limits = Limits {
        connections_max: 2,
        ..Limits::default()
    };
    let served = serve(64 * MIB, MIB, limits);
    let (_first, second) = (served.client("vol"), served.client("vol"));
    let mut third = served.connect();
    assert!(matches!(third.read(&mut [0; 18]), Ok(0) | Err(_)));
    drop(second);
    eventually(|| served.server.connections() == 1);
    // The permit goes back an instant after the entry in the list.
    eventually(|| matches!(served.connect().read(&mut [0; 18]), Ok(18)));
}

#[test]
fn clients_that_take_no_replies_harm_nobody() {
    let limits = Limits {
        payload_bytes_max: 8 << 20,
        ..Limits::default()
    };
    let served = serve(64 * MIB, 64 * MIB, limits);
    let mut fast = served.client("vol");
    fast.write(0, 0, &vec![1; 8 << 20]);
    let deaf: Vec<_> = (0..4)
        .map(|_| {
            let mut client = served.client("vol");
            for _ in 0..16 {
                client.send(0, READ, 0, 4 << 20, &[]);
            }
            client
        })
        .collect();
    for _ in 0..200 {
        assert_eq!(fast.read(0, 4096), [1; 4096]);
        assert_eq!(fast.write(0, BLOCK, &[1; 4096]), 0);
    }
    drop(deaf);
    eventually(|| served.server.connections() == 1);
    assert_eq!(fast.read(0, 4 * MIB).len(), 4 << 20, "memory came back");
}

/// Of what a client had sent before it left, its writes are carried out, and not its reads: they would be many.
#[test]
fn who_leaves_has_its_writes_done_and_not_its_reads() {
    let served = serve(64 * MIB, 64 * MIB, Limits::default());
    let mut client = served.client("vol");
    client.write(0, 0, &vec![1; 8 << 20]);
    let stats = served.pool.device_stats(&"vol".parse().unwrap()).unwrap();
    for _ in 0..100 {
        client.send(0, READ, 0, 8 << 20, &[]);
    }
    client.send(0, WRITE, 32 * MIB, 4, b"last");
    drop(client);
    eventually(|| served.server.connections() == 0);
    let mut next = served.client("vol");
    assert_eq!(next.read(32 * MIB, 4), b"last");
    let read = stats.get(Operation::Read).bytes();
    assert!(read < 200 << 20, "{read} bytes were read for nobody");
}

#[test]
fn a_long_zeroing_lets_other_requests_through() {
    let served = serve(64 * MIB, 2048 * MIB, Limits::default());
    let mut client = served.client("vol");
    let zeroing = client.send(0, WRITE_ZEROES, 0, 2 << 30, &[]);
    let read = client.send(0, READ, 0, 512, &[]);
    assert_eq!(client.answer(read, 0, 512).data, [0; 512]);
    assert_eq!(client.answer(zeroing, 0, 0).error, 0);
}

#[test]
fn shutdown_answers_flushes_and_cleans_up() {
    let served = serve(64 * MIB, 64 * MIB, Limits::default());
    assert_eq!(
        *served.server.address(),
        Listen::Unix(served.socket.clone())
    );
    let mut clients: Vec<_> = (0..4).map(|_| served.client("vol")).collect();
    let mut halfway = served.connect();
    for client in &mut clients {
        assert_eq!(client.write(0, 0, b"kept"), 0);
    }
    let flushes = served.pool.status().flushes;
    served.server.shutdown();
    assert!(
        served.pool.status().flushes > flushes,
        "devices were flushed"
    );
    assert!(!served.socket.exists());
    assert_eq!(served.server.connections(), 0);
    assert!(clients.iter_mut().all(Client::is_closed));
    let mut rest = Vec::new();
    let _closed = halfway.read_to_end(&mut rest);
    served.server.shutdown();
    block_on(served.pool.close()).unwrap();
}

/// What is in the socket when the server stops is either done or refused, and always answered.
#[test]
fn requests_in_flight_at_a_shutdown_are_answered() {
    let served = serve(64 * MIB, 64 * MIB, Limits::default());
    let mut client = served.client("vol");
    let burst: Vec<u8> = (0..400u64)
        .flat_map(|i| [&request(0, WRITE, i, i * 4096, 4)[..], b"data"].concat())
        .chain(request(0, FLUSH, 400, 0, 0))
        .collect();
    client.stream.write_all(&burst).unwrap();
    served.server.shutdown();
    let mut replies = Vec::new();
    client.stream.read_to_end(&mut replies).unwrap();
    let mut rest = &replies[..];
    let (mut done, mut refused) = (0, 0);
    while !rest.is_empty() {
        let len = if rest.starts_with(&[0x67]) {
            done += 1;
            16
        } else {
            assert_eq!(number(&rest[20..24]), u64::from(ESHUTDOWN));
            refused += 1;
            20 + usize::try_from(number(&rest[16..20])).unwrap()
        };
        rest = &rest[len..];
    }
    assert_eq!(done + refused, 401);
}
