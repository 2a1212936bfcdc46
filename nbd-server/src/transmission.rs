//! Carrying requests out: a request becomes calls on the thin device, and their outcome a reply.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use pool::{ErrorKind, Extent, Host, Operation, ThinDevice, Zeroing};
use reactor::yield_now;

use crate::budget::SharedBudget;
use crate::buffer::{Buffer, Buffers, memory_for};
use crate::command::{Command, Refusal, Terms};
use crate::context::{Context, Selection};
use crate::handshake::{Agreement, Facts, PAYLOAD_LEN_MAX};
use crate::outbox::{Body, Outbox, Reply};
use crate::sparse;
use crate::wire::{self, Errno, Request};

/// Long trims and zeroings are done in slices of this many bytes.
const SLICE_BYTES: u64 = 32 * 1024 * 1024;
/// Block status looks at this many bytes before others may go on.
const STATUS_SLICE_BYTES: u64 = 512 * 1024 * 1024;
/// The most extents in one chunk.
const EXTENTS_MAX: usize = 65_536;
/// What an extent takes while a reply is made, in bytes: the pool's extent, and the wire's.
const EXTENT_COST: usize = 32;

/// What the requests of one connection share. It stays on the connection's thread.
pub(crate) struct Session<H: Host> {
    device: ThinDevice<H>,
    terms: Terms,
    contexts: Selection,
    pub(crate) buffers: RefCell<Buffers>,
    pub(crate) outbox: RefCell<Outbox>,
    /// The client takes no more replies.
    pub(crate) deaf: Cell<bool>,
    /// Requests that lack space are not answered: the client repeats them where they may wait.
    pub(crate) withholds: Cell<bool>,
}

/// A request as it came in.
pub(crate) struct Incoming {
    pub(crate) request: Request,
    /// All of a write's payload; none when the request has none, or is refused.
    pub(crate) payload: Option<Buffer>,
    /// What it counts in the budget until its reply is sent.
    pub(crate) cost: usize,
    /// Set when it is to be refused, whatever it asks for.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) begun: Instant,
}

impl<H: Host> Session<H> {
    pub(crate) fn new(agreement: Agreement<ThinDevice<H>>, budget: &Arc<SharedBudget>) -> Self {
        let terms = Terms {
            facts: agreement.facts,
            structured: agreement.structured,
            has_context: agreement.contexts != Selection::default(),
        };
        Session {
            device: agreement.device,
            terms,
            contexts: agreement.contexts,
            buffers: RefCell::new(Buffers::new(Arc::clone(budget))),
            outbox: RefCell::default(),
            deaf: Cell::new(false),
            withholds: Cell::new(false),
        }
    }

    /// What was agreed on, with the size that the device has now: it may have been enlarged, and the client
    /// been told by another way.
    fn terms(&self) -> Terms {
        let facts = Facts {
            size: self.device.size(),
            ..self.terms.facts
        };
        Terms {
            facts,
            ..self.terms
        }
    }

    pub(crate) fn device(&self) -> &ThinDevice<H> {
        &self.device
    }

    /// Whether nothing but a reply would come of a request, and nobody takes replies any more. A client that sends many
    /// large reads and leaves would keep us busy for long.
    fn is_in_vain(&self, request: &Request) -> bool {
        let only_asks = matches!(
            request.command,
            wire::command::READ | wire::command::BLOCK_STATUS
        );
        only_asks && self.deaf.get()
    }

    /// How much memory a request may take until its reply is sent, in bytes.
    pub(crate) fn cost(&self, request: &Request) -> usize {
        if self.is_in_vain(request) {
            return 0;
        }
        let len = usize::try_from(request.len).unwrap_or(usize::MAX);
        match request.command {
            wire::command::READ | wire::command::WRITE => {
                // Longer ones are refused, and take nothing.
                if request.len > PAYLOAD_LEN_MAX {
                    0
                } else {
                    memory_for(len)
                }
            }
            wire::command::BLOCK_STATUS => {
                let block = usize::try_from(self.terms.facts.block_size).unwrap_or(usize::MAX);
                (len / block + 2).min(EXTENTS_MAX) * EXTENT_COST
            }
            _ => 0,
        }
    }

