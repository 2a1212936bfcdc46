"""What is tested: where it listens, what it exports, and the table of cases."""

import random
import socket
import struct
import urllib.parse

from tls import TlsSocket
from wire import (C_FIXED_NEWSTYLE, C_NO_ZEROES, Client, READ, STATUS, CHUNK_STATUS, Wrong,
                  extents)

BLOCK = 65536

OURS, QEMU, NBDKIT = "thinpool", "qemu-nbd", "nbdkit"
EVERYONE = frozenset((OURS, QEMU, NBDKIT))

CASES = []


def case(peers=(OURS,), needs_snapshot=False):
    """Enters a function into the table; `peers` are the servers that promise the same."""
    def enter(function):
        CASES.append((function, frozenset(peers), needs_snapshot))
        return function
    return enter


def check(condition, message):
    if not condition:
        raise Wrong(message)


def equal(found, expected, what):
    if found != expected:
        raise Wrong(f"{what}: {shorten(found)}, expected {shorten(expected)}")


def one_of(found, allowed, what):
    if found not in allowed:
        raise Wrong(f"{what}: {found}, expected one of {sorted(allowed)}")


def shorten(value):
    text = value.hex() if isinstance(value, (bytes, bytearray)) else repr(value)
    return text if len(text) < 120 else f"{text[:100]}... ({len(text)} characters)"


class Target:
    """A server's address, its exports and, when known, its process."""

    def __init__(self, address, export, snapshot, peer, pid, seed, tls=None):
        self.address, self.export, self.snapshot = address, export, snapshot
        self.tls = tls
        self.peer, self.pid = peer, pid
        self.random = random.Random(seed)

    @property
    def ours(self):
        return self.peer == OURS

    def connect(self):
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(60)
        sock.connect(self.address)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return TlsSocket(sock, self.tls, self.address[0]) if self.tls else sock

    def options(self, flags=C_FIXED_NEWSTYLE | C_NO_ZEROES):
        """A connection in the option phase."""
        return Client(self, flags)

    def open(self, export=None, structured=True, contexts=()):
        """A connection in transmission. `contexts` are selected; `.contexts` is name -> id."""
        client = Client(self)
        export = self.export if export is None else export
        if structured or contexts:
            client.negotiate_structured()
        if contexts:
            _, selected = client.meta(export, contexts)
            client.contexts = {name: number for number, name in selected}
            equal(sorted(client.contexts), sorted(contexts), "selected contexts")
        client.go(export)
        return client

    def alive(self):
        """A fresh client is served."""
        with self.open() as client:
            client.read(0, 512)

    def resident_bytes(self):
        """Resident memory of the server; None when its process is not known."""
        if self.pid is None:
            return None
        with open(f"/proc/{self.pid}/statm") as statm:
            return int(statm.read().split()[1]) * 4096


def parse_address(text):
    """(address, export) of a URI or a socket path."""
    if "://" not in text:
        return text, None
    uri = urllib.parse.urlsplit(text)
    export = urllib.parse.unquote(uri.path.lstrip("/")) or None
    if uri.scheme == "nbd+unix":
        return urllib.parse.parse_qs(uri.query)["socket"][0], export
    return (uri.hostname, uri.port or 10809), export


def status(client, context, offset, length, flags=0):
    """One context's extents of a range, checked for the rules every answer must keep."""
    reply = client.call(STATUS, offset, length, flags)
    equal(reply.error, 0, f"block status {offset}+{length}")
    found = {}
    for kind, payload in reply.chunks:
        equal(kind, CHUNK_STATUS, "chunk type of a block status")
        number, runs = extents(payload)
        check(number not in found, "a context reported twice")
        found[number] = runs
    equal(sorted(found), sorted(client.contexts.values()), "contexts reported")
    runs = found[client.contexts[context]]
    before_last = sum(size for size, _ in runs[:-1])
    total = before_last + runs[-1][0]
    check(before_last < length, f"{before_last} bytes described before the last extent of {length}")
    check(offset + total <= client.size, "an extent beyond the export")
    return runs


def whole_status(client, context, offset, length):
    """As `status`, asked until the range is covered; equal neighbours merged, clipped."""
    runs, at = [], offset
    while at < offset + length:
        for size, flags in status(client, context, at, offset + length - at):
            size = min(size, offset + length - at)
            if not size:
                break
            if runs and runs[-1][1] == flags:
                runs[-1] = (runs[-1][0] + size, flags)
            else:
                runs.append((size, flags))
            at += size
    return runs


def pattern(seed, length):
    """Recognisable bytes, different for every seed and every 8 bytes of position."""
    step = struct.Struct(">II")
    words = (length + 7) // 8
    return b"".join(step.pack(seed & 0xFFFFFFFF, at) for at in range(words))[:length]


def read_chunks(client, offset, length, flags=0):
    reply = client.call(READ, offset, length, flags)
    equal(reply.error, 0, f"read {offset}+{length}")
    return reply
