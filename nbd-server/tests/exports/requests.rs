//! Requests of a raw client against a pool on files.

use std::io::{Read, Write};
use std::net::Shutdown;

use nbd_server::Limits;
use pool::Operation;
use reactor::block_on;

use crate::support::{
    BLOCK, BLOCK_STATUS, DF, DISC, FAST_ZERO, FLUSH, FUA, MIB, NO_HOLE, READ, Served, TRIM, WRITE,
    WRITE_ZEROES, new_device, number, request, serve,
};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;

fn small() -> Served {
    serve(64 * MIB, 128 * MIB, Limits::default())
}

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 249).unwrap().wrapping_add(seed) | 1)
        .collect()
}

#[test]
fn what_one_client_wrote_another_reads() {
    let served = small();
    let (mut first, mut second) = (served.client("vol"), served.client("vol"));
    let bytes = pattern(200_000, 7);
    assert_eq!(first.write(0, 12_345, &bytes), 0);
    assert_eq!(second.read(12_345, 200_000), bytes);
    assert_eq!(second.write(FUA, 100, b"durable"), 0);
    assert_eq!(first.read(100, 7), b"durable");
    assert_eq!(first.call(0, FLUSH, 0, 0).error, 0);
    assert_eq!(first.call(FUA, FLUSH, u64::MAX, 99).error, 0);
    let stats = served.pool.device_stats(&"vol".parse().unwrap()).unwrap();
    assert_eq!(stats.get(Operation::Write).bytes(), 200_007);
    assert_eq!(stats.get(Operation::Read).bytes(), 200_007);
    assert_eq!(
        stats
            .get(Operation::Flush)
            .latency()
            .counts()
            .iter()
            .sum::<u64>(),
        2
    );
}

#[test]
fn holes_cost_one_chunk() {
    let served = small();
    let mut client = served.client("vol");
    let answer = client.call(0, READ, 0, 32 * MIB);
    assert_eq!(answer.chunks, (0, 1));
    assert!(answer.data.iter().all(|byte| *byte == 0));
    client.write(0, 2 * BLOCK, &pattern(BLOCK, 1));
    assert_eq!(client.call(0, READ, 0, 5 * BLOCK).chunks, (1, 2));
    let unfragmented = client.call(DF, READ, 0, 5 * BLOCK);
    assert_eq!(unfragmented.chunks, (1, 0));
    assert_eq!(
        unfragmented.data[usize::try_from(2 * BLOCK).unwrap()..][..65536],
        pattern(BLOCK, 1)
    );
    assert_eq!(client.call(DF, READ, 0, 32 * MIB + 1).error, EOVERFLOW);
    assert_eq!(client.call(0, READ, 0, 0).error, 0);
}

#[test]
fn requests_beyond_the_end_are_refused_and_the_stream_stays_in_step() {
    let served = small();
    let mut client = served.client("vol");
    let end = 128 * MIB;
    for (command, errno) in [
        (READ, EINVAL),
        (TRIM, EINVAL),
        (5, EINVAL),
        (WRITE_ZEROES, ENOSPC),
        (BLOCK_STATUS, EINVAL),
    ] {
        assert_eq!(client.call(0, command, end - 1, 2).error, errno);
        assert_eq!(client.call(0, command, u64::MAX, 2).error, errno);
    }
    assert_eq!(client.write(0, end - 1, b"xy"), ENOSPC);
    assert_eq!(client.write(1 << 9, 0, b"unknown flag"), EINVAL);
    assert_eq!(client.call(0, 77, 0, (1 << 32) - 1).error, EINVAL);
    assert_eq!(client.call(0, BLOCK_STATUS, 0, 0).error, EINVAL);
    let long = vec![0; 33 << 20];
    assert_eq!(client.write(0, 0, &long), EINVAL);
    assert_eq!(client.write(0, 0, b"still in step"), 0);
    assert_eq!(client.read(0, 13), b"still in step");
}

#[test]
fn trimming_and_zeroing_give_space_back_or_keep_it() {
    let served = small();
    let mut client = served.client("vol");
    client.write(0, 0, &pattern(8 * BLOCK, 3));
    let mapped = |served: &Served| {
        served
            .pool
            .info(&"vol".parse().unwrap())
            .unwrap()
            .mapped_bytes
    };
    assert_eq!(mapped(&served), 8 * BLOCK);
    assert_eq!(client.call(0, TRIM, BLOCK - 1, BLOCK + 2).error, 0);
    assert_eq!(mapped(&served), 7 * BLOCK, "a trim is rounded inwards");
    assert_eq!(client.call(0, WRITE_ZEROES, 2 * BLOCK, BLOCK).error, 0);
    assert_eq!(mapped(&served), 6 * BLOCK);
    assert_eq!(
        client.call(NO_HOLE, WRITE_ZEROES, BLOCK, 2 * BLOCK).error,
        0
    );
    assert_eq!(mapped(&served), 8 * BLOCK, "NO_HOLE allocates");
    assert_eq!(
        client
            .call(FAST_ZERO, WRITE_ZEROES, 3 * BLOCK + 1, BLOCK)
            .error,
        ENOTSUP
    );
    assert_eq!(
        client.read(3 * BLOCK, BLOCK),
        pattern(8 * BLOCK, 3)[3 * 65536..4 * 65536]
    );
    assert_eq!(
        client
            .call(FAST_ZERO | FUA, WRITE_ZEROES, 3 * BLOCK, BLOCK)
            .error,
        0
    );
    assert_eq!(
        client.status(1, BLOCK, 4 * BLOCK),
        [(131_072, 0), (65536, 3), (65536, 0)]
    );
    assert!(client.read(BLOCK, 3 * BLOCK).iter().all(|byte| *byte == 0));
    client.write(0, 32 * MIB, &pattern(BLOCK, 3));
    assert_eq!(client.call(0, WRITE_ZEROES, 0, 128 * MIB).error, 0);
    assert_eq!(mapped(&served), 0, "slices end where blocks do");
}

