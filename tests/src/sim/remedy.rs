//! What an operator does about a lost superblock.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use metadata_btree::FileStore;
use metadata_check::Start;
use metadata_restore::{Hints, MetadataSize, Options, Repaired};
use pool::{BlockSize, KnownBy, hand_over_log, known_superblocks, without_log};
use tempfile::TempDir;

use super::{Image, Machine, SimMetadata};

impl Machine {
    /// Writes the superblock anew, as log or history know it: `thinctl rewind`.
    ///
    /// # Panics
    /// When neither knows any.
    pub fn rewind(&self) {
        let known = known_superblocks(&self.log, &self.history).unwrap_or_default();
        let Some((superblock, known_by)) = known.first() else {
            panic!("nobody knows the superblock")
        };
        let superblock = match known_by {
            KnownBy::Log => *superblock,
            KnownBy::History(_) => without_log(superblock),
        };
        self.metadata.put(0, &superblock);
    }

    /// Gives the pool new metadata, and that the log: `thinctl repair --replace`.
    ///
    /// # Panics
    /// When anything is missing in it.
    pub fn repair(&mut self) {
        let new = match Salvaged::of(self) {
            Ok(new) => new,
            Err(cause) => panic!("repair: {cause}"),
        };
        let start = new.repaired.pool.start;
        assert_eq!(start, Start::Copy, "what the trees were found by");
        assert!(
            new.repaired.is_complete(),
            "something is missing: {:?}",
            new.repaired
        );
        let store = File::options().read(true).write(true).open(&new.path);
        let store = store.and_then(FileStore::new);
        let Some(old) = new.known else {
            unreachable!("the trees were found by it")
        };
        let handed_over = store.map(|store| hand_over_log(&self.log, &old, &store));
        assert!(matches!(handed_over, Ok(Ok(_))), "{handed_over:?}");
        self.metadata = Arc::new(SimMetadata::new(Arc::clone(&self.power), new.image()));
    }
}

/// New metadata, of what can be trusted in a machine's.
pub struct Salvaged {
    /// What it has come to.
    pub repaired: Repaired,
    path: PathBuf,
    /// What is known of the last superblock.
    known: Option<[u8; 4096]>,
    _directory: TempDir,
}

impl Salvaged {
    /// From the metadata of a machine, its log and its history.
    ///
    /// # Errors
    /// When nothing tells where the trees are.
    ///
    /// # Panics
    /// When there is no place for it.
    pub fn of(machine: &Machine) -> Result<Self, metadata_restore::Error> {
        let known = known_superblocks(&machine.log, &machine.history).unwrap_or_default();
        let known = known.first().map(|(superblock, _)| *superblock);
        let Ok(directory) = tempfile::tempdir() else {
            panic!("no temporary directory to be had")
        };
        let path = directory.path().join("metadata");
        let image = machine.metadata.image();
        let options = Options {
            size: MetadataSize::ForDataBlocks(&|_| image.len()),
            watch: &|_| ControlFlow::Continue(()),
        };
        let hints = Hints {
            superblock: known.as_ref(),
            block_size: Some(BlockSize::DEFAULT),
            data_bytes: Some(machine.data.image().len()),
            ..Hints::default()
        };
        Ok(Salvaged {
            repaired: metadata_restore::repair(&image, &path, &hints, &options)?,
            path,
            known,
            _directory: directory,
        })
    }

    /// Its bytes.
    ///
    /// # Panics
    /// When they cannot be read.
    pub fn image(&self) -> Image {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(cause) => panic!("reading the new metadata: {cause}"),
        };
        let mut image = Image::new(bytes.len() as u64, 0);
        image.write(0, &bytes);
        let written = image.writes();
        image.sync(written);
        image
    }
}
