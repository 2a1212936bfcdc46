//! Making a pool's directory: a new pool, or a foreign one in place.
//!
//! `pool.toml` comes last, so a directory has it or is no pool. What fails on the way takes back
//! everything it made.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use metadata_btree::FileStore;
use pool::{AdoptedVolume, BlockSize, CatalogStore, MemoryBudget, Pool};
use reactor::FileHost;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::lock::{Access, lock, open_locked};
use super::{
    CONFIG_FILE, DataAccess, PoolConfig, PoolDir, VERSION, catalog_in, no_direct_io, write_config,
};
use crate::cli::VolumeArg;
use crate::protocol::{CallError, CallErrorKind};
use crate::service::{PoolService, metadata_store, new_identity};
use crate::size::format_size;
use crate::space::SpacePolicy;

const METADATA_BLOCK_SIZE: u64 = metadata_btree::BLOCK_SIZE as u64;

/// What the format can address.
const METADATA_SIZE_MAX: u64 = metadata_btree::METADATA_BLOCKS_MAX * METADATA_BLOCK_SIZE;

/// Less would be full at once.
const METADATA_SIZE_MIN: u64 = 256 << 10;

/// Without `--metadata-size`: room for every data block to be mapped more than once.
const METADATA_SIZE_DEFAULT_MIN: u64 = 64 << 20;
const METADATA_BYTES_PER_DATA_BLOCK: u64 = 64;

/// How much of an existing store must be zero for it to be taken as unused.
const UNUSED_LEN: usize = 64 * 1024;

/// A store as asked for on the command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StoreRequest {
    /// Where it is; in the pool's directory unless given.
    pub path: Option<PathBuf>,
    /// Its size in bytes; all there is, or the default, unless given.
    pub size: Option<u64>,
}

/// Makes an empty pool in the new or empty directory `path`.
///
/// # Errors
/// `Exists` when there is something already, `Invalid` for sizes that cannot be, and what stopped
/// the files from being made. Nothing is left behind.
pub fn init(
    path: &Path,
    block_size: u64,
    data: &StoreRequest,
    metadata: &StoreRequest,
    io: DataAccess,
) -> Result<PoolDir, CallError> {
    let Some(valid_block_size) = BlockSize::new(block_size) else {
        let message =
            format!("block size {block_size}: expected a multiple of 64K, from 64K to 1G");
        return Err(CallError::invalid(message));
    };
    check_size("data", data.size, block_size)?;
    check_size("metadata", metadata.size, METADATA_BLOCK_SIZE)?;
    let mut made = Made::directory(path)?;
    let data_store = made.store(path, "data", data, None, Space::Sparse)?;
    let data_blocks = data_store.size / block_size;
    if data_blocks == 0 {
        let message = format!(
            "{}: {} is too small for a block of {}",
            data_store.path.display(),
            format_size(data_store.size),
            format_size(block_size)
        );
        return Err(CallError::invalid(message));
    }
    let default_size = default_metadata_size(data_blocks);
    let metadata_store = made.store(
        path,
        "metadata",
        metadata,
        Some(default_size),
        Space::Reserved,
    )?;
    if metadata_store.size < METADATA_SIZE_MIN {
        return Err(CallError::invalid(format!(
            "{}: metadata size {}: expected at least {METADATA_SIZE_MIN} bytes",
            metadata_store.path.display(),
            metadata_store.size
        )));
    }
    let metadata_blocks = metadata_store.size.min(METADATA_SIZE_MAX) / METADATA_BLOCK_SIZE;
    let store = FileStore::new(metadata_store.file)
        .map_err(|cause| CallError::io(metadata_store.path.display(), &cause))?;
    Pool::<FileHost>::format(
        Arc::new(store),
        valid_block_size,
        metadata_blocks,
        data_blocks,
    )
    .map_err(|cause| CallError::pool(&metadata_store.path, &cause))?;
    data_store
        .file
        .sync_all()
        .map_err(|cause| CallError::io(data_store.path.display(), &cause))?;
    catalog_in(path)
        .replace(b"")
        .map_err(|cause| CallError::io(path.display(), &cause))?;
    made.files.push(path.join("catalog"));
    let config = PoolConfig {
        io,
        ..config(data_store.path, metadata_store.path)
    };
    check_access(path, &config)?;
    made.finish(path, &config)
}

