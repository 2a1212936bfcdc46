//! The surroundings of a pool in a simulated machine.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pool::Host;

use super::disk::SimDisk;
use super::image::{Image, SECTOR};
use super::power::Power;
use crate::prng::Prng;

/// The only external origin there is.
pub const ORIGIN_PATH: &str = "/origin";

/// Its size: not a whole number of blocks.
pub const ORIGIN_BYTES: u64 = 5 * 65_536 + 20_480;

/// What each 8-byte word of a sector of the external origin is.
pub fn origin_word(sector: u64) -> u64 {
    0xee00_0000_0000_0000 | sector
}

/// A host in memory: blocking work runs at once, the clock counts how often it was asked.
pub struct SimHost {
    power: Arc<Power>,
    now: AtomicU64,
}

impl SimHost {
    pub(super) fn new(power: Arc<Power>) -> Self {
        SimHost {
            power,
            now: AtomicU64::new(0),
        }
    }
}

impl SimHost {
    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.now.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Host for SimHost {
    type Data = SimDisk;

    async fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.power.pause().await;
        let result = job();
        self.power.pause().await;
        result
    }

    fn open_origin(&self, path: &Path) -> io::Result<SimDisk> {
        if path != Path::new(ORIGIN_PATH) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut image = Image::new(ORIGIN_BYTES, 0);
        for sector in 0..ORIGIN_BYTES / SECTOR {
            let bytes = origin_word(sector).to_le_bytes().repeat(64);
            image.write(sector * SECTOR, &bytes);
        }
        image.sync(image.writes());
        let power = Arc::new(Power::new(Prng::new(0)));
        Ok(SimDisk::new(power, image))
    }

    async fn pause(&self, time: Duration) {
        self.power.pause().await;
        self.advance(time);
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.now.fetch_add(1, Ordering::Relaxed))
    }
}
