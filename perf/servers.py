"""The servers compared, each started and stopped the same way, and the load on them."""

import json
import os
import signal
import socket as sockets
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "target"))
THINCTL = os.environ.get("THINCTL", os.path.join(TARGET, "release", "thinctl"))
NBD_LOAD = os.environ.get("NBD_LOAD", os.path.join(os.path.dirname(THINCTL), "nbd-load"))

BLOCK = 65536
CONNECTIONS = 33  # that the peers are told to take
TICKS = os.sysconf("SC_CLK_TCK")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def load(socket, export, **options):
    """One run of the load generator; its report."""
    words = [NBD_LOAD, "--socket", socket, "--export", export]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return json.loads(run(*words))


def cpu_seconds(pid):
    """User and system time of a process, its threads and the children it has waited for, also those that ended."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    children = (int(fields[13]) + int(fields[14])) / TICKS
    # The process's CPU clock, as clock_getcpuclockid(3) would say: /proc counts in hundredths of a second.
    return time.clock_gettime(~pid << 3 | 2) + children


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as listed:
        return listed.read().split()


def is_zombie(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rsplit(")", 1)[1].split()[0] == "Z"


def resident_bytes(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def make_file(path, size):
    """A file without a block of its own, unless it is there."""
    with open(path, "ab") as file:
        file.truncate(size)


class Server:
    """A process that serves NBD on a unix socket.

    `kinds` says in which workloads it takes part: "in place" on a file that was written completely, "clone" on a
    fresh clone of one, "unmapped" where nothing was ever written, "deep" behind a thousand snapshots.
    """

    kinds = ("in place",)
    export = ""
    structured = "yes"  # replies, as libnbd and qemu negotiate them

    def __init__(self, name, directory, size):
        self.name, self.directory, self.size = name, directory, size
        self.process = self.pid = None
        self.socket = os.path.join(directory, name.replace(" ", "-") + ".sock")

    def renew(self, kind):
        """Serves what a measurement of this kind is made on. The file in place is written with the first."""
        raise NotImplementedError

    def start(self, *command, **options):
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options)
        self.pid = self.process.pid
        while not self.listening():
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended: {self.process.stderr.read()}")
            time.sleep(0.01)

    def listening(self):
        with open("/proc/net/unix") as listed:
            return any(line.rstrip().endswith(" " + self.socket) for line in listed)

    def stop(self):
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate()
            self.process = self.pid = None
        if os.path.exists(self.socket):
            os.unlink(self.socket)

    def close(self):
        """Undoes what stopping leaves."""
        self.stop()

    def fill(self, export=None):
        """Writes the whole file through the server, so that the page cache looks as it makes it look."""
        load(self.socket, self.export if export is None else export, pattern="seqwrite", size=BLOCK, depth=8,
             requests=self.size // BLOCK, structured=self.structured)

    def warm(self):
        """Reads everything once: the page cache may have lost it, to others or to a host that wants memory."""
        load(self.socket, self.export, pattern="seqread", size=BLOCK, depth=8, requests=self.size // BLOCK,
             structured=self.structured)

    def measure(self, seconds=None, **options):
        """Runs the load; adds the server's CPU time per request to the report."""
        before = cpu_seconds(self.pid)
        warmup = 0.3 if seconds else None
        report = load(self.socket, self.export, seconds=seconds, warmup=warmup, structured=self.structured,
                      **options)
        while children(self.pid):
            time.sleep(0.005)
        used = cpu_seconds(self.pid) - before
        if seconds:
            # The CPU clock covers the warm-up as well.
            used *= seconds / (seconds + warmup)
        # A stalled disk can keep even one request waiting for a whole short measurement.
        requests = report["requests"]
        report["cpu_us"] = used / requests * 1e6 if requests else None
        return report


