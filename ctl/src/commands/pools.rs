//! Whole pools: `init`, `adopt`, `grow`.

use pool::MemoryBudget;

use super::{Context, unexpected};
use crate::cli::{AdoptArgs, GrowArgs, InitArgs};
use crate::pool_dir::{self, Access, PoolDir, StoreRequest, new_location};
use crate::protocol::{Call, CallError, Reply};
use crate::service::PoolService;

pub(super) fn init(context: &Context, args: &InitArgs) -> Result<(), CallError> {
    let data = StoreRequest {
        path: args.data.clone(),
        size: args.size,
    };
    let metadata = StoreRequest {
        path: args.metadata.clone(),
        size: args.metadata_size,
    };
    let dir = pool_dir::init(
        &new_location(&args.pool)?,
        args.block_size,
        &data,
        &metadata,
        args.io,
    )?;
    if !context.output.json {
        return Ok(());
    }
    tell(context, dir)
}

pub(super) fn adopt(context: &Context, args: &AdoptArgs) -> Result<(), CallError> {
    let path = new_location(&args.pool)?;
    let dir = pool_dir::adopt(
        &path,
        &args.metadata,
        &args.data,
        &args.volumes,
        args.read_only,
    )?;
    let service = PoolService::open_read_only(dir.clone())?;
    let info = service.pool_info();
    drop(service);
    if info.status.needs_check {
        let place = path.display();
        eprintln!(
            "thinctl: note: {place} needs a check, so it can only be read; see 'thinctl check {place}'"
        );
    }
    context.output.print_quietly(&info)
}

fn tell(context: &Context, dir: PoolDir) -> Result<(), CallError> {
    let service = PoolService::open(dir, MemoryBudget::default())?;
    context.output.print_quietly(&service.pool_info())
}

pub(super) async fn grow(context: &Context, args: &GrowArgs) -> Result<(), CallError> {
    let call = Call::Grow {
        data_size: args.size,
        metadata_size: args.metadata_size,
    };
    match context.call(&args.pool, Access::Write, call).await? {
        Reply::Pool(info) => context.output.print_quietly(&info),
        other => Err(unexpected(&other)),
    }
}
