//! Programs of the system that are run by this one.

use std::env;
use std::path::PathBuf;

/// Where a program is, also when it is one for administrators and those are not in the path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}
