//! From the POOL on the command line to a directory.

use std::env;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::CONFIG_FILE;
use crate::protocol::{CallError, CallErrorKind};

/// Where pools with bare names are, unless `THINPOOL_ROOT` says otherwise.
const DEFAULT_ROOT: &str = "/var/lib/thinpool";

/// The directory of an existing pool.
///
/// # Errors
/// `NotFound` when there is no pool.
pub fn locate(argument: &str) -> Result<PathBuf, CallError> {
    locate_below(&root(), argument)
}

/// The directory for a pool that is to be made. The default root is made if it is missing.
///
/// # Errors
/// What stopped that.
pub fn new_location(argument: &str) -> Result<PathBuf, CallError> {
    let path = Path::new(argument);
    if !is_bare(path) || path.is_dir() {
        return Ok(path.to_owned());
    }
    let root = root();
    fs::create_dir_all(&root).map_err(|cause| CallError::io(root.display(), &cause))?;
    Ok(root.join(path))
}

/// Whether `argument` names an existing pool, rather than a device in one.
pub fn names_pool(argument: &str) -> bool {
    locate(argument).is_ok()
}

fn root() -> PathBuf {
    env::var_os("THINPOOL_ROOT").map_or_else(|| DEFAULT_ROOT.into(), PathBuf::from)
}

fn locate_below(root: &Path, argument: &str) -> Result<PathBuf, CallError> {
    let path = Path::new(argument);
    if path.join(CONFIG_FILE).is_file() {
        return Ok(path.to_owned());
    }
    let below_root = root.join(path);
    if is_bare(path) && below_root.join(CONFIG_FILE).is_file() {
        return Ok(below_root);
    }
    let message = if is_bare(path) && !path.is_dir() {
        format!(
            "{argument}: no such pool, neither here nor in {}: make it with 'thinctl init'",
            root.display()
        )
    } else if path.is_dir() {
        format!(
            "{argument}: not a pool: it has no pool.toml; make one with 'thinctl init' or 'thinctl adopt'"
        )
    } else if path.exists() {
        format!("{argument}: not a pool: it is not a directory")
    } else {
        format!("{argument}: no such pool: make it with 'thinctl init'")
    };
    Err(CallError::new(CallErrorKind::NotFound, message))
}

/// A single ordinary name, without any slash.
fn is_bare(path: &Path) -> bool {
    let mut components = path.components();
    matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    ) && !path.as_os_str().to_string_lossy().contains('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_names_are_looked_up_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("main")).unwrap();
        assert!(locate_below(root.path(), "main").is_err());
        fs::write(root.path().join("main/pool.toml"), "").unwrap();
        assert_eq!(
            locate_below(root.path(), "main").unwrap(),
            root.path().join("main")
        );
        assert!(locate_below(root.path(), "./main").is_err());
        let path = root.path().join("main/");
        assert_eq!(
            locate_below(Path::new("/"), path.to_str().unwrap()).unwrap(),
            path
        );
    }

    #[test]
    fn what_is_no_pool_is_said() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for (name, message) in [
            ("", "it has no pool.toml"),
            ("file", "not a directory"),
            ("none", "no such pool"),
        ] {
            let path = root.path().join(name);
            let error = locate(path.to_str().unwrap()).unwrap_err();
            assert_eq!(error.kind, CallErrorKind::NotFound);
            assert!(error.message.contains(message), "{}", error.message);
        }
    }
}
