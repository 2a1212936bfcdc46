#!/usr/bin/python3
"""Clients that ask for too much, and one that behaves: E10.

    overload.py SOCKET PID LOG [--rounds N]

The server, process PID with its log in LOG, serves the volume `vol`, 64 MiB or more of it written, on a Unix socket.
Each attack runs in a process of its own. Meanwhile a client must be served, a new one must get in, nothing may hang, and
the server's memory must stay below what is said beside the attack.

With --rounds the client's latencies are measured as well: alone, attacked, alone, attacked... N times, and compared.
Attackers are nice to it, as if they had a machine of their own. Ends with one line of JSON.
"""

import argparse
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import time

import wire
from target import Target
from wire import MIB, Closed, Hang, Wrong

CONNECTIONS_MAX = 1024
CROWD = 1000
HANG_SECONDS = 120
SECONDS_A_TURN = 2

# What the server promises of its memory, in MiB: payloads of all requests; buffers kept for later; and for each
# connection, of either 0.25 at most, and 0.25 for what it has received. The clients that behave, and the pool for
# them, take some, too.
PAYLOADS, KEPT, A_CONNECTION, IDLE_CONNECTION = 1024, 64, 1, 0.35
WELL_BEHAVED = 16

ATTACKS = []


def attack(bound_mib, lets_in=True):
    """Enters an attack into the table. It yields once it is in force, and then after each step of it."""
    def enter(function):
        ATTACKS.append((function, bound_mib + WELL_BEHAVED, lets_in))
        return function
    return enter


