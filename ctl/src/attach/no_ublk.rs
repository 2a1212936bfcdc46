//! What stands for ublk in a program that was built without it: no device, and an answer why.

use std::path::{Path, PathBuf};

use pool::ThinDevice;
use reactor::FileHost;

use super::blocks::NewDevice;
use crate::protocol::{CallError, Queues};
use crate::transports::Lack;

/// There is none.
pub enum BlockDevice {}

impl BlockDevice {
    /// Of no device.
    pub fn path(&self) -> PathBuf {
        match *self {}
    }

    /// Of no device.
    pub fn mountpoint(&self) -> Option<PathBuf> {
        match *self {}
    }

    /// Of no device.
    pub fn queues(&self) -> Queues {
        match *self {}
    }

    /// Of no device.
    pub fn resize(&self, _size: u64) -> Result<(), CallError> {
        match *self {}
    }

    /// Of no device.
    pub fn leave(self) {
        match self {}
    }
}

/// No devices.
pub struct BlockDevices {}

/// One that a daemon before this one left: none.
#[derive(Clone)]
pub enum Leftover {}

impl Leftover {
    /// Of no device.
    pub fn volume(&self) -> &str {
        match *self {}
    }

    /// Of no device.
    pub fn path(&self) -> PathBuf {
        match *self {}
    }

    /// Of no device.
    pub fn is_there(&self) -> bool {
        match *self {}
    }
}

impl BlockDevices {
    /// None.
    pub fn open(_runtime_dir: &Path) -> Result<Self, CallError> {
        Ok(BlockDevices {})
    }

    /// None.
    pub fn leftovers(&self) -> Vec<Leftover> {
        Vec::new()
    }

    /// Refused.
    pub fn attach(
        &mut self,
        _thin: &ThinDevice<FileHost>,
        _new: NewDevice,
    ) -> Result<BlockDevice, CallError> {
        Err(CallError::invalid(MISSING))
    }

    /// Of no device.
    pub fn recover(
        &mut self,
        _thin: &ThinDevice<FileHost>,
        leftover: &Leftover,
    ) -> Result<Option<BlockDevice>, CallError> {
        match *leftover {}
    }

    /// Of no device.
    pub fn detach(&mut self, device: &mut BlockDevice) -> Result<(), CallError> {
        match *device {}
    }
}

const MISSING: &str = "this thinctl was built without ublk";

/// Always lacking.
pub fn probe() -> Result<(), Lack> {
    Err(Lack {
        missing: MISSING.to_owned(),
        remedy: "build it with the feature ublk, which needs libclang".to_owned(),
    })
}
