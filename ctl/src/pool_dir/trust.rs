//! Whose directories are trusted.
//!
//! Who may write a pool's directory decides which files are read and written for it. So it must belong to root or to
//! the user who runs the program, and not everybody may write it: then nobody else can put a link in the place of a file.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

use crate::protocol::{CallError, CallErrorKind};

/// Everybody may write.
const WORLD_WRITABLE: u32 = 0o002;

/// Refuses a directory that strangers may change.
pub(super) fn expect_trusted(directory: &Path) -> Result<(), CallError> {
    let metadata =
        fs::metadata(directory).map_err(|cause| CallError::io(directory.display(), &cause))?;
    let refused = |reason: String| {
        let message = format!("{}: {reason}", directory.display());
        Err(CallError::new(CallErrorKind::Invalid, message))
    };
    if metadata.mode() & WORLD_WRITABLE != 0 {
        return refused("everybody may change what is in this directory: chmod o-w it".to_owned());
    }
    let (owner, us) = (metadata.uid(), geteuid().as_raw());
    if owner != 0 && owner != us {
        return refused(format!(
            "this directory belongs to user {owner}, who may change what is in it: run this as that user, or \
             chown it"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nobody_else_may_write() {
        let directory = tempfile::tempdir().unwrap();
        for (mode, is_trusted) in [
            (0o700, true),
            (0o775, true),
            (0o777, false),
            (0o1777, false),
        ] {
            fs::set_permissions(directory.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                expect_trusted(directory.path()).is_ok(),
                is_trusted,
                "{mode:o}"
            );
        }
    }
}
