"""Writes that wait for data space, seen by an NBD client. Called by queue.sh."""

import errno
import json
import os
import sys
import time

import nbd

BLOCK = 65536


class Client:
    """A connection whose writes are under way until somebody looks."""

    def __init__(self, uri):
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        self.cookies = {}
        self.done = []

    def write(self, number, block, blocks=1):
        """Begins a write; its number is its content."""

        def ended(error):
            self.done.append((number, error.value))
            return 1

        data = nbd.Buffer.from_bytearray(bytearray([number]) * (blocks * BLOCK))
        self.handle.aio_pwrite(data, block * BLOCK, completion=ended)

    def settle(self, wanted, limit=120):
        """Goes on until so many writes have ended; returns them, in the order in which they did."""
        end = time.monotonic() + limit
        while len(self.done) < wanted:
            self.handle.poll(100)
            if time.monotonic() > end:
                raise SystemExit(f"{len(self.done)} of {wanted} writes ended: {self.done}")
        return self.done

    def run(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.handle.poll(50)


def fill(uri, first, last):
    """Writes blocks; the last byte of each says which."""
    client = Client(uri)
    for block in range(first, last):
        client.handle.pwrite(bytes([block % 251]) * BLOCK, block * BLOCK)
    client.handle.shutdown()


def trim(uri, first, count):
    """Gives blocks back."""
    client = Client(uri)
    client.handle.trim(count * BLOCK, first * BLOCK)
    client.handle.shutdown()


def queue(uri, first, count, marker):
    """Begins writes for which there is no space, says so by a file, and expects all to succeed in order."""
    queue_most(uri, first, count, 0, marker)


def queue_most(uri, first, count, ready, marker):
    """As queue; for the first so many there may be space."""
    client = Client(uri)
    for number in range(count):
        # Has the mapping looked up, so that no write takes longer than another to find out that it lacks space.
        assert client.handle.pread(1, (first + number) * BLOCK) == b"\0"
    for number in range(count):
        client.write((100 + number) % 256, first + number)
    client.run(1)
    assert len(client.done) <= ready, client.done
    # Reads, flushes and writes to blocks that are there go on, on the same connection.
    assert client.handle.pread(1, 0) == b"\0"
    client.handle.pwrite(b"\0" * 4096, 0)
    client.handle.flush()
    open(marker, "w").close()
    done = client.settle(count)
    assert done == [((100 + number) % 256, 0) for number in range(count)], done
    for number in range(count):
        expected = bytes([(100 + number) % 256]) * BLOCK
        assert client.handle.pread(BLOCK, (first + number) * BLOCK) == expected, number
    client.handle.flush()
    client.handle.shutdown()


def refused(uri, first, count, marker):
    """Begins writes for which there is no space, and expects all to fail with ENOSPC, later ones at once."""
    client = Client(uri)
    for number in range(count):
        client.write(number, first + number)
    client.run(0.5)
    open(marker, "w").close()
    done = client.settle(count)
    assert [error for _, error in done] == [errno.ENOSPC] * count, done
    try:
        client.handle.pwrite(b"x" * BLOCK, first * BLOCK)
    except nbd.Error as error:
        assert error.errnum == errno.ENOSPC, error
    else:
        raise SystemExit("a write after the timeout succeeded without space")
    client.handle.shutdown()


def shut(uri, first, marker):
    """Begins a write that waits, while the daemon is told to end: it is answered, not forgotten."""
    client = Client(uri)
    client.write(1, first)
    client.run(0.5)
    open(marker, "w").close()
    try:
        client.settle(1)
    except nbd.Error:
        return
    assert client.done[0][1] in (errno.ENOSPC, errno.ESHUTDOWN), client.done


def abandon(uri, first):
    """Begins a write that waits, and is gone."""
    client = Client(uri)
    client.write(1, first)
    client.run(0.5)
    os._exit(0)


def load(uri, first, last, journal, marker):
    """Overwrites and discards blocks that are there until the daemon is gone, and notes what was acknowledged."""
    client = Client(uri)
    contents = {block: list(client.handle.pread(1, block * BLOCK)) for block in range(first, last)}
    try:
        for number in range(1, 1 << 30):
            if number == 20:
                open(marker, "w").close()
            for block, possible in contents.items():
                is_discard = (block + number) % 40 == 0 and list(contents.values()).count([0]) < 8
                if possible == [0]:
                    # It would need new space.
                    continue
                possible.append(0 if is_discard else number % 250 + 1)
                if is_discard:
                    client.handle.trim(BLOCK, block * BLOCK)
                else:
                    client.handle.pwrite(bytes([possible[-1]]) * BLOCK, block * BLOCK)
                del possible[:-1]
    except nbd.Error:
        pass
    with open(journal, "w") as file:
        json.dump(contents, file)


def compare(uri, journal):
    """Expects what `load` has noted: of a request that was under way, what was there before or what it writes."""
    client = Client(uri)
    with open(journal) as file:
        contents = json.load(file)
    for block, possible in contents.items():
        found = bytes(client.handle.pread(BLOCK, int(block) * BLOCK))
        sectors = {found[at:at + 4096] for at in range(0, BLOCK, 4096)}
        assert sectors <= {bytes([value]) * 4096 for value in possible}, (block, possible, found[:1])
    client.handle.shutdown()


def main():
    name, uri, *rest = sys.argv[1:]
    arguments = [int(text) if text.isdigit() else text for text in rest]
    {
        "fill": fill,
        "trim": trim,
        "queue": queue,
        "queue_most": queue_most,
        "refused": refused,
        "shut": shut,
        "abandon": abandon,
        "load": load,
        "compare": compare,
    }[name](uri, *arguments)


main()
