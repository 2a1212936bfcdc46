//! Sizes as people write and read them: `512M`, `1G`, `64K`, plain bytes. Units are binary.

use std::str::FromStr;

/// Why a text is not a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with an optional unit.
    #[error("expected a number of bytes, or one with a unit: K, M, G, T or P, as in 512M")]
    Malformed,
    /// More than 2^63 bytes.
    #[error("too large")]
    TooLarge,
    /// A size of nothing where something is needed.
    #[error("it must be more than 0")]
    Zero,
    /// Not whole sectors.
    #[error("it must be a multiple of 512 bytes; the next is {next}")]
    NotSectors {
        /// The next larger size that would do, in bytes.
        next: u64,
    },
}

/// The largest size that is accepted: file offsets are signed.
const SIZE_MAX: u64 = i64::MAX.unsigned_abs();

const SECTOR: u64 = 512;

/// Parses a number of bytes: digits, then `K`, `M`, `G`, `T`, `P`, or such with `B` or `iB` behind
/// it, in either case.
///
/// # Errors
/// [`SizeError::Malformed`] and [`SizeError::TooLarge`].
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let digits_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (digits, unit) = text.split_at(digits_len);
    if digits.is_empty() {
        return Err(SizeError::Malformed);
    }
    let unit = unit.to_ascii_lowercase();
    let shift = match unit
        .strip_suffix("ib")
        .or(unit.strip_suffix('b'))
        .unwrap_or(&unit)
    {
        "" if unit == "ib" => return Err(SizeError::Malformed),
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(SizeError::Malformed),
    };
    let number = u64::from_str(digits).map_err(|_| SizeError::TooLarge)?;
    let bytes = number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)?;
    if bytes > SIZE_MAX {
        Err(SizeError::TooLarge)
    } else {
        Ok(bytes)
    }
}

/// Parses the size of a volume: more than 0, whole sectors.
///
/// # Errors
/// Any [`SizeError`].
pub fn parse_volume_size(text: &str) -> Result<u64, SizeError> {
    let bytes = parse_positive_size(text)?;
    if !bytes.is_multiple_of(SECTOR) {
        return Err(SizeError::NotSectors {
            next: bytes.next_multiple_of(SECTOR),
        });
    }
    Ok(bytes)
}

/// Parses a size that is more than 0.
///
/// # Errors
/// Any [`SizeError`] but [`SizeError::NotSectors`].
pub fn parse_positive_size(text: &str) -> Result<u64, SizeError> {
    match parse_size(text)? {
        0 => Err(SizeError::Zero),
        bytes => Ok(bytes),
    }
}

/// Parses a size that is more than 0 and less than 4 GiB.
///
/// # Errors
/// Any [`SizeError`] but [`SizeError::NotSectors`].
pub fn parse_small_size(text: &str) -> Result<u32, SizeError> {
    let bytes = parse_positive_size(text)?;
    u32::try_from(bytes).map_err(|_| SizeError::TooLarge)
}

/// The size for people, at most four digits: `64.0 KiB`, `1.50 GiB`, `12 B`.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Hundredths of a unit, in integers: a size never shows as more than it is.
    let mut unit = 0;
    let mut hundredths = u128::from(bytes) * 100 / 1024;
    while hundredths >= 1024 * 100 && unit + 1 < UNITS.len() {
        hundredths /= 1024;
        unit += 1;
    }
    let (whole, rest) = (hundredths / 100, hundredths % 100);
    match whole {
        0..10 => format!("{whole}.{rest:02} {}", UNITS[unit]),
        10..100 => format!("{whole}.{} {}", rest / 10, UNITS[unit]),
        _ => format!("{whole} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("64KiB", 65536),
            ("64KB", 65536),
            ("512M", 512 << 20),
            ("1G", 1 << 30),
            ("1T", 1 << 40),
            ("2P", 2 << 50),
            ("7B", 7),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        for text in [
            "", "G", "1X", "-1", "+1", "1.5G", "1 G", " 1", "1GG", "1iB", "0x10", "1Ki", "²",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed), "{text}");
        }
        for text in [
            "18446744073709551616",
            "9223372036854775808",
            "8192P",
            "99999999999P",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::TooLarge), "{text}");
        }
    }

    #[test]
    fn volumes_have_whole_sectors() {
        assert_eq!(parse_volume_size("512"), Ok(512));
        assert_eq!(parse_volume_size("0"), Err(SizeError::Zero));
        assert_eq!(
            parse_volume_size("1000"),
            Err(SizeError::NotSectors { next: 1024 })
        );
        assert_eq!(
            parse_volume_size("1"),
            Err(SizeError::NotSectors { next: 512 })
        );
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (65536, "64.0 KiB"),
            (1 << 30, "1.00 GiB"),
            ((3 << 30) / 2, "1.50 GiB"),
            ((1 << 30) - 1, "1023 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(format_size(bytes), text, "{bytes}");
        }
    }
}
