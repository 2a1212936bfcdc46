//! A block device from its making to its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pool::{Host, ThinDevice};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::deadline::{COMMAND_LIMIT, within};
use crate::error::Error;
use crate::kernel::{
    CharDevice, Control, Info, QueueEnd, QueueJob, Spec, StartLine, State, Switch, serve_queue,
};
use crate::params::{Options, Params, Shape};
use crate::probe::probe;
use crate::{Record, Table};

/// How long the driver may take to notice that a device's process is gone: 30 s and some where
/// [`REQUEST_TIMEOUT_MS`] could not be set.
const LEFT_LIMIT: Duration = Duration::from_secs(45);

/// When the block layer asks the driver about a request that is not answered; the default is 30 s. It only
/// asks, and then waits on. But drivers from Linux 6.7 to 6.14 notice that a process has died by the commands
/// that it leaves. A queue leaves none if all its tags were in the middle of a request, and then this is
/// when they notice.
const REQUEST_TIMEOUT_MS: u32 = 1_000;

/// How often it is asked, since the driver tells nobody; and queues that finish their last requests.
const LEFT_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Taking a device over waits for its last process by itself, for half a minute.
const RECOVERY_LIMIT: Duration = Duration::from_secs(60);

/// Descriptors that stopping and deleting a device, and writing the table, may need: a ring a command,
/// and the one of the command before may not be closed yet.
const RESERVED_DESCRIPTORS: usize = 6;

/// Whose device it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// What survives renaming of the volume or snapshot.
    pub volume: String,
    /// A random number: the device with it is this one.
    pub token: u64,
    /// Where its file system is going to be mounted.
    pub mountpoint: Option<PathBuf>,
}

/// A thin device that is a block device now, served by threads of its own.
///
/// Dropping it leaves the block device to the next process, as [`UblkDevice::leave`] does. All of its
/// methods block: call them on threads for blocking work.
pub struct UblkDevice {
    record: Record,
    control: Arc<Control>,
    /// None once nobody serves it.
    queues: Option<Queues>,
    /// While it is being made: descriptors for taking it away again when there are no others.
    reserve: Vec<File>,
}

impl UblkDevice {
    /// Makes a thin device a block device, and puts it down in the table. It is read only when the
    /// thin device is. What fails leaves nothing behind.
    pub fn create<H: Host>(
        thin: &ThinDevice<H>,
        identity: Identity,
        options: &Options,
        table: &mut Table,
    ) -> Result<Self, Error> {
        probe()?;
        let shape = Shape {
            size: thin.size(),
            block_size: thin.block_size(),
            read_only: thin.read_only(),
        };
        let params = Params::new(shape, options)?;
        let reserve = reserve_descriptors()?;
        let spec = Spec {
            queues: options.queues,
            depth: options.depth,
            buffer_bytes: options.buffer_bytes,
            token: identity.token,
        };
        let control = within(COMMAND_LIMIT, "making a device", move || Control::add(spec))?;
        // The driver may have given fewer queues than asked for.
        let info = control.last_info();
        let record = Record {
            volume: identity.volume,
            device: info.device,
            token: identity.token,
            queues: info.spec.queues,
            depth: info.spec.depth,
            buffer_bytes: info.spec.buffer_bytes,
            read_only: shape.read_only,
            mountpoint: identity.mountpoint,
        };
        let mut device = UblkDevice {
            record,
            control: Arc::new(control),
            queues: None,
            reserve,
        };
        let started = table
            .insert(device.record.clone())
            .map_err(Error::from)
            .and_then(|()| device.start(thin, Some(params)));
        if let Err(error) = started {
            if let Err(error) = device.delete(table) {
                tracing::warn!("{} is left over: {error}", device.path().display());
            }
            return Err(error);
        }
        device.reserve.clear();
        device.shorten_request_timeout();
        Ok(device)
    }

    /// Takes over the device that a process before this one served. The pool must be ready to serve:
    /// requests that waited come at once.
    ///
    /// # Errors
    /// [`Error::Gone`] when there is no such device, or it was not started: it is off the table then.
    pub fn recover<H: Host>(
        thin: &ThinDevice<H>,
        record: &Record,
        table: &mut Table,
    ) -> Result<Self, Error> {
        let mut device = Self::find_left(record, table)?;
        let control = Arc::clone(&device.control);
        within(RECOVERY_LIMIT, "taking a device over", move || {
            control.begin_recovery()
        })?;
        device.start(thin, None)?;
        Ok(device)
    }

