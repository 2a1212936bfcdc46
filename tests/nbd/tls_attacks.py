#!/usr/bin/python3
"""What a server that requires TLS must refuse, tried on it: E12.

    tls_attacks.py PORT DIRECTORY

The server serves the volume `vol` on 127.0.0.1:PORT with the certificates DIRECTORY/served. Clients' certificates are
in there: `client` is good, and `expired`, `revoked` and `server` are not. DIRECTORY/stranger is another authority's, and
DIRECTORY/hosts has server certificates that clients must not believe.

Prints a line a case and then one of JSON; `plaintext_accepted` counts what was done without TLS.
"""

import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import tls
import wire
from wire import Client, Closed, Wrong

PATIENCE = 60
EXPORT = b"vol"
SECRET = b"plaintext" * 10

GO = wire.go_payload("vol")
ASKED = (wire.OPT_LIST, wire.OPT_INFO, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, wire.OPT_LIST_META,
         wire.OPT_SET_META, wire.OPT_EXTENDED, 99)

CASES = []


def case(function):
    CASES.append(function)
    return function


def check(condition, message):
    if not condition:
        raise Wrong(message)


class Server:
    def __init__(self, port, directory):
        self.port, self.directory = port, directory
        self.served = f"{directory}/served"
        self.plaintext_accepted = 0

    def connect(self):
        sock = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def options(self):
        """A plain connection in the option phase."""
        sock = self.connect()
        tls.greet(sock)
        return sock

    def upgraded(self, context=None, session=None):
        """A connection in the option phase, behind STARTTLS."""
        sock = self.options()
        check(tls.ask(sock) == wire.REP_ACK, "STARTTLS was refused")
        context = context or tls.context(self.served)
        return context.wrap_socket(sock, server_hostname="127.0.0.1", session=session)

    def client(self):
        """A connection in transmission."""
        server = self

        class Through:
            @staticmethod
            def connect():
                return tls.TlsSocket(server.connect(), tls.context(server.served), "127.0.0.1")

        client = Client(Through)
        client.go("vol")
        return client

    def contents(self):
        with self.client() as client:
            return client.read(0, 65536)

    def uri(self, certificates, scheme="nbds"):
        query = f"?tls-certificates={certificates}" if certificates else ""
        return f"{scheme}://127.0.0.1:{self.port}/vol{query}"


def answers(sock):
    """All that comes until the end."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        pass
    except socket.timeout as error:
        raise Wrong(f"the connection was not closed after {data!r}") from error
    return data


def runs(*command):
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          timeout=PATIENCE, check=False).returncode == 0


def qemu_img(server, certificates):
    """Whether qemu-img gets in; without certificates it does not ask for TLS."""
    image = {"driver": "nbd", "host": "127.0.0.1", "port": str(server.port), "export": "vol"}
    command = ["qemu-img", "info"]
    if certificates:
        image["tls-creds"] = "tls"
        command += ["--object", f"tls-creds-x509,id=tls,dir={certificates},endpoint=client,verify-peer=yes"]
    return runs(*command, "json:" + json.dumps(image))


def identity(server, name):
    """A client's directory with the certificate `name`; none with an empty name."""
    directory = tempfile.mkdtemp(dir=server.directory)
    shutil.copy(f"{server.served}/ca-cert.pem", directory)
    for part in ("cert", "key") if name else ():
        shutil.copy(f"{server.directory}/{name}-{part}.pem", f"{directory}/client-{part}.pem")
    return directory


def gets_in(server, directory):
    """Whether a client with this directory is let in by us: by libnbd, by qemu and by hand."""
    ours = tls.context(directory, "client" if os.path.exists(f"{directory}/client-cert.pem") else None)
    by_hand = True
    try:
        with server.upgraded(ours) as sock:
            # TLS 1.3: the client has finished before the server has judged it.
            by_hand = tls.ask(sock, wire.OPT_GO, GO) == wire.REP_INFO
    except (ssl.SSLError, ConnectionError, Closed):
        by_hand = False
    found = {by_hand, runs("nbdinfo", server.uri(directory)), qemu_img(server, directory)}
    check(len(found) == 1, "clients disagree")
    return by_hand


@case
def good_certificates_are_let_in(server):
    check(gets_in(server, identity(server, "served/client")), "they were not")


@case
def clients_without_a_certificate(server):
    check(not gets_in(server, identity(server, "")), "let in")


@case
def certificates_of_another_authority(server):
    check(not gets_in(server, identity(server, "stranger/client")), "let in")


@case
def expired_certificates(server):
    check(not gets_in(server, identity(server, "served/client-expired")), "let in")


@case
def revoked_certificates(server):
    check(not gets_in(server, identity(server, "served/client-revoked")), "let in")


@case
def certificates_for_servers(server):
    check(not gets_in(server, identity(server, "served/server")), "let in")


