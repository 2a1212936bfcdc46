//! Contents: `read` to standard output, `write` from standard input.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use bytes::{Bytes, BytesMut};
use rustix::fs::{OFlags, fcntl_getfl};
use tokio::sync::mpsc;

use super::{Context, unexpected};
use crate::cli::DeviceArg;
use crate::frame::Frame;
use crate::interrupt::Interrupt;
use crate::output::output_error;
use crate::pool_dir::{Access, PoolDir};
use crate::protocol::{CallError, Progress, Reply};
use crate::session::{Session, patiently};
use crate::transfer::{PIECE_LEN, Reading, Writing};

/// Pieces of input that wait to be written.
const PIECES_MAX: usize = 2;

pub(super) async fn read(
    context: &Context,
    device: &DeviceArg,
    offset: u64,
    length: Option<u64>,
) -> Result<(), CallError> {
    let dir = PoolDir::open(&device.pool)?;
    let mut sink = Sink::standard_output()?;
    let progress = context.output.progress("reading");
    let mut done = 0;
    let mut take = |frame: Frame| {
        if context.interrupt.is_set() {
            return Err(Interrupt::error("the output is not complete"));
        }
        done += sink.take(&frame).map_err(|cause| output_error(&cause))?;
        progress.tell(&bytes_done(done, length.unwrap_or(0)));
        Ok(())
    };
    patiently(
        async || match Session::open(dir.clone(), Access::Read).await? {
            Session::Remote(mut client) => {
                client.read(&device.name, offset, length, &mut take).await
            }
            Session::Local(service) => {
                let mut reading = Reading::begin(&service, &device.name, offset, length)?;
                while let Some(frames) = reading.next().await? {
                    frames.into_iter().try_for_each(&mut take)?;
                }
                drop(reading);
                service.close().await
            }
        },
    )
    .await?;
    sink.finish().map_err(|cause| output_error(&cause))
}

fn bytes_done(done: u64, total: u64) -> Progress {
    Progress {
        done,
        total,
        unit: "bytes".to_owned(),
    }
}

/// Standard output. In a regular file that ends where we begin, zeros are left as holes.
struct Sink {
    file: File,
    leaves_holes: bool,
    zeros: Vec<u8>,
}

impl Sink {
    fn standard_output() -> Result<Self, CallError> {
        let open = || -> io::Result<Sink> {
            let mut file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            let metadata = file.metadata()?;
            let appends = fcntl_getfl(&file)?.contains(OFlags::APPEND);
            let leaves_holes =
                metadata.is_file() && !appends && file.stream_position()? == metadata.len();
            Ok(Sink {
                file,
                leaves_holes,
                zeros: Vec::new(),
            })
        };
        open().map_err(|cause| output_error(&cause))
    }

    /// Takes the next piece and returns its length.
    fn take(&mut self, frame: &Frame) -> io::Result<u64> {
        match frame {
            Frame::Data(bytes) => {
                self.file.write_all(bytes)?;
                Ok(bytes.len() as u64)
            }
            Frame::Zeros(len) => {
                self.take_zeros(*len)?;
                Ok(*len)
            }
            Frame::Error(_) | Frame::End => Ok(0),
        }
    }

    fn take_zeros(&mut self, len: u64) -> io::Result<()> {
        if self.leaves_holes {
            let distance = i64::try_from(len).map_err(io::Error::other)?;
            return self.file.seek(SeekFrom::Current(distance)).map(drop);
        }
        self.zeros.resize(PIECE_LEN, 0);
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(PIECE_LEN).min(PIECE_LEN);
            self.file.write_all(&self.zeros[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// A hole at the end is only there once the file is that long.
    fn finish(mut self) -> io::Result<()> {
        if self.leaves_holes {
            let end = self.file.stream_position()?;
            self.file.set_len(end)?;
        }
        Ok(())
    }
}

pub(super) async fn write(
    context: &Context,
    device: &DeviceArg,
    offset: u64,
) -> Result<(), CallError> {
    let dir = PoolDir::open(&device.pool)?;
    let session = patiently(async || {
        let mut session = Session::open(dir.clone(), Access::Write).await?;
        // The input can be sent only once: that somebody takes it is made sure of before.
        if let Session::Remote(client) = &mut session {
            client.status().await?;
        }
        Ok(session)
    })
    .await?;
    let (length, pieces) = standard_input()?;
    match session {
        Session::Remote(mut client) => {
            let mut interrupt = context.interrupt.clone();
            let _progress = context.output.progress("writing");
            let reply = tokio::select! {
                reply = client.write(&device.name, offset, length, pieces) => reply?,
                () = interrupt.wait() => {
                    return Err(Interrupt::error("only the beginning of the input was written"));
                }
            };
            match reply {
                Reply::Done => Ok(()),
                other => Err(unexpected(&other)),
            }
        }
        Session::Local(service) => {
            let written = match Writing::begin(&service, &device.name, offset, length) {
                Ok(writing) => write_pieces(context, writing, length, pieces).await,
                Err(error) => Err(error),
            };
            let closed = context.settle(Session::Local(service)).await;
            written.and(closed)
        }
    }
}

async fn write_pieces(
    context: &Context,
    mut writing: Writing,
    length: Option<u64>,
    mut pieces: mpsc::Receiver<io::Result<Bytes>>,
) -> Result<(), CallError> {
    let progress = context.output.progress("writing");
    let mut interrupt = context.interrupt.clone();
    let mut done = 0;
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            () = interrupt.wait() => {
                writing.finish().await?;
                return Err(Interrupt::error("only the beginning of the input was written"));
            }
        };
        let Some(piece) = piece else { break };
        let piece = piece.map_err(|cause| CallError::io("standard input", &cause))?;
        done += piece.len() as u64;
        writing.put(piece).await?;
        progress.tell(&bytes_done(done, length.unwrap_or(0)));
    }
    writing.finish().await
}

/// How much standard input holds, if that is known, and a stream of its pieces, each but the last
/// of full length. It is read by a thread of its own, as reading may wait for ever.
fn standard_input() -> Result<(Option<u64>, mpsc::Receiver<io::Result<Bytes>>), CallError> {
    let open = || -> io::Result<(File, Option<u64>)> {
        let mut file = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        let metadata = file.metadata()?;
        let left = match metadata.is_file() {
            true => Some(metadata.len().saturating_sub(file.stream_position()?)),
            false => None,
        };
        Ok((file, left))
    };
    let (mut file, length) = open().map_err(|cause| CallError::io("standard input", &cause))?;
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    std::thread::spawn(move || {
        loop {
            let piece = read_piece(&mut file);
            let is_last = !matches!(&piece, Ok(piece) if piece.len() == PIECE_LEN);
            if matches!(&piece, Ok(piece) if piece.is_empty()) {
                return;
            }
            if sender.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    });
    Ok((length, receiver))
}

fn read_piece(file: &mut File) -> io::Result<Bytes> {
    let mut piece = BytesMut::zeroed(PIECE_LEN);
    let mut len = 0;
    while len < PIECE_LEN {
        match file.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
            Err(cause) => return Err(cause),
        }
    }
    piece.truncate(len);
    Ok(piece.freeze())
}
