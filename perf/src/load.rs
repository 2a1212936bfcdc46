//! Keeps a number of requests in flight on each connection and counts what comes back.

use std::fmt;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use crate::histogram::Histogram;
use crate::options::{Flush, Load, Until};
use crate::places::{Places, Random};
use crate::wire::{
    CHUNK_ERRORS, DISCONNECT, DONE, FLUSH, READ, SIMPLE_REPLY, STRUCTURED_REPLY, WRITE, confused,
    connect, push_request, u16_at, u32_at, u64_at,
};

const RECEIVE_BYTES: usize = 1 << 20;

/// What a run measured.
pub struct Report {
    requests: u64,
    elapsed: Duration,
    bytes: u64,
    latency: Histogram,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        let (requests, bytes) = (self.requests as f64, self.bytes as f64);
        write!(
            out,
            "{{\"requests\": {}, \"seconds\": {seconds:.4}, \"rate\": {:.1}, \
             \"mib_per_second\": {:.1}, \"p50_ns\": {}, \"p99_ns\": {}, \"max_ns\": {}}}",
            self.requests,
            requests / seconds,
            bytes / seconds / 1_048_576.0,
            self.latency.percentile(50),
            self.latency.percentile(99),
            self.latency.longest().as_nanos(),
        )
    }
}

/// Runs one measurement.
pub fn run(options: &Load) -> Result<Report> {
    let budget = Arc::new(AtomicU64::new(match options.until {
        Until::Requests(count) => count,
        Until::Time { .. } => u64::MAX / 2,
    }));
    let barrier = Arc::new(Barrier::new(options.connections));
    let mut threads = Vec::new();
    for index in 0..options.connections {
        let connection = Connection::open(options, index, Arc::clone(&budget))?;
        let barrier = Arc::clone(&barrier);
        threads.push(thread::spawn(move || {
            barrier.wait();
            connection.drive()
        }));
    }
    let (mut requests, mut latency) = (0, Histogram::new());
    let (mut began, mut ended) = (None::<Instant>, None::<Instant>);
    for thread in threads {
        let counted = thread
            .join()
            .map_err(|_| Error::other("a connection's thread died"))??;
        requests += counted.requests;
        latency.add(&counted.latency);
        began = Some(began.map_or(counted.began, |known| known.min(counted.began)));
        ended = Some(ended.map_or(counted.ended, |known| known.max(counted.ended)));
    }
    let (Some(began), Some(ended)) = (began, ended) else {
        unreachable!("there is at least one connection");
    };
    let bytes = requests * u64::from(options.size);
    Ok(Report {
        requests,
        elapsed: ended - began,
        bytes,
        latency,
    })
}

struct Counted {
    requests: u64,
    latency: Histogram,
    began: Instant,
    ended: Instant,
}

/// One connection with its requests in flight; a request's cookie is its slot.
struct Connection {
    stream: UnixStream,
    options: Load,
    places: Places,
    budget: Arc<AtomicU64>,
    sent_at: Vec<Instant>,
    /// Which slots have a write done whose flush is still to come.
    to_flush: Vec<bool>,
    out: Vec<u8>,
    data: Vec<u8>,
    in_flight: usize,
}

impl Connection {
    fn open(options: &Load, index: usize, budget: Arc<AtomicU64>) -> Result<Connection> {
        let (stream, size) = connect(&options.socket, &options.export, options.structured)?;
        let mut data = vec![0; options.size as usize];
        let mut random = Random(options.seed.wrapping_mul(31) + 7);
        data.chunks_mut(8).for_each(|word| {
            let value = random.next().to_le_bytes();
            word.copy_from_slice(&value[..word.len()]);
        });
        Ok(Connection {
            stream,
            places: Places::new(options, index, size)?,
            budget,
            sent_at: vec![Instant::now(); options.depth],
            to_flush: vec![false; options.depth],
            out: Vec::with_capacity(RECEIVE_BYTES),
            data,
            in_flight: 0,
            options: options.clone(),
        })
    }

