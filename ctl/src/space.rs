//! What is done about a pool's space without anybody asking: events are told, writes that wait get another
//! chance, a data store that is a file grows.
//!
//! What an administrator wants in this respect stands in `pool.toml`:
//!
//! ```text
//! [space]
//! error_if_no_space = false       # writes without space fail at once instead of waiting
//! no_space_timeout = 60           # seconds that they wait; 0 is for ever
//! low_water_percent = 10          # free space that is little, of data and of metadata; 0 is none
//!
//! [space.auto_grow]               # unless it is there, the pool does not grow by itself
//! threshold_percent = 80          # used space from which on the data store grows
//! step = 10737418240              # by how much, in bytes
//! max = 107374182400              # never beyond that, in bytes
//! ```

mod forecast;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use pool::{Mode, NoSpacePolicy, Status};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::events::Happening;
use crate::protocol::CallError;
use crate::service::PoolService;
use forecast::Forecast;
use watch::Watch;

/// How often a pool's space is looked at.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long after it failed the data store is tried to be grown again.
const GROW_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The share of free space that counts as little, in percent.
const LOW_WATER_PERCENT: u8 = 10;

/// What `pool.toml` says of a pool's space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpacePolicy {
    /// Whether writes without space fail at once instead of waiting.
    pub error_if_no_space: bool,
    /// How long they wait, in seconds; 0 is for ever.
    pub no_space_timeout: u64,
    /// The free space, of the data and of the metadata store, that is little: percent; 0 is none.
    pub low_water_percent: u8,
    /// How the data store grows by itself, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_grow: Option<AutoGrow>,
}

impl Default for SpacePolicy {
    fn default() -> Self {
        let NoSpacePolicy {
            error_if_no_space,
            no_space_timeout,
        } = NoSpacePolicy::default();
        SpacePolicy {
            error_if_no_space,
            no_space_timeout,
            low_water_percent: LOW_WATER_PERCENT,
            auto_grow: None,
        }
    }
}

/// When a pool's stores will be full if they go on filling as they do, in seconds; none if they do not fill.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct UntilFull {
    /// The data store, at its present size.
    pub data_seconds: Option<u64>,
    /// The metadata store, at its present size.
    pub metadata_seconds: Option<u64>,
}

/// How a data store that is a file grows by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AutoGrow {
    /// The used space from which on it grows, in percent.
    pub threshold_percent: u8,
    /// By how much, in bytes.
    pub step: u64,
    /// The size that it never exceeds, in bytes.
    pub max: u64,
}

impl SpacePolicy {
    /// What the pool itself has to know of it.
    pub fn no_space(&self) -> NoSpacePolicy {
        NoSpacePolicy {
            error_if_no_space: self.error_if_no_space,
            no_space_timeout: self.no_space_timeout,
        }
    }

    /// The free space below which there is little of a store, in bytes.
    pub fn low_water_bytes(&self, total: u64) -> u64 {
        let bytes = u128::from(total) * u128::from(self.low_water_percent) / 100;
        u64::try_from(bytes).unwrap_or(total)
    }

    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// `Invalid`, with what is expected.
    pub fn check(&self) -> Result<(), CallError> {
        let refused = |message: String| Err(CallError::invalid(message));
        if self.low_water_percent > 99 {
            return refused(format!(
                "a low-water mark of {} percent: expected 0 to 99",
                self.low_water_percent
            ));
        }
        let Some(auto) = self.auto_grow else {
            return Ok(());
        };
        if !(1..=99).contains(&auto.threshold_percent) {
            return refused(format!(
                "a threshold of {} percent to grow at: expected 1 to 99",
                auto.threshold_percent
            ));
        }
        if auto.step == 0 || auto.max == 0 {
            return refused("a data store cannot grow by or to 0 bytes".to_owned());
        }
        Ok(())
    }
}

impl AutoGrow {
    /// The size that the data store should have, if that is not the one it has.
    fn wanted(&self, status: &Status) -> Option<u64> {
        let (used, total) = (status.data_used_bytes, status.data_total_bytes);
        let max = self.max - self.max % status.block_size;
        let step = self
            .step
            .max(status.block_size)
            .next_multiple_of(status.block_size);
        // Below that size the threshold is reached.
        let least = u128::from(used) * 100 / u128::from(self.threshold_percent) + 1;
        let least = u64::try_from(least).unwrap_or(u64::MAX);
        let steps = least.saturating_sub(total).div_ceil(step);
        let size = total.saturating_add(steps.saturating_mul(step)).min(max);
        (size > total).then_some(size)
    }
}

/// Looks after a pool's space, as long as the daemon lives.
pub async fn look_after(service: Arc<PoolService>) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watch = Watch::default();
    let mut growth = Growth::default();
    let (mut data, mut metadata) = (Forecast::default(), Forecast::default());
    let began = Instant::now();
    let turned = Arc::new(Notify::new());
    tokio::spawn(tell_turns(Arc::clone(&service), Arc::clone(&turned)));
    loop {
        tokio::select! {
            _ = ticks.tick() => service.pool.look_for_space().await,
            () = turned.notified() => {}
        }
        let policy = service.space();
        let status = service.pool.status();
        for happening in watch.look(&status, &policy) {
            service.events.tell(happening);
        }
        let now = began.elapsed();
        service.set_until_full(UntilFull {
            data_seconds: data.look(now, status.data_used_bytes, status.data_free_bytes()),
            metadata_seconds: metadata.look(
                now,
                status.metadata_used_bytes,
                status.metadata_free_bytes(),
            ),
        });
        if let Some(auto) = policy.auto_grow {
            growth.follow(&service, auto).await;
        }
    }
}

