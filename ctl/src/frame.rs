//! Frames: how contents travel over the control socket, with a place for holes and for errors.
//!
//! ```text
//! kind     1 byte: 'D' data, 'Z' zeros, 'E' error, '.' end
//! length   4 bytes big endian: of the payload; for 'Z' and '.' there is none, and 'Z' has 8 bytes
//! payload  data, or a CallError as JSON
//! ```
//!
//! A stream ends with an error or an end. One that just stops was broken off.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::protocol::{CallError, CallErrorKind};

/// The largest payload.
pub const PAYLOAD_MAX: usize = 4 << 20;

/// A piece of a device's contents, or what comes instead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Frame {
    /// These bytes.
    Data(Bytes),
    /// This many zero bytes.
    Zeros(u64),
    /// It failed; nothing follows.
    Error(CallError),
    /// That was all.
    End,
}

impl Frame {
    /// The frame as it travels.
    ///
    /// # Panics
    /// When the payload is larger than [`PAYLOAD_MAX`].
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let mut put = |kind: u8, payload: &[u8]| {
            assert!(
                payload.len() <= PAYLOAD_MAX,
                "a payload of {} bytes",
                payload.len()
            );
            let Ok(len) = u32::try_from(payload.len()) else {
                unreachable!("it is bounded")
            };
            out.put_u8(kind);
            out.put_u32(len);
            out.put_slice(payload);
        };
        match self {
            Frame::Data(data) => put(b'D', data),
            Frame::Zeros(len) => put(b'Z', &len.to_be_bytes()),
            Frame::Error(error) => put(b'E', &serde_json::to_vec(error).unwrap_or_default()),
            Frame::End => put(b'.', b""),
        }
        out.freeze()
    }
}

/// Takes a stream of bytes apart into frames.
#[derive(Default, Debug)]
pub struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Adds what was received.
    pub fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// When this is no stream of frames.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CallError> {
        const HEADER_LEN: usize = 5;
        let Some(mut header) = self.buffer.get(..HEADER_LEN) else {
            return Ok(None);
        };
        let (kind, len) = (header.get_u8(), header.get_u32());
        let len = usize::try_from(len)
            .ok()
            .filter(|len| *len <= PAYLOAD_MAX)
            .ok_or_else(malformed)?;
        if self.buffer.len() < HEADER_LEN + len {
            return Ok(None);
        }
        self.buffer.advance(HEADER_LEN);
        let payload = self.buffer.split_to(len).freeze();
        let frame = match kind {
            b'D' => Frame::Data(payload),
            b'Z' => Frame::Zeros(u64::from_be_bytes(
                payload.as_ref().try_into().map_err(|_| malformed())?,
            )),
            b'E' => Frame::Error(serde_json::from_slice(&payload).map_err(|_| malformed())?),
            b'.' if len == 0 => Frame::End,
            _ => return Err(malformed()),
        };
        Ok(Some(frame))
    }
}

fn malformed() -> CallError {
    CallError::new(
        CallErrorKind::Io,
        "the daemon sent something that is no frame: is it of another version?",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_in_any_pieces() {
        let frames = [
            Frame::Data(Bytes::from_static(b"hello")),
            Frame::Zeros(1 << 40),
            Frame::Data(Bytes::new()),
            Frame::Error(CallError::invalid("no")),
            Frame::End,
        ];
        let stream: Vec<u8> = frames
            .iter()
            .flat_map(|frame| frame.encode().to_vec())
            .collect();
        for piece_len in [1, 3, stream.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(piece_len) {
                decoder.put(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for stream in [
            &b"X\0\0\0\0"[..],
            b"D\xff\xff\xff\xff",
            b"Z\0\0\0\x01x",
            b".\0\0\0\x01x",
            b"E\0\0\0\x01x",
        ] {
            let mut decoder = Decoder::default();
            decoder.put(stream);
            assert!(decoder.next_frame().is_err(), "{stream:?}");
        }
    }
}