@case
def servers_that_are_not_who_they_say(server):
    """And replaced certificates count at once."""
    good = identity(server, "served/client")
    for name in ("elsewhere", "expired", "stranger"):
        for part in ("key", "cert"):
            os.replace(f"{server.directory}/hosts/server-{name}-{part}.pem", f"{server.served}/server-{part}.pem")
        check(not runs("nbdinfo", server.uri(good)), f"libnbd believed {name}")
        check(not qemu_img(server, good), f"qemu believed {name}")
    for part in ("key", "cert"):
        os.replace(f"{server.directory}/hosts/server-{part}.pem", f"{server.served}/server-{part}.pem")
    check(gets_in(server, good), "the good one was not taken again")


@case
def broken_files_change_nothing(server):
    shutil.copy(f"{server.served}/ca-cert.pem", f"{server.directory}/kept")
    with open(f"{server.served}/ca-cert.pem", "w", encoding="ascii") as file:
        file.write("nonsense\n")
    with server.upgraded(tls.context(server.served, ca=f"{server.directory}/kept")) as sock:
        check(tls.ask(sock, wire.OPT_LIST) == wire.REP_SERVER, "LIST")
    os.replace(f"{server.directory}/kept", f"{server.served}/ca-cert.pem")


@case
def clients_that_do_not_ask_for_tls(server):
    for found in (runs("nbdinfo", server.uri(None, "nbd")), runs("nbdinfo", "--list", server.uri(None, "nbd")),
                  qemu_img(server, None)):
        server.plaintext_accepted += found
        check(not found, "let in")


@case
def options_without_tls(server):
    with server.options() as sock:
        for option in ASKED:
            for data in (b"", GO):
                kind = tls.ask(sock, option, data)
                server.plaintext_accepted += kind != wire.ERR_TLS_REQD
                check(kind == wire.ERR_TLS_REQD, f"option {option} was answered with {kind:#x}")
        check(tls.ask(sock, data=b"x") == wire.ERR_INVALID, "STARTTLS with data")


@case
def export_name_without_tls(server):
    with server.options() as sock:
        sock.sendall(struct.pack(">QII", wire.IHAVEOPT, wire.OPT_EXPORT_NAME, len(EXPORT)) + EXPORT)
        found = answers(sock)
        server.plaintext_accepted += bool(found)
        check(not found, f"answered {found!r}")


@case
def abort_without_tls(server):
    with server.options() as sock:
        check(tls.ask(sock, wire.OPT_ABORT) == wire.REP_ACK, "ABORT")
        check(not answers(sock), "more came")


def starttls():
    return struct.pack(">QII", wire.IHAVEOPT, wire.OPT_STARTTLS, 0)


def write_request():
    return wire.request(wire.WRITE, 0, len(SECRET), 0, 1) + SECRET


@case
def words_put_in_behind_starttls(server):
    """CVE-2021-3716 and its kind: what comes in one segment with STARTTLS was not protected."""
    go = struct.pack(">QII", wire.IHAVEOPT, wire.OPT_GO, len(GO)) + GO
    structured = struct.pack(">QII", wire.IHAVEOPT, wire.OPT_STRUCTURED_REPLY, 0)
    for words in (go, go + write_request(), structured, starttls(), b"\0"):
        with server.options() as sock:
            sock.sendall(starttls() + words)
            found = answers(sock)
            server.plaintext_accepted += bool(found)
            check(not found, f"answered {found!r}")


@case
def words_instead_of_a_tls_handshake(server):
    for words in (write_request(), struct.pack(">QII", wire.IHAVEOPT, wire.OPT_GO, len(GO)) + GO, bytes(5000)):
        with server.options() as sock:
            check(tls.ask(sock) == wire.REP_ACK, "STARTTLS")
            sock.sendall(words)
            found = answers(sock)
            # An alert of TLS, if anything: 0x15.
            server.plaintext_accepted += bool(found) and found[0] != 0x15
            check(not found or found[0] == 0x15, f"answered {found!r}")


@case
def what_was_said_before_tls_is_forgotten(server):
    with server.options() as sock:
        check(tls.ask(sock, wire.OPT_STRUCTURED_REPLY) == wire.ERR_TLS_REQD, "STRUCTURED_REPLY")
        check(tls.ask(sock) == wire.REP_ACK, "STARTTLS")
        with tls.context(server.served).wrap_socket(sock, server_hostname="127.0.0.1") as inner:
            inner.sendall(struct.pack(">QII", wire.IHAVEOPT, wire.OPT_EXPORT_NAME, len(EXPORT)) + EXPORT)
            _, flags = struct.unpack(">QH", tls.exactly(inner, 10))
            check(not flags & wire.FLAG_DF, "structured replies are on")


@case
def starttls_twice(server):
    with server.upgraded() as sock:
        check(tls.ask(sock) == wire.ERR_INVALID, "the second STARTTLS")
        check(tls.ask(sock, wire.OPT_LIST) == wire.REP_SERVER, "LIST behind it")


@case
def old_versions_of_tls(server):
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        context = tls.context(server.served)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = version
        try:
            server.upgraded(context).close()
        except ssl.SSLError as error:
            check("ALERT" in error.reason, f"it is not the server that refused {version.name}: {error.reason}")
            continue
        raise Wrong(f"{version.name} was taken")