class Thinpool(Server):
    kinds = ("in place", "clone", "unmapped", "deep")
    export = "vol"
    DEPTH = 1000

    def __init__(self, directory, size):
        super().__init__("thinpool", directory, size)
        self.pool = os.path.join(directory, "pool")
        self.deep = None

    def renew(self, kind):
        if not self.process:
            self.make()
        if self.export == "clone":
            run(THINCTL, "rm", f"{self.pool}/clone")
        if kind == "clone":
            run(THINCTL, "clone", f"{self.pool}/base", f"{self.pool}/clone")
        if kind == "deep" and not self.deep:
            self.deep = self.make_deep()
        self.export = {"in place": "vol", "clone": "clone", "unmapped": "empty", "deep": self.deep}[kind]

    def make(self):
        run(THINCTL, "init", self.pool, "--size", str(self.size * 6))
        for volume in ("vol", "base", "empty"):
            run(THINCTL, "create", f"{self.pool}/{volume}", "--size", str(self.size))
        self.process = subprocess.Popen([THINCTL, "serve", self.pool, "--nbd", f"unix:{self.socket}"],
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.pid = self.process.pid
        if not self.process.stdout.readline().startswith("ready:"):
            raise RuntimeError("thinpool did not get ready")
        self.fill("vol")
        self.fill("base")

    def make_deep(self):
        """A clone of a clone of a clone ..., each with a few blocks of its own; returns the last."""
        previous = "base"
        for level in range(self.DEPTH):
            clone = f"deep{level}"
            run(THINCTL, "clone", f"{self.pool}/{previous}", f"{self.pool}/{clone}")
            load(self.socket, clone, pattern="randwrite", requests=4, depth=4, seed=level + 1)
            previous = clone
        return previous


class RawFile(Server):
    """A server of the one raw file that all such servers take turns on."""

    def __init__(self, name, directory, size, *command, **options):
        super().__init__(name, directory, size)
        self.command, self.options = command, options
        self.file = os.path.join(directory, "raw")

    def renew(self, kind):
        self.stop()
        new = not os.path.exists(self.file)
        make_file(self.file, self.size)
        words = (word.format(socket=self.socket, file=self.file, size=self.size) for word in self.command)
        self.start(*words, **self.options)
        if new:
            self.fill()


def limit_server(name, directory, size):
    """The least a server over a file can do: what ours and the peers are measured against."""
    return RawFile(name, directory, size, NBD_LOAD, "limit-server", "--socket", "{socket}", "--file", "{file}")


def null_server(name, directory, size):
    """Does nothing: what the load generator and the socket can do."""
    return RawFile(name, directory, size, NBD_LOAD, "null-server", "--socket", "{socket}", "--size", "{size}")


def qemu_raw(name, directory, size, aio):
    return RawFile(name, directory, size, "qemu-nbd", "-f", "raw", "-t", "-e", str(CONNECTIONS), "-k", "{socket}",
                   "--cache=writeback", f"--aio={aio}", "--discard=unmap", "{file}")


def nbdkit_file(name, directory, size):
    return RawFile(name, directory, size, "nbdkit", "-f", "-U", "{socket}", "file", "{file}")


def fill_base(directory, size):
    """The raw file below clones: written once, as the limit server writes."""
    base = os.path.join(directory, "base.raw")
    if not os.path.exists(base):
        server = limit_server("base", directory, size)
        server.file = base
        server.renew("in place")
        server.stop()
    return base


class NbdkitCow(RawFile):
    """Its overlay is a temporary file, its flush does not wait for the disk: no durable clone."""

    kinds = ("clone",)

    def __init__(self, name, directory, size):
        super().__init__(name, directory, size, "nbdkit", "-f", "-U", "{socket}", "--filter=cow", "file", "{file}",
                         env={**os.environ, "TMPDIR": directory})

    def renew(self, kind):
        self.file = fill_base(self.directory, self.size)
        super().renew(kind)


class NbdServer(RawFile):
    """nbd-server forks for every connection. With copyonwrite each has a map in memory and a file of its own that
    it deletes in the end: no durable clone, and 32 writers see 32 disks."""

    export = "export"
    structured = "no"

    def __init__(self, name, directory, size, copy_on_write):
        super().__init__(name, directory, size)
        self.copy_on_write = copy_on_write
        if copy_on_write:
            self.kinds = ("clone",)

    def renew(self, kind):
        if self.copy_on_write:
            self.file = fill_base(self.directory, self.size)
        super().renew(kind)

    def start(self, *_command, **_options):
        """It goes into the background, listens on TCP as well, and tells its process only in a file."""
        config, pid_file = self.socket + ".conf", self.socket + ".pid"
        with sockets.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        with open(config, "w") as out:
            out.write(f"[generic]\nunixsock = {self.socket}\nlistenaddr = 127.0.0.1\nport = {port}\n"
                      f"[export]\nexportname = {self.file}\nflush = true\n"
                      f"copyonwrite = {str(self.copy_on_write).lower()}\n")
        subprocess.run(["nbd-server", "-C", config, "-p", pid_file], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        for _ in range(500):
            if self.listening() and os.path.exists(pid_file) and os.path.getsize(pid_file):
                break
            time.sleep(0.01)
        else:
            raise RuntimeError(f"{self.name} does not listen")
        with open(pid_file) as file:
            self.pid = int(file.read())
        os.unlink(pid_file)

    def stop(self):
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            while os.path.exists(f"/proc/{self.pid}") and not is_zombie(self.pid):
                time.sleep(0.01)
            self.pid = None
        super().stop()


class Qcow2(Server):
    """In place: an overlay in which everything was written. Clone: a new overlay for every measurement."""

    kinds = ("in place", "clone")

    def __init__(self, name, directory, size, aio, format_options):
        super().__init__(name, directory, size)
        self.aio, self.format_options = aio, format_options
        # Overlays of one format are the same, whoever serves them.
        self.written = os.path.join(directory, f"written-{format_options.replace(',', '-')}.qcow2")
        self.fresh = os.path.join(directory, "fresh.qcow2")

    def renew(self, kind):
        self.stop()
        new = kind == "clone" or not os.path.exists(self.written)
        overlay = self.fresh if kind == "clone" else self.written
        if new:
            base = fill_base(self.directory, self.size)
            run("qemu-img", "create", "-q", "-f", "qcow2", "-o", self.format_options, "-b", base, "-F", "raw", overlay)
        self.start("qemu-nbd", "-f", "qcow2", "-t", "-e", str(CONNECTIONS), "-k", self.socket, "--cache=writeback",
                   f"--aio={self.aio}", "--discard=unmap", overlay)
        if new and kind == "in place":
            self.fill()


class Reflink(Server):
    """The limit server over a reflinked copy of a file, on a file system of its own on a loop device."""

    kinds = ("clone",)

    def __init__(self, name, directory, size, *mkfs):
        super().__init__(name, directory, size)
        self.mkfs = mkfs
        self.image, self.mount = (os.path.join(directory, f"{name}.{what}") for what in ("image", "mount"))
        self.base, self.clone = os.path.join(self.mount, "base"), os.path.join(self.mount, "clone")

    def make(self):
        make_file(self.image, 4 * self.size + (1 << 30))
        run(*self.mkfs, self.image)
        os.mkdir(self.mount)
        run("mount", "-o", "loop", self.image, self.mount)
        make_file(self.base, self.size)
        self.serve(self.base)
        self.fill()
        self.stop()
        run("sync", "-f", self.mount)

    def serve(self, file):
        self.start(NBD_LOAD, "limit-server", "--socket", self.socket, "--file", file)

    def copy(self):
        run("cp", "--reflink=always", self.base, self.clone)

    def renew(self, kind):
        self.stop()
        if not os.path.ismount(self.mount):
            self.make()
        self.copy()
        self.serve(self.clone)

    def close(self):
        self.stop()
        if os.path.ismount(self.mount):
            run("umount", self.mount)
