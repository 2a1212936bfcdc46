"""The servers compared, each started and stopped the same way, and the load on them."""

import json
import os
import signal
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
THINCTL = os.environ.get("THINCTL", os.path.join(TARGET, "release", "thinctl"))
NBD_LOAD = os.environ.get("NBD_LOAD", os.path.join(TARGET, "release", "nbd-load"))

BLOCK = 65536
TICKS = os.sysconf("SC_CLK_TCK")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def load(socket, export, **options):
    """One run of the load generator; its report."""
    words = [NBD_LOAD, "--socket", socket, "--export", export]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return json.loads(run(*words))


def cpu_seconds(pid):
    """User and system time of a process with all its threads, also those that have ended."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


class Server:
    """A process that serves NBD on a unix socket."""

    name = export = None

    def __init__(self, directory, size):
        self.directory, self.size = directory, size
        self.process = None
        self.socket = os.path.join(directory, f"{type(self).__name__}-{id(self)}.sock")

    def start(self, *command):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.PIPE, text=True)
        while not self.listening():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.process.stderr.read()}")
            time.sleep(0.02)

    def listening(self):
        with open("/proc/net/unix") as sockets:
            return any(line.rstrip().endswith(" " + self.socket) for line in sockets)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate()
            self.process = None
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def renew(self, clone=False):
        """Called before each measurement."""

    def fill(self):
        """Writes the whole file through the server."""
        self.renew()
        load(self.socket, self.export, pattern="seqwrite", size=BLOCK, depth=8,
             requests=self.size // BLOCK)

    def measure(self, pattern, size, depth, connections, seconds=None, requests=None, flush=None):
        """Runs the load; adds the server's CPU time per request to the report."""
        before = cpu_seconds(self.process.pid)
        warmup = 0.3 if seconds else None
        report = load(self.socket, self.export, pattern=pattern, size=size, depth=depth,
                      connections=connections, seconds=seconds, warmup=warmup, requests=requests,
                      flush=flush)
        used = cpu_seconds(self.process.pid) - before
        if seconds:
            # The CPU clock covers the warm-up as well.
            used *= seconds / (seconds + warmup)
        # A stalled disk can keep even one request waiting for a whole short measurement.
        requests = report["requests"]
        report["cpu_us"] = used / requests * 1e6 if requests else None
        return report


class Thinpool(Server):
    name = "thinpool"
    export = "vol"

    def __init__(self, directory, size):
        super().__init__(directory, size)
        self.pool = os.path.join(directory, "pool")
        run(THINCTL, "init", self.pool, "--size", str(size * 4))
        for volume in ("vol", "base"):
            run(THINCTL, "create", f"{self.pool}/{volume}", "--size", str(size))
        self.start(THINCTL, "serve", self.pool, "--nbd", f"unix:{self.socket}")

    def fill(self):
        super().fill()
        load(self.socket, "base", pattern="seqwrite", size=BLOCK, depth=8,
             requests=self.size // BLOCK)

    def renew(self, clone=False):
        if self.export == "clone":
            run(THINCTL, "rm", f"{self.pool}/clone")
        self.export = "vol"
        if clone:
            run(THINCTL, "clone", f"{self.pool}/base", f"{self.pool}/clone")
            self.export = "clone"


class QemuRaw(Server):
    export = ""

    def __init__(self, directory, size, aio):
        super().__init__(directory, size)
        self.name = f"qemu-nbd raw {aio}"
        self.aio = aio
        self.file = os.path.join(directory, f"raw-{aio}")
        with open(self.file, "wb") as file:
            file.truncate(size)

    def renew(self, clone=False):
        if not self.process:
            self.start("qemu-nbd", "-f", "raw", "-t", "-e", "16", "-k", self.socket,
                       "--cache=writeback", f"--aio={self.aio}", "--discard=unmap", self.file)


class QemuOverlay(Server):
    """A fresh qcow2 overlay on a filled raw file, a new one for every measurement."""

    name = "qemu-nbd fresh qcow2 overlay"
    export = ""

    def __init__(self, directory, size):
        super().__init__(directory, size)
        self.base = os.path.join(directory, "base.raw")
        self.overlay = os.path.join(directory, "overlay.qcow2")

    def fill(self):
        base = QemuRaw(self.directory, self.size, "threads")
        base.file = self.base
        with open(self.base, "wb") as file:
            file.truncate(self.size)
        base.fill()
        base.stop()

    def renew(self, clone=False):
        self.stop()
        if os.path.exists(self.overlay):
            os.unlink(self.overlay)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.base, "-F", "raw", self.overlay)
        self.start("qemu-nbd", "-f", "qcow2", "-t", "-e", "16", "-k", self.socket,
                   "--cache=writeback", "--aio=io_uring", "--discard=unmap", self.overlay)


class LimitServer(Server):
    """The least a server over a file can do: what ours and the peers are measured against."""

    name = "limit"
    export = ""

    def __init__(self, directory, size):
        super().__init__(directory, size)
        file = os.path.join(directory, "limit.raw")
        with open(file, "wb") as made:
            made.truncate(size)
        self.start(NBD_LOAD, "limit-server", "--socket", self.socket, "--file", file)


class NullServer(Server):
    """Does nothing: what the load generator and the socket can do."""

    name = "(null: a server that does nothing)"
    export = ""

    def __init__(self, directory, size):
        super().__init__(directory, size)
        self.start(NBD_LOAD, "null-server", "--socket", self.socket, "--size", str(size))