    /// The started device of a record, once no process serves it.
    fn find_left(record: &Record, table: &mut Table) -> Result<Self, Error> {
        probe()?;
        let number = record.device;
        let found = within(COMMAND_LIMIT, "finding a device", move || {
            Control::find(number)
        });
        let mut device = match found {
            Ok(control) if control.last_info().spec.token == record.token => {
                let spec = control.last_info().spec;
                UblkDevice {
                    record: Record {
                        queues: spec.queues,
                        depth: spec.depth,
                        buffer_bytes: spec.buffer_bytes,
                        ..record.clone()
                    },
                    control: Arc::new(control),
                    queues: None,
                    reserve: Vec::new(),
                }
            }
            Ok(_) | Err(Error::Gone(_)) => {
                table.remove(record.device)?;
                return Err(Error::Gone(record.path()));
            }
            Err(error) => return Err(error),
        };
        let info = device.wait_until_left()?;
        if info.state == State::Dead {
            device.delete(table)?;
            return Err(Error::Gone(record.path()));
        }
        Ok(device)
    }

    /// `/dev/ublkbN`.
    pub fn path(&self) -> PathBuf {
        self.record.path()
    }

    /// What the table says of it.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Gives the block device the size that the thin device has now.
    ///
    /// # Errors
    /// [`Error::FixedSize`] when the driver cannot; whatever it is, the device keeps the size it had.
    pub fn resize(&self, size: u64) -> Result<(), Error> {
        let control = Arc::clone(&self.control);
        within(COMMAND_LIMIT, "resizing a device", move || {
            control.resize(size)
        })
    }

    /// Writes out what the kernel holds for it, takes it away and off the table.
    ///
    /// # Errors
    /// [`Error::Busy`] when it is mounted or otherwise claimed; it stays as it was then. Programs that
    /// merely have it open are not seen, and get errors.
    pub fn detach(&mut self, table: &mut Table) -> Result<(), Error> {
        if self.queues.is_some() {
            // Held until the device is stopped: nobody can mount it meanwhile.
            let claim = self.claim()?;
            // Stopping throws away what the page cache has not written.
            if let Some(claim) = &claim {
                let what = format!("writing out {}", self.path().display());
                claim.sync_all().map_err(Error::io(what))?;
            }
            let control = Arc::clone(&self.control);
            within(COMMAND_LIMIT, "stopping a device", move || control.stop())?;
            drop(claim);
            if let Some(queues) = self.queues.take()
                && let Err(cause) = queues.join()
            {
                let device = self.path();
                tracing::error!("{}: serving it has failed: {cause}", device.display());
            }
        }
        self.delete(table)
    }

    /// Leaves the block device to the next process: requests under way are answered, later ones wait, and
    /// so do writes that wait for data space already.
    /// This process must end before another can take it over.
    pub fn leave(self) {
        drop(self);
    }

