//! Replies on their way to the client.
//!
//! Replies are gathered and sent with one call. A reply to a read leaves from the buffer the data was
//! read into, so that data is copied once, by the kernel.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use crate::buffer::{Buffer, Buffers};
use crate::wire::SIMPLE_REPLY_LEN;

/// The most pieces one send takes.
pub(crate) const SLICES_MAX: usize = 256;

/// What goes out.
pub(crate) enum Body {
    /// A simple reply without data.
    Simple([u8; SIMPLE_REPLY_LEN]),
    /// Any other reply without data.
    Bytes(Vec<u8>),
    /// Parts of a buffer, in order, never empty.
    Parts {
        buffer: Buffer,
        first: Range<usize>,
        more: Vec<Range<usize>>,
    },
}

impl Body {
    fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let (first, buffer, more): (&[u8], &[u8], &[Range<usize>]) = match self {
            Body::Simple(bytes) => (bytes, &[], &[]),
            Body::Bytes(bytes) => (bytes, &[], &[]),
            Body::Parts {
                buffer,
                first,
                more,
            } => (&buffer.whole()[first.clone()], buffer.whole(), more),
        };
        std::iter::once(first).chain(more.iter().map(move |range| &buffer[range.clone()]))
    }

    fn len(&self) -> usize {
        self.parts().map(<[u8]>::len).sum()
    }
}

/// A reply, and what its request counts in the connection's budget until it is sent.
pub(crate) struct Reply {
    pub(crate) body: Body,
    pub(crate) cost: usize,
}

/// Replies that wait for the client to take them.
#[derive(Default)]
pub(crate) struct Outbox {
    replies: VecDeque<Reply>,
    /// How much of the first reply is out.
    sent: usize,
    /// Costs of replies that are out and not yet collected.
    released: usize,
}

impl Outbox {
    pub(crate) fn len(&self) -> usize {
        self.replies.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub(crate) fn push(&mut self, reply: Reply) {
        self.replies.push_back(reply);
    }

    /// Gives back the cost of a request that is not replied to.
    pub(crate) fn release(&mut self, cost: usize) {
        self.released += cost;
    }

    /// Fills `slices` with what is to be sent next; returns how many it used.
    pub(crate) fn gather<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let mut skip = self.sent;
        let mut used = 0;
        for part in self.replies.iter().flat_map(|reply| reply.body.parts()) {
            if used == slices.len() {
                break;
            }
            if skip >= part.len() {
                skip -= part.len();
                continue;
            }
            slices[used] = IoSlice::new(&part[skip..]);
            skip = 0;
            used += 1;
        }
        used
    }

    /// Notes that `count` bytes went out, and keeps the buffers that are free now.
    pub(crate) fn advance(&mut self, count: usize, buffers: &mut Buffers) {
        self.sent += count;
        while let Some(first) = self.replies.front() {
            let len = first.body.len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            self.drop_first(buffers);
        }
        assert_eq!(self.sent, 0, "more was sent than there was");
    }

    /// Throws away what is left: the client is gone.
    pub(crate) fn clear(&mut self, buffers: &mut Buffers) {
        self.sent = 0;
        while !self.replies.is_empty() {
            self.drop_first(buffers);
        }
    }

    fn drop_first(&mut self, buffers: &mut Buffers) {
        let Some(reply) = self.replies.pop_front() else {
            return;
        };
        self.released += reply.cost;
        if let Body::Parts { buffer, .. } = reply.body {
            buffers.give_back(buffer);
        }
    }

    /// The costs of what went out since the last call.
    pub(crate) fn collect_released(&mut self) -> usize {
        std::mem::take(&mut self.released)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::SharedBudget;

    fn take(outbox: &mut Outbox, buffers: &mut Buffers, count: usize) -> Vec<u8> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let used = outbox.gather(&mut slices);
        let bytes: Vec<u8> = slices[..used]
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .take(count)
            .collect();
        outbox.advance(bytes.len(), buffers);
        bytes
    }

    #[test]
    fn replies_leave_in_order_however_they_are_cut() {
        for step in 1..50 {
            let (mut outbox, mut buffers) = (
                Outbox::default(),
                Buffers::new(Arc::new(SharedBudget::new(0))),
            );
            let mut buffer = buffers.take(100);
            (0..100u8).for_each(|i| buffer.put(usize::from(i), &[i]));
            outbox.push(Reply {
                body: Body::Simple([200; 16]),
                cost: 1,
            });
            let more = vec![40..45, 90..91];
            outbox.push(Reply {
                body: Body::Parts {
                    buffer,
                    first: 3..20,
                    more,
                },
                cost: 100,
            });
            outbox.push(Reply {
                body: Body::Bytes(vec![201; 5]),
                cost: 10,
            });
            let mut sent = Vec::new();
            while !outbox.is_empty() {
                sent.extend(take(&mut outbox, &mut buffers, step));
            }
            let expected = [
                vec![200; 16],
                (3..20).collect(),
                (40..45).collect(),
                vec![90],
                vec![201; 5],
            ];
            assert_eq!(sent, expected.concat(), "steps of {step}");
            assert_eq!(outbox.collect_released(), 111);
            assert_eq!(outbox.collect_released(), 0);
        }
    }
}