/// Makes a pool of a foreign one's stores, which are only read.
///
/// # Errors
/// `Exists` when the directory is in use, and what makes the stores no pool. Nothing is left behind.
pub fn adopt(
    path: &Path,
    metadata: &Path,
    data: &Path,
    volumes: &[VolumeArg],
    read_only: bool,
) -> Result<PoolDir, CallError> {
    let absolute = |path: &Path| {
        path.canonicalize()
            .map_err(|cause| CallError::io(path.display(), &cause))
    };
    let (metadata, data) = (absolute(metadata)?, absolute(data)?);
    let volumes = volumes
        .iter()
        .map(adopted_volume)
        .collect::<Result<Vec<_>, _>>()?;
    let mut made = Made::directory(path)?;
    let file = open_locked(&metadata, Access::Read)?;
    drop(open_locked(&data, Access::Read)?);
    let store = metadata_store(file, &metadata)?;
    made.files.push(path.join("catalog"));
    let mut identity = new_identity;
    Pool::<FileHost>::adopt(Arc::new(store), &catalog_in(path), volumes, &mut identity)
        .map_err(|cause| CallError::pool(&metadata, &cause))?;
    // What cannot be opened is better refused now than later.
    let trial = PoolDir {
        path: path.to_owned(),
        config: PoolConfig {
            read_only: true,
            ..config(data, metadata)
        },
    };
    let config = PoolConfig {
        read_only,
        ..trial.config.clone()
    };
    drop(PoolService::open(trial, MemoryBudget::default())?);
    made.finish(path, &config)
}

fn adopted_volume(argument: &VolumeArg) -> Result<AdoptedVolume, CallError> {
    let Some(id) = pool::ThinId::new(argument.id) else {
        return Err(CallError::invalid(format!(
            "thin id {}: too large",
            argument.id
        )));
    };
    let external_origin = argument
        .external_origin
        .as_deref()
        .map(existing_origin)
        .transpose()?;
    Ok(AdoptedVolume {
        id,
        name: argument.name.clone(),
        size: argument.size,
        external_origin,
        identity: new_identity(),
    })
}

/// The absolute path of an external origin, which must be there.
///
/// # Errors
/// `NotFound`, or that it is neither a file nor a block device.
pub fn existing_origin(path: &Path) -> Result<PathBuf, CallError> {
    let failed = |cause: &io::Error| CallError::io(path.display(), cause);
    let absolute = path.canonicalize().map_err(|cause| failed(&cause))?;
    let file_type = fs::metadata(&absolute)
        .map_err(|cause| failed(&cause))?
        .file_type();
    if !file_type.is_file() && !file_type.is_block_device() {
        let message = format!("{}: neither a file nor a block device", path.display());
        return Err(CallError::invalid(message));
    }
    Ok(absolute)
}

/// What `pool.toml` says unless something else is asked for.
fn config(data: PathBuf, metadata: PathBuf) -> PoolConfig {
    PoolConfig {
        version: VERSION,
        uuid: uuid::Uuid::new_v4().to_string(),
        metadata,
        data,
        read_only: false,
        zero_new_blocks: true,
        discard_passdown: true,
        io: DataAccess::default(),
        space: SpacePolicy::default(),
    }
}

/// Refuses a way of access that the data store does not have.
fn check_access(directory: &Path, config: &PoolConfig) -> Result<(), CallError> {
    if config.io == DataAccess::Buffered {
        return Ok(());
    }
    let mut options = File::options();
    options
        .read(true)
        .custom_flags(OFlags::DIRECT.bits().cast_signed());
    let data = directory.join(&config.data);
    match options.open(&data) {
        Ok(_) => Ok(()),
        Err(cause) => Err(no_direct_io(&data, &cause)),
    }
}

fn check_size(what: &str, size: Option<u64>, unit: u64) -> Result<(), CallError> {
    match size {
        Some(size) if !size.is_multiple_of(unit) => {
            let next = size.next_multiple_of(unit);
            Err(CallError::invalid(format!(
                "{what} size {size} is not a multiple of {unit}; the next is {next}"
            )))
        }
        Some(size) if what == "metadata" && size > METADATA_SIZE_MAX => {
            Err(CallError::invalid(format!(
                "metadata size {size} is more than the format can use: at most {METADATA_SIZE_MAX}"
            )))
        }
        _ => Ok(()),
    }
}

