use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::*;
use crate::budget::SharedBudget;

fn header(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    [
        &0x2560_9513u32.to_be_bytes()[..],
        &[0, 0],
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
    ]
    .concat()
}

/// Feeds a stream in pieces and lists cookies and payload lengths of what comes out.
fn take_all(stream: &[u8], step: usize) -> (Vec<(u64, Option<usize>)>, Intake) {
    let (mut client, server) = UnixStream::pair().unwrap();
    let mut server = Stream::new(Arc::new(OwnedFd::from(server)), None);
    let mut intake = Intake::new(&[]);
    let mut buffers = Buffers::new(Arc::new(SharedBudget::new(0)));
    let mut taken = Vec::new();
    let mut pieces = stream.chunks(step);
    loop {
        match intake.next(&mut buffers, |request| usize::try_from(request.len).ok()) {
            Next::Request(request) => {
                if let Some(payload) = &request.payload {
                    let mark = u8::try_from(request.request.cookie & 0xff).unwrap();
                    assert!(payload.payload().iter().all(|byte| *byte == mark));
                }
                taken.push((request.request.cookie, request.payload.map(|p| p.len())));
            }
            Next::Incomplete => {
                if let Some(piece) = pieces.next() {
                    client.write_all(piece).unwrap();
                } else {
                    client.shutdown(std::net::Shutdown::Write).unwrap();
                }
                intake.receive(&mut server, true);
            }
            Next::NoRoom => panic!("everything was admitted"),
            Next::Over => return (taken, intake),
        }
    }
}

fn write(cookie: u8, len: u32) -> Vec<u8> {
    let mut bytes = header(command::WRITE, u64::from(cookie), 0, len);
    bytes.resize(bytes.len() + usize::try_from(len).unwrap(), cookie);
    bytes
}

#[test]
fn requests_come_out_however_they_come_in() {
    let stream = [
        header(command::READ, 1, 0, 4096),
        write(2, 100),
        write(3, 0),
        write(4, 70_000),
        header(99, 5, 0, u32::MAX),
        write(6, 40_000),
        header(command::FLUSH, 7, 0, 0),
    ]
    .concat();
    let expected = [
        (1, None),
        (2, Some(100)),
        (3, Some(0)),
        (4, Some(70_000)),
        (5, None),
        (6, Some(40_000)),
        (7, None),
    ];
    for step in [1, 7, 29, 1000, 33_333, 150_000] {
        assert_eq!(take_all(&stream, step).0, expected, "steps of {step}");
    }
}

#[test]
fn half_a_payload_is_nothing() {
    let stream = [write(1, 50), write(2, 1000)].concat();
    assert_eq!(
        take_all(&stream[..stream.len() - 1], 100).0,
        [(1, Some(50))]
    );
}

#[test]
fn nothing_follows_a_disconnect_or_a_bad_magic() {
    let disconnect = header(command::DISCONNECT, 2, 0, 0);
    let stream = [write(1, 5), disconnect, write(3, 5)].concat();
    assert_eq!(take_all(&stream, 1000).0, [(1, Some(5))]);
    let stream = [write(1, 5), vec![0; 40], write(3, 5)].concat();
    assert_eq!(take_all(&stream, 1000).0, [(1, Some(5))]);
}

#[test]
fn payloads_that_are_too_long_are_skipped_or_end_it() {
    let long = header(command::WRITE, 9, 0, PAYLOAD_LEN_MAX + 1);
    let payload = vec![1; usize::try_from(PAYLOAD_LEN_MAX).unwrap() + 1];
    let stream = [long, payload, write(2, 5)].concat();
    let (taken, intake) = take_all(&stream, 100_000);
    assert_eq!(taken, [(9, None), (2, Some(5))]);
    assert_eq!(intake.bytes.len(), RECEIVE_BYTES);
    let endless = header(command::WRITE, 9, 0, DISCARD_LEN_MAX + 1);
    assert_eq!(take_all(&[endless, write(2, 5)].concat(), 1000).0, []);
}

#[test]
fn what_is_not_admitted_stays() {
    let mut intake = Intake::new(&header(command::READ, 1, 0, 10));
    let mut buffers = Buffers::new(Arc::new(SharedBudget::new(0)));
    assert!(matches!(intake.next(&mut buffers, |_| None), Next::NoRoom));
    assert!(matches!(
        intake.next(&mut buffers, |_| Some(10)),
        Next::Request(_)
    ));
    assert!(matches!(
        intake.next(&mut buffers, |_| Some(10)),
        Next::Incomplete
    ));
}

/// Random bytes, and streams that begin well: no panic, and no memory by announced lengths.
#[test]
fn garbage_is_survived() {
    let mut seed = 7u64;
    let mut random = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut buffers = Buffers::new(Arc::new(SharedBudget::new(0)));
    for _ in 0..100_000 {
        let mut bytes: Vec<u8> = (0..random() % 80)
            .map(|_| random().to_be_bytes()[7])
            .collect();
        if random() % 4 != 0 && bytes.len() >= 8 {
            bytes[..4].copy_from_slice(&0x2560_9513u32.to_be_bytes());
            bytes[6..8].copy_from_slice(&[0, random().to_be_bytes()[7] % 10]);
        }
        let mut intake = Intake::new(&bytes);
        let mut requests = 0;
        while let Next::Request(taken) = intake.next(&mut buffers, |_| Some(0)) {
            requests += 1;
            taken
                .payload
                .into_iter()
                .for_each(|buffer| buffers.give_back(buffer));
        }
        assert!(requests <= bytes.len() / REQUEST_LEN);
    }
}
