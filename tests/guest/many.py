"""Many devices of a pool at once, as block devices that are written and read.

    many.py POOL COUNT attach    makes COUNT / 2 volumes and a snapshot of each, attaches all of them
    many.py POOL COUNT check     each holds what is its own, and the links lead there
    many.py POOL COUNT detach    detaches all

What thinctl would ask goes straight to the control socket: a process costs too much in a guest.
"""

import http.client
import json
import mmap
import os
import socket
import sys

SECTOR = 4096
LINKS = "/dev/thin/pool"


class Control(http.client.HTTPConnection):
    """The daemon of a pool."""

    def __init__(self, pool):
        super().__init__("localhost")
        self.path = os.path.join(pool, "control.sock")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def call(self, what, /, **arguments):
        self.request("POST", "/v1/call", json.dumps({what: arguments}), {"content-type": "application/json"})
        answer = json.loads(self.getresponse().read().splitlines()[-1])
        if "error" in answer:
            sys.exit(f"{what} {arguments}: {answer['error']['message']}")

    def attach(self, name):
        request = {"name": name, "mount": None, "mkfs": None, "persist": False}
        self.call("attach", **request, transport="ublk", sector_size=None)


def words(text):
    """A sector, page-aligned as direct I/O wants it."""
    memory = mmap.mmap(-1, SECTOR)
    memory[: len(text)] = text.encode()
    return memory


def write(name, text):
    fd = os.open(f"{LINKS}/{name}", os.O_WRONLY | os.O_DIRECT)
    assert os.pwrite(fd, words(text), 0) == SECTOR, name
    os.close(fd)


def read(name):
    fd = os.open(f"{LINKS}/{name}", os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, SECTOR)
    assert os.preadv(fd, [memory], 0) == SECTOR, name
    os.close(fd)
    return memory[:].rstrip(b"\0").decode()


def attach(control, volumes):
    for name in volumes:
        control.call("create", name=name, size=8 << 20, origin=None)
        control.attach(name)
        write(name, f"{name} before")
    control.call("create_snapshots", names=[f"{name}@s" for name in volumes])
    for name in volumes:
        control.attach(f"{name}@s")
        write(name, f"{name} after")


def check(control, volumes):
    del control
    links = os.listdir(LINKS)
    devices = {os.readlink(f"{LINKS}/{name}") for name in links}
    assert sorted(links) == sorted(volumes + [f"{name}@s" for name in volumes]), links
    assert len(devices) == len(links), "two links lead to one device"
    for name in volumes:
        assert read(name) == f"{name} after", f"{name}: {read(name)}"
        assert read(f"{name}@s") == f"{name} before", f"{name}@s: {read(f'{name}@s')}"


def detach(control, volumes):
    for name in volumes:
        control.call("detach", target={"name": name})
        control.call("detach", target={"name": f"{name}@s"})


def main():
    pool, count, step = sys.argv[1:]
    volumes = [f"v{number}" for number in range(int(count) // 2)]
    {"attach": attach, "check": check, "detach": detach}[step](Control(pool), volumes)


main()
