//! Replaces connections that the driver has given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nbd_server::DirectConnections;
use pool::Host;

use crate::driver::Driver;
use crate::error::Error;
use crate::record::Record;

/// How long after a failed try, or one that the driver had no use for, the next is made.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A thread that keeps a device supplied with connections.
pub(crate) struct Keeper {
    stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Keeper {
    pub(crate) fn start<H: Host>(
        record: Record,
        connections: Arc<DirectConnections<H>>,
    ) -> Result<Self, Error> {
        let stopping = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stopping);
        let thread = thread::Builder::new()
            .name(format!("nbd{}-keeper", record.device))
            .spawn(move || keep(&record, &connections, &until))
            .map_err(Error::io("cannot start a thread"))?;
        Ok(Keeper { stopping, thread })
    }

    /// From now on connections that end are not replaced.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Waits for the end of the thread, which needs the end of a connection to notice that it is
    /// stopped.
    pub(crate) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that replaces connections panicked");
        }
    }
}

fn keep<H: Host>(record: &Record, connections: &DirectConnections<H>, stopping: &AtomicBool) {
    let wanted = usize::from(record.connections);
    let device = record.path();
    let mut failing = false;
    loop {
        connections.wait_below(wanted);
        if stopping.load(Ordering::Acquire) {
            return;
        }
        if !record.is_there() {
            tracing::warn!("{}: somebody has disconnected it", device.display());
            return;
        }
        match replace(record, connections, wanted) {
            Ok(()) => failing = false,
            Err(cause) if !failing => {
                tracing::error!("{}: {cause}", device.display());
                failing = true;
            }
            // Five times a second the same would be of no use.
            Err(_) => {}
        }
        thread::sleep(RETRY_INTERVAL);
    }
}

fn replace<H: Host>(
    record: &Record,
    connections: &DirectConnections<H>,
    wanted: usize,
) -> Result<(), Error> {
    let missing = wanted.saturating_sub(connections.count());
    let what = format!("replacing {missing} lost connections");
    tracing::debug!("{}: {what}", record.path().display());
    let sockets = (0..missing).map(|_| connections.open());
    let sockets = sockets
        .collect::<Result<Vec<_>, _>>()
        .map_err(Error::io(what.as_str()))?;
    Driver::open()
        .and_then(|driver| driver.reconfigure(record, &sockets))
        .map_err(Error::driver(what))
}
