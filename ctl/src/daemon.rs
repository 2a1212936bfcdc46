//! The daemon: opens pools, serves them until it is told to end, closes them.
//!
//! The service manager is told when all of that is done, and at its end: `service_manager`.
//!
//! It commits once a second what has changed and gives back the space of deleted devices in the
//! background. A daemon that dies leaves a socket, at most, and a mount that answers nothing; the
//! next one replaces both.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nbd_server::{Server, TcpClients};
use pool::MemoryBudget;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::control::ControlSocket;
use crate::dashboard::DashboardServer;
use crate::events::Happening;
use crate::exports::{PoolExports, address_of, start_server};
use crate::metrics::{MetricsServer, Sources};
use crate::pool_dir::{CONTROL_SOCKET, PoolDir};
use crate::protocol::{CallError, CallErrorKind};
use crate::serve_args::{NbdAddress, ServeArgs};
use crate::service::PoolService;
use crate::service_manager::{HandedSockets, keep_watch, tell_ready, tell_status, tell_stopping};
use crate::session::patiently;
use crate::space::look_after;
use crate::usage_counts::count_usage;

/// How the ready line begins.
pub const READY_PREFIX: &str = "ready: ";

/// How often what has changed is committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How long after a failure deleted devices are tried again.
const RECLAIM_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// How long calls may go on after the daemon was told to end.
const CALLS_END_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a daemon that was started for an attachment waits for it.
const FIRST_ATTACHMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often such a daemon looks whether its attachments are still there.
const GONE_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Threads for control calls, commits, metrics and the page. Exports have threads of their own.
const WORKER_THREADS: usize = 2;

/// Serves until SIGTERM or SIGINT, or, if so asked, until nothing is attached any more.
///
/// # Errors
/// What stopped it from starting or from closing cleanly.
pub fn run(args: ServeArgs) -> Result<(), CallError> {
    let handed = HandedSockets::take()?;
    // Before anything is opened: it may be refused.
    args.tcp_clients()?;
    if args.while_attached {
        // Fails only for the leader of a group, which a shell has put where it belongs.
        let _ = rustix::process::setsid();
    }
    raise_open_files();
    leave_no_core();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(|cause| CallError::io("starting", &cause))?;
    let result = runtime.block_on(serve(args, handed));
    runtime.shutdown_background();
    result
}

/// A ublk device takes four descriptors, and 1024 is what most processes start with: that is for programs
/// that use `select`, which nothing here does.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(cause) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(
            "the limit of open files stays at {:?}: {cause}",
            limit.current
        );
    }
}

/// In memory are other people's data, and a private key: no file is to be made of it.
fn leave_no_core() {
    let limit = Rlimit {
        current: Some(0),
        maximum: getrlimit(Resource::Core).maximum,
    };
    if let Err(cause) = setrlimit(Resource::Core, limit) {
        tracing::warn!("if this process crashes, there may be a core dump: {cause}");
    }
}

async fn serve(args: ServeArgs, handed: HandedSockets) -> Result<(), CallError> {
    let mut signals = Signals::take().map_err(|cause| CallError::io("signals", &cause))?;
    let pools = open_pools(&args, &handed).await?;
    if let Err(error) = recover_devices(&pools).await {
        // The table that cannot be read matters more than an error of closing what did not change.
        let _ = close_pools(&pools).await;
        return Err(error);
    }
    let served = match Servers::start(&args, &pools, handed).await {
        Ok(servers) => {
            pools.iter().for_each(|service| log_opened(service));
            if !args.while_attached {
                attach_persistent(&pools).await;
            }
            let announced = servers.announce(&pools);
            if announced.is_ok() {
                tell_ready(&format!("serving {}", named(&pools)));
                let dirs: Vec<_> = pools.iter().map(|service| service.dir.clone()).collect();
                tokio::select! {
                    name = signals.wait() => tracing::info!("{name}: closing"),
                    () = nothing_attached(&args, &pools) => tracing::info!("nothing is attached: closing"),
                    never = keep_watch(&dirs) => match never {},
                }
            }
            tell_stopping();
            servers.stop().await;
            announced
        }
        Err(error) => Err(error),
    };
    for service in &pools {
        service.attachments.shut_down(service).await;
    }
    let closed = close_pools(&pools).await;
    tracing::info!("closed");
    served.and(closed)
}

/// Opens all pools, or none.
async fn open_pools(
    args: &ServeArgs,
    handed: &HandedSockets,
) -> Result<Vec<Arc<PoolService>>, CallError> {
    let mut dirs: Vec<PoolDir> = Vec::new();
    for argument in &args.pools {
        let dir = PoolDir::open(argument)?;
        if dirs.iter().any(|other| other.path == dir.path) {
            return Err(CallError::invalid(format!("{argument}: it is named twice")));
        }
        if dirs.iter().any(|other| other.label() == dir.label()) {
            let message = format!(
                "{argument}: another pool's directory is called {} too, which names its exports",
                dir.label()
            );
            return Err(CallError::invalid(message));
        }
        dirs.push(dir);
    }
    let memory = args.memory_of_each()?;
    let mut pools = Vec::new();
    for dir in dirs {
        tell_status(&format!("opening {}", dir.path.display()));
        match open_pool(&dir, memory, handed.has(&dir)).await {
            Ok(service) => {
                service.attachments.set_ends_when_empty(args.while_attached);
                pools.push(Arc::new(service));
            }
            Err(error) => {
                // The error that stopped us matters more than one of closing what was not changed.
                let _ = close_pools(&pools).await;
                return Err(error);
            }
        }
    }
    Ok(pools)
}

