//! A file descriptor that becomes readable when another thread rings.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// An eventfd. Rings add up until it is silenced.
pub(crate) struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Doorbell {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Makes the descriptor readable. Cannot fail in a way that loses a ring: a full counter is
    /// readable already.
    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel takes a native integer"
    )]
    pub(crate) fn ring(&self) {
        let rung = rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &1u64.to_ne_bytes()));
        debug_assert!(matches!(rung, Ok(8) | Err(rustix::io::Errno::AGAIN)));
    }

    /// Takes back all rings so far.
    pub(crate) fn silence(&self) {
        let mut count = [0; 8];
        let silenced = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut count));
        debug_assert!(matches!(silenced, Ok(8) | Err(rustix::io::Errno::AGAIN)));
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
