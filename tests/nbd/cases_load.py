"""Many at once: a random model over two connections, clients that do not read, garbage."""

import struct
import threading

from target import EVERYONE, OURS, QEMU, case, check, equal, one_of
from wire import (Closed, FLUSH, FUA, MIB, NO_HOLE, READ, REQUEST, TRIM, WRITE, ZEROES)

BASE, SLOT, SLOTS = 50 * MIB, 320 * 1024, 24
ROUNDS = 40


class Model:
    """What each slot must hold. `known` is None where a TRIM made the bytes anybody's guess."""

    def __init__(self, client):
        self.data = bytearray(client.read(BASE, SLOT * SLOTS))
        self.known = bytearray(b"\1") * len(self.data)

    def write(self, at, data):
        self.data[at:at + len(data)] = data
        self.known[at:at + len(data)] = b"\1" * len(data)

    def forget(self, at, length):
        self.known[at:at + length] = bytes(length)

    def compare(self, at, found, what):
        for index, byte in enumerate(found):
            if self.known[at + index] and byte != self.data[at + index]:
                check(False, f"{what}: byte {at + index} is {byte:#x}, "
                             f"expected {self.data[at + index]:#x}")


def step(target, client, model, slot):
    """Sends one random request inside a slot; returns (cookie, what to do with the reply)."""
    length = target.random.choice((1, 300, 512, 4096, 65536, 100000, 200000))
    at = slot * SLOT + target.random.randrange(SLOT - length)
    command = target.random.choice((READ, READ, WRITE, WRITE, ZEROES, TRIM, FLUSH))
    if command == FLUSH:
        return client.request(FLUSH), None
    if command == READ:
        return client.request(READ, BASE + at, length), at
    flags = target.random.choice((0, 0, 0, FUA))
    if command == WRITE:
        data = target.random.randbytes(length)
        model.write(at, data)
        return client.request(WRITE, BASE + at, length, flags, data), None
    if command == ZEROES:
        model.write(at, bytes(length))
        flags |= target.random.choice((0, NO_HOLE))
    else:
        model.forget(at, length)
    return client.request(command, BASE + at, length, flags), None


@case(EVERYONE)
def random_model_over_two_connections(target):
    with target.open() as one, target.open(structured=False) as other:
        model = Model(one)
        for number in range(ROUNDS):
            slots = target.random.sample(range(SLOTS), 16)
            waiting = []
            for client, mine in ((one, slots[:8]), (other, slots[8:])):
                taken = client.collect(len(mine))
                waiting.append((taken, [step(target, client, model, slot) for slot in mine]))
            for taken, sent in waiting:
                replies = taken.result()
                for cookie, at in sent:
                    equal(replies[cookie].error, 0, f"round {number}")
                    if at is not None:
                        model.compare(at, replies[cookie].data, f"round {number}")
        model.compare(0, one.read(BASE, SLOT * SLOTS), "at the end")


def flood(client, count, length):
    """Asks for more than the socket holds and never takes an answer."""
    def send():
        try:
            for at in range(count):
                client.request(READ, (at * length) % (client.size - length), length)
        except (Closed, OSError):
            pass
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    return thread


@case((OURS, QEMU))
def clients_that_never_read_harm_nobody(target):
    before = target.resident_bytes()
    deaf = [target.open() for _ in range(4)]
    try:
        with target.open() as filler:
            for at in range(0, 8 * MIB, MIB):
                filler.write(80 * MIB + at, b"\x5a" * MIB)
        threads = [flood(client, 64, 8 * MIB) for client in deaf]
        with target.open() as client:
            for at in range(400):
                client.write(78 * MIB + at * 512, b"\x11" * 512)
                client.read(78 * MIB + at * 512, 512)
        if before is not None and target.ours:
            grown = target.resident_bytes() - before
            check(grown < 4 * 72 * MIB + 32 * MIB, f"resident memory grew by {grown} bytes")
    finally:
        for client in deaf:
            client.close()
    for thread in threads:
        thread.join(60)
        check(not thread.is_alive(), "a sender still blocked on a closed connection")


@case((OURS, QEMU))
def clients_that_leave_with_requests_running(target):
    for number in range(20):
        with target.open() as client:
            for at in range(32):
                if (at + number) % 2:
                    client.request(READ, at * 65536, 4096)
                else:
                    client.request(WRITE, 90 * MIB + at * 65536, 65536, 0, b"\x77" * 65536)


@case((OURS, QEMU))
def garbage_in_transmission(target):
    for number in range(60):
        with target.open(structured=bool(number % 2)) as client:
            command = target.random.choice((READ, 6, 7, 9, 200))
            good = struct.pack(">IHHQQI", REQUEST, target.random.getrandbits(16), command,
                               target.random.getrandbits(64), target.random.getrandbits(64),
                               target.random.getrandbits(32))
            try:
                client.send(good * target.random.randrange(3)
                            + b"\xff" + target.random.randbytes(target.random.randrange(27, 400)))
            except Closed:
                pass


@case()
def a_flood_of_large_zeroing_lets_others_through(target):
    with target.open() as busy, target.open() as client:
        length = 60 * MIB
        taken = busy.collect(64)
        for _ in range(64):
            busy.request(ZEROES, 100 * MIB, length)
        for at in range(100):
            client.write(78 * MIB + at * 512, b"\x22" * 512)
        for reply in taken.result().values():
            one_of(reply.error, {0}, "zeroing")
