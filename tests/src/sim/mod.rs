//! A machine made of memory: stores on one power supply.
//!
//! What the stores promise is only what the traits they implement promise. A write is volatile
//! until a sync that was *submitted* after the write had completed; a power cut keeps or drops each
//! unsynced sector of 512 bytes on its own ([`Shape`]). Blocks never written, and punched ones,
//! read as garbage, until the store says that they are zeros ([`Power::set_holes`]); a power cut may bring
//! the garbage back. Faults:
//!
//! - the power goes at the n-th change of a store, which may happen in part; everything fails from
//!   then on ([`Power::cut_at`]);
//! - the daemon alone is killed there ([`Power::set_kill`]): what it wrote stays readable;
//! - the n-th I/O of a kind fails, once or from then on ([`Fault`]), of several kinds at a time if
//!   need be; a failed write may have happened in part, a failed sync loses for good some of what it
//!   covered.
//!
//! The code under test must survive all of it with what its contract promises.

mod catalog;
mod disk;
mod history;
mod host;
mod image;
mod log;
mod power;
mod remedy;
mod survivors;

pub use catalog::SimCatalog;
pub use disk::{SimDisk, SimMetadata};
pub use history::SimHistory;
pub use host::{ORIGIN_BYTES, ORIGIN_PATH, SimHost, origin_word};
pub use image::Image;
pub(crate) use image::{SECTOR, to_usize};
pub use log::SimLog;
pub use power::{Fault, FaultKind, Io, Plan, Power};
pub use remedy::Salvaged;
pub use survivors::{Shape, Survivors};

use std::sync::Arc;

use pool::{BlockSize, Error, OpenOptions, Pool, Stores};
use serde::{Deserialize, Serialize};

use crate::prng::Prng;
use log::LogFile;

/// How large the stores of a machine are.
#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
pub struct Geometry {
    /// Data blocks the pool begins with.
    pub data_blocks: u64,
    /// Metadata blocks the pool begins with.
    pub metadata_blocks: u64,
}

/// A pool's stores, and the power they share.
pub struct Machine {
    /// Faults and the seed of everything random.
    pub power: Arc<Power>,
    /// The data store.
    pub data: SimDisk,
    /// The metadata store.
    pub metadata: Arc<SimMetadata>,
    /// The catalog's file.
    pub catalog: SimCatalog,
    /// The intent log's file.
    pub log: SimLog,
    /// The history's file.
    pub history: SimHistory,
}

impl Machine {
    /// A machine with a freshly formatted pool.
    ///
    /// # Panics
    /// When the pool cannot be formatted.
    pub fn new(geometry: Geometry, prng: Prng) -> Self {
        let power = Arc::new(Power::new(prng));
        let block = BlockSize::DEFAULT.bytes();
        let data = Image::new(geometry.data_blocks * block, 0xa5);
        let metadata = Image::new(geometry.metadata_blocks * 4096, 0);
        let log = SimLog::new(Arc::clone(&power), 0, LogFile::default());
        let history = SimHistory::empty();
        let machine = Self::on(power, data, metadata, Vec::new(), log, history);
        let formatted = Pool::<SimHost>::format(
            Arc::clone(&machine.metadata) as _,
            BlockSize::DEFAULT,
            geometry.metadata_blocks,
            geometry.data_blocks,
        );
        assert!(formatted.is_ok(), "cannot format: {formatted:?}");
        machine
    }

    fn on(
        power: Arc<Power>,
        data: Image,
        metadata: Image,
        catalog: Vec<u8>,
        log: SimLog,
        history: Image,
    ) -> Self {
        Machine {
            data: SimDisk::new(Arc::clone(&power), data),
            metadata: Arc::new(SimMetadata::new(Arc::clone(&power), metadata)),
            catalog: SimCatalog::new(Arc::clone(&power), catalog),
            history: SimHistory::new(Arc::clone(&power), history),
            log,
            power,
        }
    }

    /// Opens the pool.
    ///
    /// # Errors
    /// Those of [`Pool::open`].
    pub fn open(&self) -> Result<Arc<Pool<SimHost>>, Error> {
        self.open_with(OpenOptions::default())
    }

    /// Opens the pool for reading only.
    ///
    /// # Errors
    /// Those of [`Pool::open`].
    pub fn open_read_only(&self) -> Result<Arc<Pool<SimHost>>, Error> {
        self.open_with(OpenOptions {
            read_only: true,
            ..OpenOptions::default()
        })
    }

    fn open_with(&self, options: OpenOptions) -> Result<Arc<Pool<SimHost>>, Error> {
        let stores = Stores {
            metadata: Arc::clone(&self.metadata) as _,
            data: self.data.clone(),
            catalog: Box::new(self.catalog.clone()),
            log: Box::new(self.log.clone()),
            history: Box::new(self.history.clone()),
        };
        let host = Arc::new(SimHost::new(Arc::clone(&self.power)));
        Pool::open(host, stores, options)
    }

    /// The machine after a power cut that kept of unsynced sectors what `shape` says.
    pub fn after_cut(&self, shape: Shape, prng: &mut Prng) -> Machine {
        self.after_cut_with(&mut Survivors::drawn(shape, prng), prng)
    }

    /// The machine after a power cut that kept of unsynced sectors what `survivors` says.
    pub fn after_cut_with(&self, survivors: &mut Survivors, prng: &mut Prng) -> Machine {
        let power = self.next_power(prng);
        let data = self.data.image().after_cut(survivors, false);
        let metadata = self.metadata.image().after_cut(survivors, true);
        let log = self.log.file().after_cut(survivors);
        let log = SimLog::new(Arc::clone(&power), self.log.boot() + 1, log);
        let history = self.history.image().after_cut(survivors, false);
        let catalog = self.catalog.content();
        Machine::on(power, data, metadata, catalog, log, history)
    }

    /// The power of the next life.
    fn next_power(&self, prng: &mut Prng) -> Arc<Power> {
        let power = Power::new(prng.fork());
        power.set_pauses(self.power.pauses());
        power.set_holes(self.power.holes());
        power.set_trace(self.power.trace());
        Arc::new(power)
    }

    /// How many writes a power cut now may lose.
    pub fn unsynced_writes(&self) -> usize {
        let log = self.log.file();
        self.data.image().unsynced() + self.metadata.image().unsynced() + log.unsynced()
    }

    /// The machine after the daemon was killed: all that it wrote is still to be read, and what it had
    /// not synced would still be lost with the power.
    pub fn after_kill(&self, prng: &mut Prng) -> Machine {
        let power = self.next_power(prng);
        let log = SimLog::new(
            Arc::clone(&power),
            self.log.boot(),
            self.log.file().after_kill(),
        );
        Machine::on(
            power,
            self.data.image(),
            self.metadata.image(),
            self.catalog.content(),
            log,
            self.history.image(),
        )
    }
}
