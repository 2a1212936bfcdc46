#!/usr/bin/python3
"""Tests the conformance driver: a small server that is honest, or lies in one way.

    liar.py              runs the driver against the honest server, then against every lie

The honest server must pass every case that other people's servers pass; every lie must be
noticed by the case that is there for it. A lie nobody notices is a hole in the driver.
"""

import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading

from wire import (CHUNK_DATA, CHUNK_DONE, CHUNK_ERROR, CHUNK_STATUS, DISC, EINVAL, ERR_INVALID,
                  ERR_UNSUP, FLAG_DF, FLUSH, IHAVEOPT, INFO_EXPORT, NBDMAGIC, NO_HOLE, FUA,
                  OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST, OPT_LIST_META,
                  OPT_SET_META, OPT_STRUCTURED_REPLY, OPTION_REPLY, READ, REP_ACK, REP_INFO,
                  REP_META, REP_SERVER, REQUEST, SIMPLE_REPLY, STATUS, STRUCTURED_REPLY, TRIM,
                  WRITE, ZEROES)

SIZE = 256 << 20
FLAGS = 1 | 4 | 8 | 32 | 64

# What the server does wrong, and the case that must notice.
LIES = {
    "greets with unknown flags": "greeting_offers",
    "ignores unknown client flags": "unknown_client_flags",
    "keeps the payload of unknown options": "unknown_options",
    "takes LIST with data": "list_with_data",
    "takes GO with trailing bytes": "malformed_info_and_go",
    "tells another size at GO": "info_and_go_tell_the_same",
    "pads after GO": "go_and_the_first_request",
    "always pads EXPORT_NAME": "export_name_with_and_without",
    "offers DF always": "export_name_with_and_without",
    "selects wildcards": "wildcards_select_nothing",
    "keeps the selection at an empty SET": "an_empty_set_clears",
    "forgets the selection at LIST_META": "a_listing_keeps",
    "loses every ninth write": "writes_of_any_alignment",
    "loses every fiftieth write": "random_model",
    "leaves the payload of a refused write": "a_refused_write",
    "overlapping chunks": "reads_are_covered",
    "a gap between chunks": "reads_are_covered",
    "simple errors to structured reads": "failed_reads_are_error_chunks",
    "swaps the cookies of two reads": "five_hundred_pipelined",
    "answers a read twice": "five_hundred_pipelined",
    "goes on after bad magic": "a_bad_request_magic",
    "applies writes that were cut short": "a_write_cut_short",
    "calls data zero": "zero_extents_are_zero",
    "extents of length 0": "zero_extents_are_zero",
    "wraps offsets around": "past_the_end",
    "leaves a byte when zeroing": "random_model",
    "dies of a client that leaves": "clients_that_leave_half_way",
}


class Gone(Exception):
    """The client closed, or must be closed upon."""


class Server:
    def __init__(self, path, lie):
        self.lie, self.data, self.lock = lie, bytearray(SIZE), threading.Lock()
        self.writes = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(100)
        self.open = True
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while self.open:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def close(self):
        self.open = False
        self.listener.close()

    def serve(self, sock):
        with sock:
            try:
                Session(self, sock).run()
            except (Gone, OSError):
                if self.lie == "dies of a client that leaves":
                    self.listener.shutdown(socket.SHUT_RDWR)
                    self.close()


