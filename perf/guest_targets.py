"""What is measured in the guest: each target brings a block device, and takes it away."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time

from guest_io import BLOCK, run
from snapshots import Control

THINCTL = os.environ.get("THINCTL", "thinctl")
RUBLK = os.environ.get("RUBLK", "rublk")
STORE = "/run/perf"
MIB = 1 << 20
METADATA_SIZE = 64 * MIB
DATA_SIZE = 1024 * MIB


def brd(number):
    """Memory disks: /dev/ram0, for data, and /dev/ram1, for metadata."""
    run("modprobe", "brd", f"rd_nr={number}", f"rd_size={DATA_SIZE // 1024}")


class Target:
    """Entered, it is there; left, nothing remains of it."""

    name = None
    keeps_data = True
    is_thin = False

    def __enter__(self):
        self.stack = contextlib.ExitStack()
        with self.stack:
            self.start()
            # Only what has started is stopped by __exit__.
            self.stack = self.stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def later(self, *command):
        self.stack.callback(run, *command)

    def memory_files(self):
        os.mkdir(STORE)
        self.later("rmdir", STORE)
        run("mount", "-t", "tmpfs", "-o", "size=3G", "perf", STORE)
        self.later("umount", STORE)

    def brd(self, number):
        brd(number)
        self.later("rmmod", "brd")

    def start(self):
        raise NotImplementedError

    def mapped(self, size):
        """A device that is to be filled and measured."""
        raise NotImplementedError

    def drop(self):
        """The last device of `mapped` or `fresh` is no longer needed."""


class Brd(Target):
    name = "brd"

    def start(self):
        self.brd(1)

    def mapped(self, size):
        return "/dev/ram0"


class NullBlk(Target):
    name = "null_blk"
    keeps_data = False

    def start(self):
        run("modprobe", "null_blk", "nr_devices=1")
        self.later("rmmod", "null_blk")

    def mapped(self, size):
        return "/dev/nullb0"


class Rublk(Target):
    def add(self, *words):
        said = run(RUBLK, "add", *words)
        number = re.search(r"dev id (\d+)", said).group(1)
        self.later(RUBLK, "del", "-n", number)
        return f"/dev/ublkb{number}"

    def start(self):
        run("modprobe", "ublk_drv")
        self.memory_files()


class RublkNull(Rublk):
    name = "rublk null"
    keeps_data = False

    def mapped(self, size):
        return self.add("null")


class RublkLoop(Rublk):
    name = "rublk loop"

    def mapped(self, size):
        file = os.path.join(STORE, "file")
        with open(file, "wb") as made:
            made.truncate(size)
        self.later("rm", file)
        return self.add("loop", "--buffered-io", "--async-await", "--file", file)


class Nbdkit(Target):
    name = "nbdkit memory"

    def start(self):
        self.memory_files()

    def mapped(self, size):
        socket = os.path.join(STORE, "socket")
        run("modprobe", "nbd")
        server = subprocess.Popen(["nbdkit", "--foreground", "--unix", socket, "memory", str(size)])
        self.stack.callback(server.wait)
        self.stack.callback(server.terminate)
        self.later("rm", "-f", socket)
        while not os.path.exists(socket):
            time.sleep(0.05)
        run("nbd-client", "-unix", socket, "/dev/nbd0", "-block-size", "4096")
        self.later("nbd-client", "-d", "/dev/nbd0")
        return "/dev/nbd0"


class Ioctl:
    """Messages to device-mapper without the cost of a process: struct dm_ioctl of linux/dm-ioctl.h."""

    HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7s")
    SUSPEND, TARGET_MESSAGE = 6, 14
    SUSPEND_FLAG = 1 << 1
    SIZE = 1024

    def __init__(self):
        self.control = open("/dev/mapper/control", "rb", buffering=0)

    def call(self, command, name, flags=0, payload=b""):
        header = self.HEADER.pack(4, 0, 0, self.SIZE, self.HEADER.size, 1, 0, flags, 0, 0, 0,
                                  name.encode(), b"", b"")
        request = bytearray((header + payload).ljust(self.SIZE, b"\0"))
        # _IOWR(0xfd, command, struct dm_ioctl)
        fcntl.ioctl(self.control, 3 << 30 | self.HEADER.size << 16 | 0xfd << 8 | command, request)

    def message(self, name, text):
        self.call(self.TARGET_MESSAGE, name, payload=struct.pack("=Q", 0) + text.encode() + b"\0")

    def suspend(self, name):
        self.call(self.SUSPEND, name, self.SUSPEND_FLAG)

    def resume(self, name):
        self.call(self.SUSPEND, name)


class DmThin(Target):
    name = "dm-thin"
    is_thin = True

    def start(self):
        self.brd(2)
        run("modprobe", "dm-thin-pool")
        run("dd", "if=/dev/zero", "of=/dev/ram1", "bs=4096", "count=1")
        sectors = DATA_SIZE // 512
        # Zeroing on, as is the default.
        run("dmsetup", "create", "pool", "--table",
            f"0 {sectors} thin-pool /dev/ram1 /dev/ram0 {BLOCK // 512} 0")
        self.later("dmsetup", "remove", "--retry", "pool")
        self.ioctl = Ioctl()
        self.stack.callback(self.ioctl.control.close)
        self.next = 0

    def mapped(self, size):
        return self.fresh(size)

    def fresh(self, size):
        self.id = self.new_id()
        self.ioctl.message("pool", f"create_thin {self.id}")
        run("dmsetup", "create", "thin", "--table", f"0 {size // 512} thin /dev/mapper/pool {self.id}")
        return "/dev/mapper/thin"

    def new_id(self):
        self.next += 1
        return self.next

    def drop(self):
        run("dmsetup", "remove", "--retry", "thin")
        self.ioctl.message("pool", f"delete {self.id}")

    def share(self):
        self.take(self.new_id())

    def take(self, number):
        self.ioctl.suspend("thin")
        self.ioctl.message("pool", f"create_snap {number} {self.id}")
        self.ioctl.resume("thin")

    def operations(self):
        self.fresh(DATA_SIZE)
        self.stack.callback(run, "dmsetup", "remove", "--retry", "thin")
        return {
            "create a volume": lambda number: self.ioctl.message("pool", f"create_thin {1000 + number}"),
            "snapshot of a device in use": lambda number: self.take(2000 + number),
        }


class Thinpool(Target):
    is_thin = True

    def __init__(self, stores):
        self.stores = stores
        self.name = f"thinpool, {stores}"

    def start(self):
        run("modprobe", "ublk_drv")
        self.memory_files()
        self.pool = os.path.join(STORE, "pool")
        self.stack.callback(shutil.rmtree, self.pool)
        run(THINCTL, "init", self.pool, *self.places())
        daemon = subprocess.Popen([THINCTL, "serve", self.pool], stdout=subprocess.PIPE, text=True)
        self.stack.callback(self.stop, daemon)
        if not daemon.stdout.readline().startswith("ready:"):
            raise RuntimeError("the daemon did not get ready")
        self.control = Control(self.pool)

    def places(self):
        if self.stores == "brd":
            self.brd(2)
            return ["--metadata", "/dev/ram1", "--data", "/dev/ram0"]
        return ["--size", str(DATA_SIZE)]

    @staticmethod
    def stop(daemon):
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()

    def mapped(self, size):
        return self.fresh(size)

    def fresh(self, size):
        run(THINCTL, "create", f"{self.pool}/vol", "--size", str(size))
        return json.loads(run(THINCTL, "attach", f"{self.pool}/vol", "--ublk", "--json"))["device"]

    def drop(self):
        run(THINCTL, "detach", f"{self.pool}/vol")
        run(THINCTL, "rm", f"{self.pool}/vol")

    def share(self):
        run(THINCTL, "create-snap", f"{self.pool}/vol@shared")

    def operations(self):
        self.fresh(DATA_SIZE)
        self.stack.callback(run, THINCTL, "detach", f"{self.pool}/vol")

        def snapshot(number):
            self.control.milliseconds({"create_snapshots": {"names": [f"vol@{number}"]}})

        def create(number):
            self.control.milliseconds({"create": {"name": f"new{number}", "size": DATA_SIZE}})

        return {"create a volume": create, "snapshot of a device in use": snapshot}
