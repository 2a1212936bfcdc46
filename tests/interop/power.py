"""Cuts the power under a client again and again, and loses nothing that was flushed.

    power.py SCRATCH --cuts N --seed S [--ignore-syncs FILE...] [--silent-cuts]

The pool's directory is a file system that forgets what was not synced (`volatile-fs`). At a cut the daemon is killed,
before or after, and the boot id changes, or the disk's sequence number, as if that had been taken out. Now and
then the daemon is killed and nothing else: then all that was acknowledged must be there. Syncs, writes and reads fail, and
the disk is full for a while. Run it in a mount namespace of its own. Ends with one line of JSON; status 1 if anything
was lost.
"""

import argparse
import collections
import fcntl
import json
import os
import random
import subprocess
import sys
import time

from nbd_daemon import Daemon, DaemonEnded
from power_disk import Disk, Machine
from power_volume import Lost, Snapshot, Volume

STORES = ["data", "log", "metadata"]
SNAPSHOTS_MAX = 2
# When something that must happen has not happened after so many seconds, it will not.
HANG_SECONDS = 60


def thinctl(*arguments):
    done = subprocess.run([os.environ["THINCTL"], *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise Lost(f"thinctl {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


class Run:
    """A pool, its disk, and the client's opinion of what is on it."""

    def __init__(self, options):
        self.scratch = options.scratch
        self.silent_cuts = options.silent_cuts
        self.dice = random.Random(options.seed)
        self.disk = Disk(options.scratch, options.seed)
        self.machine = Machine(options.scratch, self.disk.mountpoint)
        self.pool = self.disk.mountpoint
        thinctl("init", self.pool, "--size", "128M", "--metadata-size", "4M")
        thinctl("create", f"{self.pool}/vol", "--size", "16M")
        self.disk.tell({"ignore_syncs": options.ignore_syncs})
        self.stores = [open(os.path.join(self.pool, name), "rb") for name in ("metadata", "data")]
        self.volume = Volume(16 << 20, self.dice)
        self.snapshots = {}
        # A command that is running: (its process, what it does, the snapshot's name).
        self.command = None
        # Snapshots whose command was cut short: there or not.
        self.doubtful = set()
        # Since the last comparison.
        self.is_strict = True
        self.is_cut = False
        # Whether the disk is.
        self.is_full = False
        self.number = 0
        self.figures = collections.Counter()

    def start(self):
        self.number += 1
        self.figures["starts_without_space"] += self.is_full
        self.daemon = Daemon(self.pool, self.scratch, "power", self.number)

    def cycle(self):
        """From the start of a daemon to its end."""
        self.start()
        if self.dice.random() < 0.1:
            time.sleep(self.dice.uniform(0, 0.2))
            self.figures["struck_while_starting"] += 1
            return self.strike(self.ending())
        self.daemon.wait_ready()
        self.compare()
        self.set_full(False)
        if self.number % 10 == 0:
            self.close()
            return self.cut_when_closed()
        trouble = self.dice.choice([None] * 7 + ["sync", "write", "read", "full"])
        ending = self.ending()
        self.load(trouble)
        # Nobody knows whether the daemon was told of a failed sync; it must be, before it is killed on this boot.
        sync_failed = self.relieve(trouble)
        if sync_failed and ending == "kill":
            self.await_read_only()
        self.strike(ending)
        if sync_failed and ending == "kill":
            self.disk.tell("evict")
            self.is_strict = False

    def ending(self):
        return self.dice.choice(["reboot", "reboot", "pull", "kill"])

    def compare(self):
        """What is there, with what may be there."""
        self.handle = self.daemon.connect("vol")
        self.volume.verify(self.handle, self.is_strict, self.is_cut)
        self.is_strict, self.is_cut = True, False
        listed = {entry["name"] for entry in json.loads(thinctl("ls", self.pool, "--json"))}
        for name in sorted(self.doubtful - listed):
            del self.snapshots[name]
        self.doubtful.clear()
        if listed != {"vol", *self.snapshots}:
            raise Lost(f"there are {sorted(listed)}, and should be {sorted(self.snapshots)} and vol")
        for name, snapshot in self.snapshots.items():
            frozen = self.daemon.connect(name)
            snapshot.verify(frozen)
            frozen.shutdown()
        if self.number % 5 == 0:
            thinctl("check", self.pool)
            self.figures["checks"] += 1

    def load(self, trouble):
        """Requests for a while; in the middle of it a command, or the beginning of trouble."""
        began = time.monotonic()
        lasts = self.dice.uniform(0.02, 0.6)
        middle, end = began + self.dice.random() * lasts, began + lasts
        is_before = True
        while time.monotonic() < end:
            if not self.volume.step(self.handle):
                raise Lost("the daemon closed the connection")
            if is_before and time.monotonic() > middle:
                is_before = False
                self.begin(trouble)
            if self.command and self.command[0].poll() is not None:
                self.end_command()

    def begin(self, trouble):
        if trouble is None:
            return self.begin_command()
        self.figures[f"{trouble}_troubles"] += 1
        if trouble == "full":
            self.set_full(True)
        else:
            fault = {"operation": trouble, "file": self.dice.choice(STORES), "count": 1}
            self.disk.tell({"fail": fault})

    def set_full(self, is_full):
        self.is_full = is_full
        self.disk.tell({"full": is_full})

    def relieve(self, trouble):
        """Ends the trouble, or leaves it to the cut; whether a sync has failed."""
        left = self.disk.tell("mend").get("left")
        if trouble in ("sync", "write", "read"):
            self.figures[f"{trouble}s_failed"] += 1 - left
            return trouble == "sync" and left == 0
        if trouble == "full" and self.dice.random() < 0.5:
            self.set_full(False)
            self.drain()
        if self.volume.errors:
            raise Lost(f"requests failed: {self.volume.errors[:5]}")
        return False

    def drain(self):
        """All that waits is answered when there is space again."""
        until = time.monotonic() + HANG_SECONDS
        waiting = set(self.volume.flight)
        while waiting & set(self.volume.flight):
            if time.monotonic() > until or not self.volume.step(self.handle):
                raise Lost("writes still wait when there is space")

    def await_read_only(self):
        until = time.monotonic() + HANG_SECONDS
        while json.loads(thinctl("info", self.pool, "--json"))["mode"] != "read_only":
            if time.monotonic() > until:
                raise Lost("a sync failed, and the pool is not read only")
            self.volume.step(self.handle)

    def begin_command(self):
        if len(self.snapshots) < SNAPSHOTS_MAX or self.dice.random() < 0.3:
            what, name = "create-snap", f"vol@s{self.number}"
            self.snapshots[name] = Snapshot(self.volume)
        else:
            what, name = "rm", self.dice.choice(sorted(self.snapshots))
        command = [os.environ["THINCTL"], what, f"{self.pool}/{name}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.command = (process, what, name)

    def end_command(self):
        """It has ended by itself."""
        process, what, name = self.command
        self.command = self.volume.snapshot = None
        said = process.stdout.read()
        process.stdout.close()
        if process.wait() != 0:
            raise Lost(f"{what} {name}: {said}")
        self.figures["commands"] += 1
        if what == "rm":
            del self.snapshots[name]

    def strike(self, ending):
        """The daemon ends, and the power, in either order."""
        is_cut = ending != "kill"
        is_cut_first = is_cut and self.dice.random() < 0.5
        if is_cut_first:
            self.cut()
        self.daemon.kill()
        self.interrupt_command()
        if is_cut and not is_cut_first:
            self.cut()
        self.await_unlocked()
        if self.volume.flight:
            self.volume.drain(self.handle)
        if ending == "reboot" and not self.silent_cuts:
            self.machine.reboot()
        if ending == "pull" and not self.silent_cuts:
            self.machine.pull()
        self.disk.tell("power_on")
        # The next daemon has no space either.
        self.disk.tell({"full": self.is_full})
        self.is_strict &= not is_cut
        self.is_cut = is_cut
        self.figures[ending] += 1

    def cut_when_closed(self):
        """Closing has made everything durable."""
        self.cut()
        self.machine.reboot()
        self.disk.tell("power_on")
        self.is_cut = True
        self.figures["cut_when_closed"] += 1

    def cut(self):
        left = self.disk.tell("cut")
        self.figures["cuts"] += 1
        self.figures["unsynced_sectors"] += left["unsynced_sectors"]
        self.figures["kept_sectors"] += left["kept_sectors"]

    def interrupt_command(self):
        """It goes with the machine; whether it was done is seen later."""
        if not self.command:
            return
        process, what, name = self.command
        process.kill()
        process.stdout.close()
        self.command = self.volume.snapshot = None
        if process.wait() != 0:
            self.figures["commands_interrupted"] += 1
            self.doubtful.add(name)
        elif what == "rm":
            del self.snapshots[name]

    def await_unlocked(self):
        """A killed daemon may have requests in the kernel, which hold its locks: nothing of it lands later."""
        for store in self.stores:
            fcntl.flock(store, fcntl.LOCK_EX)
            fcntl.flock(store, fcntl.LOCK_UN)

    def finish(self):
        self.start()
        self.daemon.wait_ready()
        self.compare()
        self.close()

    def close(self):
        """Closes the pool, which two programs then check."""
        self.handle.shutdown()
        self.daemon.stop()
        thinctl("check", self.pool)
        subprocess.run(["thin_check", "-q", os.path.join(self.pool, "metadata")], check=True)
        self.figures["closed_and_checked"] += 1


def report(run, seconds, lost):
    figures = run.figures
    unsynced = figures["unsynced_sectors"]
    volume = run.volume
    return {
        "name": "E3 power cuts",
        "seconds": round(seconds),
        **{name: figures[name] for name in sorted(figures) if name != "kept_sectors"},
        "kept_percent": round(100 * figures["kept_sectors"] / max(unsynced, 1)),
        "acknowledged": volume.acknowledged,
        "flushed_writes": len(volume.flushed),
        "sectors_compared": volume.compared,
        "lost": lost,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch")
    parser.add_argument("--cuts", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    # Two ways to see it fail: files that are not synced, and cuts that nothing tells the daemon of.
    parser.add_argument("--ignore-syncs", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--silent-cuts", action="store_true")
    options = parser.parse_args()
    print(f"SEED={options.seed}", flush=True)
    began = time.monotonic()
    run = Run(options)
    lost = 0
    try:
        while run.figures["cuts"] < options.cuts:
            run.cycle()
        run.finish()
    except (Lost, DaemonEnded) as loss:
        lost = 1
        print(f"daemon {run.number}: {loss}", file=sys.stderr)
    print(json.dumps(report(run, time.monotonic() - began, lost)))
    if lost:
        run.daemon.kill()
        sys.exit(1)
    for store in run.stores:
        store.close()
    run.disk.end()


main()
