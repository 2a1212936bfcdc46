#!/usr/bin/python3
"""Our check, dump, repair and restore beside thin-provisioning-tools: `make bench-metadata`.

One volume with scattered mappings and four snapshots of it, between which a fiftieth of the leaves
changed: what a pool of databases looks like to the tools. Every round measures every tool once, on a
page cache that holds the metadata and on one that does not; medians are reported. The method and
recorded results are in perf/README.md.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import snapshots
from servers import BLOCK, THINCTL, run

MIB = 1 << 20
SNAPSHOTS = 4
# Mappings of a full leaf: one changed mapping in each of so many makes a leaf of its own.
LEAF = 252
CHANGED_LEAVES = 0.02


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dir", default="/var/tmp", help="where the files lie; a local disk")
    parser.add_argument("--mappings", type=int, default=4_000_000, help="of each device")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=STEPS, metavar="STEP",
                        help=f"may be given more than once; of {', '.join(STEPS)}")
    parser.add_argument("--peer", action="append", metavar="NAME=PDATA_TOOLS",
                        help="a build of thin-provisioning-tools; Debian's unless any is given")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write every figure here")
    return parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def make_pool(directory, mappings):
    """A pool whose devices share most of their trees, and its metadata."""
    pool = snapshots.make_pool(directory, mappings)
    chance = random.Random(1)
    daemon = subprocess.Popen([THINCTL, "serve", pool], stdout=subprocess.PIPE, text=True)
    try:
        if not daemon.stdout.readline().startswith("ready:"):
            raise RuntimeError("the daemon did not get ready")
        for number in range(SNAPSHOTS):
            run(THINCTL, "create-snap", f"{pool}/big@s{number}")
            for leaf in chance.sample(range(mappings // LEAF), int(mappings / LEAF * CHANGED_LEAVES)):
                subprocess.run([THINCTL, "write", f"{pool}/big", "--offset", str(leaf * LEAF * BLOCK)],
                               input=b"x" * 4096, stdout=subprocess.DEVNULL, check=True)
    finally:
        daemon.send_signal(signal.SIGTERM)
        if daemon.wait() != 0:
            raise RuntimeError("the daemon did not end well")
    return pool, os.path.join(directory, "metadata")


class Work:
    """Where the metadata is and where outputs go."""

    def __init__(self, directory, mappings):
        self.pool, self.metadata = make_pool(directory, mappings)
        self.out = os.path.join(directory, "out")
        self.dump = os.path.join(directory, "dump")

    def make_dump(self):
        with open(self.dump, "wb") as dump:
            subprocess.run([THINCTL, "dump", self.pool], stdout=dump, check=True)

    def restored_size(self):
        """Room for trees that share nothing."""
        return (SNAPSHOTS + 2) * os.path.getsize(self.metadata)


class Ours:
    name = "thinpool"
    takes_made_files = False

    def check(self, work):
        return [THINCTL, "check", work.pool]

    def dump(self, work):
        return [THINCTL, "dump", work.pool]

    def repair(self, work):
        return [THINCTL, "repair", work.metadata, "--to", work.out]

    def restore(self, work):
        return [THINCTL, "restore", work.dump, "--to", work.out]


class Peer:
    """thin-provisioning-tools, which write into files that are there."""

    takes_made_files = True

    def __init__(self, name, *program):
        self.name, self.program = name, program

    def check(self, work):
        return [*self.program, "thin_check", "-q", work.metadata]

    def dump(self, work):
        return [*self.program, "thin_dump", work.metadata]

    def repair(self, work):
        return [*self.program, "thin_repair", "-i", work.metadata, "-o", work.out]

    def restore(self, work):
        return [*self.program, "thin_restore", "-i", work.dump, "-o", work.out]


STEPS = ("check", "dump", "repair", "restore")


def forget(path):
    """Drops a file's pages from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def recall(path):
    with open(path, "rb") as file:
        while file.read(MIB):
            pass


def measure(tool, step, work, is_cold):
    """Wall and processor seconds, peak memory and what was written; none if the tool cannot do it."""
    if step in ("repair", "restore") and tool.takes_made_files:
        with open(work.out, "wb") as out:
            out.truncate(work.restored_size())
    source = work.dump if step == "restore" else work.metadata
    (forget if is_cold else recall)(source)
    with open(work.out if step == "dump" else os.devnull, "wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(getattr(tool, step)(work), stdout=out, stderr=subprocess.PIPE)
        message = process.stderr.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    written = os.path.getsize(work.out) if step == "dump" else 0
    if os.path.exists(work.out):
        os.remove(work.out)
    if process.returncode != 0:
        say(f"{tool.name}: {step} failed: {message.strip()[-200:]}")
        return None
    return {"wall": wall, "cpu": usage.ru_utime + usage.ru_stime,
            "rss": usage.ru_maxrss * 1024, "written": written}


def measure_all(tools, steps, work, rounds):
    made = {}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        turn = number % len(tools)
        for step in steps:
            for tool in tools[turn:] + tools[:turn]:
                for is_cold in (False, True):
                    figures = made.setdefault((step, tool.name, is_cold), [])
                    if None not in figures:
                        os.sync()
                        figures.append(measure(tool, step, work, is_cold))
    return made


def report(made, tools, steps):
    print("| step | tool | wall s | cold wall s | CPU s | cold CPU s | peak RSS MiB | output MiB |")
    print("|---|---|" + "--:|" * 6)
    for step in steps:
        for tool in tools:
            warm, cold = (made[step, tool.name, is_cold] for is_cold in (False, True))
            if None in warm + cold:
                print(f"| {step} | {tool.name} | failed | | | | | |")
                continue
            median = lambda figures, what: statistics.median(each[what] for each in figures)
            output = f"{warm[0]['written'] / MIB:,.0f}" if step == "dump" else ""
            print(f"| {step} | {tool.name} | {median(warm, 'wall'):.2f} | {median(cold, 'wall'):.2f} "
                  f"| {median(warm, 'cpu'):.2f} | {median(cold, 'cpu'):.2f} "
                  f"| {median(warm, 'rss') / MIB:.0f} | {output} |")


def main():
    options = arguments()
    peers = options.peer or ["Debian's tools=pdata_tools"]
    tools = [Ours(), *(Peer(*peer.split("=", 1)) for peer in peers)]
    steps = [step for step in STEPS if not options.only or step in options.only]
    directory = tempfile.mkdtemp(prefix="thinpool-perf.", dir=options.dir)
    try:
        say(f"making a pool of {options.mappings:,} mappings x {SNAPSHOTS + 1} devices")
        work = Work(directory, options.mappings)
        if "restore" in steps:
            work.make_dump()
        made = measure_all(tools, steps, work, options.rounds)
        report(made, tools, steps)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        figures = {" | ".join((step, tool, "cold" if is_cold else "warm")): each
                   for (step, tool, is_cold), each in made.items()}
        with open(options.json, "w") as out:
            json.dump(figures, out, indent=1)


if __name__ == "__main__":
    main()