async fn open_pool(
    dir: &PoolDir,
    memory: MemoryBudget,
    has_socket: bool,
) -> Result<PoolService, CallError> {
    // On a socket that we hold ourselves, nobody would answer.
    if !has_socket && let Ok(Some(mut client)) = Client::connect(dir).await {
        match client.status().await {
            // It is just ending.
            Err(error) if error.kind == CallErrorKind::PoolHeld => {}
            status => {
                return Err(served_already(
                    dir,
                    status.ok().and_then(|info| info.daemon_pid),
                ));
            }
        }
    }
    let service = patiently(async || PoolService::open(dir.clone(), memory)).await?;
    service.pool.set_no_space_policy(service.space().no_space());
    Ok(service)
}

fn served_already(dir: &PoolDir, pid: Option<u32>) -> CallError {
    let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
    let message = format!(
        "pool {} is served by another daemon already{pid}",
        dir.path.display()
    );
    CallError::new(CallErrorKind::Busy, message)
}

/// Goes on with the block devices that a daemon before this one left.
async fn recover_devices(pools: &[Arc<PoolService>]) -> Result<(), CallError> {
    for service in pools {
        service.attachments.recover(service).await?;
    }
    Ok(())
}

/// Attaches what every daemon is to attach; whoever waits for the daemon may rely on that.
async fn attach_persistent(pools: &[Arc<PoolService>]) {
    for service in pools {
        tell_status(&format!(
            "attaching devices of {}",
            service.dir.path.display()
        ));
        service.attachments.attach_persistent(service).await;
    }
}

/// The pools, for people.
fn named(pools: &[Arc<PoolService>]) -> String {
    let paths = pools
        .iter()
        .map(|service| service.dir.path.display().to_string());
    paths.collect::<Vec<_>>().join(", ")
}

fn log_opened(service: &PoolService) {
    let (place, status) = (service.dir.path.display(), service.pool.status());
    tracing::info!("{place}: open, transaction id {}", status.transaction_id);
    service.events.tell(Happening::Opened {
        replayed_records: service.pool.replayed_records(),
    });
    if !status.mode_reason.is_empty() {
        tracing::warn!("{place}: {:?}: {}", status.mode, status.mode_reason);
    }
}

async fn close_pools(pools: &[Arc<PoolService>]) -> Result<(), CallError> {
    let mut result = Ok(());
    for service in pools {
        let closed = service.close().await;
        if let Err(error) = &closed {
            tracing::error!("{error}");
        }
        result = result.and(closed);
    }
    result
}

/// Everything that listens and everything that runs beside it.
struct Servers {
    nbd: Vec<Arc<Server>>,
    nbd_addresses: Vec<String>,
    metrics_address: Option<String>,
    http_address: Option<String>,
    stop: watch::Sender<bool>,
    pools: Vec<Arc<PoolService>>,
    control: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Servers {
    async fn start(
        args: &ServeArgs,
        pools: &[Arc<PoolService>],
        mut handed: HandedSockets,
    ) -> Result<Self, CallError> {
        let sockets = pools
            .iter()
            .map(|service| ControlSocket::open(&service.dir, &mut handed))
            .collect::<Result<Vec<_>, _>>()?;
        handed.expect_none()?;
        let metrics = match args.metrics {
            None => None,
            Some(address) => {
                let bound = MetricsServer::bind(address).await;
                Some(bound.map_err(|cause| CallError::io(format!("metrics: {address}"), &cause))?)
            }
        };
        let http_address = start_dashboard(args, pools).await?;
        let (nbd, nbd_addresses) = start_nbd(args, pools)?;
        let (stop, stopped) = watch::channel(false);
        let mut control = Vec::new();
        for (socket, service) in sockets.into_iter().zip(pools) {
            let mut stopped = stopped.clone();
            let until = async move {
                // The sender goes away with the daemon, which is the same.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            control.push(tokio::spawn(socket.serve(Arc::clone(service), until)));
            tokio::spawn(commit_regularly(Arc::clone(service)));
            tokio::spawn(reclaim_deleted(Arc::clone(service)));
            tokio::spawn(look_after(Arc::clone(service)));
            tokio::spawn(count_usage(Arc::clone(service)));
        }
        let metrics_address = metrics
            .as_ref()
            .map(|metrics| metrics.address().to_string());
        if let Some(metrics) = metrics {
            let sources = Sources::new(pools, &nbd);
            tokio::spawn(async move {
                if let Err(cause) = metrics.serve(sources).await {
                    tracing::error!("metrics: {cause}");
                }
            });
        }
        Ok(Servers {
            nbd,
            nbd_addresses,
            metrics_address,
            http_address,
            stop,
            pools: pools.to_vec(),
            control,
        })
    }

    /// Says on standard output that everything listens.
    fn announce(&self, pools: &[Arc<PoolService>]) -> Result<(), CallError> {
        let list = |paths: Vec<PathBuf>| {
            paths
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(",")
        };
        let directories = list(
            pools
                .iter()
                .map(|service| service.dir.path.clone())
                .collect(),
        );
        let control = list(
            pools
                .iter()
                .map(|service| service.dir.path.join(CONTROL_SOCKET))
                .collect(),
        );
        let nbd = match self.nbd_addresses.as_slice() {
            [] => "none".to_owned(),
            addresses => addresses.join(","),
        };
        let metrics = self.metrics_address.as_deref().unwrap_or("none");
        let http = self.http_address.as_deref().unwrap_or("none");
        let line = format!(
            "{READY_PREFIX}pools={directories} nbd={nbd} metrics={metrics} http={http} control={control}\n"
        );
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|cause| CallError::io("standard output", &cause))
    }

    /// Takes in nothing new, and lets what runs end.
    async fn stop(self) {
        self.stop.send_replace(true);
        self.pools.iter().for_each(|service| service.events.end());
        for server in self.nbd {
            if tokio::task::spawn_blocking(move || server.shutdown())
                .await
                .is_err()
            {
                tracing::error!("an NBD server failed while it ended");
            }
        }
        for control in self.control {
            match tokio::time::timeout(CALLS_END_TIMEOUT, control).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(cause))) => tracing::error!("{CONTROL_SOCKET}: {cause}"),
                Ok(Err(cause)) => tracing::error!("{CONTROL_SOCKET}: {cause}"),
                Err(_) => tracing::warn!("{CONTROL_SOCKET}: a client does not let go"),
            }
        }
    }
}

