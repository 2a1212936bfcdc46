use std::sync::Arc;

use super::*;
use crate::budget::SharedBudget;
use crate::buffer::Buffers;

const COOKIE: u64 = 0xfeed;

/// A buffer as a read leaves it: data bytes are not zero, bytes of holes are garbage.
fn buffer(pieces: &[(usize, bool)]) -> Buffer {
    let len = pieces.iter().map(|(len, _)| len).sum();
    let mut buffer = Buffers::new(Arc::new(SharedBudget::new(0))).take(len);
    let mut at = 0;
    for &(len, hole) in pieces {
        for i in at..at + len {
            buffer.payload_mut()[i] = if hole { 0xee } else { data_byte(i) };
        }
        buffer.pieces.push(ReadPiece { len, hole });
        at += len;
    }
    buffer
}

fn data_byte(at: usize) -> u8 {
    u8::try_from(at % 199 + 1).unwrap()
}

fn expected(pieces: &[(usize, bool)]) -> Vec<u8> {
    let holes = pieces
        .iter()
        .flat_map(|&(len, hole)| std::iter::repeat_n(hole, len));
    holes
        .enumerate()
        .map(|(at, hole)| if hole { 0 } else { data_byte(at) })
        .collect()
}

fn flatten(body: &Body) -> Vec<u8> {
    let Body::Parts {
        buffer,
        first,
        more,
    } = body
    else {
        panic!("a reply without parts")
    };
    let parts = std::iter::once(first).chain(more);
    parts
        .flat_map(|range| buffer.whole()[range.clone()].to_vec())
        .collect()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, &byte| n << 8 | u64::from(byte))
}

/// What a client makes of a reply: the bytes, and how many chunks of data and holes there were.
fn understand(mut reply: &[u8], offset: u64, len: usize) -> (Vec<u8>, usize, usize) {
    let mut bytes = vec![0x55; len];
    let (mut data, mut holes, mut covered, mut done) = (0, 0, 0, false);
    while !reply.is_empty() {
        assert!(!done, "a chunk behind the last");
        assert_eq!(number(&reply[..4]), 0x668e_33ef);
        done = number(&reply[4..6]) == 1;
        let kind = number(&reply[6..8]);
        assert_eq!(number(&reply[8..16]), COOKIE);
        let (payload, rest) =
            reply[20..].split_at(usize::try_from(number(&reply[16..20])).unwrap());
        reply = rest;
        let begin = usize::try_from(number(&payload[..8]) - offset).unwrap();
        let content: Vec<u8> = match kind {
            1 => {
                data += 1;
                payload[8..].to_vec()
            }
            2 => {
                holes += 1;
                vec![0; usize::try_from(number(&payload[8..])).unwrap()]
            }
            other => panic!("chunk of type {other}"),
        };
        assert_eq!(begin, covered, "no gap, no overlap");
        for border in [begin, begin + content.len()] {
            let inner = border != 0 && border != len;
            assert!(
                !inner || (offset + border as u64).is_multiple_of(512),
                "border at {border}"
            );
        }
        covered += content.len();
        bytes[begin..covered].copy_from_slice(&content);
    }
    assert!(done && covered == len);
    (bytes, data, holes)
}

fn check(pieces: &[(usize, bool)], offset: u64, chunks_of: (usize, usize)) {
    let body = chunks(buffer(pieces), COOKIE, offset, false);
    let whole = expected(pieces);
    let (bytes, data, holes) = understand(&flatten(&body), offset, whole.len());
    assert_eq!((data, holes), chunks_of, "{pieces:?}");
    assert!(bytes == whole, "{pieces:?}");
    let body = chunks(buffer(pieces), COOKIE, offset, true);
    let (bytes, data, holes) = understand(&flatten(&body), offset, whole.len());
    assert_eq!(data + holes, 1, "unfragmented {pieces:?}");
    assert!(bytes == whole, "unfragmented {pieces:?}");
    let plain = flatten(&simple(buffer(pieces), COOKIE));
    assert_eq!(plain[..SIMPLE_REPLY_LEN], wire::simple_reply(COOKIE, 0));
    assert!(plain[SIMPLE_REPLY_LEN..] == whole, "simple {pieces:?}");
}

const K: usize = 1024;

#[test]
fn data_and_holes_become_chunks() {
    check(&[(4 * K, false)], 0, (1, 0));
    check(&[(1024 * K, true)], 0, (0, 1));
    check(&[(1, true)], 77, (0, 1));
    check(&[(64 * K, false), (64 * K, true)], 0, (1, 1));
    check(&[(64 * K, true), (64 * K, false)], 0, (1, 1));
    check(
        &[(64 * K, false), (64 * K, true), (64 * K, false)],
        65536,
        (2, 1),
    );
    check(
        &[(64 * K, true), (64 * K, false), (64 * K, true)],
        65536,
        (1, 2),
    );
}

#[test]
fn short_holes_are_data() {
    check(&[(60 * K, false), (4 * K - 1, true)], 1, (1, 0));
    check(&[(100, true), (64 * K, false), (100, true)], 65436, (1, 0));
    check(&[(K, true), (K, false), (K, true)], 512, (1, 0));
}

#[test]
fn chunk_borders_are_aligned() {
    // An external origin may end anywhere.
    check(&[(5000, false), (9000, true), (5000, false)], 3, (2, 1));
    check(&[(5000, false), (4200, true), (5000, false)], 3, (1, 0));
}

#[test]
fn any_mix_is_whole() {
    let mut seed = 1u64;
    let mut random = move |below: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % below
    };
    for _ in 0..500 {
        let mut hole = random(2) == 0;
        let pieces: Vec<(usize, bool)> = (0..=random(6))
            .map(|_| {
                hole = !hole;
                (usize::try_from(1 + random(12_000)).unwrap(), hole)
            })
            .collect();
        let offset = random(100_000);
        let whole = expected(&pieces);
        let reply = flatten(&chunks(buffer(&pieces), COOKIE, offset, false));
        assert!(
            understand(&reply, offset, whole.len()).0 == whole,
            "{pieces:?} at {offset}"
        );
    }
}