/// Whether metadata can have the size that was asked for.
///
/// # Errors
/// `Invalid`, with what would do.
pub fn check_metadata_size(size: u64) -> Result<(), CallError> {
    check_size("metadata", Some(size), METADATA_BLOCK_SIZE)?;
    if size < METADATA_SIZE_MIN {
        return Err(CallError::invalid(format!(
            "metadata size {size}: expected at least {METADATA_SIZE_MIN} bytes"
        )));
    }
    Ok(())
}

/// The size of the metadata of a new pool, in bytes.
pub fn default_metadata_size(data_blocks: u64) -> u64 {
    data_blocks
        .saturating_mul(METADATA_BYTES_PER_DATA_BLOCK)
        .clamp(METADATA_SIZE_DEFAULT_MIN, METADATA_SIZE_MAX)
        .next_multiple_of(METADATA_BLOCK_SIZE)
}

/// Whether a new store file gets its space now or when it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Reserved,
    Sparse,
}

/// A store that is ready to be formatted.
struct NewStore {
    file: File,
    /// As `pool.toml` will say it.
    path: PathBuf,
    size: u64,
}

/// What has been made so far; dropped before it is finished, it takes everything back.
#[derive(Default)]
struct Made {
    directory: Option<PathBuf>,
    files: Vec<PathBuf>,
    /// Existing files that were made longer, and how long they were.
    extended: Vec<(File, u64)>,
}

impl Made {
    /// Makes the directory, unless it is there and empty.
    fn directory(path: &Path) -> Result<Made, CallError> {
        let exists = |reason: &str| {
            Err(CallError::new(
                CallErrorKind::Exists,
                format!("{}: {reason}", path.display()),
            ))
        };
        match fs::read_dir(path) {
            Ok(_) if path.join(CONFIG_FILE).exists() => exists("there is a pool already"),
            Ok(mut entries) => match entries.next() {
                None => Ok(Made::default()),
                Some(_) => exists("the directory is not empty: choose another, or empty it"),
            },
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                builder
                    .mode(0o700)
                    .create(path)
                    .map_err(|cause| CallError::io(path.display(), &cause))?;
                let mut made = Made::default();
                made.directory = Some(path.to_owned());
                Ok(made)
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotADirectory => {
                exists("there is a file already")
            }
            Err(cause) => Err(CallError::io(path.display(), &cause)),
        }
    }

    /// Makes, or takes, one store of a new pool and locks it.
    fn store(
        &mut self,
        directory: &Path,
        default_name: &str,
        request: &StoreRequest,
        default_size: Option<u64>,
        space: Space,
    ) -> Result<NewStore, CallError> {
        let place = match &request.path {
            Some(path) => path.clone(),
            None => directory.join(default_name),
        };
        let (file, present_size) = if place.exists() {
            let file = open_locked(&place, Access::Write)?;
            let size =
                expect_unused(&file).map_err(|cause| CallError::io(place.display(), &cause))?;
            (file, size.ok_or_else(|| in_use(&place))?)
        } else {
            (self.create_file(&place)?, 0)
        };
        let Some(size) = request
            .size
            .or((present_size > 0).then_some(present_size))
            .or(default_size)
        else {
            return Err(CallError::invalid(format!(
                "{}: say how large it is to be, with --size",
                place.display()
            )));
        };
        if size > present_size {
            self.extend(&file, &place, present_size, size, space)?;
        }
        let path = match &request.path {
            None => default_name.into(),
            Some(_) => place
                .canonicalize()
                .map_err(|cause| CallError::io(place.display(), &cause))?,
        };
        Ok(NewStore { file, path, size })
    }

