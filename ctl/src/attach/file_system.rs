//! File systems on attached devices: mounting them, and making one on a device that has none.

use std::path::Path;
use std::process::{Command, Stdio};

use super::fuse_error;
use crate::cli::FileSystem;
use crate::external::find_program;
use crate::protocol::{AttachRequest, CallError, CallErrorKind};

/// What there was on a device before it was attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Contents {
    /// Whether writes are refused.
    pub(super) read_only: bool,
    /// Whether it is known to consist of zeros: nothing was ever written, or all was discarded.
    pub(super) is_blank: bool,
}

/// Does what a request asks for beyond the block device: makes a file system on it if it has none, and
/// mounts it. Returns the kind that was made.
pub(super) fn mount_as_asked(
    device: &Path,
    contents: Contents,
    request: &AttachRequest,
) -> Result<Option<FileSystem>, CallError> {
    let Some(mountpoint) = &request.mount else {
        return Ok(None);
    };
    let made = match request.mkfs {
        Some(kind) => make_if_none(device, contents, kind)?.then_some(kind),
        None => None,
    };
    mount_device(device, contents.read_only, mountpoint)?;
    Ok(made)
}

pub(super) fn mount_device(
    device: &Path,
    read_only: bool,
    mountpoint: &Path,
) -> Result<(), CallError> {
    let options: &[&str] = if read_only { &["ro"] } else { &[] };
    fuse_target::mount(device, mountpoint, options).map_err(|cause| {
        let error = fuse_error(&cause);
        if read_only && error.kind != CallErrorKind::Busy {
            // Most often a journal that wants to be replayed.
            let message = format!(
                "{error}; a clone of it can be mounted even when its journal must be replayed"
            );
            return CallError::new(error.kind, message);
        }
        error
    })
}

/// Whether it has made one. Never over anything: there may be data that no program knows a sign of, so
/// the device must be blank, not only without signs.
fn make_if_none(device: &Path, contents: Contents, kind: FileSystem) -> Result<bool, CallError> {
    let signs = signs_on(device)?;
    if signs.iter().any(|sign| sign.usage == "filesystem") {
        return Ok(false);
    }
    let place = device.display();
    if !signs.is_empty() {
        let names: Vec<_> = signs.iter().map(|sign| sign.name.as_str()).collect();
        let message = format!(
            "{place}: no file system is made over what is there ({})",
            names.join(", ")
        );
        return Err(CallError::new(CallErrorKind::Exists, message));
    }
    if contents.read_only {
        let message = format!("{place}: no file system can be made on it: it is read only");
        return Err(CallError::new(CallErrorKind::ReadOnly, message));
    }
    if !contents.is_blank {
        let message = format!(
            "{place}: it has been written to, and what is there is not known: no file system is made \
             over it; attach it without --mkfs and discard everything (blkdiscard) if it is not wanted"
        );
        return Err(CallError::new(CallErrorKind::Exists, message));
    }
    // Without its options for force, so that it looks, too.
    run(kind.program(), kind.package(), &["-q"], device)?;
    Ok(true)
}

/// A sign of something: of a file system, a partition table, a member of a RAID.
struct Sign {
    name: String,
    usage: String,
}

fn signs_on(device: &Path) -> Result<Vec<Sign>, CallError> {
    let options = ["--no-act", "--noheadings", "--output", "TYPE,USAGE"];
    let text = run("wipefs", "util-linux", &options, device)?;
    let sign = |line: &str| {
        let (name, usage) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        Sign {
            name: name.to_owned(),
            usage: usage.trim().to_owned(),
        }
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(sign).collect())
}

/// Runs a program on a device; what it prints.
fn run(program: &str, package: &str, options: &[&str], device: &Path) -> Result<String, CallError> {
    let Some(path) = find_program(program) else {
        let message = format!(
            "the program {program} is missing: apt-get install {package}, or what your system calls it"
        );
        return Err(CallError::new(CallErrorKind::Other, message));
    };
    let output = Command::new(path)
        .args(options)
        .arg(device)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|cause| CallError::io(program, &cause))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let message = format!("{}: {program} failed: {}", device.display(), said.trim());
        return Err(CallError::new(CallErrorKind::Other, message));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::PathBuf;

    use super::*;

    const BLANK: Contents = Contents {
        read_only: false,
        is_blank: true,
    };

    /// Programs take a file for a device.
    fn image(directory: &Path, name: &str) -> PathBuf {
        let path = directory.join(name);
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        path
    }

    #[test]
    fn a_file_system_is_made_once_and_over_nothing() {
        for program in ["wipefs", "mkfs.ext4", "mkswap"] {
            if find_program(program).is_none() {
                eprintln!("skipped: needs {program}");
                return;
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let fresh = image(directory.path(), "fresh");
        assert!(make_if_none(&fresh, BLANK, FileSystem::Ext4).unwrap());
        let made = std::fs::read(&fresh).unwrap();
        let written = Contents {
            is_blank: false,
            ..BLANK
        };
        for contents in [BLANK, written] {
            assert!(!make_if_none(&fresh, contents, FileSystem::Ext4).unwrap());
        }
        assert!(std::fs::read(&fresh).unwrap() == made, "it was changed");
        let swap = image(directory.path(), "swap");
        run("mkswap", "", &[], &swap).unwrap();
        let refused = make_if_none(&swap, BLANK, FileSystem::Ext4).unwrap_err();
        assert!(refused.message.contains("swap"), "{refused}");
        let other = image(directory.path(), "other");
        for (contents, kind) in [
            (written, CallErrorKind::Exists),
            (
                Contents {
                    read_only: true,
                    ..BLANK
                },
                CallErrorKind::ReadOnly,
            ),
        ] {
            let refused = make_if_none(&other, contents, FileSystem::Ext4).unwrap_err();
            assert_eq!(refused.kind, kind, "{refused}");
        }
        assert!(signs_on(&other).unwrap().is_empty());
    }

    #[test]
    fn a_program_that_fails_is_quoted() {
        let refused = run("wipefs", "util-linux", &[], Path::new("/nowhere")).unwrap_err();
        assert!(refused.message.contains("/nowhere"), "{refused}");
        let missing = run("mkfs.none", "a-package", &[], Path::new("/nowhere")).unwrap_err();
        assert!(missing.message.contains("a-package"), "{missing}");
    }
}
