//! Control commands. Each blocks until the driver answers, which may take requests of the device: so
//! none may be called on a thread that serves any (see `deadline`).

use std::fmt;
use std::io;
use std::path::PathBuf;

use io_uring::{IoUring, squeue};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys, ublk_init_ctrl_task_ring};
use rustix::io::Errno;

use crate::error::Error;
use crate::params::Params;
use crate::record::block_device;

/// Where control commands go.
pub(crate) const CONTROL_DEVICE: &str = "/dev/ublk-control";

/// How many devices the driver allows.
const LIMIT: &str = "/sys/module/ublk_drv/parameters/ublks_max";

/// What the driver calls the programs that serve devices.
const TARGET_NAME: &str = "thinpool";

/// Control commands are made one at a time.
const RING_ENTRIES: u32 = 4;

/// What every device is made with: it outlives its process, and requests that were under way are sent
/// again to the next one.
const DEVICE_FLAGS: u64 = (sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE) as u64;

/// What a driver can do, as a set of bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Features(pub(crate) u64);

impl Features {
    /// Whether a device that is started can be given another size.
    fn can_resize(self) -> bool {
        self.0 & u64::from(sys::UBLK_F_UPDATE_SIZE) != 0
    }

    /// Whether devices can outlive their process.
    pub(crate) fn can_recover(self) -> bool {
        self.0 & DEVICE_FLAGS == DEVICE_FLAGS
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a device is made with, besides its parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Spec {
    pub(crate) queues: u16,
    pub(crate) depth: u16,
    pub(crate) buffer_bytes: u32,
    /// Kept by the driver, to know the device again.
    pub(crate) token: u64,
}

/// Where a device is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// Not started, or stopped.
    Dead,
    /// Served by a process.
    Live,
    /// Its process is gone; requests wait for the next one.
    Quiesced,
    /// Something this program does not know.
    Other(u16),
}

/// What the driver knows of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Info {
    pub(crate) device: u32,
    pub(crate) state: State,
    pub(crate) spec: Spec,
    /// The process that serves it, or served it last.
    pub(crate) pid: i32,
}

/// The driver's view of a device. Dropping it changes nothing.
pub(crate) struct Control {
    control: UblkCtrl,
}

impl Control {
    /// What the driver can do.
    pub(crate) fn features() -> Result<Features, Error> {
        let what = "asking the ublk driver for its features";
        // libublk does not tell why it has no answer: what can fail before the question comes first.
        make_ring()?;
        let control = UblkCtrlBuilder::default()
            .build()
            .map_err(|cause| failed(what, &cause))?;
        let no_answer = "no answer, as from kernels before 6.5, or at the limit of threads";
        let features = control.get_driver_features();
        features.map(Features).ok_or_else(|| Error::Driver {
            what: what.to_owned(),
            source: io::Error::other(no_answer),
        })
    }

    /// Makes a device, which is not started yet.
    pub(crate) fn add(spec: Spec) -> Result<Self, Error> {
        let control =
            build(-1, spec, UblkFlags::UBLK_DEV_F_ADD_DEV).map_err(|cause| {
                match errno_of(&cause) {
                    Some(Errno::ACCESS) => too_many(),
                    _ => failed("making a ublk device", &cause),
                }
            })?;
        // Else libublk would delete it on its own account, and wait for queues of ours to end.
        control.disown();
        Ok(Control { control })
    }

    /// Finds the device that a process before this one made, as the driver has it.
    pub(crate) fn find(device: u32) -> Result<Self, Error> {
        let gone = || Error::Gone(block_device(device));
        let known = PathBuf::from(format!("/sys/class/ublk-char/ublkc{device}"));
        if !known.exists() {
            return Err(gone());
        }
        let number = i32::try_from(device).map_err(|_| gone())?;
        let failed = |cause| match errno_of(&cause) {
            Some(Errno::NODEV | Errno::NOENT) => gone(),
            _ => failed(&command("looking at", device), &cause),
        };
        // libublk makes room for the queues it is told of, before it asks the driver.
        let control = UblkCtrl::new_simple(number).map_err(failed)?;
        let spec = Control { control }.last_info().spec;
        let flags = UblkFlags::UBLK_DEV_F_RECOVER_DEV;
        let control = build(number, spec, flags).map_err(failed)?;
        Ok(Control { control })
    }