class Session:
    def __init__(self, server, sock):
        self.server, self.sock, self.lie = server, sock, server.lie
        self.structured = self.selected = self.no_zeroes = False
        self.held = None
        self.size = SIZE

    def recv(self, length):
        data = bytearray()
        while len(data) < length:
            part = self.sock.recv(min(1 << 20, length - len(data)))
            if not part:
                self.partial = bytes(data)
                raise Gone
            data += part
        return bytes(data)

    def run(self):
        self.sock.sendall(struct.pack(">QQH", NBDMAGIC, IHAVEOPT,
                                      7 if self.lie == "greets with unknown flags" else 3))
        flags, = struct.unpack(">I", self.recv(4))
        if flags & ~3 and self.lie != "ignores unknown client flags":
            raise Gone
        self.no_zeroes = bool(flags & 2)
        while not self.option():
            pass
        while self.request():
            pass

    def reply(self, option, kind, data=b""):
        self.sock.sendall(struct.pack(">QIII", OPTION_REPLY, option, kind, len(data)) + data)

    def option(self):
        """One option; true when transmission begins."""
        magic, option, length = struct.unpack(">QII", self.recv(16))
        if magic != IHAVEOPT or length > 1 << 17:
            raise Gone
        known = (OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED_REPLY,
                 OPT_LIST_META, OPT_SET_META)
        keeps = option not in known and self.lie == "keeps the payload of unknown options"
        data = b"" if keeps else self.recv(length)
        if option == OPT_EXPORT_NAME:
            return self.export_name()
        if option in (OPT_INFO, OPT_GO):
            return self.info(option, data)
        if option == OPT_ABORT:
            self.reply(option, REP_ACK)
            raise Gone
        if option == OPT_LIST and (not data or self.lie == "takes LIST with data"):
            self.reply(option, REP_SERVER, struct.pack(">I", 3) + b"vol")
            self.reply(option, REP_ACK)
        elif option == OPT_STRUCTURED_REPLY and not data:
            self.structured = True
            self.reply(option, REP_ACK)
        elif option in (OPT_LIST_META, OPT_SET_META):
            self.meta(option, data)
        else:
            self.reply(option, ERR_INVALID if option in known else ERR_UNSUP)
        return False

    def flags(self):
        df = self.structured or self.lie == "offers DF always"
        return FLAGS | (FLAG_DF if df else 0)

    def export_name(self):
        pad = not self.no_zeroes or self.lie == "always pads EXPORT_NAME"
        self.sock.sendall(struct.pack(">QH", self.size, self.flags()) + bytes(124 if pad else 0))
        return True

    def info(self, option, data):
        if len(data) < 6:
            return self.invalid(option)
        name, = struct.unpack(">I", data[:4])
        if name > len(data) - 6:
            return self.invalid(option)
        count, = struct.unpack(">H", data[4 + name:6 + name])
        rest = len(data) - 6 - name - 2 * count
        if rest < 0 or (rest and self.lie != "takes GO with trailing bytes"):
            return self.invalid(option)
        lies = option == OPT_GO and self.lie == "tells another size at GO"
        facts = struct.pack(">HQH", INFO_EXPORT, self.size - (512 if lies else 0), self.flags())
        self.reply(option, REP_INFO, facts)
        self.reply(option, REP_ACK)
        if option == OPT_GO and self.lie == "pads after GO":
            self.sock.sendall(bytes(124))
        return option == OPT_GO

    def invalid(self, option):
        self.reply(option, ERR_INVALID)
        return False

    def meta(self, option, data):
        queries = parse_queries(data)
        if queries is None or not self.structured:
            return self.invalid(option)
        listing = option == OPT_LIST_META
        wildcard = listing or self.lie == "selects wildcards"
        found = (b"base:allocation" in queries or (listing and not queries)
                 or (wildcard and b"base:" in queries))
        if found:
            self.reply(option, REP_META, struct.pack(">I", 0 if listing else 5) + b"base:allocation")
        keeps = self.lie == "keeps the selection at an empty SET" and not queries
        if not listing and not keeps:
            self.selected = found
        if listing and self.lie == "forgets the selection at LIST_META":
            self.selected = False
        self.reply(option, REP_ACK)
        return False

    def request(self):
        magic, flags, command, cookie, offset, length = struct.unpack(">IHHQQI", self.recv(28))
        if magic != REQUEST and self.lie != "goes on after bad magic":
            raise Gone
        if command == DISC:
            return False
        if command == WRITE and length > 64 << 20:
            raise Gone
        bad = flags & ~(FUA | NO_HOLE | 4 | 8) or command not in (READ, WRITE, FLUSH, TRIM, ZEROES,
                                                                  STATUS)
        if self.lie == "wraps offsets around":
            offset %= SIZE
        bad = bad or offset + length > SIZE
        data = self.payload(command, offset, length, bad)
        if bad or (command == STATUS and not self.selected):
            self.error(command, cookie)
        elif command == READ:
            self.read(cookie, offset, length)
        elif command == STATUS:
            self.status(cookie, length)
        else:
            self.change(command, offset, length, data)
            self.simple(cookie)
        return True

    def payload(self, command, offset, length, bad):
        if command != WRITE or (bad and self.lie == "leaves the payload of a refused write"):
            return b""
        try:
            return self.recv(length)
        except Gone:
            if self.lie == "applies writes that were cut short":
                self.server.data[offset:offset + len(self.partial)] = self.partial
            raise

    def change(self, command, offset, length, data):
        with self.server.lock:
            if command == WRITE:
                self.server.writes += 1
                every = {"loses every ninth write": 9, "loses every fiftieth write": 50}
                if self.server.writes % every.get(self.lie, 1 << 60):
                    self.server.data[offset:offset + length] = data
            elif command == ZEROES and length:
                length -= self.lie == "leaves a byte when zeroing"
                self.server.data[offset:offset + length] = bytes(length)

    def simple(self, cookie, error=0, data=b""):
        self.sock.sendall(struct.pack(">IIQ", SIMPLE_REPLY, error, cookie) + data)

    def chunk(self, cookie, kind, data, done=True):
        self.sock.sendall(struct.pack(">IHHQI", STRUCTURED_REPLY, CHUNK_DONE if done else 0, kind,
                                      cookie, len(data)) + data)

    def error(self, command, cookie):
        if self.structured and command == READ and self.lie != "simple errors to structured reads":
            self.chunk(cookie, CHUNK_ERROR, struct.pack(">IH", EINVAL, 3) + b"bad")
        else:
            self.simple(cookie, EINVAL)

    def read(self, cookie, offset, length):
        if self.lie == "swaps the cookies of two reads" and length == 512 and offset:
            if self.held is None:
                self.held = (cookie, offset)
                return
            (other, before), self.held = self.held, None
            self.content(other, offset, length, before)
            self.content(cookie, before, length, offset)
            return
        self.content(cookie, offset, length, offset)
        if self.lie == "answers a read twice" and length == 512:
            self.content(cookie, offset, length, offset)

    def content(self, cookie, offset, length, told):
        data = bytes(self.server.data[offset:offset + length])
        if not self.structured:
            return self.simple(cookie, 0, data)
        half = length // 2
        if half:
            begin = half
            begin -= self.lie == "overlapping chunks"
            begin += self.lie == "a gap between chunks" and length - half > 1
            self.chunk(cookie, CHUNK_DATA, struct.pack(">Q", told) + data[:half], False)
            return self.chunk(cookie, CHUNK_DATA, struct.pack(">Q", told + begin) + data[begin:])
        return self.chunk(cookie, CHUNK_DATA, struct.pack(">Q", told) + data)

    def status(self, cookie, length):
        flags = 2 if self.lie == "calls data zero" else 0
        runs = struct.pack(">II", length, flags)
        if self.lie == "extents of length 0":
            runs = struct.pack(">II", 0, 0) + runs
        self.chunk(cookie, CHUNK_STATUS, struct.pack(">I", 5) + runs)


