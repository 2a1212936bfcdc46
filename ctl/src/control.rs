//! The daemon's end of the control socket: HTTP on a Unix socket in the pool's directory, 0600.
//!
//! Only root and the user who runs the daemon are answered, whatever became of the socket's mode.
//!
//! Every request runs in a task of its own, to its end, even when its client goes away: requests on
//! a pool are never cancelled.

use std::convert::Infallible;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Json, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use pool::DeviceName;
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::geteuid;
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::check::dump_pool;
use crate::client::{nobody_listens, short_path};
use crate::frame::Frame;
use crate::pool_dir::{CONTROL_SOCKET, PoolDir};
use crate::protocol::{Call, CallError, CallErrorKind, Event, PoolInfo, Progress, Reply};
use crate::service::{PoolService, ProgressSink, execute};
use crate::service_manager::HandedSockets;
use crate::transfer::{PIECE_LEN, Reading, Writing};

/// Pieces of an answer on their way.
const PIECES_MAX: usize = 4;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A pool's control socket.
pub struct ControlSocket {
    listener: UnixListener,
    /// Where its file is, which goes with it; none when the service manager keeps the socket.
    directory: Option<File>,
}

impl ControlSocket {
    /// Takes the socket that was handed over for the pool, or else binds one in its directory.
    ///
    /// # Errors
    /// `Busy` when somebody listens; what stopped it.
    pub fn open(dir: &PoolDir, handed: &mut HandedSockets) -> Result<Self, CallError> {
        let Some(listener) = handed.take_of(dir) else {
            return Self::bind(dir);
        };
        let listener = UnixListener::from_std(listener)
            .map_err(|cause| CallError::io(dir.path.join(CONTROL_SOCKET).display(), &cause))?;
        Ok(ControlSocket {
            listener,
            directory: None,
        })
    }

    /// Binds the socket in the pool's directory. A socket left by a daemon that died is replaced;
    /// the pool's lock must be held, so that no living one is.
    fn bind(dir: &PoolDir) -> Result<Self, CallError> {
        let place = dir.path.join(CONTROL_SOCKET);
        let failed = |cause: &io::Error| CallError::io(place.display(), cause);
        let directory = File::open(&dir.path).map_err(|cause| failed(&cause))?;
        let path = short_path(&directory);
        match UnixStream::connect(&path) {
            Ok(_) => {
                let message = format!("{}: somebody listens there already", place.display());
                return Err(CallError::new(CallErrorKind::Busy, message));
            }
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) if nobody_listens(&cause) => {
                // Connecting to a file is refused, too; and a link would be followed.
                let found = std::fs::symlink_metadata(&path).map_err(|cause| failed(&cause))?;
                if !found.file_type().is_socket() {
                    let message = format!("{}: exists and is not a socket", place.display());
                    return Err(CallError::new(CallErrorKind::Exists, message));
                }
                std::fs::remove_file(&path).map_err(|cause| failed(&cause))?;
            }
            Err(cause) => return Err(failed(&cause)),
        }
        let listener = bind_private(&path)
            .and_then(UnixListener::from_std)
            .map_err(|cause| failed(&cause))?;
        Ok(ControlSocket {
            listener,
            directory: Some(directory),
        })
    }

    /// Serves calls until `stop`, then removes the socket and lets the running ones end.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(
        self,
        service: Arc<PoolService>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        let ControlSocket {
            listener,
            directory,
        } = self;
        let remove = async move {
            stop.await;
            if let Some(directory) = directory
                && let Err(cause) = std::fs::remove_file(short_path(&directory))
            {
                tracing::warn!("{CONTROL_SOCKET}: {cause}");
            }
        };
        axum::serve(OwnerOnly::new(listener), router(service))
            .with_graceful_shutdown(remove)
            .await
    }
}

/// Takes clients that root or our own user runs.
struct OwnerOnly {
    listener: UnixListener,
    owner: u32,
}

impl OwnerOnly {
    fn new(listener: UnixListener) -> Self {
        OwnerOnly {
            listener,
            owner: geteuid().as_raw(),
        }
    }
}