    /// What the driver knows of it now.
    pub(crate) fn info(&self) -> Result<Info, Error> {
        let device = self.control.dev_info().dev_id;
        check(
            self.commands()?.read_dev_info(),
            &command("looking at", device),
        )?;
        Ok(self.last_info())
    }

    /// For commands on this thread.
    fn commands(&self) -> Result<&UblkCtrl, Error> {
        make_ring()?;
        Ok(&self.control)
    }

    /// What the driver knew of it when it was asked last.
    pub(crate) fn last_info(&self) -> Info {
        let info = self.control.dev_info();
        let state = match u32::from(info.state) {
            sys::UBLK_S_DEV_DEAD => State::Dead,
            sys::UBLK_S_DEV_LIVE => State::Live,
            sys::UBLK_S_DEV_QUIESCED => State::Quiesced,
            _ => State::Other(info.state),
        };
        Info {
            device: info.dev_id,
            state,
            spec: Spec {
                queues: info.nr_hw_queues,
                depth: info.queue_depth,
                buffer_bytes: info.max_io_buf_bytes,
                token: info.ublksrv_flags,
            },
            pid: info.ublksrv_pid,
        }
    }

    /// Opens the character device; `params` are for a device that is to be started anew.
    pub(crate) fn open(&self, params: Option<Params>) -> Result<CharDevice, Error> {
        let set = |device: &mut UblkDev| {
            if let Some(params) = params {
                device.tgt.dev_size = params.sectors << 9;
                device.tgt.params = ublk_params(params);
            }
            Ok(())
        };
        let id = self.control.dev_info().dev_id;
        UblkDev::new(TARGET_NAME.to_owned(), set, &self.control)
            .map(|device| CharDevice { device })
            .map_err(|cause| failed(&command("opening the queues of", id), &cause))
    }

    /// Takes a device over whose process is gone. Waits, up to half a minute, until the driver has
    /// done with that process.
    pub(crate) fn begin_recovery(&self) -> Result<(), Error> {
        let info = self.info()?;
        let what = command("taking over", info.device);
        match check(self.commands()?.start_user_recover(), &what) {
            // Another process died in the middle of this; the device is as it should be.
            Err(Error::Driver { source, .. })
                if Errno::from_io_error(&source) == Some(Errno::INVAL)
                    && self.info()?.state == State::Quiesced =>
            {
                Ok(())
            }
            result => result,
        }
    }

    /// Starts it, or goes on with it, once its queues are served. Requests come before this returns.
    pub(crate) fn start(&self, device: &CharDevice) -> Result<(), Error> {
        let what = command("starting", self.control.dev_info().dev_id);
        check(self.commands()?.start_dev(&device.device), &what)
    }

    /// Gives a started device another size.
    pub(crate) fn resize(&self, size: u64) -> Result<(), Error> {
        let what = command("resizing", self.control.dev_info().dev_id);
        let features = self.control.get_driver_features().map(Features);
        if !features.is_some_and(Features::can_resize) {
            return Err(Error::FixedSize);
        }
        match self.commands()?.update_size(size) {
            Err(UblkError::InvalidVal) => Err(Error::BadOption {
                what: "size",
                found: size,
                expected: "a multiple of its sectors".to_owned(),
            }),
            result => check(result, &what),
        }
    }

    /// Takes the block device away, once every request that was made is answered. What has not
    /// been written yet is lost.
    pub(crate) fn stop(&self) -> Result<(), Error> {
        let what = command("stopping", self.control.dev_info().dev_id);
        check(self.commands()?.stop_dev(), &what)
    }

    /// Deletes a device that is stopped and whose character device nobody has open any more.
    pub(crate) fn delete(&self) -> Result<(), Error> {
        let what = command("deleting", self.control.dev_info().dev_id);
        check(self.commands()?.del_dev(), &what)
    }
}