    fn create_file(&mut self, place: &Path) -> Result<File, CallError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(place)
            .map_err(|cause| CallError::io(place.display(), &cause))?;
        self.files.push(place.to_owned());
        lock(&file, place, Access::Write)?;
        Ok(file)
    }

    fn extend(
        &mut self,
        file: &File,
        place: &Path,
        present_size: u64,
        size: u64,
        space: Space,
    ) -> Result<(), CallError> {
        let failed = |cause: &io::Error| CallError::io(place.display(), cause);
        if file
            .metadata()
            .map_err(|cause| failed(&cause))?
            .file_type()
            .is_block_device()
        {
            let message = format!(
                "{}: it holds {present_size} bytes, {size} were asked for",
                place.display()
            );
            return Err(CallError::new(CallErrorKind::NoSpace, message));
        }
        let copy = file.try_clone().map_err(|cause| failed(&cause))?;
        self.extended.push((copy, present_size));
        extend_file(file, size, space == Space::Reserved).map_err(|cause| failed(&cause))
    }

    /// Writes `pool.toml`. From now on the directory is a pool.
    fn finish(mut self, directory: &Path, config: &PoolConfig) -> Result<PoolDir, CallError> {
        self.files.push(directory.join("pool.toml.new"));
        self.files.push(directory.join(CONFIG_FILE));
        let sync_parent = || -> io::Result<()> {
            write_config(directory, config)?;
            let absolute = directory.canonicalize()?;
            File::open(absolute.parent().unwrap_or(&absolute))?.sync_all()
        };
        sync_parent().map_err(|cause| CallError::io(directory.display(), &cause))?;
        let pool = PoolDir::open_path(directory)?;
        self.directory = None;
        self.files.clear();
        self.extended.clear();
        Ok(pool)
    }
}

impl Drop for Made {
    /// Failures are of no interest here: another one is being reported already.
    fn drop(&mut self) {
        for (file, size) in self.extended.drain(..) {
            let _ = file.set_len(size);
        }
        for path in self.files.drain(..) {
            let _ = fs::remove_file(path);
        }
        if let Some(directory) = self.directory.take() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Makes a file `size` bytes long, with its space reserved where the file system can.
///
/// # Errors
/// Those of the file system; the length may have changed nevertheless.
pub fn extend_file(file: &File, size: u64, reserve: bool) -> io::Result<()> {
    if reserve {
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
    file.set_len(size)
}

/// The size of an existing store, or none when it begins with anything but zeros.
fn expect_unused(file: &File) -> io::Result<Option<u64>> {
    let size = io::Seek::seek(&mut &*file, io::SeekFrom::End(0))?;
    let mut start = vec![0; UNUSED_LEN.min(usize::try_from(size).unwrap_or(UNUSED_LEN))];
    file.read_exact_at(&mut start, 0)?;
    Ok(start.iter().all(|byte| *byte == 0).then_some(size))
}

fn in_use(place: &Path) -> CallError {
    let message = format!(
        "{}: not empty: wipe its first {UNUSED_LEN} bytes if its contents are not needed",
        place.display()
    );
    CallError::new(CallErrorKind::Exists, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_grows_with_the_pool() {
        assert_eq!(default_metadata_size(1), 64 << 20);
        assert_eq!(default_metadata_size(16 << 20), 1 << 30);
        assert_eq!(default_metadata_size(u64::MAX), METADATA_SIZE_MAX);
        assert_eq!(METADATA_SIZE_MAX, 17_045_913_600);
    }

    #[test]
    fn what_failed_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("pool");
        let request = StoreRequest {
            path: None,
            size: Some(1 << 20),
        };
        let mut made = Made::directory(&directory).unwrap();
        made.store(&directory, "data", &request, None, Space::Sparse)
            .unwrap();
        let taken = root.path().join("taken");
        fs::write(&taken, vec![0; 100]).unwrap();
        let elsewhere = StoreRequest {
            path: Some(taken.clone()),
            ..request
        };
        made.store(&directory, "metadata", &elsewhere, None, Space::Reserved)
            .unwrap();
        assert_eq!(fs::metadata(&taken).unwrap().len(), 1 << 20);
        drop(made);
        assert!(!directory.exists());
        assert_eq!(fs::metadata(&taken).unwrap().len(), 100);
    }

    #[test]
    fn a_store_with_contents_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let taken = root.path().join("taken");
        fs::write(&taken, "something").unwrap();
        let request = StoreRequest {
            path: Some(taken.clone()),
            size: Some(1 << 20),
        };
        let result = Made::default().store(root.path(), "data", &request, None, Space::Sparse);
        assert_eq!(result.err().unwrap().kind, CallErrorKind::Exists);
        assert_eq!(fs::read(&taken).unwrap(), b"something");
    }
}
