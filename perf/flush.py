#!/usr/bin/python3
"""What a flush costs: syncs, and bytes written to the metadata store and to the intent log.

    perf/flush.py [--flushes 1000] [--dir /var/tmp]     THINCTL names the binary, target/release/thinctl by default

Each flush follows a write of 4 KiB: to a new block each time, to a block shared with a snapshot each time, or in place;
by one client, or by 16 at once. The daemon is watched with strace, which counts what it asks the kernel for. The commit
that comes once a second is in these figures; it costs syncs of its own. strace makes the daemon slow, so that flushes
meet less often; how many rounds of syncs they took is counted once more without it, by the pool. Prints a table, and a
line of JSON.
"""

import argparse
import collections
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

BLOCK = 65536
WRITERS = 16
SIZE = 512 << 20
HERE = os.path.dirname(os.path.abspath(__file__))
CALLS = "fdatasync,fsync,sync_file_range,pwrite64,pwritev,pwritev2,write"
# 1234 fdatasync(7</var/tmp/pool/data>) = 0, and its second half when another thread came in between.
CALL = re.compile(r"(\w+)\((\d+)<([^>]+)>.*?(?:= (\d+)|<unfinished)")
RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>.*= (\d+)")


class Daemon:
    """thinctl serve under strace."""

    def __init__(self, thinctl, pool, scratch):
        self.pool, self.socket = pool, os.path.join(scratch, "nbd.sock")
        self.trace = os.path.join(scratch, "trace")
        command = [thinctl, "serve", pool, "--nbd", "unix:" + self.socket]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if not self.process.stdout.readline().startswith("ready:"):
            sys.exit("the daemon ended")

    def write(self, volume, writers, each):
        """Each writer goes from block to block with a write and a flush; the client is fio."""
        # At least so much lies between the writers.
        share = max(each, 64) * BLOCK
        subprocess.run(
            ["fio", "--name=flush", "--ioengine=nbd", f"--uri=nbd+unix:///{volume}?socket={self.socket}", "--rw=write",
             "--bs=4k", "--zonemode=strided", "--zonesize=4k", f"--zonerange={BLOCK}", "--fsync=1", "--thread",
             f"--numjobs={writers}", f"--size={share}", f"--offset_increment={share}", f"--io_size={each * 4096}"],
            check=True, stdout=subprocess.DEVNULL,
        )

    def rounds(self, thinctl):
        """How many rounds of flushes have synced the log so far."""
        info = subprocess.check_output([thinctl, "info", self.pool, "--json"])
        return json.loads(info)["flushes"]

    def watch(self, work):
        """Runs something; returns what the daemon asked the kernel for meanwhile."""
        command = ["strace", "-f", "-y", "-qq", "-e", "trace=" + CALLS, "-o", self.trace, "-p", str(self.process.pid)]
        strace = subprocess.Popen(command)
        while not os.path.exists(self.trace):
            time.sleep(0.05)
        time.sleep(0.5)
        work()
        strace.terminate()
        strace.wait()
        counted = self.count()
        os.remove(self.trace)
        return counted

    def count(self):
        syncs, written, pending = collections.Counter(), collections.Counter(), {}
        with open(self.trace) as trace:
            for line in trace:
                thread = line.split(maxsplit=1)[0]
                resumed = RESUMED.match(line)
                if resumed and thread in pending:
                    store, result = pending.pop(thread), resumed.group(3)
                    written[store] += int(result)
                    continue
                call = CALL.search(line)
                if not call:
                    continue
                name, store, result = call.group(1), os.path.basename(call.group(3)), call.group(4)
                if "sync" in name:
                    syncs[store] += 1
                elif result is not None:
                    written[store] += int(result)
                else:
                    pending[thread] = store
        return syncs, written

    def stop(self):
        self.process.terminate()
        self.process.wait()


def measure(args, kind, writers):
    scratch = tempfile.mkdtemp(prefix="thinpool-flush.", dir=args.dir)
    try:
        pool = os.path.join(scratch, "pool")
        thinctl = lambda *words: subprocess.run([args.thinctl, *words], check=True, stdout=subprocess.DEVNULL)
        thinctl("init", pool, "--size", str(4 * SIZE))
        for volume in ("watched", "alone"):
            thinctl("create", f"{pool}/{volume}", "--size", str(SIZE))
            if kind != "new":
                fill = subprocess.Popen([args.thinctl, "write", f"{pool}/{volume}"], stdin=subprocess.PIPE)
                for _ in range(SIZE // (1 << 20)):
                    fill.stdin.write(b"o" * (1 << 20))
                fill.stdin.close()
                fill.wait()
            if kind == "shared":
                thinctl("create-snap", f"{pool}/{volume}@s")
        daemon = Daemon(args.thinctl, pool, scratch)
        each = args.flushes // writers
        syncs, written = daemon.watch(lambda: daemon.write("watched", writers, each))
        before = daemon.rounds(args.thinctl)
        daemon.write("alone", writers, each)
        rounds = daemon.rounds(args.thinctl) - before
        daemon.stop()
    finally:
        shutil.rmtree(scratch)
    per = lambda counter, store: round(counter[store] / (each * writers), 3)
    return {
        "blocks": kind,
        "writers": writers,
        "flushes": each * writers,
        "syncs_of_data": per(syncs, "data"),
        "syncs_of_log": per(syncs, "log"),
        "syncs_of_metadata": per(syncs, "metadata"),
        "syncs": round(sum(syncs.values()) / (each * writers), 3),
        "metadata_bytes": per(written, "metadata"),
        "log_bytes": per(written, "log"),
        "rounds_alone": round(rounds / (each * writers), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flushes", type=int, default=1000, help="how many of each kind")
    parser.add_argument("--dir", default="/var/tmp", help="where the pools are made")
    args = parser.parse_args()
    args.thinctl = os.environ.get("THINCTL", os.path.join(HERE, "..", "target", "release", "thinctl"))
    rows = [measure(args, kind, writers) for kind in ("new", "shared", "in place") for writers in (1, WRITERS)]
    print("| blocks | writers | syncs a flush | of data | of the log | of metadata | metadata bytes | log bytes | rounds, without strace |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        print(
            f"| {row['blocks']} | {row['writers']} | {row['syncs']} | {row['syncs_of_data']} | {row['syncs_of_log']} "
            f"| {row['syncs_of_metadata']} | {row['metadata_bytes']} | {row['log_bytes']} "
            f"| {row['rounds_alone']} |"
        )
    print(json.dumps({"test": "flush", "rows": rows}))


main()