    /// Opens the block device for nobody else to claim; none when it is no more.
    fn claim(&self) -> Result<Option<File>, Error> {
        let path = self.path();
        let opened = File::options()
            .read(true)
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(&path);
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => match Errno::from_io_error(&cause) {
                Some(Errno::BUSY) => Err(Error::Busy(path)),
                Some(Errno::NXIO | Errno::NODEV) => Ok(None),
                _ => Err(Error::io(path.display().to_string())(cause)),
            },
        }
    }

    /// Waits until no process serves it.
    fn wait_until_left(&self) -> Result<Info, Error> {
        let deadline = Instant::now() + LEFT_LIMIT;
        loop {
            let control = Arc::clone(&self.control);
            let info = within(COMMAND_LIMIT, "looking at a device", move || control.info())?;
            let reason = match info.state {
                State::Dead | State::Quiesced => return Ok(info),
                State::Live => format!("process {} still serves it: end it", info.pid),
                State::Other(state) => {
                    format!("it is in state {state}, which this program does not know")
                }
            };
            if Instant::now() >= deadline {
                return Err(Error::NotRecoverable {
                    device: self.path(),
                    reason,
                });
            }
            thread::sleep(LEFT_POLL_INTERVAL);
        }
    }

    /// Serves its queues, and starts it, or goes on with it, once they are served.
    fn start<H: Host>(
        &mut self,
        thin: &ThinDevice<H>,
        params: Option<Params>,
    ) -> Result<(), Error> {
        let control = Arc::clone(&self.control);
        let device = within(COMMAND_LIMIT, "opening a device", move || {
            control.open(params).map(Arc::new)
        })?;
        let queues = Queues::serve(&self.record, &device, thin)?;
        let control = Arc::clone(&self.control);
        let started = within(COMMAND_LIMIT, "starting a device", move || {
            control.start(&device)
        });
        match started {
            Ok(()) => {
                self.queues = Some(queues);
                Ok(())
            }
            Err(error) => {
                if params.is_none() {
                    // Perhaps the next process can.
                    queues.leave();
                    return Err(error);
                }
                // Makes the driver give back what the queues have fetched, so that they end and the
                // device can be deleted.
                self.reserve.clear();
                let control = Arc::clone(&self.control);
                within(COMMAND_LIMIT, "stopping a device", move || control.stop())?;
                // A queue that failed is the better reason.
                let serving = Error::io(format!("serving {}", self.path().display()));
                Err(queues.join().map_or_else(serving, |()| error))
            }
        }
    }

    /// Sets [`REQUEST_TIMEOUT_MS`], for as long as there is the block device. Without it all works as well,
    /// but for a longer wait.
    ///
    /// The kernel does that when no request is under way, and lets nobody kill who waits for it. So another
    /// process does, which has nothing of ours open: else a daemon killed in that moment would keep its pool,
    /// and the device that only the next one can serve.
    fn shorten_request_timeout(&self) {
        let file = format!("/sys/block/ublkb{}/queue/io_timeout", self.record.device);
        let value = REQUEST_TIMEOUT_MS.to_string();
        let writer = Command::new("/bin/sh")
            .args(["-c", "echo \"$1\" >\"$0\"", &file, &value])
            .stdin(Stdio::null())
            .spawn();
        let wait = move |mut writer: Child| {
            let is_set = writer.wait().is_ok_and(|status| status.success());
            if !is_set {
                tracing::warn!("{file} is not set: a dead daemon may be noticed after 30 s only");
            }
        };
        let started = writer.and_then(|writer| thread::Builder::new().spawn(move || wait(writer)));
        if let Err(cause) = started {
            tracing::warn!("{}: cannot set io_timeout: {cause}", self.path().display());
        }
    }

    /// Deletes a device that is not started, and takes it off the table.
    fn delete(&mut self, table: &mut Table) -> Result<(), Error> {
        assert!(self.queues.is_none(), "deleting would wait for its queues");
        self.reserve.clear();
        let control = Arc::clone(&self.control);
        within(COMMAND_LIMIT, "deleting a device", move || control.delete())?;
        Ok(table.remove(self.record.device)?)
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        if let Some(queues) = self.queues.take() {
            queues.leave();
        }
    }
}

fn reserve_descriptors() -> Result<Vec<File>, Error> {
    let opened = (0..RESERVED_DESCRIPTORS).map(|_| File::open("/dev/null"));
    let reserve: io::Result<_> = opened.collect();
    reserve.map_err(Error::io("making a device (ulimit -n, LimitNOFILE=)"))
}

/// The threads that serve a device.
struct Queues {
    switch: Arc<Switch>,
    /// Has writes wait no longer for data space.
    end_waiting: Box<dyn Fn() + Send + Sync>,
    threads: Vec<JoinHandle<QueueEnd>>,
}

impl Queues {
    fn serve<H: Host>(
        record: &Record,
        device: &Arc<CharDevice>,
        thin: &ThinDevice<H>,
    ) -> Result<Self, Error> {
        let thin = thin.another_handle();
        let waiting = thin.clone();
        let mut queues = Queues {
            switch: Arc::default(),
            end_waiting: Box::new(move || waiting.end_waiting()),
            threads: Vec::new(),
        };
        let mut places = StartLine::places(record.queues);
        for number in 0..record.queues {
            let Some(start) = places.pop() else {
                unreachable!("there is a place for each queue")
            };
            let job = QueueJob {
                device: Arc::clone(device),
                number,
                thin: thin.clone(),
                switch: Arc::clone(&queues.switch),
                start,
            };
            let started = thread::Builder::new()
                .name(format!("ublk{}-{number}", record.device))
                .spawn(move || serve_queue(job));
            match started {
                Ok(thread) => queues.threads.push(thread),
                Err(cause) => {
                    // Else those that are started would wait for the others.
                    drop(places);
                    queues.leave();
                    return Err(Error::io("cannot start a thread")(cause));
                }
            }
        }
        Ok(queues)
    }

    /// Waits until the threads have ended, as they do when their device was stopped.
    fn join(self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads {
            let Ok(end) = thread.join() else {
                unreachable!("a queue's thread does not unwind")
            };
            result = result.and(end.result);
        }
        result
    }

    /// Makes the threads take no more requests, and waits until those under way are answered, but for
    /// writes that wait for data space: these are left to the next process. The threads stay parked until
    /// the process ends.
    fn leave(self) {
        self.switch.throw();
        (self.end_waiting)();
        let is_busy = || {
            let ended = self.threads.iter().filter(|thread| thread.is_finished());
            self.switch.parked() + ended.count() < self.threads.len()
        };
        while is_busy() {
            thread::sleep(LEFT_POLL_INTERVAL);
        }
    }
}
