//! The intent log's file. A write outlives the process whole or not at all; of what was not synced a power cut
//! leaves any sectors.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pool::LogStore;
use probe::Sabotage;

use super::image::Image;
use super::power::{Io, Power, Verdict};
use super::survivors::Survivors;

/// What there is on the medium and in the page cache.
#[derive(Clone, Default)]
pub(super) struct LogFile {
    image: Option<Image>,
    /// Removed, but perhaps not on the medium.
    removed: Option<Image>,
    /// What a daemon that is sabotaged has not given to the page cache yet.
    late: Vec<(u64, Vec<u8>)>,
}

impl LogFile {
    /// How many writes a power cut may lose.
    pub(super) fn unsynced(&self) -> usize {
        self.image.as_ref().map_or(0, Image::unsynced)
    }

    /// What the end of the daemon leaves.
    pub(super) fn after_kill(&self) -> LogFile {
        LogFile {
            late: Vec::new(),
            ..self.clone()
        }
    }

    /// What a power cut leaves.
    pub(super) fn after_cut(&self, survivors: &mut Survivors) -> LogFile {
        let removed = self.removed.as_ref().filter(|_| survivors.flips());
        let left = self.image.as_ref().or(removed);
        LogFile {
            image: left.map(|image| image.after_cut(survivors, false)),
            ..LogFile::default()
        }
    }
}

/// The log's file. Clones share the same content.
#[derive(Clone)]
pub struct SimLog {
    power: Arc<Power>,
    /// How often the machine was started.
    boot: u64,
    file: Arc<Mutex<LogFile>>,
}

impl SimLog {
    pub(super) fn new(power: Arc<Power>, boot: u64, file: LogFile) -> Self {
        SimLog {
            power,
            boot,
            file: Arc::new(Mutex::new(file)),
        }
    }

    pub(super) fn file(&self) -> LogFile {
        self.file.lock().clone()
    }

    /// Its content now; none when there is no log.
    pub fn content(&self) -> Option<Vec<u8>> {
        self.file.lock().image.as_ref().map(Image::to_bytes)
    }

    /// Replaces its content, durably.
    pub fn set_content(&self, content: Option<Vec<u8>>) {
        *self.file.lock() = LogFile {
            image: content.map(|content| image(&content, content.len() as u64)),
            ..LogFile::default()
        };
    }

    /// Decides about a write, and whether it happens. One that fails may have, unless its daemon was
    /// dead already, or there was no space for it.
    fn begin_write(&self, io: Io) -> (Verdict, bool) {
        let was_alive = !self.power.is_off();
        let verdict = self.power.begin(io);
        let happens = match &verdict {
            Verdict::Go => true,
            Verdict::Fail(cause) => {
                let is_full = cause.kind() == io::ErrorKind::StorageFull;
                was_alive && !is_full && self.power.up_to(1) == 1
            }
        };
        (verdict, happens)
    }

    /// The boot it belongs to.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }
}

fn image(content: &[u8], len: u64) -> Image {
    let mut image = Image::new(len, 0);
    image.write(0, content);
    image.sync(image.writes());
    image
}

fn outcome(verdict: Verdict) -> io::Result<()> {
    match verdict {
        Verdict::Fail(cause) => Err(cause),
        Verdict::Go => Ok(()),
    }
}

impl LogStore for SimLog {
    fn load(&self) -> io::Result<Option<Vec<u8>>> {
        outcome(self.power.begin(Io::LogLoad)).map(|()| self.content())
    }

    fn create(&self, content: &[u8], len: u64) -> io::Result<()> {
        self.power.trace_write(len, content);
        let (verdict, happens) = self.begin_write(Io::LogCreate);
        if happens {
            *self.file.lock() = LogFile {
                image: Some(image(content, len)),
                ..LogFile::default()
            };
        }
        outcome(verdict)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.power.trace_write(at, bytes);
        let (verdict, happens) = self.begin_write(Io::LogWrite);
        if happens {
            let mut file = self.file.lock();
            if probe::is_sabotaged(Sabotage::LateRecord) {
                file.late.push((at, bytes.to_vec()));
                return outcome(verdict);
            }
            let Some(image) = &mut file.image else {
                return Err(io::Error::other("there is no log"));
            };
            image.write(at, bytes);
        }
        outcome(verdict)
    }

    fn sync(&self) -> io::Result<()> {
        let mut file = self.file.lock();
        let late = std::mem::take(&mut file.late);
        let Some(image) = &mut file.image else {
            return Err(io::Error::other("there is no log"));
        };
        late.iter().for_each(|(at, bytes)| image.write(*at, bytes));
        let covered = image.writes();
        let verdict = self.power.begin(Io::LogSync);
        match verdict {
            Verdict::Go => image.sync(covered),
            Verdict::Fail(_) if self.power.is_off() => {}
            Verdict::Fail(_) => image.lose(covered, &mut self.power.fork()),
        }
        outcome(verdict)
    }

    fn remove(&self) -> io::Result<()> {
        let verdict = self.power.begin(Io::LogWrite);
        if matches!(verdict, Verdict::Go) {
            let mut file = self.file.lock();
            let removed = file.image.take();
            *file = LogFile {
                removed,
                ..LogFile::default()
            };
        }
        outcome(verdict)
    }

    fn incarnation(&self) -> String {
        format!("boot {}", self.boot)
    }
}
