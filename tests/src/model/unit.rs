//! The contents of one sector, as the model knows them.

use std::sync::Arc;

/// Bytes in a unit of the model: what a power cut keeps whole.
pub const UNIT: usize = 512;

/// What one unit holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unit {
    /// 64 times the same little-endian word; zeros when the word is 0.
    Words(u64),
    /// A mixture, left by writes that did not cover whole units.
    Bytes(Arc<[u8; UNIT]>),
}

impl Unit {
    /// Zeros.
    pub const ZERO: Unit = Unit::Words(0);

    /// Whether `bytes` are what it holds.
    pub fn is(&self, bytes: &[u8]) -> bool {
        match self {
            Unit::Words(word) => {
                let word = word.to_le_bytes();
                bytes.chunks_exact(8).all(|chunk| chunk == word)
            }
            Unit::Bytes(held) => held.as_slice() == bytes,
        }
    }

    /// What a sector that was read holds.
    pub fn of(bytes: &[u8]) -> Unit {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[..8]);
        let uniform = Unit::Words(u64::from_le_bytes(word));
        if uniform.is(bytes) {
            return uniform;
        }
        let mut held = [0; UNIT];
        held.copy_from_slice(bytes);
        Unit::Bytes(Arc::new(held))
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; UNIT] {
        match self {
            Unit::Words(word) => {
                let mut bytes = [0; UNIT];
                for chunk in bytes.chunks_exact_mut(8) {
                    chunk.copy_from_slice(&word.to_le_bytes());
                }
                bytes
            }
            Unit::Bytes(held) => **held,
        }
    }
}

/// What a write puts into each unit of a device: its number and the unit's, so that data of
/// another write, or of another place, is recognised.
#[derive(Clone, Copy, Debug)]
pub enum Content {
    /// The write with this number.
    Write(u64),
    /// Zeros.
    Zeros,
}

impl Content {
    /// The content at a unit of the device.
    pub fn unit(self, unit: u64) -> Unit {
        match self {
            Content::Write(serial) => Unit::Words(serial << 24 | unit),
            Content::Zeros => Unit::ZERO,
        }
    }

    /// The bytes of a range of the device.
    pub fn bytes(self, offset: u64, len: u64) -> Vec<u8> {
        let unit = UNIT as u64;
        let mut bytes = Vec::new();
        for index in offset / unit..(offset + len).div_ceil(unit) {
            bytes.extend_from_slice(&self.unit(index).bytes());
        }
        let skip = crate::sim::to_usize(offset % unit);
        bytes[skip..skip + crate::sim::to_usize(len)].to_vec()
    }
}
