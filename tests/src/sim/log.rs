//! The intent log's file. A write outlives the process whole or not at all; of what a power cut leaves
//! nothing is said, and the pool must not ask.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pool::LogStore;

use super::image::to_usize;
use super::power::{Io, Power, Verdict};

/// The log's file. Clones share the same content.
#[derive(Clone)]
pub struct SimLog {
    power: Arc<Power>,
    /// How often the machine was started.
    boot: u64,
    content: Arc<Mutex<Option<Vec<u8>>>>,
}

impl SimLog {
    pub(super) fn new(power: Arc<Power>, boot: u64, content: Option<Vec<u8>>) -> Self {
        SimLog {
            power,
            boot,
            content: Arc::new(Mutex::new(content)),
        }
    }

    /// Its content now; none when there is no log.
    pub fn content(&self) -> Option<Vec<u8>> {
        self.content.lock().clone()
    }

    /// Replaces its content.
    pub fn set_content(&self, content: Option<Vec<u8>>) {
        *self.content.lock() = content;
    }

    /// Decides about a write, and whether it happens. One that fails may have, unless its daemon was
    /// dead already.
    fn begin_write(&self) -> (Verdict, bool) {
        let was_alive = !self.power.is_off();
        let verdict = self.power.begin(Io::LogWrite);
        let happens = match verdict {
            Verdict::Go => true,
            Verdict::Fail(_) => was_alive && self.power.up_to(1) == 1,
        };
        (verdict, happens)
    }

    /// The boot it belongs to.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }
}

impl LogStore for SimLog {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        match self.power.begin(Io::LogLoad) {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(self.content()),
        }
    }

    fn create(&self, content: &[u8], len: u64) -> io::Result<()> {
        let (verdict, happens) = self.begin_write();
        if happens {
            let mut all = content.to_vec();
            all.resize(to_usize(len), 0);
            self.set_content(Some(all));
        }
        match verdict {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(()),
        }
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (verdict, happens) = self.begin_write();
        if happens {
            let mut content = self.content.lock();
            let Some(content) = &mut *content else {
                return Err(io::Error::other("there is no log"));
            };
            content[to_usize(at)..to_usize(at) + bytes.len()].copy_from_slice(bytes);
        }
        match verdict {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(()),
        }
    }

    fn remove(&self) -> io::Result<()> {
        let verdict = self.power.begin(Io::LogWrite);
        if matches!(verdict, Verdict::Go) {
            self.set_content(None);
        }
        match verdict {
            Verdict::Fail(cause) => Err(cause),
            Verdict::Go => Ok(()),
        }
    }

    fn incarnation(&self) -> String {
        format!("boot {}", self.boot)
    }
}
