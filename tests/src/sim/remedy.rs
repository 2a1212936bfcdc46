//! What an operator does about a lost superblock.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use metadata_btree::FileStore;
use metadata_check::Start;
use metadata_restore::{Hints, MetadataSize, Options};
use pool::{KnownBy, hand_over_log, known_superblocks, without_log};

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
        self.metadata.write_superblock(&match known_by {
            KnownBy::Log => *superblock,
            KnownBy::History(_) => without_log(superblock),
        });
    }

    /// Gives the pool new metadata, and that the log: `thinctl repair --replace`.
    ///
    /// # Panics
    /// When anything is missing in it.
    pub fn repair(&mut self) {
        let known = known_superblocks(&self.log, &self.history).unwrap_or_default();
        let known: Vec<_> = known
            .into_iter()
            .map(|(superblock, _)| superblock)
            .collect();
        let Ok(directory) = tempfile::tempdir() else {
            panic!("no temporary directory to be had")
        };
        let path = directory.path().join("metadata");
        self.salvage(&path, &known);
        let handed_over = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|file| {
                let store = FileStore::new(file)?;
                Ok(hand_over_log(&self.log, &known[0], &store))
            });
        assert!(matches!(handed_over, Ok(Ok(_))), "{handed_over:?}");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(cause) => panic!("reading the new metadata: {cause}"),
        };
        let mut image = Image::new(bytes.len() as u64, 0);
        image.write(0, &bytes);
        let written = image.writes();
        image.sync(written);
        self.metadata = Arc::new(SimMetadata::new(Arc::clone(&self.power), image));
    }

    fn salvage(&self, path: &Path, known: &[[u8; 4096]]) {
        let image = self.metadata.image();
        let options = Options {
            size: MetadataSize::ForDataBlocks(&|_| image.len()),
            watch: &|_| ControlFlow::Continue(()),
        };
        let hints = Hints {
            superblocks: known,
            ..Hints::default()
        };
        match metadata_restore::repair(&image, path, &hints, &options) {
            Ok(repaired) => {
                assert_eq!(
                    repaired.pool.start,
                    Start::Copy(0),
                    "what the trees were found by"
                );
                assert!(repaired.is_complete(), "something is missing: {repaired:?}");
            }
            Err(cause) => panic!("a repair without superblock: {cause}"),
        }
    }
}
