//! The pool's surroundings in production: files, threads, the clock.

use std::future::Future;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use pool::Host;

use crate::blocking::BlockingPool;
use crate::file::FileIo;

/// Threads for blocking work, shared by everything that uses one host.
const THREADS_MAX: usize = 8;

/// A host whose data stores are files and block devices.
pub struct FileHost {
    start: Instant,
    threads: BlockingPool,
}

impl FileHost {
    /// A host with its own threads for blocking work; they are started when needed.
    pub fn new() -> Self {
        FileHost {
            start: Instant::now(),
            threads: BlockingPool::new(THREADS_MAX),
        }
    }

    /// The threads for blocking work.
    pub fn threads(&self) -> &BlockingPool {
        &self.threads
    }

    /// Opens a data store, a file or block device.
    pub fn open_data(&self, path: &Path, read_only: bool) -> io::Result<FileIo> {
        FileIo::open(path, read_only, self.threads.clone())
    }
}

impl Default for FileHost {
    fn default() -> Self {
        Self::new()
    }
}

impl Host for FileHost {
    type Data = FileIo;

    fn offload<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send {
        self.threads.offload(job)
    }

    fn open_origin(&self, path: &Path) -> io::Result<FileIo> {
        self.open_data(path, true)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send {
        self.threads.offload(move || std::thread::sleep(time))
    }
}