impl Listener for OwnerOnly {
    type Io = tokio::net::UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred().map(|peer| peer.uid()) {
                Ok(uid) if uid == 0 || uid == self.owner => return (stream, address),
                Ok(uid) => tracing::warn!("{CONTROL_SOCKET}: user {uid} was turned away"),
                Err(cause) => tracing::warn!("{CONTROL_SOCKET}: {cause}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A listener that nobody but its owner may connect to, whatever the umask.
fn bind_private(path: &Path) -> io::Result<StdListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the socket's mode, less the umask: there is no moment at which it is more open.
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn router(service: Arc<PoolService>) -> Router {
    Router::new()
        .route("/v1/call", post(call))
        .route("/v1/status", get(status))
        .route("/v1/read", get(read))
        .route("/v1/write", post(write))
        .route("/v1/dump", get(dump))
        .route("/v1/events", get(events))
        .with_state(service)
}

type Sender = mpsc::Sender<Result<Bytes, Infallible>>;

/// A response whose body is sent piece by piece by `work`, which runs to its end by itself.
fn streamed<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(Sender) -> F) -> Response {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    tokio::spawn(work(sender));
    Body::from_stream(ReceiverStream::new(receiver)).into_response()
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

async fn call(State(service): State<Arc<PoolService>>, Json(call): Json<Call>) -> Response {
    streamed(move |sender| async move {
        let progress: ProgressSink = {
            let sender = sender.clone();
            // Progress is worth nothing to a client that is slow to hear of it.
            Arc::new(move |at: Progress| drop(sender.try_send(Ok(line(&Event::Progress(at))))))
        };
        let is_change = !matches!(
            call,
            Call::List
                | Call::Info { .. }
                | Call::Status
                | Call::Activity
                | Call::Usage
                | Call::Check
        );
        if is_change {
            let call = serde_json::to_string(&call).unwrap_or_default();
            tracing::info!("{}: {call}", service.dir.path.display());
        }
        let result = execute(&service, call, &progress).await;
        let result = result.map(with_pid);
        send_result(&sender, result).await;
    })
}

fn with_pid(reply: Reply) -> Reply {
    match reply {
        Reply::Pool(info) => Reply::Pool(PoolInfo {
            daemon_pid: Some(std::process::id()),
            ..info
        }),
        Reply::Activity(mut activity) => {
            activity.pool.daemon_pid = Some(std::process::id());
            Reply::Activity(activity)
        }
        other => other,
    }
}

async fn send_result(sender: &Sender, result: Result<Reply, CallError>) {
    let event = match result {
        Ok(reply) => Event::Reply(Box::new(reply)),
        Err(error) => Event::Error(error),
    };
    // A client that has gone hears nothing.
    let _ = sender.send(Ok(line(&event))).await;
}

async fn status(State(service): State<Arc<PoolService>>) -> Json<PoolInfo> {
    Json(PoolInfo {
        daemon_pid: Some(std::process::id()),
        ..service.pool_info()
    })
}

#[derive(Deserialize)]
struct Following {
    #[serde(default)]
    follow: bool,
}

/// Events, one JSON value a line; to the daemon's end if they are followed.
async fn events(
    State(service): State<Arc<PoolService>>,
    Query(following): Query<Following>,
) -> Response {
    streamed(move |sender| async move {
        let mut last = 0;
        let mut goes_on = true;
        loop {
            for event in service.events.after(last) {
                last = event.number;
                let mut line = serde_json::to_vec(&event).unwrap_or_default();
                line.push(b'\n');
                if sender.send(Ok(line.into())).await.is_err() {
                    return;
                }
            }
            // Even then what was told last is sent.
            if !goes_on || !following.follow {
                return;
            }
            goes_on = tokio::select! {
                goes_on = service.events.follow(last) => goes_on,
                () = sender.closed() => false,
            };
        }
    })
}

#[derive(Deserialize)]
struct Range {
    device: DeviceName,
    #[serde(default)]
    offset: u64,
    length: Option<u64>,
}

async fn read(State(service): State<Arc<PoolService>>, Query(range): Query<Range>) -> Response {
    streamed(move |sender| async move {
        let result = send_contents(&service, &range, &sender).await;
        let last = result.err().map_or(Frame::End, Frame::Error);
        let _ = sender.send(Ok(last.encode())).await;
    })
}

async fn send_contents(
    service: &Arc<PoolService>,
    range: &Range,
    sender: &Sender,
) -> Result<(), CallError> {
    let mut reading = Reading::begin(service, &range.device, range.offset, range.length)?;
    while let Some(frames) = reading.next().await? {
        for frame in frames {
            if sender.send(Ok(frame.encode())).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn write(
    State(service): State<Arc<PoolService>>,
    Query(range): Query<Range>,
    mut body: Body,
) -> Response {
    streamed(move |sender| async move {
        let result = receive_contents(&service, &range, &mut body, &sender).await;
        send_result(&sender, result.map(|()| Reply::Done)).await;
        // Closing a connection with input left in it would take the answer away from the client,
        // who ends the input when he has read it.
        while let Some(Ok(_)) = body.frame().await {}
    })
}

async fn receive_contents(
    service: &Arc<PoolService>,
    range: &Range,
    body: &mut Body,
    sender: &Sender,
) -> Result<(), CallError> {
    let writing = Writing::begin(service, &range.device, range.offset, range.length)?;
    let end_waiting = writing.end_waiting();
    let gone = async {
        sender.closed().await;
        end_waiting();
        std::future::pending().await
    };
    tokio::select! {
        received = receive(writing, body) => received,
        never = gone => never,
    }
}

async fn receive(mut writing: Writing, body: &mut Body) -> Result<(), CallError> {
    // Whole pieces again: runs of zeros are found in those.
    let mut piece = BytesMut::with_capacity(PIECE_LEN);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|cause| {
            CallError::new(CallErrorKind::Io, format!("the input broke off: {cause}"))
        })?;
        let Ok(mut data) = frame.into_data() else {
            continue;
        };
        while !data.is_empty() {
            let part = data.split_to(data.len().min(PIECE_LEN - piece.len()));
            piece.extend_from_slice(&part);
            if piece.len() == PIECE_LEN {
                writing.put(piece.split().freeze()).await?;
                piece.reserve(PIECE_LEN);
            }
        }
    }
    writing.put(piece.freeze()).await?;
    writing.finish().await
}

/// Sends what is written to it as data frames.
struct FrameWriter(Sender);

impl io::Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = &bytes[..bytes.len().min(PIECE_LEN)];
        let frame = Frame::Data(Bytes::copy_from_slice(bytes)).encode();
        self.0
            .blocking_send(Ok(frame))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn dump(State(service): State<Arc<PoolService>>) -> Response {
    streamed(move |sender| async move {
        let result = dump_pool(&service, FrameWriter(sender.clone())).await;
        let last = result.err().map_or(Frame::End, Frame::Error);
        let _ = sender.send(Ok(last.encode())).await;
    })
}
