//! `restore`: new metadata from a dump.

use std::error::Error as _;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use metadata_check::SalvageError;
use metadata_restore::{Error, FromDump, MetadataSize, Options, Progress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::Context;
use crate::cli::RestoreArgs;
use crate::interrupt::Interrupt;
use crate::pool_dir::{check_metadata_size, default_metadata_size};
use crate::protocol::{self, CallError, CallErrorKind};

/// How much of the dump is read at a time.
const READ_LEN: usize = 256 * 1024;

/// How often an interrupt is looked for while nothing comes.
const PATIENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// What was restored, as `--json` has it.
#[derive(Serialize)]
struct RestoreReport {
    devices: u64,
    mappings: u64,
    metadata_blocks: u64,
    metadata_blocks_used: u64,
    data_blocks: u64,
    data_blocks_used: u64,
    notes: Vec<String>,
}

pub(super) fn restore(context: &Context, args: &RestoreArgs) -> Result<(), CallError> {
    args.metadata_size.map_or(Ok(()), check_metadata_size)?;
    let (dump, place, total) = open_dump(&args.dump)?;
    let dump = Interruptible {
        file: dump,
        interrupt: context.interrupt.clone(),
    };
    let view = context.output.progress("restoring");
    let watch = |at: Progress| {
        view.tell(&shown(at, total));
        if context.interrupt.is_set() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let options = Options {
        size: match args.metadata_size {
            Some(bytes) => MetadataSize::Exactly(bytes),
            None => MetadataSize::ForDataBlocks(&default_metadata_size),
        },
        watch: &watch,
    };
    let dump = BufReader::with_capacity(READ_LEN, dump);
    let restored = metadata_restore::restore(dump, &args.to, &options);
    drop(view);
    let restored = restored.map_err(|cause| {
        if context.interrupt.is_set() {
            return Interrupt::error("nothing was restored");
        }
        failed(&place, &args.to, &cause)
    })?;
    let report = report(&restored);
    context.output.note(&report.notes);
    context.output.print_quietly(&report)
}

/// The dump, what it is called, and how long it is, or 0.
fn open_dump(path: &Path) -> Result<(File, String, u64), CallError> {
    if path == Path::new("-") {
        let name = "standard input";
        let stdin = rustix::io::dup(rustix::stdio::stdin());
        let stdin = stdin.map_err(|cause| CallError::io(name, &cause.into()))?;
        return Ok((stdin.into(), name.to_owned(), 0));
    }
    let name = path.display().to_string();
    let file = File::open(path).map_err(|cause| CallError::io(&name, &cause))?;
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    Ok((file, name, length))
}

/// Progress as it is shown, of `total` bytes of a dump.
pub(super) fn shown(at: Progress, total: u64) -> protocol::Progress {
    let (done, total, unit) = match at {
        Progress::Reading { bytes } => (bytes, total, "bytes"),
        Progress::Scanning { blocks, total } => (blocks, total, "metadata blocks"),
        Progress::Writing { mappings } => (mappings, 0, "mappings"),
        Progress::Checking { blocks, total } => (blocks, total, "metadata blocks checked"),
    };
    protocol::Progress {
        done,
        total,
        unit: unit.to_owned(),
    }
}

fn report(from_dump: &FromDump) -> RestoreReport {
    let mut notes = Vec::new();
    if from_dump.needed_check {
        let note =
            "the dump says that its pool needs a check; what was restored is sound and does not";
        notes.push(note.to_owned());
    }
    let restored = &from_dump.restored;
    RestoreReport {
        devices: restored.devices,
        mappings: restored.mappings,
        metadata_blocks: restored.metadata_blocks,
        metadata_blocks_used: restored.metadata_blocks_used,
        data_blocks: restored.data_blocks,
        data_blocks_used: restored.data_blocks_used,
        notes,
    }
}

/// What stopped new metadata from being made of `from`.
pub(super) fn failed(from: &str, to: &Path, cause: &Error) -> CallError {
    let (kind, message) = match cause {
        Error::Dump { .. } => (
            CallErrorKind::Damaged,
            format!("{from}: {cause} (nothing was restored: make the dump anew)"),
        ),
        Error::Read(source) => return CallError::io(from, source),
        Error::Io { op, source, .. } => {
            return CallError::io(format!("{}: cannot {op}", to.display()), source);
        }
        Error::Exists { .. } => (CallErrorKind::Exists, cause.to_string()),
        Error::InUse(_) => (CallErrorKind::Busy, cause.to_string()),
        Error::TooSmall { .. } => (CallErrorKind::NoSpace, format!("{}: {cause}", to.display())),
        Error::Salvage(SalvageError::Read(source)) => return CallError::io(from, source),
        Error::Salvage(_) => (CallErrorKind::Damaged, format!("{from}: {cause}")),
        Error::Pool(source) => return pool_failed(to, source),
        _ => (CallErrorKind::Other, format!("{}: {cause}", to.display())),
    };
    CallError::new(kind, message)
}

/// An error of the writer: a store that is full is told as such.
fn pool_failed(to: &Path, cause: &pool::Error) -> CallError {
    let mut source = cause.source();
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return CallError::io(format!("{}: {cause}", to.display()), io);
        }
        source = error.source();
    }
    CallError::new(cause.kind().into(), format!("{}: {cause}", to.display()))
}

/// A file that may be a pipe or a terminal, from which nothing comes for long.
struct Interruptible {
    file: File,
    interrupt: Interrupt,
}

impl Read for Interruptible {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.interrupt.is_set() {
            let mut waiting = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut waiting, Some(&PATIENCE)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => {}
                // What is wrong with a file is told by reading it.
                Ok(_) | Err(_) => return self.file.read(buffer),
            }
        }
        // Not `Interrupted`, upon which it would be read again.
        Err(io::ErrorKind::Other.into())
    }
}
