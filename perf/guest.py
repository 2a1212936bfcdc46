#!/usr/bin/python3
"""Our ublk devices beside the kernel's and other people's, in a guest: `make perf-guest`.

Outside, this fetches a peer and starts the guest (tests/guest/vm --icount), where it starts itself
again with --inside. In there one instruction takes 4 ns, whatever the machine does meanwhile, so
figures repeat and compare designs; they predict no microseconds. All stores are memory. The method
and recorded results are in perf/README.md.
"""

import argparse
import json
import os
import subprocess
import sys

import guest_io
from guest_targets import Brd, DmThin, Nbdkit, NullBlk, RublkLoop, RublkNull, Thinpool

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))

RUBLK_VERSION = "0.2.15"

TARGETS = {target.name: target for target in (
    Brd(), NullBlk(), RublkNull(), RublkLoop(), Nbdkit(), DmThin(),
    Thinpool("memory files"), Thinpool("brd"))}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", action="append", choices=TARGETS, metavar="TARGET",
                        help=f"may be given more than once; of {', '.join(TARGETS)}")
    parser.add_argument("--requests", type=int, default=2000, help="of each measurement")
    parser.add_argument("--json", default=None, metavar="FILE", help="also write every figure here")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def fetch_rublk():
    """Installs the peer, for this comparison only, where the build's outputs are."""
    root = os.path.join(TARGET, "peers")
    program = os.path.join(root, "bin", "rublk")
    if not os.path.exists(program):
        subprocess.run(["cargo", "install", "rublk", "--version", RUBLK_VERSION, "--locked",
                        "--no-default-features", "--root", root], check=True, stdout=sys.stderr)
    return program


def run_outside(options):
    """Starts the guest; the program in there prints the figures, on the last line."""
    environment = os.environ | {"RUBLK": fetch_rublk(), "PYTHONDONTWRITEBYTECODE": "1"}
    words = ["--inside", "--requests", str(options.requests)]
    for name in options.only or ():
        words += ["--only", name]
    vm = os.path.join(HERE, "..", "tests", "guest", "vm")
    return subprocess.run([vm, "--icount", "--memory", "5G", "--timeout", "1200", "--",
                           "python3", os.path.join(HERE, "guest.py"), *words],
                          env=environment, check=False, stdout=subprocess.PIPE, text=True)


def cell(value):
    return "" if value is None else f"{value:,.0f}"


def report(figures):
    """Prints a table of each kind: a row for each workload, a column for each target."""
    for title, rows in figures.items():
        names = [name for name in TARGETS if any(name in row for row in rows.values())]
        print(f"\n### {title}\n")
        print("| | " + " | ".join(names) + " |")
        print("|---|" + "--:|" * len(names))
        for workload, row in rows.items():
            print(f"| {workload} | " + " | ".join(cell(row.get(name)) for name in names) + " |")


def main():
    options = arguments()
    if options.inside:
        chosen = [TARGETS[name] for name in options.only or TARGETS]
        json.dump(guest_io.measure(chosen, options.requests), sys.stdout)
        return 0
    done = run_outside(options)
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        return done.returncode
    figures = json.loads(done.stdout.splitlines()[-1])
    report(figures)
    if options.json:
        with open(options.json, "w") as out:
            json.dump(figures, out, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
