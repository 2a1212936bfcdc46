//! The kernel's table of mounts, as `/proc/PID/mountinfo` tells it.
//!
//! Reading it asks no file system anything, so it never waits for a mount of ours.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// One mount.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct MountEntry {
    /// `major:minor` of the mounted device.
    pub(crate) device_number: String,
    /// Where it is mounted.
    pub(crate) mountpoint: PathBuf,
}

/// The mounts this process sees, in the order they were made.
pub(crate) fn own_mounts() -> Result<Vec<MountEntry>, Error> {
    mounts_of(Path::new("/proc/self/mountinfo"))
}

/// The mounts listed in a mountinfo file.
pub(crate) fn mounts_of(mountinfo: &Path) -> Result<Vec<MountEntry>, Error> {
    let text =
        fs::read(mountinfo).map_err(Error::io(format!("cannot read {}", mountinfo.display())))?;
    Ok(text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .collect())
}

/// Whether something is mounted at exactly this directory.
pub fn is_mountpoint(directory: &Path) -> Result<bool, Error> {
    Ok(own_mounts()?
        .iter()
        .any(|entry| entry.mountpoint == directory))
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device_number = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let mountpoint = unescape(fields.nth(1)?);
    Some(MountEntry {
        device_number,
        mountpoint: OsString::from_vec(mountpoint).into(),
    })
}

/// Undoes the kernel's `\ooo` for blanks, tabs, newlines and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    bytes
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_and_unescaped() {
        let line = br"36 35 7:1 / /mnt/a\040b\134c rw,noatime shared:1 - ext4 /dev/loop1 rw";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.device_number, "7:1");
        assert_eq!(entry.mountpoint, Path::new(r"/mnt/a b\c"));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"36 35"), None);
        assert_eq!(unescape(br"a\04"), br"a\04");
        assert_eq!(unescape(br"a\999"), br"a\999");
    }

    #[test]
    fn the_root_is_a_mountpoint() {
        assert!(is_mountpoint(Path::new("/")).unwrap());
        assert!(!is_mountpoint(Path::new("/no/such/place")).unwrap());
    }
}
