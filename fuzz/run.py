#!/usr/bin/env python3
"""Builds and runs the fuzz targets; says what they did as a table and a line of JSON.

Each target starts from its stored corpus, corpus/TARGET, and from what earlier runs have found, which is in
the target directory. A failing input is kept there, too; `run.py --input FILE TARGET` runs it again."""

import argparse
import concurrent.futures
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
BUILT = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
PROGRAM = BUILT / "ci" / "fuzz"
FOUND = BUILT / "fuzz"

# What each target's inputs are made of, and how long they get.
TARGETS = {
    "block": (None, 4097),
    "image": (None, 2048),
    "catalog": ("json", 4096),
    "log": (None, 4096),
    "restore": ("xml", 8192),
    "handshake": ("nbd", 4096),
    "transmission": ("nbd", 2048),
    "control": ("json", 4096),
    "config": ("toml", 2048),
}

# No input may take more: seconds, megabytes in all, megabytes at once.
LIMITS = ["-timeout=25", "-rss_limit_mb=1024", "-malloc_limit_mb=256"]


def build():
    began = time.monotonic()
    command = ["cargo", "build", "--quiet", "--profile", "ci", "-p", "fuzz", "--features", "libfuzzer"]
    environment = os.environ | {"RUSTC_WORKSPACE_WRAPPER": str(HERE / "rustc")}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return time.monotonic() - began


def libfuzzer(target, *arguments):
    """libFuzzer's output and exit code. What a target leaves in its own directory goes with it."""
    scratch = FOUND / "scratch" / target
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    environment = os.environ | {"FUZZ_TARGET": target}
    command = [PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, cwd=scratch, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, errors="replace")
    return done.stdout, done.returncode


def stored(target):
    return [str(directory) for directory in (HERE / "corpus" / target,) if directory.is_dir()]


def fuzz(target, seconds):
    dictionary, longest = TARGETS[target]
    work = FOUND / "corpus" / target
    failures = FOUND / "failures" / target
    work.mkdir(parents=True, exist_ok=True)
    failures.mkdir(parents=True, exist_ok=True)
    arguments = [f"-max_total_time={seconds}", f"-max_len={longest}", "-print_final_stats=1",
                 f"-artifact_prefix={failures}/", *LIMITS]
    if dictionary:
        arguments.append(f"-dict={HERE / 'dict' / dictionary}.dict")
    output, code = libfuzzer(target, *arguments, work, *stored(target))
    (FOUND / f"{target}.log").write_text(output)
    last = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)", output)
    known = re.search(r"(\d+) inline 8-bit counters", output)
    number = lambda key: int((re.search(rf"stat::{key}:\s+(\d+)", output) or [0, 0])[1])
    return {
        "target": target,
        "executions": number("number_of_executed_units"),
        "per_second": number("average_exec_per_sec"),
        "edges": int(last[-1][0]) if last else 0,
        "edges_in_all": int(known[1]) if known else 0,
        "corpus": int(last[-1][2]) if last else 0,
        "new": number("new_units_added"),
        "peak_rss_mb": number("peak_rss_mb"),
        "crashes": int("deadly signal" in output or code not in (0, 70, 71)),
        "timeouts": int("ERROR: libFuzzer: timeout" in output),
        "out_of_memory": int("ERROR: libFuzzer: out-of-memory" in output),
        "failed": code != 0,
    }


def minimise(target):
    """Replaces the stored corpus by the fewest inputs that cover what all do, of those that are small."""
    small = FOUND / "minimised" / target
    shutil.rmtree(small, ignore_errors=True)
    small.mkdir(parents=True)
    (FOUND / "corpus" / target).mkdir(parents=True, exist_ok=True)
    # By what is reached, not how often: a hundred inputs rather than thousands.
    output, code = libfuzzer(target, "-set_cover_merge=1", "-use_counters=0", "-use_cmp=0", *LIMITS, small,
                             FOUND / "corpus" / target, *stored(target))
    if code:
        sys.exit(f"{target}: {output[-2000:]}")
    keep = HERE / "corpus" / target
    shutil.rmtree(keep, ignore_errors=True)
    shutil.copytree(small, keep)
    print(target, len(list(keep.iterdir())), "inputs")


def table(results):
    columns = ["target", "executions", "per_second", "edges", "edges_in_all", "corpus", "new", "peak_rss_mb",
               "crashes", "timeouts", "out_of_memory"]
    rows = [columns] + [[str(result[column]) for column in columns] for result in results]
    widths = [max(len(row[index]) for row in rows) for index in range(len(columns))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {' '.join(TARGETS)}; all unless given")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (600)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time (one a processor)")
    parser.add_argument("--input", help="run this input alone, once")
    parser.add_argument("--minimise", action="store_true", help="make the stored corpus anew of what was found")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if unknown := [target for target in targets if target not in TARGETS]:
        parser.error(f"no such target: {' '.join(unknown)}")
    built = build()
    if options.input:
        output, code = libfuzzer(targets[0], *LIMITS, pathlib.Path(options.input).resolve())
        sys.exit(print(output) or code)
    if options.minimise:
        return [minimise(target) for target in targets]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda target: fuzz(target, options.seconds), targets))
    table(results)
    for result in results:
        if result["failed"]:
            print(f"\n{result['target']} failed:\n" + "\n".join(
                (FOUND / f"{result['target']}.log").read_text().splitlines()[-60:]))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, stdout=subprocess.PIPE,
                            text=True).stdout.strip()
    total = lambda key: sum(result[key] for result in results)
    print(json.dumps({
        "name": "fuzz", "commit": commit, "machine": f"{platform.machine()}, {os.cpu_count()} processors",
        "build_seconds": round(built), "seconds": options.seconds, "executions": total("executions"),
        "violations": total("failed"), "targets": results,
    }))
    sys.exit(any(result["failed"] for result in results))


if __name__ == "__main__":
    main()
