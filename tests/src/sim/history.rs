//! The history's file: of what was not synced a power cut leaves any sectors.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pool::HistoryStore;

use super::image::{Image, to_usize};
use super::power::{Io, Power, Verdict};

/// More than a history has.
const BYTES: u64 = 64 * 1024;

/// The history's file. Clones share the same content.
#[derive(Clone)]
pub struct SimHistory {
    power: Arc<Power>,
    image: Arc<Mutex<Image>>,
}

impl SimHistory {
    pub(super) fn new(power: Arc<Power>, image: Image) -> Self {
        SimHistory {
            power,
            image: Arc::new(Mutex::new(image)),
        }
    }

    pub(super) fn empty() -> Image {
        Image::new(BYTES, 0)
    }

    pub(super) fn image(&self) -> Image {
        self.image.lock().clone()
    }
}

impl HistoryStore for SimHistory {
    fn load(&self) -> io::Result<Vec<u8>> {
        Ok(self.image.lock().to_bytes())
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        match self.power.begin(Io::HistoryWrite) {
            Verdict::Fail(cause) => {
                let sectors = self.power.up_to(bytes.len() as u64 / 512);
                let part = &bytes[..to_usize(sectors) * 512];
                self.image.lock().write(at, part);
                Err(cause)
            }
            Verdict::Go => {
                self.image.lock().write(at, bytes);
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self.power.begin(Io::HistorySync) {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => {
                let mut image = self.image.lock();
                let writes = image.writes();
                image.sync(writes);
                Ok(())
            }
        }
    }

    fn time(&self) -> u64 {
        0
    }
}
