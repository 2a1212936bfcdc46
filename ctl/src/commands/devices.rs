//! Volumes and snapshots: `create`, `create-snap`, `clone`, `rm`, `rename`, `resize`, `rollback`,
//! `freeze`.

use std::iter::Peekable;
use std::path::Path;

use super::{Context, unexpected};
use crate::cli::DeviceArg;
use crate::pool_dir::{Access, PoolDir, existing_origin, locate};
use crate::protocol::{Call, CallError, Reply};
use crate::session::{Session, patiently};

pub(super) async fn create(
    context: &Context,
    volume: &DeviceArg,
    size: u64,
    origin: Option<&Path>,
) -> Result<(), CallError> {
    expect_volume(volume)?;
    let origin = origin.map(existing_origin).transpose()?;
    let call = Call::Create {
        name: volume.name.clone(),
        size,
        origin,
    };
    change(context, &volume.pool, call).await
}

pub(super) async fn create_snapshots(
    context: &Context,
    snapshots: &[DeviceArg],
) -> Result<(), CallError> {
    snapshots.iter().try_for_each(expect_snapshot)?;
    let pool = same_pool(snapshots)?;
    let names = snapshots
        .iter()
        .map(|snapshot| snapshot.name.clone())
        .collect();
    change(context, pool, Call::CreateSnapshots { names }).await
}

pub(super) async fn clone(
    context: &Context,
    source: &DeviceArg,
    volume: &DeviceArg,
) -> Result<(), CallError> {
    expect_volume(volume)?;
    same_pool([source, volume])?;
    let call = Call::Clone {
        source: source.name.clone(),
        name: volume.name.clone(),
    };
    change(context, &source.pool, call).await
}

pub(super) async fn remove(context: &Context, devices: &[DeviceArg]) -> Result<(), CallError> {
    let dir = PoolDir::open(same_pool(devices)?)?;
    let mut left = devices.iter().peekable();
    patiently(async || {
        let mut session = Session::open(dir.clone(), Access::Write).await?;
        let result = remove_all(context, &mut session, &mut left).await;
        let closed = context.settle(session).await;
        result.and(closed)
    })
    .await?;
    let names: Vec<_> = devices.iter().map(|device| &device.name).collect();
    context
        .output
        .print_quietly(&serde_json::json!({ "removed": names }))
}

/// Deletes one after the other; `left` begins with the one that could not be deleted.
async fn remove_all<'a>(
    context: &Context,
    session: &mut Session,
    left: &mut Peekable<impl Iterator<Item = &'a DeviceArg>>,
) -> Result<(), CallError> {
    let progress = context.output.progress("deleting");
    while let Some(device) = left.peek() {
        let name = device.name.clone();
        session
            .call(Call::Remove { name }, &progress.sink())
            .await?;
        left.next();
    }
    Ok(())
}

pub(super) async fn rename(
    context: &Context,
    from: &DeviceArg,
    to: &DeviceArg,
) -> Result<(), CallError> {
    same_pool([from, to])?;
    let call = Call::Rename {
        from: from.name.clone(),
        to: to.name.clone(),
    };
    change(context, &from.pool, call).await
}

pub(super) async fn resize(
    context: &Context,
    volume: &DeviceArg,
    size: u64,
    shrink: bool,
) -> Result<(), CallError> {
    expect_volume(volume)?;
    let call = Call::Resize {
        name: volume.name.clone(),
        size,
        shrink,
    };
    match context.call(&volume.pool, Access::Write, call).await? {
        Reply::Resized(resized) => {
            context.output.note(&resized.notes);
            context.output.print_quietly(&resized)
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn rollback(context: &Context, snapshot: &DeviceArg) -> Result<(), CallError> {
    expect_snapshot(snapshot)?;
    change(
        context,
        &snapshot.pool,
        Call::Rollback {
            snapshot: snapshot.name.clone(),
        },
    )
    .await
}

pub(super) async fn freeze(context: &Context, volume: &DeviceArg) -> Result<(), CallError> {
    change(
        context,
        &volume.pool,
        Call::Freeze {
            name: volume.name.clone(),
        },
    )
    .await
}

/// A call that brings back what it made or changed.
async fn change(context: &Context, pool: &str, call: Call) -> Result<(), CallError> {
    match context.call(pool, Access::Write, call).await? {
        Reply::Device(info) => context.output.print_quietly(&info),
        Reply::Devices(infos) => context.output.print_quietly(&infos),
        other => Err(unexpected(&other)),
    }
}

fn expect_volume(device: &DeviceArg) -> Result<(), CallError> {
    if device.name.is_snapshot() {
        let message = format!(
            "{}/{}: expected POOL/VOL, not a snapshot",
            device.pool, device.name
        );
        return Err(CallError::invalid(message));
    }
    Ok(())
}

fn expect_snapshot(device: &DeviceArg) -> Result<(), CallError> {
    if !device.name.is_snapshot() {
        let message = format!("{}/{}: expected POOL/VOL@SNAP", device.pool, device.name);
        return Err(CallError::invalid(message));
    }
    Ok(())
}

/// The pool that all of these are in.
fn same_pool<'a>(devices: impl IntoIterator<Item = &'a DeviceArg>) -> Result<&'a str, CallError> {
    let mut devices = devices.into_iter();
    let Some(first) = devices.next() else {
        return Err(CallError::invalid("expected POOL/VOL"));
    };
    let resolved = |pool: &str| {
        let path = locate(pool)?;
        path.canonicalize()
            .map_err(|cause| CallError::io(path.display(), &cause))
    };
    for other in devices {
        if other.pool != first.pool && resolved(&other.pool)? != resolved(&first.pool)? {
            return Err(CallError::invalid(format!(
                "{}/{} and {}/{}: expected both in one pool",
                first.pool, first.name, other.pool, other.name
            )));
        }
    }
    Ok(&first.pool)
}
