"""NBD on a plain socket: just enough client to say exactly the bytes a test wants to say.

Nothing here is lenient: a reply that does not parse raises Wrong, a peer that hangs
raises Hang after SOCKET_TIMEOUT seconds, a closed connection raises Closed.
"""

import socket
import struct
import threading

SOCKET_TIMEOUT = 60

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY = 0x0003E889045565A9
REQUEST = 0x25609513
SIMPLE_REPLY = 0x67446698
STRUCTURED_REPLY = 0x668E33EF

C_FIXED_NEWSTYLE, C_NO_ZEROES = 1, 2

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_STARTTLS, OPT_INFO, OPT_GO = 1, 2, 3, 5, 6, 7
OPT_STRUCTURED_REPLY, OPT_LIST_META, OPT_SET_META, OPT_EXTENDED = 8, 9, 10, 11

REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERROR = 1 << 31
ERR_UNSUP, ERR_POLICY, ERR_INVALID = REP_ERROR + 1, REP_ERROR + 2, REP_ERROR + 3
ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG = REP_ERROR + 5, REP_ERROR + 6, REP_ERROR + 9

INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = 0, 1, 2, 3

FLAG_HAS, FLAG_READ_ONLY, FLAG_FLUSH, FLAG_FUA = 1, 2, 4, 8
FLAG_TRIM, FLAG_ZEROES, FLAG_DF, FLAG_MULTI = 32, 64, 128, 256
FLAG_CACHE, FLAG_FAST = 1024, 2048

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16

CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS = 0, 1, 2, 5
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002
CHUNK_DONE = 1

EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 12, 22, 28, 75, 95, 108
WIRE_ERRORS = {EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN}

MIB = 1 << 20


class Wrong(Exception):
    """The server said something the protocol or our own rules forbid."""


class Closed(Exception):
    """The connection ended."""


class Hang(Exception):
    """Nothing came for SOCKET_TIMEOUT seconds."""


class Reply:
    """One request's answer: `chunks` is [(type, payload)], empty for a simple reply."""

    def __init__(self, cookie, error, data, chunks, simple):
        self.cookie, self.error, self.data = cookie, error, data
        self.chunks, self.simple = chunks, simple