def parse_queries(data):
    try:
        name, = struct.unpack_from(">I", data)
        count, = struct.unpack_from(">I", data, 4 + name)
        at, queries = 8 + name, []
        if count > 1024:
            return None
        for _ in range(count):
            length, = struct.unpack_from(">I", data, at)
            if at + 4 + length > len(data):
                return None
            queries.append(data[at + 4:at + 4 + length])
            at += 4 + length
        return queries if at == len(data) else None
    except struct.error:
        return None


def judge(lie, case):
    """The driver's exit code and output against a server with this lie."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(os.path.join(directory, "s"), lie)
        here = os.path.dirname(os.path.abspath(__file__))
        done = subprocess.run([sys.executable, os.path.join(here, "conformance.py"),
                               os.path.join(directory, "s"), "--export", "vol", "--peer", "nbdkit",
                               "--timeout", "5", "--case", case], capture_output=True, text=True)
        server.close()
        return done.returncode, done.stdout + done.stderr


def main():
    failed = 0
    code, output = judge("", "")
    if code:
        failed += 1
        print(f"FAIL the honest server\n{output}")
    for lie, case in LIES.items():
        code, output = judge(lie, case)
        if code == 1 and "FAIL" in output and "Traceback" not in output:
            print(f"ok noticed: {lie}")
        else:
            failed += 1
            print(f"FAIL not noticed: {lie}\n{output}")
    print(f"{len(LIES) + 1 - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