def connect(target):
    """A connection, once the server has room in its queue."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(target.address)
    return sock


def crowd(target, count=CROWD):
    """Connections in transmission."""
    return [target.open() for _ in range(count)]


@attack(CROWD * IDLE_CONNECTION)
def idle_connections(target):
    clients = crowd(target)
    yield
    while True:
        yield clients


@attack(KEPT + CROWD * A_CONNECTION)
def connections_that_were_busy_once(target):
    clients = crowd(target)
    for client in clients:
        client.read(0, MIB)
    yield
    while True:
        yield clients


@attack(300 * IDLE_CONNECTION)
def handshakes_without_a_word(target):
    """More than may be unfinished at a time."""
    silent = [connect(target) for _ in range(300)]
    yield
    while True:
        silent.append(connect(target))
        silent.pop(0).close()
        yield


@attack(200 * IDLE_CONNECTION)
def a_byte_a_second(target):
    """Half in their handshake, half in the header of a request; a second is shortened."""
    slow = [connect(target) for _ in range(100)]
    clients = crowd(target, 100)
    words = struct.pack(">I", 3) + struct.pack(">QII", wire.IHAVEOPT, 7, 9) + wire.go_payload("vol")
    request = wire.request(wire.READ, 0, 4096, 0, 1)
    yield
    for at in range(1 << 30):
        for sock in slow:
            try:
                sock.send(words[at % len(words):][:1])
            except OSError:
                pass
        for client in clients:
            client.sock.send(request[at % len(request):][:1])
        time.sleep(0.1)
        yield


@attack(PAYLOADS + KEPT + CROWD * A_CONNECTION)
def readers_that_never_drain(target):
    """The largest requests, as many as there may be."""
    clients = crowd(target)
    for client in clients:
        client.sock.sendall(b"".join(wire.request(wire.READ, 0, 32 * MIB, 0, number) for number in range(128)))
    yield
    while True:
        yield clients


@attack(PAYLOADS + KEPT + CROWD * A_CONNECTION)
def writers_that_never_finish(target):
    """The largest writes, of which comes what is taken at once."""
    clients = crowd(target)
    for client in clients:
        client.sock.sendall(wire.request(wire.WRITE, 32 * MIB, 32 * MIB, 0, 1))
        client.sock.setblocking(False)
        try:
            for _ in range(64):
                client.sock.send(bytes(65536))
        except BlockingIOError:
            pass
    yield
    while True:
        yield clients


@attack(300 * IDLE_CONNECTION)
def floods_of_garbage(target):
    """Bad magic, in the handshake and behind it."""
    rng = random.Random(1)
    yield
    while True:
        with connect(target) as sock:
            sock.sendall(struct.pack(">I", 3) + rng.randbytes(rng.randrange(1, 4096)))
        with target.open() as client:
            client.sock.sendall(rng.randbytes(rng.randrange(28, 4096)))
        yield


@attack(300 * IDLE_CONNECTION)
def connect_and_disconnect(target):
    yield
    while True:
        connect(target).close()
        target.open().close()
        with target.open() as client:
            client.sock.send(wire.request(wire.READ, 0, MIB, 0, 1))
        yield


@attack(CONNECTIONS_MAX * IDLE_CONNECTION, lets_in=False)
def all_connections_taken(target):
    """No one else gets in; those who are in are served."""
    clients = crowd(target, CONNECTIONS_MAX - 1)
    yield
    while True:
        yield clients


class Attacker:
    """An attack in its process: begun, awaited, and killed."""

    def __init__(self, function, target):
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.work(function, target, tell)
        os.close(tell)
        with os.fdopen(ready, "rb") as pipe:
            if not select.select([pipe], [], [], HANG_SECONDS)[0]:
                raise Hang(f"{function.__name__} does not get going")
            if pipe.read(1) != b"r":
                raise Closed(f"{function.__name__} was thrown out")

    @staticmethod
    def work(function, target, tell):
        try:
            os.nice(19)
            steps = function(target)
            next(steps)
            os.write(tell, b"r")
            for _ in steps:
                # Those who only wait take no time from others.
                time.sleep(0.001)
        except BaseException as error:  # pylint: disable=broad-except
            print(f"attacker: {error!r}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)

    def end(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def behave(client, rng):
    """What a client that behaves does; all of it must be right."""
    for length, count in ((4096, 100), (65536, 16), (MIB, 2)):
        for _ in range(count):
            data = rng.randbytes(length)
            at = rng.randrange(128, 192) * MIB
            client.write(at, data)
            if client.read(at, length) != data:
                raise Wrong("what was written is not what is read")
    client.do(wire.FLUSH, 0, 0)


def latencies(client, rng, seconds):
    """Of reads of 4 KiB, in nanoseconds."""
    found, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter_ns()
        client.read(rng.randrange(16384) * 4096, 4096)
        found.append(time.perf_counter_ns() - begun)
    return found


def p99(values):
    return sorted(values)[len(values) * 99 // 100]


class Memory:
    """The server's memory, in MiB, and the most of it since the last look."""

    def __init__(self, pid):
        self.pid = pid

    def forget(self):
        with open(f"/proc/{self.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")

    def most(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def refused(target):
    """Whether one more client is turned away at once."""
    with connect(target) as sock:
        sock.settimeout(HANG_SECONDS)
        return sock.recv(18) == b""


def connections(pid):
    """How many connections the server serves: each has a thread of that name."""
    found = 0
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{thread}/comm", encoding="ascii") as comm:
                found += comm.read().strip() == "nbd-client"
        except (FileNotFoundError, ProcessLookupError):
            pass
    return found


def alone_again(pid):
    """Waits until the attackers' connections are over."""
    begun = time.monotonic()
    while connections(pid) > 1:
        if time.monotonic() - begun > HANG_SECONDS:
            raise Hang("connections of clients that are gone do not end")
        time.sleep(0.05)


def one_round(function, bound, lets_in, target, client, memory, rng, seconds):
    """The most memory in MiB, and the latencies alone and attacked."""
    alone = latencies(client, rng, seconds)
    memory.forget()
    before = memory.most()
    attacker = Attacker(function, target)
    try:
        attacked = latencies(client, rng, seconds)
        behave(client, rng)
        if lets_in:
            with target.open() as newcomer:
                behave(newcomer, rng)
        elif not refused(target):
            raise Wrong("one too many was let in")
        grown = memory.most() - before
    finally:
        attacker.end()
    if grown > bound:
        raise Wrong(f"memory grew by {grown:.0f} MiB, more than {bound:.0f}")
    alone_again(memory.pid)
    return grown, alone, attacked


def run(function, bound, lets_in, target, client, rng, rounds):
    most, alone, attacked = 0, [], []
    for _ in range(max(rounds, 1)):
        grown, quiet, loud = one_round(function, bound, lets_in, target, client, Memory(target.pid), rng,
                                       SECONDS_A_TURN if rounds else 0)
        most = max(most, grown)
        alone, attacked = alone + quiet, attacked + loud
    figures = {"grown_mib": round(most), "bound_mib": round(bound)}
    if rounds:
        figures |= {"p99_alone_us": p99(alone) // 1000, "p99_attacked_us": p99(attacked) // 1000,
                    "ratio": round(p99(attacked) / p99(alone), 2), "reads": len(alone) + len(attacked)}
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("socket")
    parser.add_argument("pid", type=int)
    parser.add_argument("log")
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--attack", default="", help="only those whose name contains this")
    options = parser.parse_args()
    wire.SOCKET_TIMEOUT = HANG_SECONDS
    target = Target(options.socket, "vol", None, "thinpool", options.pid, 1)
    rng, begun = random.Random(1), time.monotonic()
    figures, failed = {}, []
    with target.open() as client:
        for function, bound, lets_in in ATTACKS:
            name = function.__name__
            if options.attack not in name:
                continue
            try:
                figures[name] = run(function, bound, lets_in, target, client, rng, options.rounds)
                print(f"ok {name} {figures[name]}", flush=True)
            except (Wrong, Closed, Hang, OSError) as error:
                failed.append(name)
                print(f"FAIL {name}: {type(error).__name__}: {error}", flush=True)
                if not isinstance(error, Wrong):
                    break
    with open(options.log, encoding="utf-8") as log:
        lines = log.read()
    if not options.attack and "which is the limit" not in lines:
        failed.append("the log does not say why clients were turned away")
    print(json.dumps({"name": "E10 overload", "connections": CROWD, "seconds": round(time.monotonic() - begun, 1),
                      "failed": failed, "log_lines": lines.count("\n"), "attacks": figures}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