/// Rings whenever lack of space has begun or ended.
async fn tell_turns(service: Arc<PoolService>, turned: Arc<Notify>) {
    let mut turns = 0;
    loop {
        turns = service.pool.space_turns(turns).await;
        turned.notify_one();
    }
}

/// How the data store's growth went so far.
#[derive(Default)]
struct Growth {
    retry_at: Option<Instant>,
    /// Why it failed the last time.
    told: Option<String>,
}

impl Growth {
    /// Makes the data store larger if it is to be.
    async fn follow(&mut self, service: &PoolService, auto: AutoGrow) {
        let wanted = || {
            let status = service.pool.status();
            let may_change = !matches!(status.mode, Mode::ReadOnly | Mode::Failed);
            auto.wanted(&status).filter(|_| may_change)
        };
        let Some(bytes) = wanted() else {
            return *self = Growth::default();
        };
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let Err(error) = service.grow(Some(bytes), None).await else {
            return *self = Growth::default();
        };
        // Somebody else may have made it large enough meanwhile.
        if wanted().is_none() {
            return;
        }
        self.retry_at = Some(Instant::now() + GROW_RETRY_INTERVAL);
        let reason = error.message;
        if self.told.as_ref() != Some(&reason) {
            self.told = Some(reason.clone());
            service
                .events
                .tell(Happening::AutoGrowFailed { bytes, reason });
        }
    }
}

/// A pool with 100 bytes in each store, none of them used.
#[cfg(test)]
pub(crate) fn empty_status() -> Status {
    Status {
        block_size: 65_536,
        data_total_bytes: 100,
        data_used_bytes: 0,
        metadata_total_bytes: 100,
        metadata_used_bytes: 0,
        metadata_reserve_bytes: 0,
        held_root: 0,
        transaction_id: 1,
        time: 0,
        mode: Mode::Write,
        mode_reason: String::new(),
        needs_check: false,
        discard_passdown: true,
        volumes: 0,
        snapshots: 0,
        deleting: 0,
        commits: 0,
        flushes: 0,
        provisioned_blocks: 0,
        copied_blocks: 0,
        copied_bytes: 0,
        zeroed_bytes: 0,
        partial_blocks: 0,
        queued_writes: 0,
        log_bytes: 0,
        log_records: 0,
        log_records_max: 0,
        queues_without_space: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 65_536;

    fn status(used: u64, total: u64) -> Status {
        Status {
            block_size: BLOCK,
            data_used_bytes: used * BLOCK,
            data_total_bytes: total * BLOCK,
            ..empty_status()
        }
    }

    fn auto(step: u64, max: u64) -> AutoGrow {
        AutoGrow {
            threshold_percent: 80,
            step,
            max,
        }
    }

    #[test]
    fn a_store_grows_from_its_threshold_on_and_never_beyond_its_maximum() {
        let auto = auto(10 * BLOCK, 200 * BLOCK);
        let wanted = |used, total| auto.wanted(&status(used, total)).map(|bytes| bytes / BLOCK);
        assert_eq!(wanted(79, 100), None);
        assert_eq!(wanted(80, 100), Some(110));
        assert_eq!(wanted(100, 100), Some(130), "in one go, however far it is");
        assert_eq!(wanted(195, 195), Some(200));
        assert_eq!(wanted(200, 200), None);
        assert_eq!(wanted(300, 300), None, "somebody has grown it further");
    }

    #[test]
    fn it_grows_by_whole_blocks() {
        let wanted = |step, max| auto(step, max).wanted(&status(100, 100));
        assert_eq!(wanted(1, u64::MAX), Some(126 * BLOCK));
        assert_eq!(wanted(1, 110 * BLOCK + 5), Some(110 * BLOCK));
        assert_eq!(wanted(1, 100 * BLOCK + 5), None);
    }

    #[test]
    fn senseless_numbers_are_refused() {
        assert!(SpacePolicy::default().check().is_ok());
        let with = |threshold_percent, step, max| SpacePolicy {
            auto_grow: Some(AutoGrow {
                threshold_percent,
                step,
                max,
            }),
            ..SpacePolicy::default()
        };
        assert!(with(80, 1, 1).check().is_ok());
        for policy in [
            with(0, 1, 1),
            with(100, 1, 1),
            with(80, 0, 1),
            with(80, 1, 0),
        ] {
            assert!(policy.check().is_err(), "{policy:?}");
        }
        let policy = SpacePolicy {
            low_water_percent: 100,
            ..SpacePolicy::default()
        };
        assert!(policy.check().is_err());
    }

    #[test]
    fn what_is_not_said_is_as_by_default() {
        let policy: SpacePolicy = toml::from_str("no_space_timeout = 5").unwrap();
        let expected = SpacePolicy {
            no_space_timeout: 5,
            ..SpacePolicy::default()
        };
        assert_eq!(policy, expected);
        assert!(toml::from_str::<SpacePolicy>("[auto_grow]\nstep = 1\nmax = 1").is_err());
    }
}