class Client:
    """One connection. With `greet` the greeting is read and the client flags are sent."""

    def __init__(self, target, flags=C_FIXED_NEWSTYLE | C_NO_ZEROES, greet=True):
        self.sock = target.connect()
        self.sock.settimeout(SOCKET_TIMEOUT)
        self.structured = False
        self.size = self.export_flags = None
        self.reads = {}
        self.unfinished = {}
        self.next_cookie = 1
        self.sending = threading.Lock()
        if greet:
            self.server_flags = self.greeting()
            self.send(struct.pack(">I", flags))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        try:
            self.sock.sendall(data)
        except socket.timeout as error:
            raise Hang("the server takes no more bytes") from error
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed("while sending") from error

    def recv(self, length):
        parts, missing = [], length
        while missing:
            try:
                part = self.sock.recv(min(missing, MIB))
            except socket.timeout as error:
                raise Hang(f"waiting for {missing} of {length} bytes") from error
            except ConnectionResetError as error:
                raise Closed("reset") from error
            if not part:
                raise Closed(f"{missing} of {length} bytes missing")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def unpack(self, form):
        return struct.unpack(form, self.recv(struct.calcsize(form)))

    def expect_closed(self):
        """Everything left is taken; anything but the end of the stream is a failure."""
        try:
            extra = self.sock.recv(64)
        except ConnectionResetError:
            return
        except socket.timeout as error:
            raise Hang("the connection should have been closed") from error
        if extra:
            raise Wrong(f"expected the connection to be closed, got {extra[:32].hex()}")


    def greeting(self):
        magic, option_magic, flags = self.unpack(">QQH")
        if (magic, option_magic) != (NBDMAGIC, IHAVEOPT):
            raise Wrong(f"greeting {magic:#x} {option_magic:#x}")
        return flags

    def option(self, option, data=b"", length=None):
        length = len(data) if length is None else length
        self.send(struct.pack(">QII", IHAVEOPT, option, length) + data)

    def option_reply(self, option):
        magic, echoed, kind, length = self.unpack(">QIII")
        if magic != OPTION_REPLY or echoed != option:
            raise Wrong(f"option reply magic {magic:#x} option {echoed}, expected {option}")
        if length > 128 * 1024:
            raise Wrong(f"option reply of {length} bytes")
        return kind, self.recv(length)

    def ask(self, option, data=b"", length=None):
        """Sends an option; returns (final kind, [(kind, payload) before it])."""
        self.option(option, data, length)
        return self.answers(option)

    def answers(self, option):
        before = []
        while True:
            kind, payload = self.option_reply(option)
            if kind == REP_ACK or kind & REP_ERROR:
                if kind == REP_ACK and payload:
                    raise Wrong("an ACK with a payload")
                return kind, before
            before.append((kind, payload))

    def negotiate_structured(self):
        kind, _ = self.ask(OPT_STRUCTURED_REPLY)
        if kind != REP_ACK:
            raise Wrong(f"STRUCTURED_REPLY answered {kind:#x}")
        self.structured = True

    def info(self, export, infos=(), option=OPT_INFO):
        """INFO or GO; returns (final kind, {info type: payload after the type})."""
        kind, before = self.ask(option, go_payload(export, infos))
        facts = {}
        for reply, payload in before:
            if reply != REP_INFO or len(payload) < 2:
                raise Wrong(f"reply {reply} to INFO or GO")
            facts[struct.unpack(">H", payload[:2])[0]] = payload[2:]
        return kind, facts

    def go(self, export, infos=()):
        kind, facts = self.info(export, infos, OPT_GO)
        if kind != REP_ACK:
            raise Wrong(f"GO {export!r} answered {kind:#x}")
        if len(facts.get(INFO_EXPORT, b"")) != 10:
            raise Wrong("GO without a well-formed INFO_EXPORT")
        self.size, self.export_flags = struct.unpack(">QH", facts[INFO_EXPORT])
        return facts

    def meta(self, export, queries, option=OPT_SET_META):
        """LIST_ or SET_META_CONTEXT; returns (final kind, [(id, name)])."""
        kind, before = self.ask(option, meta_payload(export, queries))
        contexts = []
        for reply, payload in before:
            if reply != REP_META or len(payload) < 5:
                raise Wrong(f"reply {reply} to a META_CONTEXT option")
            contexts.append((struct.unpack(">I", payload[:4])[0], payload[4:].decode()))
        return kind, contexts


    def request(self, command, offset=0, length=0, flags=0, data=b"", cookie=None):
        with self.sending:
            if cookie is None:
                cookie = self.next_cookie
                self.next_cookie += 1
            if command == READ:
                self.reads[cookie] = (offset, length)
            self.send(request(command, offset, length, flags, cookie) + data)
        return cookie

    def reply(self):
        while True:
            magic, = self.unpack(">I")
            if magic == SIMPLE_REPLY:
                return self.simple_reply()
            if magic != STRUCTURED_REPLY or not self.structured:
                raise Wrong(f"reply magic {magic:#x}")
            reply = self.chunk()
            if reply:
                return reply

    def simple_reply(self):
        error, cookie = self.unpack(">IQ")
        data = None
        if cookie in self.reads:
            if self.structured:
                raise Wrong("a simple reply to READ after structured replies were negotiated")
            _, length = self.reads.pop(cookie)
            data = self.recv(length) if not error else None
        check_error(error)
        return Reply(cookie, error, data, [], True)

    def chunk(self):
        """One chunk; the reply it completes, or None. Replies may be interleaved."""
        flags, kind, cookie, length = self.unpack(">HHQI")
        if length > 64 * MIB:
            raise Wrong(f"chunk of {length} bytes")
        chunks = self.unfinished.setdefault(cookie, [])
        chunks.append((kind, self.recv(length)))
        if not flags & CHUNK_DONE:
            return None
        del self.unfinished[cookie]
        error = first_error(chunks)
        data = None
        if cookie in self.reads:
            offset, length = self.reads.pop(cookie)
            data = assemble(chunks, offset, length) if not error else None
        return Reply(cookie, error, data, chunks, False)

    def call(self, command, offset=0, length=0, flags=0, data=b""):
        cookie = self.request(command, offset, length, flags, data)
        reply = self.reply()
        if reply.cookie != cookie:
            raise Wrong(f"cookie {reply.cookie:#x}, expected {cookie:#x}")
        return reply

    def do(self, command, offset=0, length=0, flags=0, data=b""):
        """A call that must succeed; returns the data of a read."""
        reply = self.call(command, offset, length, flags, data)
        if reply.error:
            raise Wrong(f"command {command} at {offset}+{length} flags {flags}: error {reply.error}")
        return reply.data

    def read(self, offset, length):
        return self.do(READ, offset, length)

    def write(self, offset, data, flags=0):
        self.do(WRITE, offset, len(data), flags, data)

    def collect(self, count):
        """Starts taking `count` replies on a thread, so that a burst cannot deadlock."""
        return Collector(self, count)


