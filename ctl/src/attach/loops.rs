//! Attachments that are files of the pool's FUSE mount with loop devices on top. They end with the
//! daemon.

use std::path::PathBuf;

use fuse_target::{LoopDevice, LoopOptions};

use super::file_system::{Contents, mount_as_asked};
use super::{Attached, Backing, fuse_error};
use crate::protocol::{AttachRequest, Attachment, CallError, Queues};
use crate::transports::Choice;

/// Puts a loop device on a file, and mounts it if asked to.
pub(super) fn attach_file(
    request: AttachRequest,
    choice: Choice,
    file: PathBuf,
    contents: Contents,
) -> Result<Attached, CallError> {
    let mut options = LoopOptions {
        read_only: contents.read_only,
        ..LoopOptions::default()
    };
    if let Some(sector_size) = request.options.sector_size {
        options.sector_size = sector_size.bytes();
    }
    let device = LoopDevice::attach_with(&file, options).map_err(|cause| fuse_error(&cause))?;
    let made = match mount_as_asked(device.path(), contents, &request) {
        Ok(made) => made,
        Err(error) => {
            if let Err(cause) = device.detach() {
                tracing::warn!("{} is left attached: {cause}", device.path().display());
            }
            return Err(error);
        }
    };
    let attachment = Attachment {
        name: request.name,
        device: device.path().to_owned(),
        link: None,
        transport: choice.transport,
        reason: choice.reason,
        file: Some(file),
        mountpoint: request.mount,
        made,
        read_only: contents.read_only,
        direct_io: Some(device.direct_io()),
        queues: Queues::default(),
        notes: Vec::new(),
    };
    Ok(Attached {
        backing: Backing::Loop(device),
        attachment,
    })
}

/// Which of these are loop devices no more.
pub(super) fn gone(devices: Vec<(u32, LoopDevice)>) -> Vec<u32> {
    let is_gone = |device: &LoopDevice| {
        let found = LoopDevice::find(device.file());
        // Where that cannot be seen, it is taken to be there.
        found.is_ok_and(|found| found.as_ref() != Some(device))
    };
    let gone = devices.into_iter().filter(|(_, device)| is_gone(device));
    gone.map(|(id, _)| id).collect()
}
