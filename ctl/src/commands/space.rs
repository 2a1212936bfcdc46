//! A pool's space: `set`, `events`.

use pool::NoSpaceOverride;

use super::{Context, daemon_of, unexpected};
use crate::cli::{DeviceArg, EventsArgs, OrPool, SetArgs};
use crate::events::PoolEvent;
use crate::output::write_out;
use crate::pool_dir::{Access, PoolDir, names_pool};
use crate::protocol::{Call, CallError, CallErrorKind, Reply};
use crate::space::{AutoGrow, SpacePolicy};

/// What `--auto-grow-max` alone means besides.
const AUTO_GROW_THRESHOLD_PERCENT: u8 = 80;
const AUTO_GROW_STEP: u64 = 1 << 30;

pub(super) async fn set(context: &Context, args: &SetArgs) -> Result<(), CallError> {
    if names_pool(&args.what) {
        return set_pool(context, args).await;
    }
    match args.what.parse::<DeviceArg>() {
        Ok(device) => set_volume(context, args, &device).await,
        Err(reason) => Err(CallError::invalid(format!("{}: {reason}", args.what))),
    }
}

async fn set_pool(context: &Context, args: &SetArgs) -> Result<(), CallError> {
    let Reply::Pool(info) = context
        .call(&args.what, Access::Write, Call::Status)
        .await?
    else {
        return Err(CallError::invalid("the daemon is of another version"));
    };
    let policy = changed_policy(info.space, args)?;
    let call = Call::SetSpace(policy);
    match context.call(&args.what, Access::Write, call).await? {
        Reply::Pool(info) => context.output.print_quietly(&info),
        other => Err(unexpected(&other)),
    }
}

/// A pool's policy with what the arguments change of it.
fn changed_policy(mut policy: SpacePolicy, args: &SetArgs) -> Result<SpacePolicy, CallError> {
    let value = |option: &str| {
        let message = format!("{option} pool: only a volume can do as its pool does");
        CallError::invalid(message)
    };
    match args.error_if_no_space {
        None => {}
        Some(OrPool::Value(errors)) => policy.error_if_no_space = errors,
        Some(OrPool::Pool) => return Err(value("--error-if-no-space")),
    }
    match args.no_space_timeout {
        None => {}
        Some(OrPool::Value(seconds)) => policy.no_space_timeout = seconds,
        Some(OrPool::Pool) => return Err(value("--no-space-timeout")),
    }
    if let Some(percent) = args.low_water {
        policy.low_water_percent = percent;
    }
    if args.no_auto_grow {
        policy.auto_grow = None;
    }
    let max = args.auto_grow_max.or(policy.auto_grow.map(|auto| auto.max));
    if let Some(max) = max {
        let before = policy.auto_grow.unwrap_or(AutoGrow {
            threshold_percent: AUTO_GROW_THRESHOLD_PERCENT,
            step: AUTO_GROW_STEP,
            max,
        });
        policy.auto_grow = Some(AutoGrow {
            threshold_percent: args.auto_grow_at.unwrap_or(before.threshold_percent),
            step: args.auto_grow_by.unwrap_or(before.step),
            max,
        });
    } else if args.auto_grow_at.is_some() || args.auto_grow_by.is_some() {
        let message = "a pool that grows by itself needs a limit: add --auto-grow-max";
        return Err(CallError::invalid(message));
    }
    Ok(policy)
}

async fn set_volume(
    context: &Context,
    args: &SetArgs,
    device: &DeviceArg,
) -> Result<(), CallError> {
    let is_of_pools = args.low_water.is_some()
        || args.no_auto_grow
        || args.auto_grow_max.is_some()
        || args.auto_grow_at.is_some()
        || args.auto_grow_by.is_some();
    if is_of_pools {
        let message = format!(
            "{}: low-water marks and growth are those of a pool, not of a volume",
            args.what
        );
        return Err(CallError::invalid(message));
    }
    let name = device.name.clone();
    let call = Call::Info { name: name.clone() };
    let Reply::Device(info) = context.call(&device.pool, Access::Write, call).await? else {
        return Err(CallError::invalid("the daemon is of another version"));
    };
    let no_space = NoSpaceOverride {
        error_if_no_space: overridden(args.error_if_no_space, info.no_space.error_if_no_space),
        no_space_timeout: overridden(args.no_space_timeout, info.no_space.no_space_timeout),
    };
    let call = Call::SetNoSpace { name, no_space };
    match context.call(&device.pool, Access::Write, call).await? {
        Reply::Device(info) => context.output.print_quietly(&info),
        other => Err(unexpected(&other)),
    }
}

fn overridden<T>(asked: Option<OrPool<T>>, before: Option<T>) -> Option<T> {
    match asked {
        None => before,
        Some(OrPool::Pool) => None,
        Some(OrPool::Value(value)) => Some(value),
    }
}

pub(super) async fn events(context: &Context, args: &EventsArgs) -> Result<(), CallError> {
    let dir = PoolDir::open(&args.pool)?;
    let mut client = daemon_of(&dir, "only a daemon sees events").await?;
    let mut print = |event: PoolEvent| {
        let mut line = serde_json::to_vec(&event)
            .map_err(|cause| CallError::new(CallErrorKind::Other, cause.to_string()))?;
        line.push(b'\n');
        write_out(&line)
    };
    let mut interrupt = context.interrupt.clone();
    tokio::select! {
        told = client.pool_events(args.follow, &mut print) => told,
        // That is how following ends.
        () = interrupt.wait() => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn changed(before: SpacePolicy, options: &[&str]) -> Result<SpacePolicy, CallError> {
        let words = ["thinctl", "set", "p"]
            .into_iter()
            .chain(options.iter().copied());
        let Command::Set(args) = Cli::parse_from(words).command else {
            unreachable!("it is called so")
        };
        changed_policy(before, &args)
    }

    #[test]
    fn only_what_is_named_changes() {
        let first = changed(
            SpacePolicy::default(),
            &["--no-space-timeout", "5", "--auto-grow-max", "1T"],
        );
        let first = first.unwrap();
        let auto_grow = AutoGrow {
            threshold_percent: 80,
            step: 1 << 30,
            max: 1 << 40,
        };
        let expected = SpacePolicy {
            no_space_timeout: 5,
            auto_grow: Some(auto_grow),
            ..SpacePolicy::default()
        };
        assert_eq!(first, expected);
        let second = changed(
            first,
            &["--error-if-no-space", "yes", "--auto-grow-at", "50"],
        );
        let expected = SpacePolicy {
            error_if_no_space: true,
            auto_grow: Some(AutoGrow {
                threshold_percent: 50,
                ..auto_grow
            }),
            ..expected
        };
        assert_eq!(second, Ok(expected.clone()));
        let third = changed(expected.clone(), &["--no-auto-grow", "--low-water", "0"]);
        let expected = SpacePolicy {
            auto_grow: None,
            low_water_percent: 0,
            ..expected
        };
        assert_eq!(third, Ok(expected));
    }

    #[test]
    fn what_a_pool_cannot_do_is_refused() {
        let refused = |options: &[&str]| changed(SpacePolicy::default(), options).is_err();
        assert!(refused(&["--error-if-no-space", "pool"]));
        assert!(refused(&["--no-space-timeout", "pool"]));
        assert!(refused(&["--auto-grow-at", "50"]));
        assert!(!refused(&["--auto-grow-at", "50", "--auto-grow-max", "1G"]));
    }
}
