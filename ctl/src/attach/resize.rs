//! Block devices that follow the size of their volumes.

use std::path::Path;

use super::{Attachments, Backing, blocking, fuse_error};
use crate::protocol::CallError;
use crate::service::PoolService;

/// What is said of a block device that cannot be given another size because nobody serves it.
const WAITS_FOR_DAEMON: &str = "its block device keeps its size: it waits for the pool's daemon, which changes \
                                it if its driver can";

impl Attachments {
    /// Gives the block device of a volume, if there is one, the size that the volume has now. Returns why
    /// it keeps the one it had.
    ///
    /// # Errors
    /// When the daemon fails.
    pub async fn follow_size(
        &self,
        service: &PoolService,
        id: u32,
    ) -> Result<Option<String>, CallError> {
        let mut state = self.state.lock().await;
        self.forget_gone(&mut state).await;
        let Some(attached) = state.attached.remove(&id) else {
            let waits = self.held.lock().contains_key(&id);
            return Ok(waits.then(|| WAITS_FOR_DAEMON.to_owned()));
        };
        // As it is by now: others may resize it, too.
        let devices = service.pool.devices();
        let size = devices
            .iter()
            .find(|info| info.id == id)
            .map(|info| info.size);
        let (attached, result) = blocking(move || {
            let result = size.map_or(Ok(()), |size| attached.backing.resize(size));
            (attached, result)
        })
        .await?;
        let device = attached.attachment.device.clone();
        state.attached.insert(id, attached);
        Ok(result.err().map(|error| keeps_size(&device, &error)))
    }
}

impl Backing {
    /// Gives the block device the size that its volume has now.
    fn resize(&self, size: u64) -> Result<(), CallError> {
        match self {
            Backing::Loop(device) => device.follow_size().map_err(|cause| fuse_error(&cause)),
            Backing::Block(device) => device.resize(size),
        }
    }
}

/// What to say when a block device could not be given another size.
pub(super) fn keeps_size(device: &Path, cause: &CallError) -> String {
    format!(
        "{} keeps its size until it is detached and attached again: {cause}",
        device.display()
    )
}
