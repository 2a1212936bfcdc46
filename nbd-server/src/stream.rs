//! The bytes of a connection in transmission: as they are, or through TLS.
//!
//! With TLS, bytes may be here that the socket does not tell of: received and not taken yet
//! ([`Stream::holds_input`]), or encrypted and not sent yet ([`Stream::holds_output`]). Who waits for the socket
//! asks for these first.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg};
use rustls::ServerConnection;

/// How much of what is encrypted one receive takes in.
const ENCRYPTED_BYTES: usize = 64 * 1024;

/// One connection's socket, and its TLS if it has any.
pub(crate) struct Stream {
    socket: Arc<OwnedFd>,
    tls: Option<Box<Tls>>,
}

impl Stream {
    /// A connection, behind the TLS handshake if `tls` is there.
    pub(crate) fn new(socket: Arc<OwnedFd>, tls: Option<ServerConnection>) -> Self {
        Stream {
            socket,
            tls: tls.map(|tls| Box::new(Tls::new(tls))),
        }
    }

    /// Receives once; no bytes are the end. Without `wait`, and with TLS when no whole record is
    /// there, it may be `WouldBlock`.
    pub(crate) fn receive(&mut self, into: &mut [u8], wait: bool) -> io::Result<usize> {
        match &mut self.tls {
            None => receive(self.socket.as_fd(), into, wait),
            Some(tls) => tls.receive(self.socket.as_fd(), into, wait),
        }
    }

    /// Takes bytes to send, without waiting, and says how many; `WouldBlock` when none.
    pub(crate) fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &mut self.tls {
            None => send(self.socket.as_fd(), slices),
            Some(tls) => tls.send(self.socket.as_fd(), slices),
        }
    }

    /// Sends what was taken and is still here, as far as it goes without waiting.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            None => Ok(()),
            Some(tls) => tls.flush(self.socket.as_fd()),
        }
    }

    /// Whether bytes have been received that nobody has taken.
    pub(crate) fn holds_input(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.holds_input())
    }

    /// Whether bytes have been taken that are not sent.
    pub(crate) fn holds_output(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.holds_output())
    }

    /// Nothing more is sent: the client is gone.
    pub(crate) fn abandon(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.is_abandoned = true;
        }
    }

    /// Tells the client that this is the end, where there is a way to tell.
    pub(crate) fn close(&mut self) {
        if let Some(tls) = &mut self.tls
            && !tls.is_abandoned
        {
            tls.connection.send_close_notify();
            // Who has gone needs no telling.
            let _told = tls.flush(self.socket.as_fd());
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn receive(socket: BorrowedFd<'_>, into: &mut [u8], wait: bool) -> io::Result<usize> {
    let flags = if wait {
        RecvFlags::empty()
    } else {
        RecvFlags::DONTWAIT
    };
    let (_, count) = recv(socket, into, flags)?;
    Ok(count)
}

fn send(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut control = SendAncillaryBuffer::default();
    Ok(sendmsg(socket, slices, &mut control, flags)?)
}

/// The TLS of one connection.
struct Tls {
    connection: ServerConnection,
    /// Received, and not decrypted as long as what was before it is not taken.
    encrypted: Vec<u8>,
    begin: usize,
    end: usize,
    /// Whether something decrypted may be left to be taken.
    has_plain: bool,
    is_abandoned: bool,
}

impl Tls {
    fn new(connection: ServerConnection) -> Self {
        Tls {
            connection,
            encrypted: vec![0; ENCRYPTED_BYTES],
            begin: 0,
            end: 0,
            // The handshake may have received the first requests.
            has_plain: true,
            is_abandoned: false,
        }
    }

    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        into: &mut [u8],
        wait: bool,
    ) -> io::Result<usize> {
        if !self.holds_input() {
            let received = receive(socket, &mut self.encrypted, wait)?;
            if received == 0 {
                return Ok(0);
            }
            (self.begin, self.end) = (0, received);
        }
        let mut count = 0;
        loop {
            match self.connection.reader().read(&mut into[count..]) {
                // The client has said that this is the end; so it will be the next time.
                Ok(0) => {
                    self.has_plain = true;
                    return Ok(count);
                }
                Ok(taken) => count += taken,
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {
                    self.has_plain = false;
                    if self.begin == self.end {
                        break;
                    }
                    self.decrypt()?;
                }
                Err(cause) => return Err(cause),
            }
            if count == into.len() {
                self.has_plain = true;
                break;
            }
        }
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(count)
    }

    fn decrypt(&mut self) -> io::Result<()> {
        let mut rest = &self.encrypted[self.begin..self.end];
        self.begin += self.connection.read_tls(&mut rest)?;
        self.connection
            .process_new_packets()
            .map_err(io::Error::other)?;
        Ok(())
    }

    fn send(&mut self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush(socket)?;
        let count = self.connection.writer().write_vectored(slices)?;
        match self.flush(socket) {
            Err(cause) if !is_temporary(&cause) => Err(cause),
            _ => Ok(count),
        }
    }

    fn flush(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.holds_output() {
            match self.connection.write_tls(&mut Socket(socket)) {
                Err(cause) if cause.kind() != io::ErrorKind::Interrupted => return Err(cause),
                _ => {}
            }
        }
        Ok(())
    }

    fn holds_input(&self) -> bool {
        self.has_plain || self.begin < self.end
    }

    fn holds_output(&self) -> bool {
        !self.is_abandoned && self.connection.wants_write()
    }
}

/// Whether the same may succeed later.
pub(crate) fn is_temporary(cause: &io::Error) -> bool {
    matches!(
        cause.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Where encrypted bytes go.
struct Socket<'a>(BorrowedFd<'a>);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send(self.0, &[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
