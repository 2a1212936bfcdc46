//! The catalog's file: an append that is cut short leaves a part of its lines, a replacement none
//! or all.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pool::CatalogStore;

use super::image::to_usize;
use super::power::{Io, Power, Verdict};

/// The catalog's file. Clones share the same content.
#[derive(Clone)]
pub struct SimCatalog {
    power: Arc<Power>,
    content: Arc<Mutex<Vec<u8>>>,
}

impl SimCatalog {
    pub(super) fn new(power: Arc<Power>, content: Vec<u8>) -> Self {
        SimCatalog {
            power,
            content: Arc::new(Mutex::new(content)),
        }
    }

    /// Its content now.
    pub fn content(&self) -> Vec<u8> {
        self.content.lock().clone()
    }
}

impl CatalogStore for SimCatalog {
    fn load(&self) -> io::Result<Vec<u8>> {
        match self.power.begin(Io::CatalogLoad) {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(self.content()),
        }
    }

    fn append(&self, len: u64, lines: &[u8]) -> io::Result<()> {
        if self.content.lock().len() as u64 > len {
            match self.power.begin(Io::CatalogWrite) {
                Verdict::Fail(cause) => return Err(cause),
                Verdict::Go => self.content.lock().truncate(to_usize(len)),
            }
        }
        match self.power.begin(Io::CatalogWrite) {
            Verdict::Fail(cause) => {
                let part = to_usize(self.power.up_to(lines.len() as u64));
                self.content.lock().extend_from_slice(&lines[..part]);
                Err(cause)
            }
            Verdict::Go => {
                self.content.lock().extend_from_slice(lines);
                Ok(())
            }
        }
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let verdict = self.power.begin(Io::CatalogWrite);
        let happens = match &verdict {
            Verdict::Go => true,
            Verdict::Fail(cause) => {
                cause.kind() != io::ErrorKind::StorageFull && self.power.up_to(1) == 1
            }
        };
        if happens {
            *self.content.lock() = content.to_vec();
        }
        match verdict {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(()),
        }
    }
}
