//! Local block devices: `attach`, `detach`. The daemon does the work; without one, `attach` starts
//! one that ends with its last attachment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fuse_target::LoopDevice;

use super::{Context, unexpected};
use crate::attach::blocks::BlockDevices;
use crate::attach::{POOL_LINK, device_file, fuse_error, runtime_dir, runtime_root};
use crate::cli::{AttachArgs, DeviceArg};
use crate::client::Client;
use crate::daemon::READY_PREFIX;
use crate::exit;
use crate::pool_dir::{Access, DAEMON_LOG, PoolDir};
use crate::protocol::{
    AttachRequest, AttachTarget, Attachment, Call, CallError, CallErrorKind, Detached, Reply,
};
use crate::session::patiently;
use crate::systemd::lacks_at_boot;
use crate::transports::ORDER;

/// How long a daemon may take to end after its last attachment is gone.
const DAEMON_END_TIMEOUT: Duration = Duration::from_secs(60);
const DAEMON_END_POLL_INTERVAL: Duration = Duration::from_millis(20);

pub(super) async fn attach(context: &Context, args: &AttachArgs) -> Result<(), CallError> {
    let dir = PoolDir::open(&args.device.pool)?;
    let mount = args.mount.as_deref().map(absolute_directory).transpose()?;
    let progress = context.output.progress("attaching");
    let call = Call::Attach(AttachRequest {
        name: args.device.name.clone(),
        mount,
        mkfs: args.mkfs,
        transport: args.transport(),
        options: args.options,
        persist: args.persist,
    });
    let attachment = patiently(async || {
        let mut client = match Client::connect(&dir).await? {
            Some(client) => client,
            None => start_daemon(&dir).await?,
        };
        match client.call(&call, &|_| {}).await? {
            Reply::Attached(attachment) => Ok(attachment),
            other => Err(unexpected(&other)),
        }
    })
    .await?;
    drop(progress);
    if !context.output.json && args.transport().is_none() && attachment.transport != ORDER[0] {
        let (name, reason) = (attachment.transport.name(), &attachment.reason);
        eprintln!("thinctl: attached through {name}: {reason}");
    }
    context.output.note(&attachment.notes);
    if args.persist
        && let Some(lack) = lacks_at_boot(&dir)
    {
        eprintln!("thinctl: {lack}");
    }
    context
        .output
        .print(&attachment, |attachment: &Attachment| {
            attachment.device.display().to_string()
        })
}

fn absolute_directory(path: &Path) -> Result<PathBuf, CallError> {
    let absolute = path
        .canonicalize()
        .map_err(|cause| CallError::io(path.display(), &cause))?;
    if !absolute.is_dir() {
        return Err(CallError::invalid(format!(
            "{}: not a directory",
            path.display()
        )));
    }
    Ok(absolute)
}

/// Starts a daemon in the background and waits until it is ready or has failed.
async fn start_daemon(dir: &PoolDir) -> Result<Client, CallError> {
    let log_path = dir.path.join(DAEMON_LOG);
    let failed = |cause: &io::Error| CallError::io(log_path.display(), cause);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log_path)
        .map_err(|cause| failed(&cause))?;
    let log_len = log.metadata().map_err(|cause| failed(&cause))?.len();
    let mut child = spawn_daemon(dir, log)?;
    let Some(stdout) = child.stdout.take() else {
        unreachable!("it was asked to be a pipe")
    };
    let ready = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    })
    .await
    .map_err(|cause| CallError::new(CallErrorKind::Other, cause.to_string()))?
    .map_err(|cause| CallError::io("starting thinpoold", &cause))?;
    if !ready.starts_with(READY_PREFIX) {
        return Err(end_of_daemon(&mut child, &log_path, log_len));
    }
    Client::connect(dir)
        .await?
        .ok_or_else(|| end_of_daemon(&mut child, &log_path, log_len))
}

fn spawn_daemon(dir: &PoolDir, log: File) -> Result<Child, CallError> {
    let own = std::env::current_exe().map_err(|cause| CallError::io("thinctl", &cause))?;
    let beside = own.with_file_name("thinpoold");
    let mut command = if beside.is_file() {
        Command::new(beside)
    } else {
        let mut command = Command::new(own);
        command.arg("serve");
        command
    };
    command
        .arg("--while-attached")
        .arg("--")
        .arg(&dir.path)
        .current_dir("/")
        // It is no part of the service that may run this command.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|cause| CallError::io("starting thinpoold", &cause))
}

/// The error of a daemon that ended instead of being ready: its last words.
fn end_of_daemon(child: &mut Child, log_path: &Path, log_from: u64) -> CallError {
    let code = child.wait().ok().and_then(|status| status.code());
    let kind = code
        .and_then(|code| u8::try_from(code).ok())
        .filter(|code| *code != exit::DONE)
        .map_or(CallErrorKind::Other, exit::kind_of);
    let last_words = || -> io::Result<String> {
        let mut log = File::open(log_path)?;
        log.seek(SeekFrom::Start(log_from))?;
        let lines = BufReader::new(log)
            .lines()
            .collect::<io::Result<Vec<_>>>()?;
        Ok(lines.last().cloned().unwrap_or_default())
    };
    // Another daemon was faster: that one will do.
    let kind = match kind {
        CallErrorKind::Busy => CallErrorKind::PoolHeld,
        other => other,
    };
    let words = last_words().unwrap_or_default();
    match words
        .strip_prefix("thinpoold: ")
        .or_else(|| words.strip_prefix("thinctl: "))
    {
        Some(words) => CallError::new(kind, words),
        None => {
            let message = format!(
                "the daemon ended before it was ready; see {}",
                log_path.display()
            );
            CallError::new(kind, message)
        }
    }
}

