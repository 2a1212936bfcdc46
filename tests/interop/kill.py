"""Kills the daemon under a client again and again, and misses nothing that it acknowledged.

    kill.py POOL SCRATCH --kills N --seed S

Sectors of 4 KiB carry the number of the write that wrote them and their own. Requests in flight never
touch the same sector, so after a kill each sector holds what was acknowledged last, or what the one
request in flight on it was to leave there. Ends with one line of JSON; status 1 if anything was lost.
"""

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import threading
import time

import nbd

from nbd_daemon import Daemon

SECTOR = 4096
BLOCK = 65536
DEPTH = 12
SECTORS_MAX = 40


def content(serial, sector):
    if serial == 0:
        return bytes(SECTOR)
    return struct.pack("<QQ", serial, sector) * (SECTOR // 16)


class Client:
    """The volume as it must be, and as it may be where requests are in flight."""

    def __init__(self, size, dice):
        self.sectors = [0] * (size // SECTOR)
        self.dice = dice
        self.serial = 0
        self.flight = {}
        self.acknowledged = 0
        # One for each request in flight, used again: libnbd 1.14 never frees what it was given to write.
        self.buffers = [memoryview(bytearray(SECTORS_MAX * SECTOR)) for _ in range(DEPTH)]

    def submit(self, handle):
        """One request at random, on sectors without another in flight."""
        count = self.dice.choice([1, 1, 1, 1, 2, 3, 8, 16, SECTORS_MAX])
        first = self.dice.randrange(len(self.sectors) - count)
        kind = self.dice.choice(["write"] * 8 + ["durable", "zero", "trim", "flush"])
        if kind == "trim":
            # Whole blocks; the others a discard leaves alone.
            first, count = first // 16 * 16, 16
        touched = range(first, first + count)
        if any(sector in busy for busy, _, _ in self.flight.values() for sector in touched):
            return
        at, length = first * SECTOR, count * SECTOR
        value = 0
        buffer = self.buffers[-1]
        if kind in ("write", "durable"):
            self.serial += 1
            value = self.serial
            buffer[:length] = b"".join(content(value, sector) for sector in touched)
            flags = nbd.CMD_FLAG_FUA if kind == "durable" else 0
            cookie = handle.aio_pwrite(nbd.Buffer.from_buffer(buffer[:length]), at, flags=flags)
        elif kind == "zero":
            flags = self.dice.choice([0, nbd.CMD_FLAG_NO_HOLE])
            cookie = handle.aio_zero(length, at, flags=flags)
        elif kind == "trim":
            cookie = handle.aio_trim(length, at)
        else:
            touched = range(0)
            cookie = handle.aio_flush()
        # Only now: a connection that is gone takes nothing.
        self.flight[cookie] = (touched, value, self.buffers.pop())

    def reap(self, handle):
        for cookie in list(self.flight):
            if handle.aio_command_completed(cookie):
                self.answered(cookie)

    def answered(self, cookie):
        touched, value, buffer = self.flight.pop(cookie)
        self.buffers.append(buffer)
        self.acknowledged += 1
        for sector in touched:
            self.sectors[sector] = value

    def load_until(self, handle, dead):
        """Requests until the connection breaks."""
        try:
            while not dead.is_set():
                if len(self.flight) < DEPTH:
                    self.submit(handle)
                handle.poll(0 if len(self.flight) < DEPTH else 20)
                self.reap(handle)
        except nbd.Error:
            pass
        # What was answered before the end may not have been looked at.
        for cookie in list(self.flight):
            try:
                done = handle.aio_command_completed(cookie)
            except nbd.Error:
                continue
            if done:
                self.answered(cookie)

    def verify(self, handle):
        """Compares every sector; takes over what was in flight. Returns how many are wrong."""
        possible = {}
        for touched, value, buffer in self.flight.values():
            self.buffers.append(buffer)
            for sector in touched:
                possible[sector] = value
        self.flight.clear()
        wrong = 0
        for first in range(0, len(self.sectors), 256):
            data = handle.pread(256 * SECTOR, first * SECTOR)
            for index in range(256):
                sector = first + index
                found = data[index * SECTOR:(index + 1) * SECTOR]
                if found == content(self.sectors[sector], sector):
                    continue
                if sector in possible and found == content(possible[sector], sector):
                    self.sectors[sector] = possible[sector]
                    continue
                wrong += 1
                print(
                    f"sector {sector} holds {struct.unpack('<QQ', found[:16])}, acknowledged was "
                    f"{self.sectors[sector]}, in flight {possible.get(sector)}",
                    file=sys.stderr,
                )
        return wrong


def differing(handle, sectors):
    """How many sectors of a snapshot are not what they were."""
    wrong = 0
    for first in range(0, len(sectors), 256):
        data = handle.pread(256 * SECTOR, first * SECTOR)
        expected = b"".join(content(sectors[first + i], first + i) for i in range(256))
        wrong += data != expected
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pool")
    parser.add_argument("scratch")
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    print(f"SEED={options.seed}")
    dice = random.Random(options.seed)
    thinctl = [os.environ["THINCTL"]]
    daemon = Daemon(options.pool, options.scratch, "kill", 0)
    daemon.wait_ready()
    handle = daemon.connect("vol")
    client = Client(handle.get_size(), dice)
    snapshots = {}
    starts, wrong, verified = [], 0, 0
    for number in range(1, options.kills + 1):
        if dice.random() < 0.4:
            name = f"vol@s{number}"
            subprocess.run(thinctl + ["create-snap", f"{options.pool}/{name}"], check=True)
            snapshots[name] = list(client.sectors)
        if len(snapshots) > 2:
            name = dice.choice(sorted(snapshots))
            del snapshots[name]
            subprocess.run(thinctl + ["rm", f"{options.pool}/{name}"], check=True)
        dead = threading.Event()
        victim = daemon

        def strike(after):
            time.sleep(after)
            victim.kill()
            dead.set()

        killer = threading.Thread(target=strike, args=(dice.uniform(0.02, 0.6),))
        killer.start()
        client.load_until(handle, dead)
        killer.join()
        daemon = Daemon(options.pool, options.scratch, "kill", number)
        daemon.wait_ready()
        starts.append(daemon.start_ms)
        handle = daemon.connect("vol")
        wrong += client.verify(handle)
        verified += len(client.sectors)
        for name, sectors in snapshots.items():
            frozen = daemon.connect(name)
            wrong += differing(frozen, sectors)
            verified += len(sectors)
            frozen.shutdown()
        if wrong:
            break
    handle.shutdown()
    daemon.stop()
    print(json.dumps({
        "name": "E1 kill -9 over NBD",
        "kills": len(starts),
        "acknowledged": client.acknowledged,
        "sectors_verified": verified,
        "restart_ms_median": round(statistics.median(starts)),
        "restart_ms_max": round(max(starts)),
        "wrong": wrong,
    }))
    sys.exit(1 if wrong else 0)


main()
