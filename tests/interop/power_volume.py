"""What a volume may hold, sector by sector, and the load that makes it so. For power.py.

Every change has a serial number, and every sector of 512 bytes that it writes carries that and its own
number. Requests in flight never touch the same sector. So a sector's changes have an order, and after a
power cut it holds the newest that is durable, or a later one.
"""

import struct
from array import array
from collections import deque, namedtuple

import nbd

SECTOR = 512
BLOCK_SECTORS = 128
DEPTH = 12
# Mostly what file systems write, now and then odd sectors, now and then more than a block.
COUNTS = [8] * 6 + [1, 3, 16, 24, 64, 128, 320]
PIECE = 1 << 20

Change = namedtuple("Change", "serial first count")
Request = namedtuple("Request", "kind change buffer covers")


class Lost(Exception):
    """The product broke its promise."""


class Volume:
    """A volume under load, and its changes since what is known to be durable."""

    def __init__(self, size, dice):
        self.dice = dice
        self.count = size // SECTOR
        self.serial = 0
        # Serials that left zeros.
        self.zeros = {0}
        self.durable = array("Q", bytes(8 * self.count))
        # What a reader sees: of each sector the change that was acknowledged last.
        self.visible = bytearray(size)
        # Acknowledged and not flushed: (number of its answer, change), in this order.
        self.unflushed = deque()
        self.answers = 0
        # Those that failed: done, or not, or in part.
        self.failed = []
        self.errors = []
        # The snapshot that is being made.
        self.snapshot = None
        self.flight = {}
        self.acknowledged = 0
        # Serials of what was flushed.
        self.flushed = set()
        self.compared = 0
        # One for each request in flight, used again: libnbd 1.14 never frees what it was given to write.
        self.buffers = [memoryview(bytearray(max(COUNTS) * SECTOR)) for _ in range(DEPTH)]

    def content(self, serial, sector):
        if serial in self.zeros:
            return bytes(SECTOR)
        return struct.pack("<QQ", serial, sector) * (SECTOR // 16)

    # The load.

    def submit(self, handle):
        """One request at random, on sectors without another in flight."""
        kind = self.dice.choice(["write"] * 8 + ["durable", "zero", "trim", "flush"])
        if kind == "flush":
            buffer = self.buffers.pop()
            self.flight[handle.aio_flush()] = Request(kind, None, buffer, self.answers)
            return
        change = self.change(kind)
        if change is None:
            return
        buffer = self.buffers.pop()
        at, length = change.first * SECTOR, change.count * SECTOR
        if kind == "zero":
            cookie = handle.aio_zero(length, at, flags=self.dice.choice([0, nbd.CMD_FLAG_NO_HOLE]))
        elif kind == "trim":
            cookie = handle.aio_trim(length, at)
        else:
            touched = range(change.first, change.first + change.count)
            buffer[:length] = b"".join(self.content(change.serial, sector) for sector in touched)
            flags = nbd.CMD_FLAG_FUA if kind == "durable" else 0
            cookie = handle.aio_pwrite(nbd.Buffer.from_buffer(buffer[:length]), at, flags=flags)
        self.flight[cookie] = Request(kind, change, buffer, 0)

    def change(self, kind):
        count = self.dice.choice(COUNTS)
        first = self.dice.randrange(self.count - count)
        if count >= 8:
            first = first // 8 * 8
        if kind == "trim":
            # Whole blocks; the others a discard leaves alone.
            first, count = first // BLOCK_SECTORS * BLOCK_SECTORS, BLOCK_SECTORS
        for busy in self.flying():
            if first < busy.first + busy.count and busy.first < first + count:
                return None
        self.serial += 1
        if kind in ("zero", "trim"):
            self.zeros.add(self.serial)
        change = Change(self.serial, first, count)
        if self.snapshot:
            self.snapshot.open_ends.append(change)
        return change

    def flying(self):
        return [request.change for request in self.flight.values() if request.change]

    def step(self, handle):
        """Submits a request if there is room, waits for an answer if not. False when the connection is gone."""
        try:
            if len(self.flight) < DEPTH:
                self.submit(handle)
            handle.poll(0 if len(self.flight) < DEPTH else 20)
        except nbd.Error:
            return False
        self.reap(handle)
        return not (handle.aio_is_dead() or handle.aio_is_closed())

    def drain(self, handle):
        """Takes the answers that came before the connection broke."""
        try:
            while self.flight and not (handle.aio_is_dead() or handle.aio_is_closed()):
                handle.poll(1000)
                self.reap(handle)
        except nbd.Error:
            pass
        self.reap(handle)

    def reap(self, handle):
        for cookie in list(self.flight):
            try:
                if handle.aio_command_completed(cookie):
                    self.answered(self.flight.pop(cookie))
            except nbd.Error as error:
                # A connection that broke says nothing of the request.
                if error.errnum and not (handle.aio_is_dead() or handle.aio_is_closed()):
                    self.refused(self.flight.pop(cookie), error)

    def answered(self, request):
        self.buffers.append(request.buffer)
        self.acknowledged += 1
        if request.kind == "flush":
            while self.unflushed and self.unflushed[0][0] < request.covers:
                self.make_durable(self.unflushed.popleft()[1])
            return
        change = request.change
        self.show(request)
        if request.kind == "durable":
            self.make_durable(change)
        else:
            self.unflushed.append((self.answers, change))
        self.answers += 1

    def refused(self, request, error):
        self.buffers.append(request.buffer)
        self.errors.append((request.kind, error.errno))
        if request.change:
            self.failed.append(request.change)

    def show(self, request):
        length = request.change.count * SECTOR
        at = request.change.first * SECTOR
        is_zero = request.change.serial in self.zeros
        self.visible[at:at + length] = bytes(length) if is_zero else request.buffer[:length]

    def make_durable(self, change):
        self.flushed.add(change.serial)
        for sector in range(change.first, change.first + change.count):
            self.durable[sector] = max(self.durable[sector], change.serial)

    # The comparison.

    def verify(self, handle, is_strict, is_cut):
        """Compares every sector. Strict: all that was acknowledged must be there. After a cut, what is there
        is durable."""
        found = read_all(handle, len(self.visible))
        acknowledged = newest(change for _, change in self.unflushed) if is_strict else {}
        later = []
        for sector, serials in self.possible().items():
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            oldest = acknowledged.get(sector, 0)
            fitting = [
                serial for serial in serials
                if serial >= oldest and self.content(serial, sector) == found[place]
            ]
            if not fitting:
                raise Lost(self.describe(sector, found[place], serials, oldest))
            self.visible[place] = found[place]
            # What was in between may still be what a cut leaves.
            later += [(serial, sector) for serial in serials if self.durable[sector] < serial <= max(fitting)]
            if is_cut:
                self.durable[sector] = max(fitting)
        self.compare(found)
        for request in self.flight.values():
            self.buffers.append(request.buffer)
        self.flight.clear()
        self.failed.clear()
        self.errors.clear()
        self.keep([] if is_cut else later)

    def possible(self):
        """Of each sector that may hold something else than its durable change: the serials of all it may hold."""
        possible = {}
        changes = [change for _, change in self.unflushed] + self.flying() + self.failed
        for change in changes:
            for sector in range(change.first, change.first + change.count):
                if change.serial > self.durable[sector]:
                    possible.setdefault(sector, {self.durable[sector]}).add(change.serial)
        return possible

    def keep(self, later):
        """What is not durable after the comparison."""
        self.unflushed.clear()
        for serial, sector in sorted(later):
            self.unflushed.append((self.answers, Change(serial, sector, 1)))
            self.answers += 1

    def compare(self, found):
        self.compared += self.count
        if found == self.visible:
            return
        for sector in range(self.count):
            place = slice(sector * SECTOR, (sector + 1) * SECTOR)
            if found[place] != self.visible[place]:
                raise Lost(self.describe(sector, found[place], {self.durable[sector]}, 0))

    def describe(self, sector, found, serials, oldest):
        return (
            f"sector {sector} holds {struct.unpack('<QQ', found[:16])} (serial, sector), durable is "
            f"{self.durable[sector]}, possible are {sorted(serials)}, from {oldest} on"
        )


def newest(changes):
    """The last of the changes of each sector."""
    serials = {}
    for change in changes:
        for sector in range(change.first, change.first + change.count):
            serials[sector] = max(change.serial, serials.get(sector, 0))
    return serials


def read_all(handle, size):
    found = bytearray()
    for at in range(0, size, PIECE):
        found += handle.pread(min(PIECE, size - at), at)
    return found


class Snapshot:
    """A snapshot whose making is commanded now, while the load goes on."""

    def __init__(self, volume):
        self.volume = volume
        self.content = bytearray(volume.visible)
        # Changes that it may contain or not; the volume adds those that are submitted until it is made.
        self.open_ends = volume.flying() + volume.failed
        self.is_frozen = False
        volume.snapshot = self

    def verify(self, handle):
        """The first time takes what it may contain, and every other time it must be the same."""
        found = read_all(handle, len(self.content))
        self.volume.compared += self.volume.count
        if not self.is_frozen:
            self.accept(found)
        if found != self.content:
            wrong = [
                sector for sector in range(self.volume.count)
                if found[sector * SECTOR:(sector + 1) * SECTOR]
                != self.content[sector * SECTOR:(sector + 1) * SECTOR]
            ]
            at = wrong[0] * SECTOR
            raise Lost(
                f"{len(wrong)} sectors of a snapshot are wrong; sector {wrong[0]} holds "
                f"{struct.unpack('<QQ', found[at:at + 16])} (serial, sector), was "
                f"{struct.unpack('<QQ', self.content[at:at + 16])}"
            )

    def accept(self, found):
        for change in self.open_ends:
            for sector in range(change.first, change.first + change.count):
                place = slice(sector * SECTOR, (sector + 1) * SECTOR)
                if found[place] == self.volume.content(change.serial, sector):
                    self.content[place] = found[place]
        self.open_ends = []
        self.is_frozen = True
