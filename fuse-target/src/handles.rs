//! The openings the kernel holds: files with their devices, and directory listings.
//!
//! The kernel releases a file some time after the last `close` returned, hence
//! [`Handles::wait_closed`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use pool::{DeviceName, Host};

use crate::file::OpenFile;

/// One name in a listing.
pub(crate) struct ListedFile {
    pub(crate) node: u64,
    pub(crate) name: String,
}

pub(crate) struct Handles<H: Host> {
    next: AtomicU64,
    files: RwLock<HashMap<u64, Arc<OpenFile<H>>>>,
    listings: RwLock<HashMap<u64, Arc<Vec<ListedFile>>>>,
    /// Taken to wait for, and to tell, that a file was released.
    released_lock: Mutex<()>,
    released: Condvar,
}

impl<H: Host> Default for Handles<H> {
    fn default() -> Self {
        Handles {
            next: AtomicU64::new(1),
            files: RwLock::default(),
            listings: RwLock::default(),
            released_lock: Mutex::default(),
            released: Condvar::new(),
        }
    }
}

impl<H: Host> Handles<H> {
    fn new_handle(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn add_file(&self, file: OpenFile<H>) -> u64 {
        let handle = self.new_handle();
        let previous = self.files.write().insert(handle, Arc::new(file));
        assert!(previous.is_none(), "handles are unique");
        handle
    }

    pub(crate) fn file(&self, handle: u64) -> Option<Arc<OpenFile<H>>> {
        self.files.read().get(&handle).map(Arc::clone)
    }

    /// Has writes to open files wait no longer for data space.
    pub(crate) fn end_waiting(&self) {
        self.files
            .read()
            .values()
            .for_each(|file| file.end_waiting());
    }

    pub(crate) fn release_file(&self, handle: u64) {
        let file = self.files.write().remove(&handle);
        drop(file);
        let _released = self.released_lock.lock();
        self.released.notify_all();
    }

    pub(crate) fn add_listing(&self, listing: Vec<ListedFile>) -> u64 {
        let handle = self.new_handle();
        self.listings.write().insert(handle, Arc::new(listing));
        handle
    }

    pub(crate) fn listing(&self, handle: u64) -> Option<Arc<Vec<ListedFile>>> {
        self.listings.read().get(&handle).map(Arc::clone)
    }

    pub(crate) fn release_listing(&self, handle: u64) {
        self.listings.write().remove(&handle);
    }

    fn is_open(&self, name: &DeviceName) -> bool {
        self.files.read().values().any(|file| file.name() == *name)
    }

    /// Waits until no file of that name is open; false when one still is after `timeout`.
    pub(crate) fn wait_closed(&self, name: &DeviceName, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut waiting = self.released_lock.lock();
        while self.is_open(name) {
            if self.released.wait_until(&mut waiting, deadline).timed_out() {
                return !self.is_open(name);
            }
        }
        true
    }

    /// Forgets everything: the mount is gone, and releases that were under way with it.
    pub(crate) fn clear(&self) {
        self.files.write().clear();
        self.listings.write().clear();
        let _released = self.released_lock.lock();
        self.released.notify_all();
    }
}
