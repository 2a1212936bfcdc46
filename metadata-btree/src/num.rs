//! Conversions between integer widths that cannot lose anything here, in one place.

const _: () = assert!(
    usize::BITS >= 64,
    "in-memory maps are indexed by 64-bit block numbers"
);

/// A 64-bit number as an index.
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has at least 64 bits, asserted above"
)]
pub(crate) const fn to_usize(number: u64) -> usize {
    number as usize
}

/// An index or a size within one block as a 32-bit field.
///
/// # Panics
/// When the number does not fit, which no quantity inside a 4 KiB block can cause.
pub(crate) fn to_u32(number: usize) -> u32 {
    let Ok(number) = u32::try_from(number) else {
        unreachable!("{number} is not a quantity inside a block");
    };
    number
}