    /// Runs until time or requests are up; counts what came back while measuring.
    fn drive(mut self) -> Result<Counted> {
        let start = Instant::now();
        let (measure_from, stop_at) = match self.options.until {
            Until::Time { warmup, measured } => (start + warmup, Some(start + warmup + measured)),
            Until::Requests(_) => (start, None),
        };
        let (mut requests, mut latency) = (0, Histogram::new());
        let mut replies = Replies::new(&self.options);
        let mut finished = Vec::with_capacity(self.options.depth);
        for slot in 0..self.options.depth {
            self.push(slot, start);
        }
        let mut ended = start;
        while self.in_flight > 0 {
            self.stream.write_all(&self.out)?;
            self.out.clear();
            replies.receive(&mut self.stream, &mut finished)?;
            let now = Instant::now();
            let stopping = stop_at.is_some_and(|at| now >= at);
            for slot in finished.drain(..) {
                let sent_at = *self
                    .sent_at
                    .get(slot)
                    .ok_or_else(|| confused("unknown cookie"))?;
                if std::mem::take(&mut self.to_flush[slot]) {
                    push_request(&mut self.out, FLUSH, slot as u64, 0, 0);
                    continue;
                }
                self.in_flight -= 1;
                if now >= measure_from && !stopping {
                    requests += 1;
                    latency.record(now - sent_at);
                    ended = now;
                }
                if !stopping {
                    self.push(slot, now);
                }
            }
        }
        if self.options.flush == Flush::End {
            self.flush(&mut replies)?;
            ended = Instant::now();
        }
        push_request(&mut self.out, DISCONNECT, 0, 0, 0);
        self.stream.write_all(&self.out)?;
        Ok(Counted {
            requests,
            latency,
            began: measure_from.min(ended),
            ended,
        })
    }

    fn flush(&mut self, replies: &mut Replies) -> Result<()> {
        push_request(&mut self.out, FLUSH, 0, 0, 0);
        self.stream.write_all(&self.out)?;
        self.out.clear();
        let mut finished = Vec::new();
        while finished.is_empty() {
            replies.receive(&mut self.stream, &mut finished)?;
        }
        Ok(())
    }

    /// Prepares the next request of a slot, if any is left.
    fn push(&mut self, slot: usize, now: Instant) {
        let taken = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        let Ok(left) = taken else {
            return;
        };
        let offset = self.places.next(left - 1);
        self.sent_at[slot] = now;
        self.in_flight += 1;
        self.to_flush[slot] = self.options.flush == Flush::Each;
        if self.options.pattern.writes() {
            push_request(&mut self.out, WRITE, slot as u64, offset, self.options.size);
            self.out.extend_from_slice(&self.data);
        } else {
            push_request(&mut self.out, READ, slot as u64, offset, self.options.size);
        }
    }
}

/// Takes replies apart without keeping their data.
struct Replies {
    buffer: Vec<u8>,
    filled: usize,
    skip: usize,
    read_bytes: usize,
    finishes_after_skip: Option<usize>,
}

impl Replies {
    fn new(options: &Load) -> Replies {
        let read_bytes = if options.pattern.writes() {
            0
        } else {
            options.size as usize
        };
        let buffer = vec![0; RECEIVE_BYTES];
        Replies {
            buffer,
            filled: 0,
            skip: 0,
            read_bytes,
            finishes_after_skip: None,
        }
    }

    /// One receive; the slots of all requests it completes are added to `finished`.
    fn receive(&mut self, stream: &mut UnixStream, finished: &mut Vec<usize>) -> Result<()> {
        let count = stream.read(&mut self.buffer[self.filled..])?;
        if count == 0 {
            return Err(Error::new(
                ErrorKind::UnexpectedEof,
                "the server closed the connection",
            ));
        }
        self.filled += count;
        let mut at = 0;
        loop {
            let skipped = self.skip.min(self.filled - at);
            at += skipped;
            self.skip -= skipped;
            if self.skip > 0 {
                break;
            }
            finished.extend(self.finishes_after_skip.take());
            match self.head(at)? {
                0 => break,
                length => at += length,
            }
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        Ok(())
    }

    /// Looks at the header at `at`; returns its length, or 0 when it is not all there yet.
    fn head(&mut self, at: usize) -> Result<usize> {
        let bytes = &self.buffer[at..self.filled];
        if bytes.len() < 16 {
            return Ok(0);
        }
        match u32_at(bytes, 0) {
            SIMPLE_REPLY => {
                let error = u32_at(bytes, 4);
                if error != 0 {
                    return Err(Error::other(format!("a request failed: error {error}")));
                }
                self.skip = self.read_bytes;
                self.finishes_after_skip = Some(slot_of(u64_at(bytes, 8)));
                Ok(16)
            }
            STRUCTURED_REPLY if bytes.len() < 20 => Ok(0),
            STRUCTURED_REPLY => {
                if u16_at(bytes, 6) >= CHUNK_ERRORS {
                    return Err(Error::other("a request failed"));
                }
                self.skip = u32_at(bytes, 16) as usize;
                if u16_at(bytes, 4) & DONE != 0 {
                    self.finishes_after_skip = Some(slot_of(u64_at(bytes, 8)));
                }
                Ok(20)
            }
            magic => Err(confused(format!("reply magic {magic:#x}"))),
        }
    }
}

fn slot_of(cookie: u64) -> usize {
    usize::try_from(cookie).unwrap_or(usize::MAX)
}
