//! Block devices that a daemon before this one has left: taken over, and until then held open.

use std::sync::Arc;

use pool::DeviceInfo;

use super::blocks::{BlockDevices, Leftover};
use super::resize::keeps_size;
use super::{Attached, Attachments, Backing, State};
use crate::protocol::{Attachment, CallError, CallErrorKind};
use crate::service::PoolService;

impl Attachments {
    /// Keeps open what block devices wait for that a daemon has left, so that nobody removes it or
    /// rolls it back below a mounted file system.
    ///
    /// # Errors
    /// When it cannot be told which there are.
    pub fn hold_leftovers(&self, service: &PoolService) -> Result<(), CallError> {
        let leftovers = BlockDevices::open(&self.runtime_dir)?.leftovers();
        let waiting = leftovers.iter().filter(|leftover| leftover.is_there());
        for info in waiting.filter_map(|leftover| volume_of(service, leftover)) {
            let device = service.open_device(&info.name)?;
            self.held.lock().insert(info.id, device);
        }
        Ok(())
    }

    /// Takes over the block devices that a daemon before this one left. One that cannot be taken over
    /// is told in the log, and waits on.
    ///
    /// # Errors
    /// When it cannot be told which there are.
    pub async fn recover(&self, service: &Arc<PoolService>) -> Result<(), CallError> {
        let mut state = self.state.lock().await;
        self.links.clear();
        let leftovers = self.with_blocks(&mut state, |blocks| blocks.leftovers());
        let leftovers = leftovers.await?;
        if leftovers.is_empty() {
            return Ok(());
        }
        for leftover in leftovers {
            let path = leftover.path();
            if let Err(cause) = self.recover_one(&mut state, service, leftover).await {
                tracing::error!("{} waits on: {cause}", path.display());
            }
        }
        Ok(())
    }

    /// Tries once more to take over what could not be when this daemon began.
    ///
    /// # Errors
    /// Why it waits on.
    pub(super) async fn recover_waiting(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        is_meant: impl Fn(&Leftover) -> bool,
    ) -> Result<(), CallError> {
        let leftovers = self.with_blocks(state, |blocks| blocks.leftovers()).await?;
        for leftover in leftovers.into_iter().filter(is_meant) {
            let waits = volume_of(service, &leftover)
                .is_some_and(|info| !state.attached.contains_key(&info.id));
            if waits {
                let path = leftover.path();
                let recovered = self.recover_one(state, service, leftover).await;
                recovered.map_err(|cause| {
                    let message = format!("{} waits on: {cause}", path.display());
                    CallError::new(cause.kind, message)
                })?;
            }
        }
        Ok(())
    }

    async fn recover_one(
        &self,
        state: &mut State,
        service: &Arc<PoolService>,
        leftover: Leftover,
    ) -> Result<(), CallError> {
        let path = leftover.path();
        let Some(info) = volume_of(service, &leftover) else {
            let message = "the volume it shows is not in the pool (any more)";
            return Err(CallError::new(CallErrorKind::NotFound, message));
        };
        let thin = service.open_device(&info.name)?;
        let (read_only, transport) = (thin.read_only(), leftover.transport());
        let recover = move |blocks: &mut BlockDevices| {
            let device = blocks.recover(&thin, &leftover)?;
            // Its volume may have been enlarged while nobody served it.
            if let Some(device) = &device
                && let Err(error) = device.resize(thin.size())
            {
                tracing::warn!("{}", keeps_size(&device.path(), &error));
            }
            Ok::<_, CallError>(device)
        };
        let device = self.with_blocks(state, recover).await??;
        self.held.lock().remove(&info.id);
        let Some(device) = device else {
            // Its node may well stay.
            self.links.remove(&path);
            tracing::info!("{}: is no more", path.display());
            return Ok(());
        };
        let attachment = Attachment {
            name: info.name.clone(),
            link: self.links.make(&info.name, &path),
            device: path.clone(),
            transport,
            reason: "a daemon before this one left it".to_owned(),
            file: None,
            mountpoint: device.mountpoint(),
            made: None,
            read_only,
            direct_io: None,
            queues: device.queues(),
            notes: Vec::new(),
        };
        let backing = Backing::Block(device);
        state.attached.insert(
            info.id,
            Attached {
                backing,
                attachment,
            },
        );
        tracing::info!("{}: goes on as {}", path.display(), info.name);
        Ok(())
    }
}

/// The volume or snapshot that a block device shows.
fn volume_of(service: &PoolService, leftover: &Leftover) -> Option<DeviceInfo> {
    let is_it = |info: &DeviceInfo| info.uuid == leftover.volume();
    service.pool.devices().into_iter().find(is_it)
}
