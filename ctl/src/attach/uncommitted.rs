//! Whether the death of a daemon has lost writes that were acknowledged.
//!
//! A ublk device outlives its daemon, and so does the file system on it, which believes that what was
//! acknowledged is there. Changes of mappings that no commit has covered are lost with the daemon,
//! as long as there is no intent log. So a file beside the table of ublk devices says `1` while
//! there are such changes; it is in the page cache, which outlives the daemon as well. A daemon that
//! finds it so must not go on with devices that were written.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::protocol::CallError;
use crate::service::FilePool;

const FILE: &str = "uncommitted";

/// Whether the daemon before this one has lost something, as far as is known.
pub fn were_lost(runtime_dir: &Path) -> bool {
    !matches!(fs::read(runtime_dir.join(FILE)).as_deref(), Ok(b"0"))
}

/// Keeps the file true from now on. To be called once for a pool.
///
/// # Errors
/// When the file cannot be made.
pub fn keep(runtime_dir: &Path, pool: &FilePool) -> Result<(), CallError> {
    let path = runtime_dir.join(FILE);
    let failed = |cause| CallError::io(path.display(), &cause);
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(false);
    let file = file.open(&path).map_err(failed)?;
    let path = path.clone();
    pool.watch_uncommitted(move |waits| {
        let content = if waits { b"1" } else { b"0" };
        if let Err(cause) = file.write_all_at(content, 0) {
            // Without it the worst is believed.
            tracing::error!("{}: {cause}", path.display());
            let _ = fs::remove_file(&path);
        }
    });
    Ok(())
}

/// Removes the file, when no device is left that it is about.
pub fn forget(runtime_dir: &Path) {
    let _ = fs::remove_file(runtime_dir.join(FILE));
}