class Collector(threading.Thread):
    def __init__(self, client, count):
        super().__init__(daemon=True)
        self.client, self.count = client, count
        self.replies, self.failure = {}, None
        self.start()

    def run(self):
        try:
            for _ in range(self.count):
                reply = self.client.reply()
                if reply.cookie in self.replies:
                    raise Wrong(f"cookie {reply.cookie:#x} answered twice")
                self.replies[reply.cookie] = reply
        except Exception as error:  # handed to the thread that asks for the result
            self.failure = error

    def result(self):
        self.join()
        if self.failure:
            raise self.failure
        return self.replies


def go_payload(export, infos=()):
    name = export if isinstance(export, bytes) else export.encode()
    return (struct.pack(">I", len(name)) + name + struct.pack(">H", len(infos))
            + b"".join(struct.pack(">H", info) for info in infos))


def meta_payload(export, queries):
    name = export if isinstance(export, bytes) else export.encode()
    payload = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    for query in queries:
        payload += struct.pack(">I", len(query)) + query.encode()
    return payload


def request(command, offset, length, flags, cookie):
    return struct.pack(">IHHQQI", REQUEST, flags, command, cookie, offset, length)


def check_error(error):
    if error and error not in WIRE_ERRORS:
        raise Wrong(f"errno {error} is not one the protocol knows")


def first_error(chunks):
    for kind, payload in chunks:
        if not kind & 0x8000:
            continue
        if len(payload) < 6:
            raise Wrong("error chunk too short")
        error, length = struct.unpack(">IH", payload[:6])
        if len(payload) != 6 + length + (8 if kind == CHUNK_ERROR_OFFSET else 0):
            raise Wrong("error chunk whose length disagrees with its message")
        if not error:
            raise Wrong("error chunk with error 0")
        check_error(error)
        return error
    return 0


def pieces(chunks):
    """The content chunks of a read as [(offset, length, data or None for a hole)]."""
    found = []
    for kind, payload in chunks:
        if kind == CHUNK_DATA:
            if len(payload) < 9:
                raise Wrong("OFFSET_DATA without data")
            found.append((struct.unpack(">Q", payload[:8])[0], len(payload) - 8, payload[8:]))
        elif kind == CHUNK_HOLE:
            if len(payload) != 12:
                raise Wrong("OFFSET_HOLE that is not 12 bytes")
            offset, length = struct.unpack(">QI", payload)
            if not length:
                raise Wrong("an empty hole")
            found.append((offset, length, None))
        elif kind != CHUNK_NONE:
            raise Wrong(f"chunk type {kind:#x} in a read")
    return sorted(found, key=lambda piece: piece[0])


def assemble(chunks, offset, length):
    """The bytes of a read; the content chunks must cover it exactly, without overlap."""
    at, data = offset, []
    for start, size, content in pieces(chunks):
        if start != at:
            raise Wrong(f"read {offset}+{length}: chunk at {start}, expected {at}")
        data.append(content if content is not None else bytes(size))
        at += size
    if at != offset + length:
        raise Wrong(f"read {offset}+{length} covered up to {at}")
    return b"".join(data)


def extents(chunk):
    """A BLOCK_STATUS chunk as (context id, [(length, flags)])."""
    if len(chunk) < 12 or (len(chunk) - 4) % 8:
        raise Wrong(f"block status chunk of {len(chunk)} bytes")
    context, = struct.unpack(">I", chunk[:4])
    found = [struct.unpack(">II", chunk[at:at + 8]) for at in range(4, len(chunk), 8)]
    if any(not length for length, _ in found):
        raise Wrong("an extent of length 0")
    return context, found
