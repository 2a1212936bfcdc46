//! Little-endian fields, and the trait by which a tree knows its values.
//!
//! Everything on disk is little-endian and packed; these functions are the only ones that turn
//! bytes into integers. Offsets are the caller's own constants, so an offset outside the slice is
//! a programming error and panics.

use crate::error::Error;
use crate::transaction::Transaction;

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A value of a [`Btree`](crate::Btree): its bytes, and what it means for reference counts that a
/// leaf names it.
///
/// The tree calls [`inc`](Value::inc) for every value of a shared leaf that it copies, and
/// [`dec`](Value::dec) for every value that it removes, replaces or drops together with its leaf.
/// It does *not* call `inc` for a value handed to `insert`: that reference is the caller's.
pub trait Value: Copy + PartialEq + Send + Sync + 'static {
    /// Bytes of an encoded value: 4, 8, 16 or 24.
    const SIZE: usize;

    /// Reads a value from exactly [`SIZE`](Value::SIZE) bytes. Any bytes must decode to something.
    fn decode(bytes: &[u8]) -> Self;

    /// Writes the value to exactly [`SIZE`](Value::SIZE) bytes.
    fn encode(&self, bytes: &mut [u8]);

    /// A further leaf names this value.
    ///
    /// # Errors
    /// Whatever raising a count can meet; the transaction is poisoned then.
    fn inc(&self, _tx: &mut Transaction) -> Result<(), Error> {
        Ok(())
    }

    /// One leaf less names this value.
    ///
    /// # Errors
    /// Whatever lowering a count can meet; the transaction is poisoned then.
    fn dec(&self, _tx: &mut Transaction) -> Result<(), Error> {
        Ok(())
    }

    /// Whether replacing this value by the other leaves all counts as they are.
    fn same_target(&self, other: &Self) -> bool {
        self == other
    }
}