    /// Does what a request asks for and leaves the reply in the outbox.
    pub(crate) async fn serve(&self, mut incoming: Incoming) {
        let request = incoming.request;
        let result = match incoming.refusal.take() {
            Some(refusal) => Err(refusal),
            None if self.is_in_vain(&request) => {
                Err(Refusal::new(Errno::Shutdown, "the client is gone"))
            }
            None => self.carry_out(&incoming).await,
        };
        if let Some(buffer) = incoming.payload.take() {
            self.buffers.borrow_mut().give_back(buffer);
        }
        let body = match result {
            Ok(body) => body,
            Err(refusal) if refusal.errno == Errno::NoSpace && self.withholds.get() => {
                return self.outbox.borrow_mut().release(incoming.cost);
            }
            Err(refusal) if self.terms.structured => Body::Bytes(wire::error_chunk(
                request.cookie,
                refusal.errno,
                &refusal.message,
            )),
            Err(refusal) => {
                Body::Simple(wire::simple_reply(request.cookie, refusal.errno.number()))
            }
        };
        let mut outbox = self.outbox.borrow_mut();
        outbox.push(Reply {
            body,
            cost: incoming.cost,
        });
        if self.deaf.get() {
            outbox.clear(&mut self.buffers.borrow_mut());
        }
    }

    async fn carry_out(&self, incoming: &Incoming) -> Result<Body, Refusal> {
        let command = Command::check(&incoming.request, &self.terms())?;
        let result = self.perform(command, incoming).await;
        if let Some(operation) = command.operation() {
            let stats = self.device.stats();
            match &result {
                Ok(_) => {
                    let bytes = match operation {
                        Operation::Flush => 0,
                        _ => u64::from(incoming.request.len),
                    };
                    stats.record(operation, bytes, incoming.begun.elapsed());
                }
                // Zeroing that is not fast is what the client wanted to know.
                Err(refusal) if refusal.errno == Errno::NotSupported => {}
                Err(_) => stats.record_error(operation),
            }
        }
        result
    }

    /// A request's task is moved when it is spawned, so what is seldom or slow anyway has memory of its own: here,
    /// and in the pool.
    async fn perform(&self, command: Command, incoming: &Incoming) -> Result<Body, Refusal> {
        let request = &incoming.request;
        let (offset, len) = (request.offset, u64::from(request.len));
        match command {
            Command::Read { unfragmented } => return self.read(request, unfragmented).await,
            Command::BlockStatus { only_first } => {
                return Box::pin(self.block_status(request, only_first)).await;
            }
            Command::Cache => {}
            Command::Write { durable } => {
                let payload = incoming.payload.as_ref().map_or(&[][..], Buffer::payload);
                assert_eq!(
                    payload.len() as u64,
                    len,
                    "a write without its whole payload"
                );
                self.device
                    .write(offset, payload, durable)
                    .await
                    .map_err(refusal)?;
            }
            Command::Flush => Box::pin(self.device.flush()).await.map_err(refusal)?,
            Command::Trim { durable } => Box::pin(self.trim(offset, len, durable)).await?,
            Command::WriteZeroes { zeroing, durable } => {
                Box::pin(self.write_zeroes(offset, len, zeroing, durable)).await?;
            }
        }
        Ok(Body::Simple(wire::simple_reply(request.cookie, 0)))
    }

    async fn read(&self, request: &Request, unfragmented: bool) -> Result<Body, Refusal> {
        let len = usize::try_from(request.len).unwrap_or(usize::MAX);
        let mut buffer = self.buffers.borrow_mut().take(len);
        let (bytes, pieces) = buffer.read_parts();
        let read = self.device.read_sparse(request.offset, bytes, pieces).await;
        if let Err(cause) = read {
            self.buffers.borrow_mut().give_back(buffer);
            return Err(refusal(cause));
        }
        if !self.terms.structured {
            return Ok(sparse::simple(buffer, request.cookie));
        }
        if len == 0 {
            self.buffers.borrow_mut().give_back(buffer);
            return Ok(Body::Bytes(wire::none_chunk(request.cookie)));
        }
        Ok(sparse::chunks(
            buffer,
            request.cookie,
            request.offset,
            unfragmented,
        ))
    }

