#!/usr/bin/python3
"""Our figures beside qemu-nbd on a raw file and on a fresh qcow2 overlay: `make perf`.

Everything runs on this machine, in one directory, over unix sockets, on files of one size,
through the page cache (qemu-nbd --cache=writeback). Every round measures every server once
(A B C, A B C ...), each time on a warm file after a sync; medians are reported. The method
and recorded results are in perf/README.md.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile

import metadata
from servers import LimitServer, NullServer, QemuOverlay, QemuRaw, Thinpool, load, run

MIB = 1 << 20

# name, pattern, request size, depth, connections
IN_PLACE = (
    ("4k random read, depth 1", "randread", 4096, 1, 1),
    ("4k random read, depth 1, 4 connections", "randread", 4096, 1, 4),
    ("4k random read, depth 32", "randread", 4096, 32, 1),
    ("4k random read, depth 32, 4 connections", "randread", 4096, 32, 4),
    ("4k random write, depth 1", "randwrite", 4096, 1, 1),
    ("4k random write, depth 1, 4 connections", "randwrite", 4096, 1, 4),
    ("4k random write, depth 32", "randwrite", 4096, 32, 1),
    ("4k random write, depth 32, 4 connections", "randwrite", 4096, 32, 4),
    ("64k sequential read, depth 8", "seqread", 65536, 8, 1),
    ("64k sequential write, depth 8", "seqwrite", 65536, 8, 1),
)
FRESH_CLONE = (
    ("4k random write to a fresh clone, depth 1", "randwrite", 4096, 1, 1),
    ("4k random write to a fresh clone, depth 32", "randwrite", 4096, 32, 1),
    ("4k random write to a fresh clone, depth 32, 4 connections", "randwrite", 4096, 32, 4),
)
# The same, and a flush whose time counts: what was put off is done.
FLUSHED_CLONE = tuple((f"{workload}, with a flush at the end", *rest)
                      for workload, *rest in FRESH_CLONE)
# Requests of one measurement on a fresh clone: the same work for everybody, however fast.
CLONE_REQUESTS = {1: 8000, 32: 20000}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dir", default="/var/tmp", help="where the files lie; a local disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the volume and files")
    parser.add_argument("--only", choices=("io", "snapshots"), default=None)
    parser.add_argument("--json", default=None, metavar="FILE", help="also write every figure here")
    return parser.parse_args()


class Results:
    """{(workload, server): [measurement, ...]} in the order they were made."""

    def __init__(self):
        self.made = {}

    def add(self, workload, server, figure):
        self.made.setdefault((workload, server), []).append(figure)

    def median(self, workload, server, what):
        figures = [figure[what] for figure in self.made.get((workload, server), ())
                   if figure[what] is not None]
        return statistics.median(figures) if figures else None


def say(text):
    print(text, file=sys.stderr, flush=True)


def measure_in_place(servers, options, results):
    for workload, pattern, size, depth, connections in IN_PLACE:
        for server in servers:
            server.renew()
            os.sync()
            figure = server.measure(pattern, size, depth, connections, seconds=options.seconds)
            results.add(workload, server.name, figure)


def measure_clones(servers, results):
    for workload, pattern, size, depth, connections in FRESH_CLONE + FLUSHED_CLONE:
        flush = "end" if (workload, pattern, size, depth, connections) in FLUSHED_CLONE else None
        for server in servers:
            server.renew(clone=True)
            os.sync()
            figure = server.measure(pattern, size, depth, connections,
                                    requests=CLONE_REQUESTS[depth], flush=flush)
            results.add(workload, server.name, figure)


def measure_io(directory, options):
    """Prints the table of rates; returns every figure."""
    size = options.size_mib * MIB
    ours = Thinpool(directory, size)
    overlay = QemuOverlay(directory, size)
    raw = [QemuRaw(directory, size, aio) for aio in ("threads", "io_uring")]
    limit, null = LimitServer(directory, size), NullServer(directory, size)
    in_place, clones = [ours, *raw, overlay, limit, null], [ours, overlay]
    results = Results()
    try:
        for server in (ours, *raw, overlay, limit):
            say(f"filling {server.name}")
            server.fill()
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            turn = number % len(in_place)
            measure_in_place(in_place[turn:] + in_place[:turn], options, results)
            measure_clones(clones if number % 2 else clones[::-1], results)
    finally:
        for server in (ours, *raw, overlay, limit, null):
            server.stop()
    report_io(results, ours.name, [server.name for server in raw], overlay.name,
              [limit.name, null.name])
    return {f"{workload} | {server}": figures
            for (workload, server), figures in results.made.items()}


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def report_io(results, ours, raws, overlay, bounds):
    """Ratios are to the better of the two raw servers, and to the overlay."""
    names = [ours, *raws, overlay, *bounds]
    workloads = IN_PLACE + FRESH_CLONE + FLUSHED_CLONE
    print("\n### Requests per second, median\n")
    print("| workload | " + " | ".join(names) + " | ours : best raw | ours : overlay |")
    print("|---|" + "--:|" * (len(names) + 2))
    for workload, *_ in workloads:
        rates = {name: results.median(workload, name, "rate") for name in names}
        best = max((rates[name] for name in raws if rates[name]), default=None)
        ratios = [rates[ours] / other if other else None for other in (best, rates[overlay])]
        print(f"| {workload} | " + " | ".join(number(rates[name]) for name in names) + " | "
              + " | ".join(number(ratio, 2) for ratio in ratios) + " |")
    print("\n### Server CPU, microseconds per request, median\n")
    print("| workload | " + " | ".join(names) + " |")
    print("|---|" + "--:|" * len(names))
    for workload, *_ in workloads:
        print(f"| {workload} | " + " | ".join(
            number(results.median(workload, name, "cpu_us"), 2) for name in names) + " |")
    print("\n### Latency at depth 1, microseconds, median of p50 / p99\n")
    print("| workload | " + " | ".join(names) + " |")
    print("|---|" + "--:|" * len(names))
    for workload, _, _, depth, _ in workloads:
        if depth == 1:
            cells = []
            for name in names:
                pair = [results.median(workload, name, what) for what in ("p50_ns", "p99_ns")]
                cells.append("" if pair[0] is None else f"{pair[0] / 1000:.0f} / {pair[1] / 1000:.0f}")
            print(f"| {workload} | " + " | ".join(cells) + " |")


def measure_snapshots(directory):
    """Prints the times of create-snap and clone and the daemon's memory."""
    figures = {mappings: metadata.measure(directory, mappings) for mappings in (1000, 1000000)}
    print("\n### Snapshots and clones, milliseconds, median of 50 (smallest, largest)\n")
    print("`snapshot` and `clone` are calls of the daemon's control socket, durable when they "
          "return. The last three are whole commands, the start of a process included, of which "
          "`thinctl info` does no work.\n")
    print("| mapped blocks | snapshot | clone | `thinctl create-snap` | `thinctl clone` | "
          "`thinctl info` |")
    print("|--:|--:|--:|--:|--:|--:|")
    for mappings, found in figures.items():
        cells = [f"{statistics.median(times):.2f} ({min(times):.2f}, {max(times):.2f})"
                 for times in (found[what] for what in (
                     "create-snap call", "clone call", "create-snap", "clone", "info"))]
        print(f"| {mappings:,} | " + " | ".join(cells) + " |")
    print("\n### Resident memory of the daemon, MiB, with 100 idle volumes beside\n")
    print("| mapped blocks | just opened | 100 volumes made | all mappings listed once | after the snapshots and clones |")
    print("|--:|--:|--:|--:|--:|")
    for mappings, found in figures.items():
        cells = [f"{found[what] / MIB:.1f}" for what in
                 ("rss_opened", "rss_idle", "rss_listed", "rss_end")]
        print(f"| {mappings:,} | " + " | ".join(cells) + " |")
    return {str(mappings): found for mappings, found in figures.items()}


def describe(directory):
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":", 1)[1].strip() for line in cpuinfo
                      if line.startswith("model name")), "unknown processor")
    kind = run("stat", "-f", "-c", "%T", directory).strip()
    qemu = run("qemu-nbd", "--version").split("\n", 1)[0]
    print(f"{model}, {os.cpu_count()} CPUs, kernel {platform.release()}, file system {kind}, {qemu}")


def main():
    options = arguments()
    directory = tempfile.mkdtemp(prefix="thinpool-perf.", dir=options.dir)
    figures = {}
    try:
        describe(directory)
        if options.only != "snapshots":
            figures["io"] = measure_io(directory, options)
        if options.only != "io":
            figures["snapshots"] = measure_snapshots(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(figures, out, indent=1)


if __name__ == "__main__":
    main()
