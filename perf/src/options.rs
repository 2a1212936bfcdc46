//! The command line: `--name value` pairs, nothing else.

use std::path::PathBuf;
use std::time::Duration;

/// What stands below a wrong command line.
pub const USAGE: &str = "\
nbd-load --socket PATH --export NAME
         --pattern randread|randwrite|seqread|seqwrite|blockwrite (each to another 64 KiB block)
         [--size 4096] [--depth 1] [--connections 1] [--span BYTES]
         [--seconds 1 --warmup 0.2 | --requests N] [--structured yes|no] [--seed 1]
         [--flush never|end|each: after the last write, or after each as part of it]
nbd-load null-server --socket PATH [--size BYTES]
nbd-load limit-server --socket PATH --file PATH";

/// What to do.
pub enum Command {
    /// Drive a server.
    Load(Load),
    /// Be the null server or the limit server.
    Server(Server),
}

/// Which requests are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pattern {
    /// Reads at random places.
    RandomRead,
    /// Writes at random places.
    RandomWrite,
    /// Reads one behind the other.
    SequentialRead,
    /// Writes one behind the other.
    SequentialWrite,
    /// Writes in a scattered order, each to another block of `BLOCK_BYTES`.
    BlockWrite,
}

/// Of a pool's data block, and of a qcow2 cluster.
pub const BLOCK_BYTES: u64 = 65536;

impl Pattern {
    /// Whether requests carry data.
    pub fn writes(self) -> bool {
        matches!(
            self,
            Pattern::RandomWrite | Pattern::SequentialWrite | Pattern::BlockWrite
        )
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After some time; what the warm-up before it did is not counted.
    Time {
        warmup: Duration,
        measured: Duration,
    },
    /// After this many requests on all connections together.
    Requests(u64),
}

/// When a writing run flushes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush {
    /// Not at all.
    Never,
    /// Each connection once, behind its last write and within the time measured.
    End,
    /// Behind each write, which counts as done when the flush is.
    Each,
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server's unix socket.
    pub socket: PathBuf,
    /// The export.
    pub export: String,
    /// Which requests.
    pub pattern: Pattern,
    /// Bytes a request moves.
    pub size: u32,
    /// Requests in flight on each connection.
    pub depth: usize,
    /// Connections.
    pub connections: usize,
    /// Bytes of the export that are touched, from its start; all of it when `None`.
    pub span: Option<u64>,
    /// When it ends.
    pub until: Until,
    /// Whether structured replies are negotiated, as libnbd and qemu do.
    pub structured: bool,
    /// Of the random places.
    pub seed: u64,
    /// When it flushes.
    pub flush: Flush,
}

/// A server to measure the machine with.
pub struct Server {
    /// Its unix socket.
    pub socket: PathBuf,
    /// The limit server's file; the null server has none.
    pub file: Option<PathBuf>,
    /// Size of the null server's export in bytes.
    pub size: u64,
}

/// Reads a command line.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.peekable();
    let server = arguments.next_if(|word| word == "null-server" || word == "limit-server");
    let mut values = Values::collect(arguments)?;
    let socket = values.take("socket").ok_or("--socket is missing")?.into();
    let command = match server.as_deref() {
        None => Command::Load(load(socket, &mut values)?),
        Some("limit-server") => Command::Server(Server {
            socket,
            file: Some(values.take("file").ok_or("--file is missing")?.into()),
            size: 0,
        }),
        Some(_) => Command::Server(Server {
            socket,
            file: None,
            size: values.number("size", 1 << 30)?,
        }),
    };
    match values.0.first() {
        None => Ok(command),
        Some((name, _)) => Err(format!("--{name} is not known")),
    }
}

fn load(socket: PathBuf, values: &mut Values) -> Result<Load, String> {
    let pattern = match values.take("pattern").as_deref() {
        Some("randread") => Pattern::RandomRead,
        Some("randwrite") => Pattern::RandomWrite,
        Some("seqread") => Pattern::SequentialRead,
        Some("seqwrite") => Pattern::SequentialWrite,
        Some("blockwrite") => Pattern::BlockWrite,
        other => return Err(format!("--pattern: {other:?}")),
    };
    let requests: u64 = values.number("requests", 0)?;
    let seconds: f64 = values.number("seconds", 1.0)?;
    let warmup: f64 = values.number("warmup", 0.2)?;
    let until = if requests > 0 {
        Until::Requests(requests)
    } else {
        Until::Time {
            warmup: seconds_of(warmup)?,
            measured: seconds_of(seconds)?,
        }
    };
    let span: u64 = values.number("span", 0)?;
    let load = Load {
        socket,
        export: values.take("export").ok_or("--export is missing")?,
        pattern,
        size: values.number("size", 4096)?,
        depth: values.number("depth", 1)?,
        connections: values.number("connections", 1)?,
        span: (span > 0).then_some(span),
        until,
        structured: values.yes_or_no("structured", true)?,
        seed: values.number("seed", 1)?,
        flush: match values.take("flush").as_deref() {
            None | Some("never") => Flush::Never,
            Some("end") => Flush::End,
            Some("each") => Flush::Each,
            Some(other) => return Err(format!("--flush: {other}, expected never, end or each")),
        },
    };
    if load.flush != Flush::Never && !load.pattern.writes() {
        return Err("--flush is for runs that write".to_owned());
    }
    if load.size == 0 || load.size > 1 << 25 || load.depth == 0 || load.connections == 0 {
        return Err("size (up to 32 MiB), depth and connections must be positive".to_owned());
    }
    if load.pattern == Pattern::BlockWrite && u64::from(load.size) > BLOCK_BYTES {
        return Err("blockwrite takes a size of up to 64 KiB".to_owned());
    }
    Ok(load)
}

fn seconds_of(value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value).map_err(|cause| format!("{value} seconds: {cause}"))
}

struct Values(Vec<(String, String)>);

impl Values {
    fn yes_or_no(&mut self, name: &str, default: bool) -> Result<bool, String> {
        match self.take(name).as_deref() {
            None => Ok(default),
            Some("yes") => Ok(true),
            Some("no") => Ok(false),
            Some(other) => Err(format!("--{name}: {other}, expected yes or no")),
        }
    }

    fn collect(mut arguments: impl Iterator<Item = String>) -> Result<Values, String> {
        let mut values = Vec::new();
        while let Some(word) = arguments.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| format!("{word}: not an option"))?;
            let value = arguments
                .next()
                .ok_or_else(|| format!("{word} needs a value"))?;
            values.push((name.to_owned(), value));
        }
        Ok(Values(values))
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(at).1)
    }

    fn number<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.take(name) {
            None => Ok(default),
            Some(text) => text
                .parse()
                .map_err(|_| format!("--{name}: {text} is no number")),
        }
    }
}