@case
def both_versions_of_today(server):
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = tls.context(server.served)
        context.minimum_version = context.maximum_version = version
        with server.upgraded(context) as sock:
            check(tls.ask(sock, wire.OPT_LIST) == wire.REP_SERVER, version.name)


@case
def sessions_are_not_resumed(server):
    """A certificate that was revoked meanwhile would not be looked at."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = tls.context(server.served)
        context.minimum_version = context.maximum_version = version
        with server.upgraded(context) as sock:
            check(tls.ask(sock, wire.OPT_LIST) == wire.REP_SERVER, "LIST")
            session = sock.session
        check(not session or not session.has_ticket, "a ticket was given")
        with server.upgraded(context, session) as sock:
            check(not sock.session_reused, f"a session of {version.name} was resumed")


class Relay(threading.Thread):
    """Takes one connection, asks the server for TLS, and carries bytes to and fro, changing them on the way."""

    def __init__(self, server, change=lambda data: data):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server, self.change = server, change
        self.start()

    def run(self):
        client, _ = self.listener.accept()
        upstream = self.server.options()
        if tls.ask(upstream) != wire.REP_ACK:
            return
        back = threading.Thread(target=self.carry, args=(upstream, client, lambda data: data), daemon=True)
        back.start()
        self.carry(client, upstream, self.change)

    @staticmethod
    def carry(source, target, change):
        try:
            while data := source.recv(65536):
                target.sendall(change(data))
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@case
def renegotiation(server):
    relay = Relay(server)
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{relay.port}", "-tls1_2", "-CAfile",
               f"{server.served}/ca-cert.pem", "-cert", f"{server.served}/client-cert.pem", "-key",
               f"{server.served}/client-key.pem"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as client:
        client.stdin.write(b"R\n")
        client.stdin.flush()
        said = client.stdout.read().decode(errors="replace")
    check("RENEGOTIATING" in said, f"openssl did not try: {said[-500:]}")
    check("error:" in said.split("RENEGOTIATING")[1], f"openssl says: {said[-500:]}")


@case
def changed_bytes(server):
    """Each bit of a write counts: one changed on the way ends the connection and changes nothing."""
    before = server.contents()
    armed = threading.Event()

    def flip(data):
        if not armed.is_set():
            return data
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1:]

    relay = Relay(server, flip)
    sock = tls.context(server.served).wrap_socket(
        socket.create_connection(("127.0.0.1", relay.port), PATIENCE), server_hostname="127.0.0.1")
    sock.sendall(struct.pack(">QII", wire.IHAVEOPT, wire.OPT_EXPORT_NAME, len(EXPORT)) + EXPORT)
    tls.exactly(sock, 10)
    armed.set()
    sock.sendall(write_request())
    try:
        check(not sock.recv(16), "the write was answered")
    except (ssl.SSLError, ConnectionError):
        pass
    check(server.contents() == before, "the volume has changed")


@case
def connections_cut_short(server):
    """An end that TLS has not told of is no end of a write."""
    before = server.contents()
    with server.upgraded() as sock:
        sock.sendall(struct.pack(">QII", wire.IHAVEOPT, wire.OPT_EXPORT_NAME, len(EXPORT)) + EXPORT)
        tls.exactly(sock, 10)
        sock.sendall(write_request()[:-1])
    check(server.contents() == before, "the volume has changed")


def silent_handshakes(server):
    """Connections that say nothing, at each stage, and when the last of them is closed."""
    socks = [server.connect(), server.options(), server.options(), server.options()]
    for sock in socks[2:]:
        check(tls.ask(sock) == wire.REP_ACK, "STARTTLS")
    # Half of a TLS handshake.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = tls.context(server.served).wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    try:
        half.do_handshake()
    except ssl.SSLWantReadError:
        pass
    socks[3].sendall(outgoing.read()[:100])
    return socks


def run(function, server):
    try:
        function(server)
        print(f"ok {function.__name__}", flush=True)
        return True
    except (Wrong, Closed, wire.Hang, OSError, subprocess.TimeoutExpired) as error:
        print(f"FAIL {function.__name__}: {type(error).__name__}: {error}", flush=True)
        return False


def main():
    server = Server(int(sys.argv[1]), sys.argv[2])
    begun = time.monotonic()
    silent = silent_handshakes(server)
    failed = [function.__name__ for function in CASES if not run(function, server)]

    def slow_handshakes_end(_):
        for sock in silent:
            answers(sock)

    failed += [] if run(slow_handshakes_end, server) else ["slow_handshakes_end"]
    print(json.dumps({"name": "E12 TLS", "cases": len(CASES) + 1, "failed": failed,
                      "plaintext_accepted": server.plaintext_accepted,
                      "seconds": round(time.monotonic() - begun, 1)}))
    sys.exit(1 if failed or server.plaintext_accepted else 0)


if __name__ == "__main__":
    main()
