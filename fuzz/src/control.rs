//! What travels over the control socket, in both directions.

use std::fmt::Debug;

use ctl::fuzzing::{Call, Decoder, Event, Frame};
use pool::DeviceName;
use serde::{Serialize, de::DeserializeOwned};

/// The first byte says what the rest is.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    match kind % 4 {
        0 => round_trip::<Call>(rest),
        1 => round_trip::<Event>(rest),
        2 => frames(rest),
        _ => names(rest),
    }
}

/// What can be understood means the same once it is said again.
fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else {
        return;
    };
    let said = serde_json::to_vec(&value).expect("what was understood can be said");
    let again: T = serde_json::from_slice(&said).expect("what is said is understood");
    assert_eq!(again, value);
}

fn decoded(bytes: &[u8], piece_len: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece_len.max(1)) {
        decoder.put(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

/// However the bytes arrive, the frames are the same, and encoded they are the same again.
fn frames(bytes: &[u8]) {
    let (whole, is_good) = decoded(bytes, bytes.len());
    assert_eq!(decoded(bytes, 1), (whole.clone(), is_good), "byte by byte");
    let encoded: Vec<u8> = whole.iter().flat_map(|frame| frame.encode()).collect();
    assert_eq!(decoded(&encoded, encoded.len()), (whole, true), "encoded");
}

/// A name is what it says, and never a path.
fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(name) = text.parse::<DeviceName>() else {
        return;
    };
    assert_eq!(name.to_string(), text);
    assert!(
        !text.contains(['/', '\0', '\n']) && !text.starts_with(['.', '-']),
        "{text:?}"
    );
}
