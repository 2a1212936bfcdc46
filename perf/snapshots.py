"""Snapshot and clone times, and the daemon's memory, with many mappings.

The pool is adopted: its metadata is made by thin_restore from a description of a volume with
that many mapped blocks, its data file is sparse. Nothing is written to the blocks, which the
work measured never touches.
"""

import http.client
import json
import os
import shutil
import signal
import socket as sockets
import subprocess
import time

from servers import BLOCK, THINCTL, resident_bytes, run

REPEATS = 50
IDLE_VOLUMES = 100


def describe(path, mappings):
    """A volume whose blocks lie scattered: neighbours on it are no neighbours below."""
    stride = 7919
    with open(path, "w") as out:
        out.write(f'<superblock uuid="" time="0" transaction="0" version="2" '
                  f'data_block_size="128" nr_data_blocks="{mappings * 2}">\n'
                  f'<device dev_id="0" mapped_blocks="{mappings}" transaction="0" '
                  f'creation_time="0" snap_time="0">\n')
        for block in range(mappings):
            out.write(f'<single_mapping origin_block="{block}" '
                      f'data_block="{block * stride % mappings}" time="0"/>\n')
        out.write("</device>\n</superblock>\n")


class Control(http.client.HTTPConnection):
    """The daemon's control socket."""

    def __init__(self, pool):
        super().__init__("daemon")
        self.path = os.path.join(pool, "control.sock")

    def connect(self):
        self.sock = sockets.socket(sockets.AF_UNIX)
        self.sock.connect(self.path)

    def milliseconds(self, call):
        """How long the daemon takes for a call, the reply included."""
        began = time.perf_counter()
        self.request("POST", "/v1/call", json.dumps(call), {"content-type": "application/json"})
        reply = self.getresponse().read().decode()
        took = (time.perf_counter() - began) * 1000
        if '"reply"' not in reply:
            raise RuntimeError(f"{call}: {reply}")
        return took


def milliseconds(*command):
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - began) * 1000


def make_pool(directory, mappings):
    """Returns the pool's path."""
    xml, store, data = (os.path.join(directory, name) for name in ("xml", "metadata", "data"))
    describe(xml, mappings)
    for path, size in ((store, max(64 << 20, mappings * 64)), (data, mappings * 2 * BLOCK)):
        with open(path, "wb") as file:
            file.truncate(size)
    run("thin_restore", "-q", "-i", xml, "-o", store)
    pool = os.path.join(directory, "pool")
    run(THINCTL, "adopt", pool, "--metadata", store, "--data", data,
        "--volume", f"0:big:{mappings * BLOCK}")
    return pool


def measure(parent, mappings):
    directory = os.path.join(parent, f"mappings-{mappings}")
    os.mkdir(directory)
    pool = make_pool(directory, mappings)
    socket = os.path.join(directory, "nbd.sock")
    daemon = subprocess.Popen([THINCTL, "serve", pool, "--nbd", f"unix:{socket}"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        if not daemon.stdout.readline().startswith("ready:"):
            raise RuntimeError("the daemon did not get ready")
        return measure_served(pool, socket, daemon.pid)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        shutil.rmtree(directory, ignore_errors=True)


def measure_served(pool, socket, pid):
    found = {"rss_opened": resident_bytes(pid)}
    for number in range(IDLE_VOLUMES):
        run(THINCTL, "create", f"{pool}/idle{number}", "--size", "1G")
    found["rss_idle"] = resident_bytes(pid)
    run("nbdinfo", "--map", "--totals", f"nbd+unix:///big?socket={socket}")
    found["rss_listed"] = resident_bytes(pid)
    found["info"] = [milliseconds(THINCTL, "info", f"{pool}/big") for _ in range(REPEATS)]
    found["create-snap"], found["clone"] = [], []
    for number in range(REPEATS):
        found["create-snap"].append(milliseconds(THINCTL, "create-snap", f"{pool}/big@s{number}"))
        found["clone"].append(milliseconds(THINCTL, "clone", f"{pool}/big@s{number}",
                                           f"{pool}/clone{number}"))
    control = Control(pool)
    found["create-snap call"], found["clone call"] = [], []
    for number in range(REPEATS):
        snapshot, clone = f"big@t{number}", f"twin{number}"
        found["create-snap call"].append(
            control.milliseconds({"create_snapshots": {"names": [snapshot]}}))
        found["clone call"].append(
            control.milliseconds({"clone": {"source": snapshot, "name": clone}}))
    found["rss_end"] = resident_bytes(pid)
    return found