/// Serves the page, if anybody wants it; where it is.
async fn start_dashboard(
    args: &ServeArgs,
    pools: &[Arc<PoolService>],
) -> Result<Option<String>, CallError> {
    let Some(address) = args.http else {
        return Ok(None);
    };
    let bound = DashboardServer::bind(address).await;
    let dashboard = bound.map_err(|cause| CallError::io(format!("http: {address}"), &cause))?;
    let address = dashboard.address().to_string();
    let pools = pools.to_vec();
    tokio::spawn(async move {
        if let Err(cause) = dashboard.serve(pools).await {
            tracing::error!("http: {cause}");
        }
    });
    Ok(Some(address))
}

fn start_nbd(
    args: &ServeArgs,
    pools: &[Arc<PoolService>],
) -> Result<(Vec<Arc<Server>>, Vec<String>), CallError> {
    let named = pools
        .iter()
        .map(|service| (service.dir.label(), Arc::clone(&service.pool)));
    let exports = PoolExports::new(named.collect());
    let mut servers = Vec::new();
    let mut started = Vec::new();
    for address in &args.nbd {
        let (clients, max) = (args.tcp_clients()?, usize::from(args.nbd_connections));
        if let (NbdAddress::Tcp(_), TcpClients::Anybody) = (address, &clients) {
            tracing::warn!("nbd: {address}: whoever reaches it reads and writes every volume");
        }
        let server = start_server(address, clients, max, exports.clone())?;
        started.push(address_of(&server).to_string());
        servers.push(Arc::new(server));
    }
    Ok((servers, started))
}

/// Commits once a second what has changed.
async fn commit_regularly(service: Arc<PoolService>) {
    let mut interval = tokio::time::interval(COMMIT_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        interval.tick().await;
        match service.pool.commit().await {
            Ok(()) => failing = false,
            Err(cause) => {
                // Every second the same would be of no use.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!("{}", service.failed(&cause));
                }
            }
        }
    }
}

/// Gives back what deleted devices used, those of an earlier life first.
async fn reclaim_deleted(service: Arc<PoolService>) {
    loop {
        let left = service.pool.status().deleting;
        if left > 0 {
            match service.pool.reclaim().await {
                Ok(()) => continue,
                Err(cause) => {
                    tracing::warn!("{left} deleted devices wait: {}", service.failed(&cause));
                    tokio::time::sleep(RECLAIM_RETRY_INTERVAL).await;
                    continue;
                }
            }
        }
        service.deleted.notified().await;
    }
}

/// Waits until attachments came and went, in a daemon that lives for those alone.
async fn nothing_attached(args: &ServeArgs, pools: &[Arc<PoolService>]) {
    if !args.while_attached {
        return std::future::pending().await;
    }
    let mut waits = tokio::task::JoinSet::new();
    for service in pools {
        let service = Arc::clone(service);
        waits.spawn(async move {
            let mut patience = FIRST_ATTACHMENT_TIMEOUT;
            loop {
                let emptied = service.attachments.emptied.notified();
                // Block devices may be taken away without us, which nothing tells.
                drop(tokio::time::timeout(patience, emptied).await);
                patience = GONE_POLL_INTERVAL;
                if service.attachments.is_empty().await {
                    return;
                }
            }
        });
    }
    waits.join_all().await;
}

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> std::io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Signals {
            terminate,
            interrupt,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