/// The open character device of a device. Its queues' threads share it.
pub(crate) struct CharDevice {
    device: UblkDev,
}

impl CharDevice {
    pub(super) fn device(&self) -> &UblkDev {
        &self.device
    }

    /// A queue's thread has fetched for all its tags, or failed to.
    pub(crate) fn tell_ready(&self, is_ready: bool) {
        // libublk has one word for every failure here: that memory could not be locked.
        self.device.notify_buffer_registration_complete(!is_ready);
    }
}

/// The ring for control commands of this thread, which libublk makes only on the thread that opens a
/// device.
fn make_ring() -> Result<(), Error> {
    ublk_init_ctrl_task_ring(|ring| {
        if ring.is_none() {
            *ring = Some(IoUring::<squeue::Entry128>::builder().build(RING_ENTRIES)?);
        }
        Ok(())
    })
    .map_err(|cause| failed("making a ring for control commands", &cause))
}

fn build(id: i32, spec: Spec, flags: UblkFlags) -> Result<UblkCtrl, UblkError> {
    UblkCtrlBuilder::default()
        .name(TARGET_NAME)
        .id(id)
        .nr_queues(spec.queues)
        .depth(spec.depth)
        .io_buf_bytes(spec.buffer_bytes)
        .ctrl_flags(DEVICE_FLAGS)
        .ctrl_target_flags(spec.token)
        .dev_flags(flags)
        .build()
}

fn ublk_params(params: Params) -> sys::ublk_params {
    let mut attributes = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    if params.read_only {
        attributes |= sys::UBLK_ATTR_READ_ONLY;
    }
    let mut types = sys::UBLK_PARAM_TYPE_BASIC;
    let mut discard = sys::ublk_param_discard::default();
    if let Some(limits) = params.discard {
        types |= sys::UBLK_PARAM_TYPE_DISCARD;
        discard = sys::ublk_param_discard {
            discard_granularity: limits.granularity,
            max_discard_sectors: limits.sectors_max,
            max_write_zeroes_sectors: limits.sectors_max,
            max_discard_segments: 1,
            ..Default::default()
        };
    }
    sys::ublk_params {
        types,
        basic: sys::ublk_param_basic {
            attrs: attributes,
            logical_bs_shift: params.logical_shift,
            physical_bs_shift: params.physical_shift,
            io_min_shift: params.minimum_shift,
            io_opt_shift: params.optimal_shift,
            max_sectors: params.sectors_max,
            dev_sectors: params.sectors,
            ..Default::default()
        },
        discard,
        ..Default::default()
    }
}

fn command(doing: &str, device: u32) -> String {
    format!("{doing} {}", block_device(device).display())
}

/// libublk passes EBUSY on as a success with a negative number.
fn check(result: Result<i32, UblkError>, what: &str) -> Result<(), Error> {
    match result {
        Ok(number) if number >= 0 => Ok(()),
        Ok(number) => Err(failed(what, &UblkError::UringIOError(number))),
        Err(cause) => Err(failed(what, &cause)),
    }
}

fn failed(what: &str, cause: &UblkError) -> Error {
    let source = match errno_of(cause) {
        Some(errno) => errno.into(),
        None => io::Error::other(cause.to_string()),
    };
    Error::Driver {
        what: what.to_owned(),
        source,
    }
}

fn errno_of(cause: &UblkError) -> Option<Errno> {
    match cause {
        UblkError::UringIOError(number) | UblkError::OtherError(number) => {
            Some(Errno::from_raw_os_error(number.checked_neg()?))
        }
        UblkError::IOError(cause) => Errno::from_io_error(cause),
        _ => None,
    }
}

fn too_many() -> Error {
    let limit = std::fs::read_to_string(LIMIT);
    Error::TooMany {
        limit: limit.map_or_else(|_| "an unknown number".to_owned(), |n| n.trim().to_owned()),
        parameter: LIMIT,
    }
}