pub(super) async fn detach(context: &Context, what: &str) -> Result<(), CallError> {
    let detached = if Path::new(what).starts_with("/dev") {
        patiently(async || detach_device(Path::new(what)).await).await?
    } else {
        let device: DeviceArg = what
            .parse()
            .map_err(|reason| CallError::invalid(format!("{what}: {reason}")))?;
        patiently(async || detach_name(&device).await).await?
    };
    context.output.print_quietly(&detached)
}

async fn detach_name(device: &DeviceArg) -> Result<Detached, CallError> {
    let dir = PoolDir::open(&device.pool)?;
    match Client::connect(&dir).await? {
        Some(client) => detach_by(client, &dir, AttachTarget::Name(device.name.clone())).await,
        // Only a daemon can write out what the kernel holds for such a device.
        None if has_leftovers(&runtime_dir(&dir))? => {
            let client = start_daemon(&dir).await?;
            detach_by(client, &dir, AttachTarget::Name(device.name.clone())).await
        }
        None => {
            let file = device_file(&dir, &device.name);
            match LoopDevice::find(&file).map_err(|cause| fuse_error(&cause))? {
                Some(leftover) => discard(&dir, &leftover, device.name.clone()),
                None if dir.forget_persistent(&device.name)? => Ok(Detached {
                    name: device.name.clone(),
                    device: None,
                    daemon_ends: false,
                }),
                None => {
                    let message = format!("{}/{}: not attached", device.pool, device.name);
                    Err(CallError::new(CallErrorKind::NotFound, message))
                }
            }
        }
    }
}

/// Whether a daemon has left block devices of the pool with this runtime directory.
fn has_leftovers(runtime: &Path) -> Result<bool, CallError> {
    Ok(!BlockDevices::open(runtime)?.leftovers().is_empty())
}

/// The pool that has this device of ublk or of the NBD client.
fn pool_of_block_device(device: &Path) -> Result<Option<PoolDir>, CallError> {
    let Ok(entries) = fs::read_dir(runtime_root()) else {
        return Ok(None);
    };
    for runtime in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let leftovers = BlockDevices::open(&runtime)?.leftovers();
        if leftovers.iter().any(|leftover| leftover.path() == device) {
            let link = runtime.join(POOL_LINK);
            let pool =
                fs::read_link(&link).map_err(|cause| CallError::io(link.display(), &cause))?;
            return PoolDir::open_path(&pool).map(Some);
        }
    }
    Ok(None)
}

/// The block device leads to its file, the file to the runtime directory, and that to the pool.
async fn detach_device(device: &Path) -> Result<Detached, CallError> {
    let device = device
        .canonicalize()
        .map_err(|cause| CallError::io(device.display(), &cause))?;
    if let Some(dir) = pool_of_block_device(&device)? {
        let client = match Client::connect(&dir).await? {
            Some(client) => client,
            None => start_daemon(&dir).await?,
        };
        return detach_by(client, &dir, AttachTarget::Device(device)).await;
    }
    let not_ours = || {
        let message = format!("{}: not attached by thinctl", device.display());
        CallError::new(CallErrorKind::NotFound, message)
    };
    let name = device.file_name().ok_or_else(not_ours)?;
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let file = PathBuf::from(
        fs::read_to_string(backing)
            .map_err(|_| not_ours())?
            .trim_end(),
    );
    let volume = file
        .file_name()
        .and_then(|name| name.to_str())
        .and_then(|name| name.parse().ok());
    let runtime = file.parent().and_then(Path::parent);
    let (Some(volume), Some(runtime)) = (volume, runtime) else {
        return Err(not_ours());
    };
    let pool = fs::read_link(runtime.join(POOL_LINK)).map_err(|_| not_ours())?;
    let dir = PoolDir::open_path(&pool)?;
    match Client::connect(&dir).await? {
        Some(client) => detach_by(client, &dir, AttachTarget::Device(device)).await,
        None => match LoopDevice::find(&file).map_err(|cause| fuse_error(&cause))? {
            Some(leftover) => discard(&dir, &leftover, volume),
            None => Err(not_ours()),
        },
    }
}

/// What a daemon that died has left behind.
fn discard(
    dir: &PoolDir,
    leftover: &LoopDevice,
    name: pool::DeviceName,
) -> Result<Detached, CallError> {
    leftover.detach().map_err(|cause| fuse_error(&cause))?;
    dir.forget_persistent(&name)?;
    Ok(Detached {
        name,
        device: Some(leftover.path().to_owned()),
        daemon_ends: false,
    })
}

async fn detach_by(
    mut client: Client,
    dir: &PoolDir,
    target: AttachTarget,
) -> Result<Detached, CallError> {
    let detached = match client.call(&Call::Detach { target }, &|_| {}).await? {
        Reply::Detached(detached) => detached,
        other => return Err(unexpected(&other)),
    };
    drop(client);
    if detached.daemon_ends {
        wait_until_free(dir).await?;
    }
    Ok(detached)
}

/// Waits until the pool can be opened by the next command.
async fn wait_until_free(dir: &PoolDir) -> Result<(), CallError> {
    let deadline = Instant::now() + DAEMON_END_TIMEOUT;
    loop {
        match dir.open_stores(Access::Read) {
            Err(error) if error.kind == CallErrorKind::PoolHeld && Instant::now() < deadline => {
                tokio::time::sleep(DAEMON_END_POLL_INTERVAL).await;
            }
            Err(error) if error.kind == CallErrorKind::PoolHeld => return Err(error),
            // Any other trouble is for whoever opens the pool next.
            _ => return Ok(()),
        }
    }
}
