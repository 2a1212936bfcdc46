"""How long snapshots and clones take, and how long they keep a writer waiting, with 64 GiB mapped.

The pool is adopted: its metadata is made by `thinctl restore` from a description of a volume with that many mapped blocks,
its data file is sparse. Beside it, what a copy of a file by reflink takes, and a new qcow2 overlay.
"""

import http.client
import json
import os
import shutil
import signal
import socket as sockets
import subprocess
import threading
import time

import peers
from servers import BLOCK, THINCTL, load, run

MAPPED = (64 << 30) // BLOCK
MANY = 10000
REPEATS = 50
STALL_REPEATS = 5
STALL_SECONDS = 1
PEER_BYTES = 1 << 30


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

    def snapshot(self, name):
        return self.milliseconds({"create_snapshots": {"names": [name]}})

    def clone(self, snapshot, name):
        return self.milliseconds({"clone": {"source": snapshot, "name": name}})


def make_pool(directory, mappings):
    """Returns the pool's path."""
    xml, store, data = (os.path.join(directory, name) for name in ("xml", "metadata", "data"))
    describe(xml, mappings)
    with open(data, "wb") as file:
        file.truncate(mappings * 2 * BLOCK)
    run(THINCTL, "restore", xml, "--to", store, "--metadata-size", str(max(256 << 20, mappings * 256)))
    pool = os.path.join(directory, "pool")
    run(THINCTL, "adopt", pool, "--metadata", store, "--data", data,
        "--volume", f"0:big:{mappings * BLOCK}")
    return pool


def measure(parent, say):
    """{what was there: {what was done: [milliseconds]}}"""
    directory = os.path.join(parent, "snapshots")
    os.mkdir(directory)
    pool, socket = make_pool(directory, MAPPED), os.path.join(directory, "nbd.sock")
    daemon = subprocess.Popen([THINCTL, "serve", pool, "--nbd", f"unix:{socket}"],
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        if not daemon.stdout.readline().startswith("ready:"):
            raise RuntimeError("the daemon did not get ready")
        found = measure_ours(pool, socket, say)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
    shutil.rmtree(directory)
    found.update(measure_peers(parent, say))
    return found


def measure_ours(pool, socket, say):
    control = Control(pool)
    found = {"64 GiB mapped": measure_once(control, socket, "few")}
    say(f"making {MANY:,} snapshots")
    for number in range(MANY):
        control.snapshot(f"big@{number}")
    found[f"64 GiB mapped, {MANY:,} snapshots"] = measure_once(control, socket, "many")
    return found


def measure_once(control, socket, prefix):
    found = {"snapshot": [], "clone": [], "stall": [], "wait without snapshots": []}
    for number in range(REPEATS):
        snapshot = f"big@{prefix}{number}"
        found["snapshot"].append(control.snapshot(snapshot))
        found["clone"].append(control.clone(snapshot, f"{prefix}{number}"))
    for number in range(STALL_REPEATS):
        found["wait without snapshots"].append(longest_wait(socket))
        done = threading.Event()
        maker = threading.Thread(target=make_snapshots, args=(control, f"big@{prefix}stall{number}", done))
        maker.start()
        found["stall"].append(longest_wait(socket))
        done.set()
        maker.join()
    return found


def make_snapshots(control, prefix, done):
    number = 0
    while not done.wait(0.05):
        control.snapshot(f"{prefix}-{number}")
        number += 1


def longest_wait(socket):
    """Of a writer of single requests, in milliseconds."""
    report = load(socket, "big", pattern="randwrite", span=64 << 20, seconds=STALL_SECONDS)
    return report["max_ns"] / 1e6


def measure_peers(parent, say):
    found, servers, directory = {}, [], os.path.join(parent, "peers")
    os.mkdir(directory)
    try:
        peers.assemble(directory, PEER_BYTES, servers, say, wanted=(peers.XFS, peers.BTRFS))
        for server in servers:
            found[f"{server.name}, 1 GiB"] = {"clone": [timed(reflink, server) for _ in range(REPEATS)]}
    finally:
        for server in servers:
            server.close()
    if shutil.which("qemu-img"):
        found["qcow2 overlay, a whole process"] = {"clone": [timed(overlay, directory) for _ in range(REPEATS)]}
    return found


def reflink(server):
    server.copy()
    run("sync", "-f", server.clone)


def overlay(directory):
    base, path = os.path.join(directory, "overlaid"), os.path.join(directory, "timed.qcow2")
    run("truncate", "-s", str(PEER_BYTES), base)
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)


def timed(work, *arguments):
    began = time.perf_counter()
    work(*arguments)
    return (time.perf_counter() - began) * 1000
