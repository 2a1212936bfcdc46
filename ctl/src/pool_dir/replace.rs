//! Other metadata for a pool: in the place of the old, which keeps another name, or somewhere else.
//!
//! Either is one step that a crash leaves undone or done: a rename of the new store, or of `pool.toml`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{HISTORY_FILE, PoolConfig, PoolDir, write_config};
use crate::protocol::{CallError, CallErrorKind};

/// How many old stores are kept.
const KEPT_MAX: u32 = 1000;

impl PoolDir {
    /// Where new metadata is made that is to replace the old: in the same directory, as `NAME.suffix`.
    ///
    /// # Errors
    /// `Invalid` when the metadata is not a file.
    pub fn beside_metadata(&self, suffix: &str) -> Result<PathBuf, CallError> {
        let path = self.metadata_file()?;
        Ok(with_suffix(&path, suffix))
    }

    /// Puts a metadata store, made beside the old one, into its place. Returns what the old one is called
    /// now.
    ///
    /// # Errors
    /// What stopped it; the pool is as it was then.
    pub fn replace_metadata(&self, new: &Path) -> Result<PathBuf, CallError> {
        let old = self.metadata_file()?;
        let kept = keep(&old)?;
        let aside = self.put_history_aside()?;
        let renamed = fs::rename(new, &old).and_then(|()| sync_parent(&old));
        renamed.map_err(|cause| {
            self.put_history_back(aside.as_deref());
            CallError::io(old.display(), &cause)
        })?;
        Ok(kept)
    }

    /// Has `pool.toml` name another metadata store.
    ///
    /// # Errors
    /// What stopped it; the pool is as it was then.
    pub fn use_metadata(&self, new: &Path) -> Result<(), CallError> {
        let failed = |cause: &io::Error| CallError::io(new.display(), cause);
        let metadata = new.canonicalize().map_err(|cause| failed(&cause))?;
        let aside = self.put_history_aside()?;
        let config = PoolConfig {
            metadata,
            ..self.config.clone()
        };
        write_config(&self.path, &config).map_err(|cause| {
            self.put_history_back(aside.as_deref());
            CallError::io(self.path.display(), &cause)
        })
    }

    /// Gives superblocks that do not belong to the metadata to come another name. They may be all that knows the
    /// metadata there is, so they are not removed.
    fn put_history_aside(&self) -> Result<Option<PathBuf>, CallError> {
        let path = self.path.join(HISTORY_FILE);
        let aside = with_suffix(&path, "damaged");
        match fs::rename(&path, &aside).and_then(|()| sync_parent(&path)) {
            Ok(()) => Ok(Some(aside)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(CallError::io(path.display(), &cause)),
        }
    }

    fn put_history_back(&self, aside: Option<&Path>) {
        if let Some(aside) = aside {
            // What went wrong before says more.
            let _ = fs::rename(aside, self.path.join(HISTORY_FILE));
        }
    }

    fn metadata_file(&self) -> Result<PathBuf, CallError> {
        let path = self.metadata_path();
        let path = path
            .canonicalize()
            .map_err(|cause| CallError::io(path.display(), &cause))?;
        if path.is_file() {
            return Ok(path);
        }
        let message = format!(
            "{}: the metadata is a block device, which is not replaced: name another one, or a file, with --to",
            path.display()
        );
        Err(CallError::new(CallErrorKind::Invalid, message))
    }
}

/// Gives a store a second name that is free.
fn keep(store: &Path) -> Result<PathBuf, CallError> {
    for number in 1..=KEPT_MAX {
        let kept = match number {
            1 => with_suffix(store, "damaged"),
            number => with_suffix(store, &format!("damaged-{number}")),
        };
        match fs::hard_link(store, &kept) {
            Ok(()) => return Ok(kept),
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(CallError::io(kept.display(), &cause)),
        }
    }
    let message = format!(
        "{}: {KEPT_MAX} damaged stores are kept already: remove some",
        store.display()
    );
    Err(CallError::new(CallErrorKind::Exists, message))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