    async fn trim(&self, offset: u64, len: u64, durable: bool) -> Result<(), Refusal> {
        let mut slices = self.slices(offset, len).peekable();
        while let Some((at, len)) = slices.next() {
            let last = slices.peek().is_none();
            self.device
                .discard(at, len, durable && last)
                .await
                .map_err(refusal)?;
            if !last {
                yield_now().await;
            }
        }
        Ok(())
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        zeroing: Zeroing,
        durable: bool,
    ) -> Result<(), Refusal> {
        // Fast or nothing is decided for the whole request, so that is one call.
        if matches!(zeroing, Zeroing::Fast | Zeroing::FastKeepMapped) {
            let zeroed = self
                .device
                .write_zeroes(offset, len, zeroing, durable)
                .await;
            return zeroed.map_err(refusal);
        }
        let mut slices = self.slices(offset, len).peekable();
        while let Some((at, len)) = slices.next() {
            let last = slices.peek().is_none();
            let zeroed = self
                .device
                .write_zeroes(at, len, zeroing, durable && last)
                .await;
            zeroed.map_err(refusal)?;
            if !last {
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Cuts a range where data blocks begin, so that no whole block is done in two halves.
    fn slices(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + use<H> {
        cut(
            offset,
            len,
            SLICE_BYTES.next_multiple_of(self.terms.facts.block_size),
        )
    }

    async fn block_status(&self, request: &Request, only_first: bool) -> Result<Body, Refusal> {
        let max = if only_first { 1 } else { EXTENTS_MAX };
        let end = request.offset + u64::from(request.len);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = request.offset;
        while at < end && extents.len() < max {
            let len = STATUS_SLICE_BYTES.min(end - at);
            let found = self.device.extents(at, len, max - extents.len()).await;
            for extent in found.map_err(refusal)? {
                at += extent.len;
                match extents.last_mut() {
                    Some(last) if last.state == extent.state => last.len += extent.len,
                    _ => extents.push(extent),
                }
            }
            if at < end {
                yield_now().await;
            }
        }
        assert!(
            !extents.is_empty() && at <= end,
            "the extents of a range lie within it"
        );
        let mut bytes = Vec::new();
        let last = self.contexts.iter().next_back();
        for context in self.contexts.iter() {
            let described: Vec<_> = Context::describe(context, &extents, max);
            let done = Some(context) == last;
            wire::put_block_status(&mut bytes, request.cookie, context.id(), &described, done);
        }
        Ok(Body::Bytes(bytes))
    }
}

/// Pieces of a range, all but the first beginning at a multiple of `step`. An empty range is one
/// empty piece.
fn cut(offset: u64, len: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + len;
    let mut next = Some(offset);
    std::iter::from_fn(move || {
        let at = next?;
        let border = (at / step + 1).saturating_mul(step).min(end);
        next = (border < end).then_some(border);
        Some((at, border - at))
    })
}

/// What a client is told of an error of the pool: only numbers the protocol knows.
fn refusal(cause: pool::Error) -> Refusal {
    let errno = match (&cause, cause.kind()) {
        (pool::Error::Stopped { .. }, _) => Errno::Shutdown,
        (_, ErrorKind::Invalid) => Errno::Invalid,
        (_, ErrorKind::ReadOnly) => Errno::Permission,
        (_, ErrorKind::NoSpace) => Errno::NoSpace,
        (_, ErrorKind::NotSupported) => Errno::NotSupported,
        _ => Errno::Io,
    };
    Refusal {
        errno,
        message: cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_where_blocks_begin() {
        let pieces = |offset, len, step| cut(offset, len, step).collect::<Vec<_>>();
        assert_eq!(pieces(5, 0, 10), [(5, 0)]);
        assert_eq!(pieces(0, 10, 10), [(0, 10)]);
        assert_eq!(pieces(5, 17, 10), [(5, 5), (10, 10), (20, 2)]);
        assert_eq!(pieces(u64::MAX - 3, 3, 10), [(u64::MAX - 3, 3)]);
    }

    #[test]
    fn errors_become_numbers_of_the_protocol() {
        let io = |kind: std::io::ErrorKind| pool::Error::Io {
            what: String::new(),
            source: kind.into(),
        };
        for (cause, errno) in [
            (pool::Error::OutOfDataSpace, Errno::NoSpace),
            (pool::Error::NotFast, Errno::NotSupported),
            (
                pool::Error::PoolReadOnly {
                    reason: String::new(),
                },
                Errno::Permission,
            ),
            (
                pool::Error::OutOfRange {
                    offset: 0,
                    len: 1,
                    size: 0,
                },
                Errno::Invalid,
            ),
            (
                pool::Error::Stopped {
                    reason: String::new(),
                },
                Errno::Shutdown,
            ),
            (io(std::io::ErrorKind::StorageFull), Errno::NoSpace),
            (io(std::io::ErrorKind::Other), Errno::Io),
        ] {
            let text = cause.to_string();
            assert_eq!(refusal(cause).errno, errno, "{text}");
        }
    }
}
