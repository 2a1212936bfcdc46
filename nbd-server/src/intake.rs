//! Requests as they come off the socket.
//!
//! One receive takes in every waiting request. A write's payload is copied out of the receive buffer
//! as far as it is there; the rest of a long one is received where it belongs. What is incomplete
//! when the client leaves is thrown away, never applied in part.

use crate::buffer::{Buffer, Buffers};
use crate::command::Refusal;
use crate::handshake::PAYLOAD_LEN_MAX;
use crate::stream::{Stream, is_temporary};
use crate::wire::{Errno, REQUEST_LEN, Request, command};

/// How much one receive takes in.
const RECEIVE_BYTES: usize = 256 * 1024;
/// The longest refused payload that is read to keep the stream in step.
const DISCARD_LEN_MAX: u32 = 64 * 1024 * 1024;
/// Payloads with at least this much missing are received where they belong.
const DIRECT_BYTES_MIN: usize = 32 * 1024;

/// A request off the socket.
pub(crate) struct Taken {
    pub(crate) request: Request,
    pub(crate) payload: Option<Buffer>,
    pub(crate) cost: usize,
    /// Set when its payload was too long to be kept.
    pub(crate) refusal: Option<Refusal>,
}

/// What [`Intake::next`] found.
pub(crate) enum Next {
    Request(Taken),
    /// More bytes must be received first.
    Incomplete,
    /// A request is there, but may not be taken now.
    NoRoom,
    /// No request will follow.
    Over,
}

/// The receiving side of a connection.
pub(crate) struct Intake {
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
    payload: Option<Payload>,
    over: bool,
}

/// A payload on its way in.
enum Payload {
    Keep {
        request: Request,
        buffer: Buffer,
        have: usize,
        cost: usize,
    },
    Discard {
        request: Request,
        missing: usize,
    },
}

impl Intake {
    /// Starts with bytes that were received during the handshake.
    pub(crate) fn new(received: &[u8]) -> Self {
        let mut bytes = vec![0; RECEIVE_BYTES.max(received.len())];
        bytes[..received.len()].copy_from_slice(received);
        Intake {
            bytes,
            begin: 0,
            end: received.len(),
            payload: None,
            over: false,
        }
    }

    /// Takes no more requests.
    pub(crate) fn stop(&mut self) {
        self.over = true;
        (self.begin, self.end) = (0, 0);
    }

    /// The next complete request. `admit` is asked, before a request is begun, whether it may be
    /// taken now, and says what it costs.
    pub(crate) fn next(
        &mut self,
        buffers: &mut Buffers,
        mut admit: impl FnMut(&Request) -> Option<usize>,
    ) -> Next {
        if self.payload.is_none() {
            let Some(header) = self.bytes[self.begin..self.end].first_chunk() else {
                return if self.over {
                    Next::Over
                } else {
                    Next::Incomplete
                };
            };
            let Some(request) = Request::decode(header) else {
                self.stop();
                return Next::Over;
            };
            let refused = request.command == command::WRITE && request.len > PAYLOAD_LEN_MAX;
            if request.command == command::DISCONNECT || refused && request.len > DISCARD_LEN_MAX {
                self.stop();
                return Next::Over;
            }
            let Some(cost) = admit(&request) else {
                return Next::NoRoom;
            };
            self.begin += REQUEST_LEN;
            if request.command != command::WRITE {
                return Next::Request(Taken {
                    request,
                    payload: None,
                    cost,
                    refusal: None,
                });
            }
            let len = usize::try_from(request.len).unwrap_or(usize::MAX);
            self.payload = Some(if refused {
                Payload::Discard {
                    request,
                    missing: len,
                }
            } else {
                Payload::Keep {
                    request,
                    buffer: buffers.take(len),
                    have: 0,
                    cost,
                }
            });
        }
        self.take_payload()
    }

    fn take_payload(&mut self) -> Next {
        let here = self.end - self.begin;
        let complete = match &mut self.payload {
            None => false,
            Some(Payload::Discard { missing, .. }) => {
                let count = here.min(*missing);
                self.begin += count;
                *missing -= count;
                *missing == 0
            }
            Some(Payload::Keep { buffer, have, .. }) => {
                let count = here.min(buffer.len() - *have);
                let from = &self.bytes[self.begin..self.begin + count];
                buffer.payload_mut()[*have..*have + count].copy_from_slice(from);
                self.begin += count;
                *have += count;
                *have == buffer.len()
            }
        };
        if !complete {
            return if self.over {
                Next::Over
            } else {
                Next::Incomplete
            };
        }
        match self.payload.take() {
            Some(Payload::Keep {
                request,
                buffer,
                cost,
                ..
            }) => Next::Request(Taken {
                request,
                payload: Some(buffer),
                cost,
                refusal: None,
            }),
            Some(Payload::Discard { request, .. }) => {
                let refusal = Refusal::new(Errno::Invalid, "longer than the largest payload");
                Next::Request(Taken {
                    request,
                    payload: None,
                    cost: 0,
                    refusal: Some(refusal),
                })
            }
            None => Next::Incomplete,
        }
    }

    /// Receives once, and tells whether there was news. Without `wait` it takes only what is there. Call it after
    /// [`Next::Incomplete`], when there is room in the buffer for sure.
    pub(crate) fn receive(&mut self, stream: &mut Stream, wait: bool) -> bool {
        let received = match &mut self.payload {
            Some(Payload::Keep { buffer, have, .. })
                if self.begin == self.end && buffer.len() - *have >= DIRECT_BYTES_MIN =>
            {
                stream
                    .receive(&mut buffer.payload_mut()[*have..], wait)
                    .map(|count| (count, have))
            }
            _ => {
                self.bytes.copy_within(self.begin..self.end, 0);
                (self.begin, self.end) = (0, self.end - self.begin);
                assert!(self.end < self.bytes.len(), "received without need");
                stream
                    .receive(&mut self.bytes[self.end..], wait)
                    .map(|count| (count, &mut self.end))
            }
        };
        match received {
            Ok((0, _)) => self.over = true,
            Ok((count, target)) => *target += count,
            Err(cause) if is_temporary(&cause) => return false,
            Err(cause) => {
                tracing::debug!(%cause, "receiving failed");
                self.over = true;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests;
