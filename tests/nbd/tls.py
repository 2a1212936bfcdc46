"""NBD's way into TLS, and a TLS socket that one thread may send on while another receives."""

import select
import socket
import ssl
import struct
import threading

import wire


def context(certificates=None, name="client", ca=None):
    """Trusts only what the directory's (or `ca`'s) authority signed; shows the certificate `name`, if any."""
    made = ssl.create_default_context(cafile=str(ca or f"{certificates}/ca-cert.pem"))
    if name:
        made.load_cert_chain(f"{certificates}/{name}-cert.pem", f"{certificates}/{name}-key.pem")
    return made


def ask(sock, option=wire.OPT_STARTTLS, data=b""):
    """Sends one option on a plain socket and gives the type of its only reply."""
    sock.sendall(struct.pack(">QII", wire.IHAVEOPT, option, len(data)) + data)
    header = exactly(sock, 20)
    _, _, kind, length = struct.unpack(">QIII", header)
    exactly(sock, length)
    return kind


def exactly(sock, length):
    data = b""
    while len(data) < length:
        part = sock.recv(length - len(data))
        if not part:
            raise wire.Closed(f"{length - len(data)} of {length} bytes missing")
        data += part
    return data


def greet(sock):
    """Reads the greeting and sends the client's flags."""
    greeting = exactly(sock, 18)
    sock.sendall(struct.pack(">I", wire.C_FIXED_NEWSTYLE | wire.C_NO_ZEROES))
    return greeting


class TlsSocket:
    """As much of a socket as wire.Client uses: TLS begins by itself behind the client's flags."""

    def __init__(self, sock, tls, server_name):
        self.plain, self.tls, self.server_name = sock, tls, server_name
        self.greeting, self.flags = exactly(sock, 18), b""
        self.sock = None
        self.lock = threading.Lock()
        self.timeout = wire.SOCKET_TIMEOUT

    def begin_tls(self):
        self.plain.sendall(self.flags)
        kind = ask(self.plain)
        if kind != wire.REP_ACK:
            raise wire.Wrong(f"STARTTLS was answered with {kind:#x}")
        self.sock = self.tls.wrap_socket(self.plain, server_hostname=self.server_name)
        self.sock.setblocking(False)

    def settimeout(self, timeout):
        self.timeout = timeout

    def attempt(self, operation):
        """OpenSSL takes one thread at a time; the waiting is done outside."""
        while True:
            with self.lock:
                try:
                    return operation()
                except ssl.SSLWantReadError:
                    waits = ([self.sock], [], [])
                except ssl.SSLWantWriteError:
                    waits = ([], [self.sock], [])
                except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    return b""
            if not any(select.select(*waits, self.timeout)):
                raise socket.timeout()

    def sendall(self, data):
        view = memoryview(data)
        if not self.sock:
            missing = 4 - len(self.flags)
            self.flags += view[:missing]
            view = view[missing:]
            if len(self.flags) == 4:
                try:
                    self.begin_tls()
                except (wire.Closed, ConnectionResetError, BrokenPipeError):
                    return
        while view:
            sent = self.attempt(lambda: self.sock.send(view[:65536]))
            if not sent:
                raise BrokenPipeError()
            view = view[sent:]

    def recv(self, length):
        if self.greeting:
            data, self.greeting = self.greeting[:length], self.greeting[length:]
            return data
        if not self.sock:
            return self.plain.recv(length)
        return self.attempt(lambda: self.sock.recv(length))

    def shutdown(self, _):
        """Says that no more will be sent, which TLS has words for."""
        with self.lock:
            try:
                self.sock.unwrap()
            except ssl.SSLWantReadError:
                pass

    def close(self):
        (self.sock or self.plain).close()
