//! Inputs that are small changes of something real: a pool's metadata, or its log.
//!
//! ```text
//! pool     1 byte: which of the pools
//! patches  until the end:
//!     unit     2 bytes: which block, or which slot of the log
//!     place    2 bytes: 12 bits where in the unit, and above them 4 bits how it is sealed
//!     length   1 byte
//!     bytes    what is written there
//! ```
//!
//! All integers are little-endian. Anything is such an input; what is cut off at the end counts as far as it
//! goes. Whoever applies the patches sees to it that checksums are right afterwards, unless the patch says
//! otherwise: a change that a checksum would tell stops at the first line of every decoder.

/// A change in one unit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patch {
    pub unit: u16,
    pub at: usize,
    /// How the unit is sealed, below 16.
    pub seal: u8,
    pub bytes: Vec<u8>,
}

/// A whole input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Patches {
    pub pool: u8,
    pub list: Vec<Patch>,
}

const HEADER_LEN: usize = 5;

impl Patches {
    pub fn decode(input: &[u8]) -> Self {
        let (pool, mut rest) = input
            .split_first()
            .map_or((0, input), |(pool, rest)| (*pool, rest));
        let mut list = Vec::new();
        while let Some((header, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
            let place = u16::from_le_bytes([header[2], header[3]]);
            let (bytes, next) = behind.split_at(behind.len().min(header[4].into()));
            list.push(Patch {
                unit: u16::from_le_bytes([header[0], header[1]]),
                at: usize::from(place & 0xfff),
                seal: (place >> 12) as u8,
                bytes: bytes.to_vec(),
            });
            rest = next;
        }
        Patches { pool, list }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.pool];
        for patch in &self.list {
            let place = u16::from(patch.seal) << 12 | u16::try_from(patch.at & 0xfff).unwrap();
            let bytes = &patch.bytes[..patch.bytes.len().min(255)];
            out.extend_from_slice(&patch.unit.to_le_bytes());
            out.extend_from_slice(&place.to_le_bytes());
            out.push(u8::try_from(bytes.len()).unwrap());
            out.extend_from_slice(bytes);
        }
        out
    }
}
