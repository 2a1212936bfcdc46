#!/usr/bin/python3
"""Fails when the hot path costs more than is recorded: `perf/guard.py`, part of `make test`.

Counts, with callgrind, the instructions and the system calls that the daemon needs for a request, as a ratio to the
limit server's for the same requests; the clock, which callgrind has no page for, is a system call here. Neither depends much on what else the machine does, as times do. The binaries are
those of the ci profile, with its overflow checks; the ratios below are of that profile.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
BINARIES = os.path.dirname(os.environ.get("THINCTL", os.path.join(TARGET, "ci", "thinctl")))

SIZE = 64 << 20
DEPTH, WARMUP, REQUESTS = 32, 4000, 20000
PATTERNS = ("randread", "randwrite")
WHAT = ("instructions", "system calls")
# Ours to the limit server's, as last recorded. Who makes the path cheaper lowers them.
RECORDED = {
    ("randread", "instructions"): 5.9,
    ("randread", "system calls"): 2.1,
    ("randwrite", "instructions"): 8.5,
    ("randwrite", "system calls"): 2.2,
}
ROOM = 1.3


def binary(name):
    return os.path.join(BINARIES, name)


def run(*command, **options):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120, **options).stdout


class Counted:
    """A server under callgrind."""

    def __init__(self, name, scratch, export, *command):
        self.export, self.socket = export, os.path.join(scratch, f"{name}.sock")
        self.counts = os.path.join(scratch, f"{name}.callgrind")
        self.process = subprocess.Popen(
            ["valgrind", "-q", "--tool=callgrind", "--collect-systime=yes", "--fair-sched=yes",
             f"--callgrind-out-file={self.counts}", *command], stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("ready"):
            raise RuntimeError(f"{name} did not get ready: {line}")

    def load(self, pattern, requests, size=4096, depth=DEPTH):
        run(binary("nbd-load"), "--socket", self.socket, "--export", self.export, "--pattern", pattern, "--size",
            str(size), "--depth", str(depth), "--requests", str(requests))

    def count(self, pattern):
        """{what: number a request}"""
        self.load(pattern, WARMUP)
        self.control("--zero")
        self.load(pattern, REQUESTS)
        known = set(glob.glob(self.counts + ".*"))
        self.control("--dump")
        dump, = set(glob.glob(self.counts + ".*")) - known
        with open(dump) as lines:
            fields = dict(line.split(":", 1) for line in lines if line.startswith(("events:", "summary:")))
        numbers = dict(zip(fields["events"].split(), map(int, fields["summary"].split())))
        return {"instructions": numbers["Ir"] / REQUESTS, "system calls": numbers["sysCount"] / REQUESTS}

    def control(self, what):
        run("callgrind_control", what, str(self.process.pid), stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate()


def counted(scratch, name):
    """The counts of one server for all patterns, on blocks that are all written."""
    if name == "limit":
        file = os.path.join(scratch, "file")
        with open(file, "wb") as made:
            made.truncate(SIZE)
        server = Counted(name, scratch, "", binary("nbd-load"), "limit-server", "--socket",
                         os.path.join(scratch, "limit.sock"), "--file", file)
    else:
        pool = os.path.join(scratch, "pool")
        run(binary("thinctl"), "init", pool, "--size", str(4 * SIZE))
        run(binary("thinctl"), "create", f"{pool}/volume", "--size", str(SIZE))
        server = Counted(name, scratch, "volume", binary("thinpoold"), pool, "--nbd",
                         f"unix:{os.path.join(scratch, name)}.sock")
    try:
        server.load("seqwrite", SIZE // 65536, size=65536, depth=8)
        return {pattern: server.count(pattern) for pattern in PATTERNS}
    finally:
        server.stop()


def measure():
    scratch = tempfile.mkdtemp(prefix="thinpool-guard.")
    try:
        return {name: counted(scratch, name) for name in ("limit", "thinpool")}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main():
    began = time.monotonic()
    found = measure()
    failed = []
    for pattern in PATTERNS:
        for what in WHAT:
            ours, limit = found["thinpool"][pattern][what], found["limit"][pattern][what]
            ratio, bound = ours / limit, RECORDED[pattern, what] * ROOM
            print(f"{pattern}, {what} a request: {ours:.3f}, limit server {limit:.3f}, ratio {ratio:.2f}, "
                  f"at most {bound:.2f}")
            if ratio > bound:
                failed.append(f"{pattern}: {what} a request are {ratio:.2f} x the limit server's, {RECORDED[pattern, what]:.2f} "
                              f"recorded: more than {ROOM} x as many. Make the path cheaper, or say in perf/guard.py why not.")
    print(json.dumps({"test": "guard", "seconds": round(time.monotonic() - began, 1), "found": found}))
    sys.exit("\n".join(failed) if failed else 0)


if __name__ == "__main__":
    main()
