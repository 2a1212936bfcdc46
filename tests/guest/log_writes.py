"""Writes to a pool on a device that logs them, and looks at what is left at points of that log.

    log_writes.py drive POOL SCRATCH --seed S --steps N
    log_writes.py replay POOL SCRATCH --seed S --points N --log DEVICE --target DEVICE

`drive` puts a mark into the log after each flush and each snapshot, and keeps in SCRATCH what must be there from
then on. Pages of 4 KiB carry the number of the write that wrote them and their own. `replay` ends with a line of JSON.
"""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import time

import nbd

PAGE = 4096
BLOCK = 65536
PAGES = (24 << 20) // PAGE
SECTOR = 512

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
MAGIC = 0x6A736677736872


def content(serial, page):
    if serial == 0:
        return bytes(PAGE)
    return struct.pack("<QQ", serial, page) * (PAGE // 16)


def thinctl(*words, **options):
    command = [os.environ["THINCTL"], *words]
    return subprocess.run(command, check=True, capture_output=True, **options).stdout


def serial_of(data, page):
    """The write that a page is of; 0 for none; None when it is no write's."""
    serial, _ = struct.unpack_from("<QQ", data)
    return serial if data == content(serial, page) else None


class History:
    """What every page held, and from which mark on that is durable."""

    def __init__(self):
        # Of each page, the writes to it in order; 0 stands for zeros.
        self.versions = [[0] for _ in range(PAGES)]
        # Of each mark, how many versions of each page came before those that were durable then.
        self.durable = [[0] * PAGES]
        # Name of each snapshot, the mark from which on it is there, and its pages.
        self.snapshots = []

    def mark(self):
        self.durable.append([len(versions) - 1 for versions in self.versions])
        return len(self.durable) - 1

    def save(self, path):
        with open(path, "w") as out:
            json.dump(self.__dict__, out)

    @staticmethod
    def load(path):
        history = History()
        with open(path) as saved:
            history.__dict__.update(json.load(saved))
        return history


def drive(args, draw):
    socket = os.path.join(args.scratch, "drive.sock")
    command = [os.environ["THINCTL"], "serve", args.pool, "--nbd", "unix:" + socket]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if not daemon.stdout.readline().startswith("ready:"):
        sys.exit("the daemon ended")
    handle = nbd.NBD()
    handle.connect_uri(f"nbd+unix:///vol?socket={socket}")
    history = History()

    def mark():
        number = history.mark()
        subprocess.run(["dmsetup", "message", "logged", "0", f"mark flushed-{number}"], check=True)
        return number

    for step in range(1, args.steps + 1):
        kind = draw.random()
        first = draw.randrange(PAGES)
        count = min(draw.choice([1, 1, 1, 2, 5, 16, 40]), PAGES - first)
        pages = range(first, first + count)
        if kind < 0.75:
            data = b"".join(content(step, page) for page in pages)
            handle.pwrite(data, first * PAGE)
            for page in pages:
                history.versions[page].append(step)
        elif kind < 0.85:
            handle.zero(count * PAGE, first * PAGE)
            for page in pages:
                history.versions[page].append(0)
        elif kind < 0.98:
            handle.flush()
            mark()
        else:
            name = f"vol@s{step}"
            thinctl("create-snap", f"{args.pool}/{name}")
            held = [versions[-1] for versions in history.versions]
            history.snapshots.append([name, mark(), held])
    handle.flush()
    mark()
    handle.shutdown()
    # Killed, so that the log ends with a pool that was not closed.
    daemon.kill()
    daemon.wait()
    history.save(os.path.join(args.scratch, "history.json"))


class Log:
    """The entries of a log of dm-log-writes, in the order in which the writes were complete."""

    def __init__(self, path):
        self.file = open(path, "rb")
        magic, version, count, sector = struct.unpack("<QQQI", self.file.read(28))
        assert magic == MAGIC and version == 1, (magic, version)
        self.sector = sector
        self.entries = []
        at = sector
        for _ in range(count):
            self.file.seek(at)
            header = self.file.read(sector)
            place, length, flags, data_len = struct.unpack_from("<QQQQ", header)
            mark = header[32:32 + data_len].decode() if flags & MARK else None
            at += sector
            self.entries.append((place, length, flags, at, mark))
            if not flags & DISCARD:
                at += length * sector

    def apply(self, entry, target, sectors=None):
        """Does one write again, or some of its sectors."""
        place, length, flags, at, _ = entry
        if flags & (DISCARD | MARK) or length == 0:
            return
        data = os.pread(self.file.fileno(), length * self.sector, at)
        if sectors is None:
            os.pwrite(target, data, place * self.sector)
            return
        for number in sectors:
            begin = number * SECTOR
            os.pwrite(target, data[begin:begin + SECTOR], place * self.sector + begin)


class Replay:
    """The device as it was at the last flush before a point, and a snapshot of it to try things on."""

    def __init__(self, args, draw):
        self.args, self.draw = args, draw
        self.log = Log(args.log)
        self.target = os.open(args.target, os.O_RDWR)
        self.done = 0
        self.dropped = self.torn = 0
        self.sectors = int(subprocess.check_output(["blockdev", "--getsz", args.target]))

    def run(self, *words):
        subprocess.run(words, check=True)

    def reach(self, point):
        """Applies all up to the last flush before `point`, for good. Returns the entries after it."""
        entries = self.log.entries
        last = self.done
        for number in range(self.done, point):
            if entries[number][2] & FLUSH:
                last = number + 1
        for entry in entries[self.done:last]:
            self.log.apply(entry, self.target)
        os.fsync(self.target)
        self.done = last
        return entries[last:point]

    def lose(self, entries, device):
        """Applies some of the writes that no flush has covered: what a disk may have kept of them."""
        keep = self.draw.choice([0, 0.1, 0.5, 0.9, 1])
        target = os.open(device, os.O_RDWR)
        for entry in entries:
            length = entry[1] * self.log.sector // SECTOR
            if entry[2] & FUA or self.draw.random() < keep:
                self.log.apply(entry, target)
            elif length > 1 and self.draw.random() < 0.2:
                self.torn += 1
                count = self.draw.randrange(1, length)
                self.log.apply(entry, target, self.draw.sample(range(length), count))
            else:
                self.dropped += 1
        os.fsync(target)
        os.close(target)

    def attempt(self, point, check):
        rest = self.reach(point)
        cow = os.path.join(self.args.scratch, "cow")
        with open(cow, "wb") as file:
            file.truncate(1 << 30)
        loop = subprocess.check_output(["losetup", "--show", "-f", cow], text=True).strip()
        table = f"0 {self.sectors} snapshot {self.args.target} {loop} N 8"
        mountpoint = os.path.dirname(self.args.pool)
        self.run("dmsetup", "create", "attempt", "--table", table)
        try:
            self.lose(rest, "/dev/mapper/attempt")
            self.run("mount", "/dev/mapper/attempt", mountpoint)
            try:
                check()
            finally:
                self.run("umount", mountpoint)
        finally:
            self.run("dmsetup", "remove", "--retry", "attempt")
            self.run("losetup", "-d", loop)

    def marks_before(self, point):
        # Those of ours; the driver ends its log with one of its own.
        marks = [entry[4] for entry in self.log.entries[:point] if entry[4] and entry[4].startswith("flushed-")]
        return int(marks[-1].removeprefix("flushed-"))


def verify(args, history, mark):
    """What was durable at the mark is there, or what was written later; snapshots are as they were."""
    compared = 0
    report = thinctl("check", args.pool, "--json")
    assert json.loads(report)["clean"], report
    data = thinctl("read", f"{args.pool}/vol")
    for page in range(PAGES):
        found = serial_of(data[page * PAGE:(page + 1) * PAGE], page)
        allowed = history.versions[page][history.durable[mark][page]:]
        if found not in allowed:
            sys.exit(f"mark {mark}, page {page}: found {found}, expected one of {allowed}")
        compared += 1
    due = [snapshot for snapshot in history.snapshots if snapshot[1] <= mark]
    for name, _, held in due[-2:]:
        data = thinctl("read", f"{args.pool}/{name}")
        for page in range(PAGES):
            found = serial_of(data[page * PAGE:(page + 1) * PAGE], page)
            if found != held[page]:
                sys.exit(f"mark {mark}, {name}, page {page}: found {found}, expected {held[page]}")
            compared += 1
    # Opens for writing, too, and goes on.
    thinctl("create", f"{args.pool}/new", "--size", "1M")
    thinctl("write", f"{args.pool}/new", input=b"x" * 100000)
    report = thinctl("check", args.pool, "--json")
    assert json.loads(report)["clean"], report
    return compared


def replay(args, draw):
    history = History.load(os.path.join(args.scratch, "history.json"))
    replay = Replay(args, draw)
    entries = replay.log.entries
    first = next(number for number, entry in enumerate(entries) if entry[4] == "flushed-1") + 1
    points = sorted(draw.sample(range(first, len(entries) + 1), min(args.points, len(entries) - first)))
    points.append(len(entries))
    began = time.monotonic()
    figures = {"test": "log_writes", "entries": len(entries), "marks": len(history.durable) - 1, "points": 0, "pages": 0}
    for point in points:
        mark = replay.marks_before(point)

        def check():
            figures["pages"] += verify(args, history, mark)

        try:
            replay.attempt(point, check)
        except subprocess.CalledProcessError as error:
            sys.exit(f"entry {point}, mark {mark}: {error}: {error.stdout} {error.stderr}")
        figures["points"] += 1
    figures.update(dropped=replay.dropped, torn=replay.torn, lost=0, seconds=round(time.monotonic() - began))
    print(json.dumps(figures))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["drive", "replay"])
    parser.add_argument("pool")
    parser.add_argument("scratch")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--points", type=int)
    parser.add_argument("--log")
    parser.add_argument("--target")
    args = parser.parse_args()
    {"drive": drive, "replay": replay}[args.what](args, random.Random(args.seed))


main()
