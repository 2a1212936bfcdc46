"""The workloads in the guest, and what runs them: fio, with a fixed number of requests, so that
everybody does the same work."""

import json
import statistics
import subprocess
import sys
import time

BLOCK = 65536
REPEATS = 20

RATES = "Requests per second of the guest"
TIMES = "Snapshots and volumes, microseconds of the guest, median"

# name, fio's pattern, request size, depth, more of fio's options
MAPPED = (
    ("4k random read, depth 1", "randread", 4096, 1),
    ("4k random read, depth 32", "randread", 4096, 32),
    ("4k random write, depth 1", "randwrite", 4096, 1),
    ("4k random write, depth 32", "randwrite", 4096, 32),
    ("4k random write, depth 1, fsync after each", "randwrite", 4096, 1, "--fsync=1"),
    ("4k random write, depth 32, fsync after each", "randwrite", 4096, 32, "--fsync=1"),
    ("64k sequential read, depth 8", "read", BLOCK, 8),
    ("64k sequential write, depth 8", "write", BLOCK, 8),
)
# Each request goes to a block of its own.
EACH_BLOCK_ONCE = ("--blockalign=65536",)
FIRST = (
    ("depth 1", 1),
    ("depth 32", 32),
    ("depth 1, fsync at the end", 1, "--end_fsync=1"),
    ("depth 32, fsync at the end", 32, "--end_fsync=1"),
    ("depth 1, fsync after each", 1, "--fsync=1"),
    ("depth 32, fsync after each", 32, "--fsync=1"),
)


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def fio(device, size, pattern, request, depth, requests, *more):
    """Requests per second, of those fio counts: an fsync is no request, but its time counts."""
    report = json.loads(run(
        "fio", "--name=job", f"--filename={device}", f"--size={size}", f"--rw={pattern}",
        f"--bs={request}", f"--iodepth={depth}", "--ioengine=io_uring", "--direct=1", "--thread",
        f"--number_ios={requests}", "--randseed=1", "--output-format=json", *more))
    job = report["jobs"][0]
    kind = "read" if "read" in pattern else "write"
    # The job's own time, which the last fsync is part of.
    return job[kind]["total_ios"] / (job["job_runtime"] / 1000)


def measure_mapped(target, device, size, requests, rows):
    for workload, pattern, request, depth, *more in MAPPED:
        rate = fio(device, size, pattern, request, depth, requests, *more)
        rows.setdefault(workload, {})[target.name] = rate


def measure_first(target, requests, rows):
    """Writes to blocks that are unmapped, and to blocks that are shared with a snapshot. Each on stores of
    its own, so that everybody has to ask for the memory of his blocks; not the first write of all, with
    which a pool may have to begin a log."""
    size = requests * BLOCK
    for kind in ("unmapped", "shared"):
        for workload, depth, *more in FIRST:
            with target:
                device = target.fresh(size + BLOCK)
                fio(device, BLOCK, "write", BLOCK, 1, 1, f"--offset={size}", "--end_fsync=1")
                if kind == "shared":
                    fio(device, size, "write", BLOCK, 8, requests, "--end_fsync=1")
                    target.share()
                rate = fio(device, size, "randwrite", 4096, depth, requests, *EACH_BLOCK_ONCE, *more)
                rows.setdefault(f"4k write to {kind} blocks, {workload}", {})[target.name] = rate
                target.drop()


def median_us(call):
    times = []
    for number in range(REPEATS):
        began = time.perf_counter()
        call(number)
        times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)


def measure(targets, requests):
    """{table: {workload: {target: figure}}}"""
    rates, times = {}, {}
    size = requests * BLOCK
    for target in targets:
        print(f"{target.name}", file=sys.stderr, flush=True)
        with target:
            device = target.mapped(size)
            if target.keeps_data:
                fio(device, size, "write", BLOCK, 8, requests, "--end_fsync=1")
            measure_mapped(target, device, size, requests, rates)
            target.drop()
            if target.is_thin:
                for what, call in target.operations().items():
                    times.setdefault(what, {})[target.name] = median_us(call)
        if target.is_thin:
            measure_first(target, requests, rates)
    return {RATES: rates, TIMES: times}
