//! The commands, a file for each group: each makes its calls and prints what comes back.

mod attach;
mod data;
mod devices;
mod docs;
mod doctor;
mod pools;
mod repair;
mod restore;
mod rewind;
mod show;
mod space;
mod status;
mod top;
mod verify;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::daemon;
use crate::exit;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{Call, CallError, CallErrorKind, Reply};
use crate::session::{Session, patiently};

/// What every command has at hand.
struct Context {
    output: Output,
    interrupt: Interrupt,
}

/// Runs a command and returns its exit code.
///
/// # Errors
/// What stopped it; the caller prints it.
pub fn run(cli: Cli) -> Result<u8, CallError> {
    match cli.command {
        Command::Serve(args) => return daemon::run(args).map(|()| exit::DONE),
        Command::Completions { shell } => return docs::completions(shell).map(|()| exit::DONE),
        Command::Man { out } => return docs::man(out.as_deref()).map(|()| exit::DONE),
        _ => {}
    }
    let failed = |cause: &std::io::Error| CallError::io("starting", cause);
    // One thread for signals and connections; commands themselves may block theirs.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|cause| failed(&cause))?;
    let code = runtime.block_on(async {
        let interrupt = Interrupt::install().map_err(|cause| failed(&cause))?;
        let context = Context {
            output: Output { json: cli.json },
            interrupt,
        };
        dispatch(&context, cli.command).await
    });
    // A thread may wait for standard input for ever.
    runtime.shutdown_background();
    code
}

async fn dispatch(context: &Context, command: Command) -> Result<u8, CallError> {
    match command {
        Command::Init(args) => pools::init(context, &args),
        Command::Adopt(args) => pools::adopt(context, &args),
        Command::Grow(args) => pools::grow(context, &args).await,
        Command::Set(args) => space::set(context, &args).await,
        Command::Events(args) => space::events(context, &args).await,
        Command::Create {
            volume,
            size,
            origin,
        } => devices::create(context, &volume, size, origin.as_deref()).await,
        Command::CreateSnap { snapshots } => devices::create_snapshots(context, &snapshots).await,
        Command::Clone { source, volume } => devices::clone(context, &source, &volume).await,
        Command::Rm { devices } => devices::remove(context, &devices).await,
        Command::Rename { from, to } => devices::rename(context, &from, &to).await,
        Command::Resize {
            volume,
            size,
            shrink,
        } => devices::resize(context, &volume, size, shrink).await,
        Command::Rollback { snapshot } => devices::rollback(context, &snapshot).await,
        Command::Freeze { volume } => devices::freeze(context, &volume).await,
        Command::Ls { pool } => show::list(context, &pool).await,
        Command::Info { what } => show::info(context, &what).await,
        Command::Status { pool } => status::status(context, &pool).await,
        Command::Top(args) => top::top(context, &args).await,
        Command::Tree { pool } => show::tree(context, &pool).await,
        Command::Du { pool } => show::usage(context, &pool).await,
        Command::Attach(args) => attach::attach(context, &args).await,
        Command::Detach { what } => attach::detach(context, &what).await,
        Command::Doctor => doctor::doctor(context).await,
        Command::Check(args) => return verify::check(context, &args).await,
        Command::Dump { pool } => verify::dump(context, &pool).await,
        Command::Restore(args) => restore::restore(context, &args),
        Command::Repair(args) => return repair::repair(context, &args),
        Command::Rewind(args) => rewind::rewind(context, &args),
        Command::Read {
            device,
            offset,
            length,
        } => data::read(context, &device, offset, length).await,
        Command::Write { device, offset } => data::write(context, &device, offset).await,
        Command::Serve(_) | Command::Completions { .. } | Command::Man { .. } => {
            unreachable!("these need no runtime and were run before")
        }
    }?;
    Ok(exit::DONE)
}

impl Context {
    /// Makes one call on a pool.
    async fn call(&self, pool: &str, access: Access, call: Call) -> Result<Reply, CallError> {
        let dir = PoolDir::open(pool)?;
        let progress = self.output.progress("working");
        patiently(async || {
            let mut session = Session::open(dir.clone(), access).await?;
            let result = session.call(call.clone(), &progress.sink()).await;
            let closed = self.settle(session).await;
            result.and_then(|reply| closed.map(|()| reply))
        })
        .await
    }

    /// Gives back what deleted devices used, unless a daemon does, and closes the pool.
    async fn settle(&self, session: Session) -> Result<(), CallError> {
        if let Session::Local(service) = &session {
            let status = service.pool.status();
            let may_change = matches!(
                status.mode,
                pool::Mode::Write | pool::Mode::OutOfDataSpace | pool::Mode::OutOfMetadataSpace
            );
            if status.deleting > 0 && may_change {
                let _progress = self
                    .output
                    .progress("giving back the space of deleted devices");
                let mut interrupt = self.interrupt.clone();
                tokio::select! {
                    reclaimed = service.pool.reclaim() => {
                        reclaimed.map_err(|cause| service.failed(&cause))?;
                    }
                    () = interrupt.wait() => {
                        return Err(Interrupt::error("the rest of the space is given back next time"));
                    }
                }
            }
        }
        session.close().await
    }
}

/// The daemon that serves a pool, for what only a daemon knows; `why` says so.
async fn daemon_of(dir: &PoolDir, why: &str) -> Result<Client, CallError> {
    let client = Client::connect(dir).await?;
    client.ok_or_else(|| {
        let message = format!("{}: no daemon serves it, and {why}", dir.path.display());
        CallError::new(CallErrorKind::NotFound, message)
    })
}

/// An answer that does not belong to the question.
fn unexpected(reply: &Reply) -> CallError {
    let text: String = format!("{reply:?}").chars().take(80).collect();
    CallError::new(
        CallErrorKind::Other,
        format!("unexpected answer of the daemon: {text}"),
    )
}
