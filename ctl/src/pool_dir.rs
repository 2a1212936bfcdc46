//! A pool's directory: where it is, what its `pool.toml` says, its stores and their locks.
//!
//! ```text
//! pool.toml         version, uuid, where the stores are, options; written last, so it makes the pool
//! catalog           names, sizes, lineage
//! log               the intent log, from the first write until the pool is closed
//! superblocks       those of the last commits
//! metadata          dm-thin metadata, unless it is elsewhere
//! data              data blocks, unless they are elsewhere
//! attachments.toml  what every daemon attaches, if there is anything
//! control.sock      while a daemon serves the pool
//! daemon.log        of a daemon that `attach` started
//! ```
//!
//! Who uses a pool holds `flock` on both stores, on the very descriptors that carry the I/O: shared
//! for reading, exclusive otherwise. The kernel drops it with the process, so nothing is ever left
//! behind. A block device is opened with O_EXCL besides, which keeps it from being mounted.

mod create;
mod locate;
mod lock;
mod persistent;
mod replace;
mod trust;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pool::{FileCatalog, FileHistory};
use reactor::FileLog;
use serde::{Deserialize, Serialize};

pub use create::{
    StoreRequest, adopt, check_metadata_size, default_metadata_size, existing_origin, extend_file,
    init,
};
pub use locate::{locate, names_pool, new_location};
pub use lock::{Access, StoreFiles, open_locked};
pub use persistent::{ATTACHMENTS_FILE, Persistent};

use crate::protocol::{CallError, CallErrorKind};
use crate::space::SpacePolicy;

/// The file that makes a directory a pool.
pub const CONFIG_FILE: &str = "pool.toml";

/// The superblocks of the last commits.
const HISTORY_FILE: &str = "superblocks";

/// The socket of the daemon that serves the pool.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The log of a daemon that `attach` started.
pub const DAEMON_LOG: &str = "daemon.log";

/// The only version of `pool.toml` so far.
const VERSION: u32 = 1;

/// The largest `pool.toml` that is read.
const CONFIG_SIZE_MAX: u64 = 64 * 1024;

/// What `pool.toml` says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolConfig {
    version: u32,
    /// Identity that survives moving.
    pub uuid: String,
    /// The metadata store; a relative path is inside the directory.
    pub metadata: PathBuf,
    /// The data store; a relative path is inside the directory.
    pub data: PathBuf,
    /// Never change the pool.
    #[serde(default)]
    pub read_only: bool,
    /// Fill the rest of a newly provisioned block with zeros.
    #[serde(default = "yes")]
    pub zero_new_blocks: bool,
    /// Give unused space back to the data store.
    #[serde(default = "yes")]
    pub discard_passdown: bool,
    /// How the data store is read and written.
    #[serde(default)]
    pub io: DataAccess,
    /// What is done about its space.
    #[serde(default)]
    pub space: SpacePolicy,
}

/// How a data store is read and written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DataAccess {
    /// Through the kernel's page cache: what was read or written lately is in memory, once for all volumes and
    /// clones that share it
    #[default]
    Buffered,
    /// Past it: each request is one to the device below, and memory is left to the clients' own caches
    Direct,
}

fn yes() -> bool {
    true
}

/// The error for a data store that cannot be accessed past the page cache.
pub fn no_direct_io(data: &Path, cause: &io::Error) -> CallError {
    let error = CallError::io(data.display(), cause);
    CallError {
        message: format!(
            "{}: its file system cannot do without the page cache: make the pool elsewhere, or with io = \
             \"buffered\" in pool.toml",
            error.message
        ),
        ..error
    }
}

/// A pool's directory whose `pool.toml` has been read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolDir {
    /// Absolute, without symbolic links.
    pub path: PathBuf,
    /// What `pool.toml` says.
    pub config: PoolConfig,
}

impl PoolDir {
    /// Reads the `pool.toml` of the pool that `argument` names.
    ///
    /// # Errors
    /// `NotFound` when there is no pool, `Damaged` when its `pool.toml` cannot be understood, `Invalid` when
    /// strangers may change what is in the directory.
    pub fn open(argument: &str) -> Result<PoolDir, CallError> {
        Self::open_path(&locate(argument)?)
    }

    /// Reads the `pool.toml` in the directory `path`.
    ///
    /// # Errors
    /// As [`PoolDir::open`].
    pub fn open_path(path: &Path) -> Result<PoolDir, CallError> {
        let path = path
            .canonicalize()
            .map_err(|cause| CallError::io(path.display(), &cause))?;
        trust::expect_trusted(&path)?;
        let file = path.join(CONFIG_FILE);
        let text = read_bounded(&file).map_err(|cause| CallError::io(file.display(), &cause))?;
        let damaged = |reason: String| {
            CallError::new(
                CallErrorKind::Damaged,
                format!("{}: {reason}", file.display()),
            )
        };
        // The version first: a newer file may well have other fields.
        let table: toml::Table = text
            .parse()
            .map_err(|cause: toml::de::Error| damaged(cause.message().to_owned()))?;
        match table.get("version").and_then(toml::Value::as_integer) {
            Some(version) if version == i64::from(VERSION) => {}
            Some(version) => {
                return Err(damaged(format!(
                    "the pool is of version {version}, this program knows version {VERSION}: use a newer one"
                )));
            }
            None => return Err(damaged("it has no version".to_owned())),
        }
        let config = table
            .try_into()
            .map_err(|cause: toml::de::Error| damaged(cause.message().to_owned()))?;
        Ok(PoolDir { path, config })
    }

    /// Writes down how the pool deals with its space, durably, all or nothing.
    ///
    /// # Errors
    /// What stopped it.
    pub fn set_space(&self, space: &SpacePolicy) -> Result<(), CallError> {
        let config = PoolConfig {
            space: space.clone(),
            ..self.config.clone()
        };
        write_config(&self.path, &config)
            .map_err(|cause| CallError::io(self.path.join(CONFIG_FILE).display(), &cause))
    }

    /// The metadata store.
    pub fn metadata_path(&self) -> PathBuf {
        self.path.join(&self.config.metadata)
    }

    /// The data store.
    pub fn data_path(&self) -> PathBuf {
        self.path.join(&self.config.data)
    }

    /// The catalog.
    pub fn catalog(&self) -> FileCatalog {
        catalog_in(&self.path)
    }

    /// The intent log.
    ///
    /// # Errors
    /// When it cannot be told which boot this is.
    pub fn log(&self) -> Result<FileLog, CallError> {
        let stores = [self.metadata_path(), self.data_path()];
        let path = self.path.join("log");
        FileLog::new(&path, &[&stores[0], &stores[1]])
            .map_err(|cause| CallError::io(path.display(), &cause))
    }

    /// The superblocks of the last commits.
    pub fn history(&self) -> FileHistory {
        FileHistory::new(self.path.join(HISTORY_FILE))
    }

    /// The last component of the path, which names the pool in exports and metrics.
    pub fn label(&self) -> String {
        self.path.file_name().map_or_else(
            || "pool".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    }
}

fn catalog_in(directory: &Path) -> FileCatalog {
    FileCatalog::new(directory.join("catalog"))
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?
        .take(CONFIG_SIZE_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a `pool.toml`, durably, all or nothing.
fn write_config(directory: &Path, config: &PoolConfig) -> io::Result<()> {
    let text = toml::to_string(config).map_err(io::Error::other)?;
    write_whole(directory, CONFIG_FILE, &text)
}

/// Writes a file of the directory, durably, all or nothing.
fn write_whole(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.new"));
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}
