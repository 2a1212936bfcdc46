//! Connections to one thin device whose clients are made here, as pairs of sockets: nothing listens, and
//! there is no handshake. The client knows what it talks to; replies are simple ones.
//!
//! # A client that repeats requests
//!
//! The kernel's client gives a connection up when a request on it takes too long, and sends the request
//! again on another one, while it may still be running here. Were both carried out, the older one could
//! undo a write that came between. So no connection begins a request while another one, cut off by
//! the client, still has requests running; and one that is cut off begins no more. The client cuts a connection off before it repeats the
//! requests, so looking at the others after a request has arrived is early enough.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use parking_lot::{Condvar, Mutex};
use pool::{Host, ThinDevice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};

use crate::budget::SharedBudget;
use crate::connection::{self, Parts};
use crate::context::Selection;
use crate::handshake::{Agreement, Facts};
use crate::listen::enlarge_buffers;
use crate::server::Limits;
use crate::stream::Stream;

/// Connections to one thin device. Dropping it closes them.
pub struct DirectConnections<H: Host> {
    device: ThinDevice<H>,
    siblings: Arc<Siblings>,
    budget: Arc<SharedBudget>,
    next_id: AtomicU64,
}

impl<H: Host> DirectConnections<H> {
    /// None so far.
    pub fn new(device: ThinDevice<H>) -> Self {
        DirectConnections {
            device,
            siblings: Arc::default(),
            budget: Arc::new(SharedBudget::new(Limits::default().payload_bytes_max)),
            next_id: AtomicU64::new(0),
        }
    }

    /// The transmission flags that a handshake would tell a client.
    pub fn flags(&self) -> u16 {
        facts_of(&self.device).flags(false)
    }

    /// Makes a connection, served by a thread of its own until the client is gone. Returns the client's
    /// end.
    ///
    /// # Errors
    /// When the system has no more sockets or threads.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        enlarge_buffers(&ours);
        enlarge_buffers(&theirs);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let member = Member::join(&self.siblings, id, ours);
        let parts = Parts {
            stream: Stream::new(Arc::clone(&member.socket), None),
            received: Vec::new(),
            agreement: Agreement {
                facts: facts_of(&self.device),
                device: self.device.another_handle(),
                structured: false,
                contexts: Selection::default(),
            },
            budget: Arc::clone(&self.budget),
            // Whoever closes these connections means them to be repeated, not refused.
            stopping: Arc::default(),
            siblings: Some((id, Arc::clone(&self.siblings))),
        };
        thread::Builder::new()
            .name("nbd-direct".to_owned())
            .spawn(move || {
                let _member = member;
                if let Err(cause) = connection::serve(parts) {
                    tracing::error!(%cause, "a connection ended");
                }
            })?;
        Ok(theirs)
    }

    /// How many are served: those not yet over, with all of their requests finished.
    pub fn count(&self) -> usize {
        self.siblings.live.lock().len()
    }

    /// Waits until fewer than `count` are served.
    pub fn wait_below(&self, count: usize) {
        let mut live = self.siblings.live.lock();
        self.siblings
            .ended
            .wait_while(&mut live, |live| live.len() >= count);
    }

    /// Ends all connections: requests that have arrived are carried out and answered, as far as the client
    /// still listens, but for writes that wait for data space; the client repeats those, and the others, on
    /// connections that it is given later.
    pub fn close(&self) {
        for socket in self.siblings.live.lock().values() {
            // A client that is gone already needs no telling.
            let _told = shutdown(socket, Shutdown::Read);
        }
        self.wait_below(1);
    }
}

impl<H: Host> Drop for DirectConnections<H> {
    fn drop(&mut self) {
        self.close();
    }
}

fn facts_of<H: Host>(device: &ThinDevice<H>) -> Facts {
    Facts {
        size: device.size(),
        read_only: device.read_only(),
        block_size: device.block_size(),
    }
}

/// The connections to one device that are served, by number.
#[derive(Default)]
pub(crate) struct Siblings {
    live: Mutex<BTreeMap<u64, Arc<OwnedFd>>>,
    ended: Condvar,
}

/// Whether a connection may begin requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// It may.
    Clear,
    /// Another one, cut off by the client, must be over first.
    Waits,
    /// It is cut off itself: the client repeats on another what was not begun here.
    CutOff,
}

impl Siblings {
    /// How the connection with this number stands.
    pub(crate) fn standing_of(&self, own: u64) -> Standing {
        let live: Vec<_> = {
            let live = self.live.lock();
            let numbered = live.iter().map(|(id, socket)| (*id, Arc::clone(socket)));
            numbered.collect()
        };
        // What is asked for is told in any case: that the other side hung up.
        let mut polled: Vec<_> = live
            .iter()
            .map(|(_, socket)| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty()))
            .collect();
        if poll(&mut polled, Some(&Timespec::default())).is_err() {
            // Asked again later.
            return Standing::Waits;
        }
        let mut standing = Standing::Clear;
        for ((id, _), polled) in live.iter().zip(&polled) {
            if !polled.revents().is_empty() {
                if *id == own {
                    return Standing::CutOff;
                }
                standing = Standing::Waits;
            }
        }
        standing
    }
}

/// A connection's place among its siblings; leaves it when dropped.
struct Member {
    id: u64,
    socket: Arc<OwnedFd>,
    siblings: Arc<Siblings>,
}

impl Member {
    fn join(siblings: &Arc<Siblings>, id: u64, socket: OwnedFd) -> Self {
        let socket = Arc::new(socket);
        siblings.live.lock().insert(id, Arc::clone(&socket));
        Member {
            id,
            socket,
            siblings: Arc::clone(siblings),
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.siblings.live.lock().remove(&self.id);
        self.siblings.ended.notify_all();
    }
}

#[cfg(test)]
mod tests;
