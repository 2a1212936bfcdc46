#!/usr/bin/python3
"""Ours beside every peer and beside the limit of the machine: `make bench`.

Everything runs on this machine, in one directory, over unix sockets, on files of one size, through the page cache.
Every round measures every server once (A B C, A B C ...), each time on a warm file after a sync; medians are
reported. The method and recorded results are in perf/README.md.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile

import peers
import plot
import report
import snapshots
from servers import TARGET, run
from workloads import WORKLOADS

MIB = 1 << 20


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dir", default="/var/tmp", help="where the files lie; a local disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="of each measurement that is not a number of requests")
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the volumes and files; at least 1024")
    parser.add_argument("--only", default="", metavar="TEXT", help="workloads with this in their name; or: snapshots")
    parser.add_argument("--servers", nargs="+", metavar="NAME", help="only these, by the names of their columns")
    parser.add_argument("--out", default=os.path.join(TARGET, "bench"), metavar="DIR",
                        help="where bench.md, bench.json and bench.svg go (target/bench)")
    return parser.parse_args()


def say(text):
    print(text, file=sys.stderr, flush=True)


def sync_files(directory):
    """What one server has left to write back is not the next one's burden. Other files of the machine may wait."""
    for place, _, files in os.walk(directory):
        for name in files:
            path = os.path.join(place, name)
            if os.path.isfile(path):
                file = os.open(path, os.O_RDONLY)
                os.fdatasync(file)
                os.close(file)


def measure_once(server, workload, options):
    server.renew(workload.kind)
    if workload.kind in ("in place", "deep"):
        server.warm()
    sync_files(options.directory)
    how = {"requests": workload.requests} if workload.requests else {"seconds": options.seconds}
    figure = server.measure(**how, **workload.options())
    if server.name != peers.OURS:
        server.stop()
    return figure


def measure(servers, workloads, options, results):
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        turn = number % len(servers)
        for workload in workloads:
            for server in servers[turn:] + servers[:turn]:
                if workload.kind in server.kinds:
                    results.add(workload, server.name, measure_once(server, workload, options))


def machine(directory):
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), "processor")
    kind = run("stat", "-f", "-c", "%T", directory).strip()
    return [f"{model}, {os.cpu_count()} CPUs", f"kernel {platform.release()}", f"file system {kind}",
            f"load average {os.getloadavg()[0]:.1f} at the start", *peers.versions()]


def bench(options):
    """Measures; returns (Markdown, what goes to JSON, SVG or nothing)."""
    facts = machine(options.directory)
    workloads = [workload for workload in WORKLOADS if options.only in workload.name]
    parts, bars, figures, picture = [], [], {}, None
    servers = []
    try:
        if workloads:
            facts.append(f"generator {peers.generator_rate(options.directory, options.size_mib * MIB):,.0f} requests/s "
                         "against a server that does nothing")
            peers.assemble(options.directory, options.size_mib * MIB, servers, say, options.servers)
            results = report.Results()
            try:
                measure(servers, workloads, options, results)
            except KeyboardInterrupt:
                say("interrupted: this is what was measured until now")
            names = report.order(server.name for server in servers)
            parts.append(report.rates(results, names))
            bars += report.reached(results)
            picture = plot.svg(results, names)
            figures["io"] = {f"{workload} | {server}": made for (workload, server), made in results.made.items()}
    finally:
        for server in servers:
            server.close()
    if options.only in ("", "snapshots"):
        figures["snapshots"] = snapshots.measure(options.directory, say)
        parts.append(report.snapshots_table(figures["snapshots"]))
        bars += report.snapshots_reached(figures["snapshots"])
    parts.append(report.bars_table(bars))
    figures["machine"] = facts
    figures["bars"] = [{"bar": text, "measured": measured, "reached": ok} for text, measured, ok in bars]
    return f"{'; '.join(facts)}; {options.rounds} rounds\n\n" + "\n".join(parts), figures, picture


def write(directory, text, figures, picture):
    os.makedirs(directory, exist_ok=True)
    for kind, content in (("md", text), ("json", json.dumps(figures, indent=1)), ("svg", picture)):
        if content:
            with open(os.path.join(directory, f"bench.{kind}"), "w") as out:
                out.write(content)


def main():
    options = arguments()
    options.directory = tempfile.mkdtemp(prefix="thinpool-bench.", dir=options.dir)
    try:
        text, figures, picture = bench(options)
        write(options.out, text, figures, picture)
        print(text, flush=True)
    finally:
        shutil.rmtree(options.directory, ignore_errors=True)


if __name__ == "__main__":
    main()