#[test]
fn snapshots_are_read_only_and_do_not_move() {
    let served = small();
    let mut client = served.client("vol");
    client.write(0, 0, &pattern(2 * BLOCK, 5));
    block_on(served.pool.create_snapshots(vec![new_device("vol@s")])).unwrap();
    let mut snapshot = served.client("vol@s");
    client.write(0, 10, b"changed");
    assert_eq!(snapshot.read(0, 2 * BLOCK), pattern(2 * BLOCK, 5));
    assert_eq!(
        client.status(2, 0, 3 * BLOCK),
        [(65536, 1), (65536, 2), (65536, 0)]
    );
    for command in [TRIM, WRITE_ZEROES] {
        assert_eq!(snapshot.call(0, command, 0, 1).error, EPERM);
    }
    assert_eq!(snapshot.write(0, 0, b"no"), EPERM);
    assert_eq!(snapshot.call(0, FLUSH, 0, 0).error, 0);
}

#[test]
fn a_full_pool_is_enospc_and_others_go_on() {
    let served = serve(4 * MIB, 128 * MIB, Limits::default());
    let mut client = served.client("vol");
    assert_eq!(client.write(0, 0, &pattern(4 * MIB, 1)), 0);
    assert_eq!(client.write(0, 8 * MIB, b"one more"), ENOSPC);
    assert_eq!(client.write(0, 0, b"in place"), 0);
    assert_eq!(client.read(0, 8), b"in place");
}

#[test]
fn long_reads_and_writes_in_a_burst() {
    let served = small();
    let mut client = served.client("vol");
    let bytes = pattern(32 * MIB, 9);
    assert_eq!(client.write(0, 0, &bytes), 0);
    let mut reader = client.stream.try_clone().unwrap();
    let burst: Vec<u8> = (0..512u64)
        .flat_map(|i| request(0, READ, i, i * 131_071 % (31 * MIB), 65_537))
        .collect();
    let writer = std::thread::spawn(move || {
        client.stream.write_all(&burst).unwrap();
        client
    });
    for _ in 0..512 {
        let mut header = [0; 28];
        reader.read_exact(&mut header).unwrap();
        let (cookie, offset) = (number(&header[8..16]), number(&header[20..]));
        assert_eq!(offset, cookie * 131_071 % (31 * MIB));
        let mut data = vec![0; 65_537];
        reader.read_exact(&mut data).unwrap();
        assert!(
            data == bytes[usize::try_from(offset).unwrap()..][..65_537],
            "request {cookie}"
        );
    }
    drop(writer.join().unwrap());
}

#[test]
fn a_disconnect_behind_writes_loses_none() {
    let served = small();
    let mut client = served.client("vol");
    for i in 0..32u64 {
        client.send(
            0,
            WRITE,
            i * 4096,
            4096,
            &pattern(4096, u8::try_from(i).unwrap()),
        );
    }
    client.send(0, DISC, 0, 0, &[]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    client.stream.read_to_end(&mut Vec::new()).unwrap();
    let mut other = served.client("vol");
    for i in 0..32u64 {
        assert_eq!(
            other.read(i * 4096, 4096),
            pattern(4096, u8::try_from(i).unwrap())
        );
    }
}

#[test]
fn half_a_payload_changes_nothing_and_a_half_closed_client_is_answered() {
    let served = small();
    let mut client = served.client("vol");
    let cookie = client.send(0, WRITE, 0, 4, b"full");
    client.send(0, WRITE, 0, 8192, &[0xff; 8191]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer(cookie, 0, 0).error, 0);
    assert!(client.is_closed());
    assert_eq!(served.client("vol").read(0, 8192)[..4], *b"full");
    assert!(
        served
            .client("vol")
            .read(4, 8188)
            .iter()
            .all(|byte| *byte == 0)
    );
}

#[test]
fn a_bad_magic_and_an_endless_payload_end_the_connection() {
    let served = small();
    let mut client = served.client("vol");
    client.stream.write_all(&[7; 28]).unwrap();
    assert!(client.is_closed());
    let mut client = served.client("vol");
    client.send(0, WRITE, 0, 2 << 30, &[]);
    assert!(client.is_closed());
    assert_eq!(served.client("vol").read(0, 1), [0]);
}
