//! The tool's end of the control socket.

use std::error::Error as _;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use pool::DeviceName;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_stream::wrappers::ReceiverStream;

use crate::events::PoolEvent;
use crate::frame::{Decoder, Frame};
use crate::pool_dir::{CONTROL_SOCKET, PoolDir};
use crate::protocol::{Call, CallError, CallErrorKind, Event, PoolInfo, Progress, Reply};

/// The longest line of an answer: a list of very many devices.
const LINE_LEN_MAX: usize = 1 << 30;

/// How long a daemon may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type RequestBody = BoxBody<Bytes, io::Error>;

/// A connection to the daemon that serves a pool. One request at a time.
pub struct Client {
    sender: http1::SendRequest<RequestBody>,
    socket: PathBuf,
}

impl Client {
    /// Connects to the daemon that serves the pool, if one does.
    ///
    /// # Errors
    /// When there is one, but it cannot be talked to.
    pub async fn connect(dir: &PoolDir) -> Result<Option<Client>, CallError> {
        let socket = dir.path.join(CONTROL_SOCKET);
        let failed = |cause: &io::Error| CallError::io(socket.display(), cause);
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, connect_in(&dir.path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) if nobody_listens(&cause) => return Ok(None),
            Ok(Err(cause)) => return Err(failed(&cause)),
            Err(_) => return Err(failed(&io::ErrorKind::TimedOut.into())),
        };
        let handshake = http1::handshake::<_, RequestBody>(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|cause| not_answered(&socket, &cause))?;
        tokio::spawn(async move {
            // Its failure is that of the request on it.
            let _ = connection.await;
        });
        Ok(Some(Client { sender, socket }))
    }

    /// Makes a call.
    ///
    /// # Errors
    /// That of the call, or `Io` when the daemon broke off.
    pub async fn call(
        &mut self,
        call: &Call,
        progress: &dyn Fn(Progress),
    ) -> Result<Reply, CallError> {
        let body = serde_json::to_vec(call).map_err(|cause| broken(&self.socket, &cause))?;
        let response = self.request(Method::POST, "/v1/call", full(body)).await?;
        self.events(response, progress).await
    }

    /// The pool's state.
    ///
    /// # Errors
    /// `Io` when the daemon broke off.
    pub async fn status(&mut self) -> Result<PoolInfo, CallError> {
        match self.call(&Call::Status, &|_| {}).await? {
            Reply::Pool(info) => Ok(info),
            _ => Err(broken(&self.socket, &"an answer to another question")),
        }
    }

    /// Receives a device's contents.
    ///
    /// # Errors
    /// As [`Client::call`], and that of `take`.
    pub async fn read(
        &mut self,
        device: &DeviceName,
        offset: u64,
        length: Option<u64>,
        take: &mut dyn FnMut(Frame) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let length = length
            .map(|length| format!("&length={length}"))
            .unwrap_or_default();
        // Names need no escaping: only letters, digits, and `.`, `_`, `-`, `@`.
        let path = format!("/v1/read?device={device}&offset={offset}{length}");
        let response = self.request(Method::GET, &path, full(Vec::new())).await?;
        self.frames(response, take).await
    }

    /// Receives a dump.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn dump(
        &mut self,
        take: &mut dyn FnMut(Frame) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let response = self
            .request(Method::GET, "/v1/dump", full(Vec::new()))
            .await?;
        self.frames(response, take).await
    }

    /// Sends contents for a device, taken from `pieces` until it ends. With a `length` that is
    /// known, what does not fit is refused before anything is written.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn write(
        &mut self,
        device: &DeviceName,
        offset: u64,
        length: Option<u64>,
        pieces: tokio::sync::mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<Reply, CallError> {
        let length = length
            .map(|length| format!("&length={length}"))
            .unwrap_or_default();
        let path = format!("/v1/write?device={device}&offset={offset}{length}");
        let stream = tokio_stream::StreamExt::map(ReceiverStream::new(pieces), |piece| {
            piece.map(hyper::body::Frame::data)
        });
        let body = BoxBody::new(StreamBody::new(stream));
        let response = self.request(Method::POST, &path, body).await?;
        self.events(response, &|_| {}).await
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: RequestBody,
    ) -> Result<Response<Incoming>, CallError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "thinpool")
            .header("content-type", "application/json")
            .body(body)
            .map_err(|cause| broken(&self.socket, &cause))?;
        // The answer to an earlier request may still be on its way out of the connection.
        self.sender
            .ready()
            .await
            .map_err(|cause| not_answered(&self.socket, &cause))?;
        let response = self.sender.send_request(request).await;
        let response = response.map_err(|cause| not_answered(&self.socket, &cause))?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let text = response
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes());
            let text = text
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .unwrap_or_default();
            return Err(broken(&self.socket, &format!("{status}: {text}")));
        }
        Ok(response)
    }

    /// Receives what has happened to the pool, and with `follow` what happens until the daemon ends.
    ///
    /// # Errors
    /// As [`Client::read`].
    pub async fn pool_events(
        &mut self,
        follow: bool,
        take: &mut dyn FnMut(PoolEvent) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let path = format!("/v1/events?follow={follow}");
        let response = self.request(Method::GET, &path, full(Vec::new())).await?;
        let mut lines = Lines::new(response);
        while let Some(event) = lines.next(self).await? {
            take(event)?;
        }
        Ok(())
    }

    async fn events(
        &self,
        response: Response<Incoming>,
        progress: &dyn Fn(Progress),
    ) -> Result<Reply, CallError> {
        let mut lines = Lines::new(response);
        loop {
            match lines.next(self).await? {
                Some(Event::Progress(at)) => progress(at),
                Some(Event::Reply(reply)) => {
                    return self.ended(&mut lines.body).await.map(|()| *reply);
                }
                Some(Event::Error(error)) => return Err(error),
                None => return Err(broken(&self.socket, &"it broke off")),
            }
        }
    }

    async fn frames(
        &self,
        response: Response<Incoming>,
        take: &mut dyn FnMut(Frame) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let mut body = response.into_body();
        let mut decoder = Decoder::default();
        while let Some(piece) = self.next_piece(&mut body).await? {
            decoder.put(&piece);
            while let Some(frame) = decoder.next_frame()? {
                match frame {
                    Frame::End => return Ok(()),
                    Frame::Error(error) => return Err(error),
                    contents => take(contents)?,
                }
            }
        }
        Err(broken(&self.socket, &"it broke off"))
    }

    /// Takes in the end of an answer, so that the connection can be used again.
    async fn ended(&self, body: &mut Incoming) -> Result<(), CallError> {
        match self.next_piece(body).await? {
            None => Ok(()),
            Some(_) => Err(broken(&self.socket, &"something follows its answer")),
        }
    }

    async fn next_piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, CallError> {
        while !body.is_end_stream() {
            match body.frame().await {
                None => return Ok(None),
                Some(Err(cause)) => return Err(broken(&self.socket, &cause)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// An answer of lines, each a JSON value.
struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Lines {
    fn new(response: Response<Incoming>) -> Self {
        Lines {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }

    /// The next one; none when the answer has ended.
    async fn next<T: DeserializeOwned>(&mut self, client: &Client) -> Result<Option<T>, CallError> {
        let mut begin = 0;
        loop {
            if let Some(end) = self.buffer[begin..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=begin + end).collect();
                let value = serde_json::from_slice(&line);
                return value
                    .map(Some)
                    .map_err(|cause| broken(&client.socket, &cause));
            }
            begin = self.buffer.len();
            if begin > LINE_LEN_MAX {
                return Err(broken(&client.socket, &"its answer is too long"));
            }
            match client.next_piece(&mut self.body).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None if begin == 0 => return Ok(None),
                None => return Err(broken(&client.socket, &"it broke off")),
            }
        }
    }
}

/// Connects through the directory's descriptor, so that its path may be longer than the 107
/// characters a socket's address holds.
async fn connect_in(directory: &Path) -> io::Result<UnixStream> {
    let directory = File::open(directory)?;
    UnixStream::connect(short_path(&directory)).await
}

/// The control socket's path by way of an open directory.
pub fn short_path(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{CONTROL_SOCKET}", directory.as_raw_fd()).into()
}

/// Whether this error of connecting means that no daemon is there.
pub fn nobody_listens(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn full(bytes: Vec<u8>) -> RequestBody {
    BoxBody::new(Full::new(Bytes::from(bytes)).map_err(|never| match never {}))
}

/// The error of a request to which no answer came. A Unix socket is reset when it is closed before
/// what was sent has been read; so the daemon ended without knowing of the request.
fn not_answered(socket: &Path, cause: &hyper::Error) -> CallError {
    let kind = cause
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .map(io::Error::kind);
    let reset = matches!(
        kind,
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
    );
    if reset || cause.is_canceled() {
        let message = format!("{}: the daemon is just ending: try again", socket.display());
        return CallError::new(CallErrorKind::PoolHeld, message);
    }
    broken(socket, cause)
}

fn broken(socket: &Path, cause: &dyn std::fmt::Display) -> CallError {
    let message = format!(
        "{}: the daemon did not answer as it should: {cause}",
        socket.display()
    );
    CallError::new(CallErrorKind::Io, message)
}
