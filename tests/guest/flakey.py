"""A client of a volume whose stores fail. Called by flakey.sh.

    flakey.py STATE URI flushed|faulty|healed|snapshot

Pages of 4 KiB carry the number of the write that wrote them and their own. STATE keeps what each may hold.
"""

import json
import os
import random
import struct
import sys

import nbd

PAGE = 4096
PAGES = (96 << 20) // PAGE


def content(serial, page):
    return struct.pack("<QQ", serial, page) * (PAGE // 16) if serial else bytes(PAGE)


def serial_of(data, page):
    serial, _ = struct.unpack_from("<QQ", data)
    return serial if data == content(serial, page) else None


class Volume:
    def __init__(self, path, uri):
        self.path = path
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        # Of each page that was ever written: the writes that it may hold, the failed ones negative, and what the
        # snapshot holds.
        self.state = {"serial": 0, "allowed": {}, "snapshot": {}}
        if os.path.exists(path):
            with open(path) as saved:
                self.state = json.load(saved)

    def save(self):
        with open(self.path, "w") as out:
            json.dump(self.state, out)

    def write(self, page):
        """Whether it succeeded. Until it is flushed the page may hold what it held before: the store may fail."""
        self.state["serial"] += 1
        serial = self.state["serial"]
        allowed = self.state["allowed"].setdefault(str(page), [0])
        try:
            self.handle.pwrite(content(serial, page), page * PAGE)
        except nbd.Error:
            allowed.append(-serial)
            return False
        allowed.append(serial)
        return True

    def flush(self):
        self.handle.flush()
        for key, allowed in self.state["allowed"].items():
            last = max(number for number, serial in enumerate(allowed) if serial >= 0)
            self.state["allowed"][key] = allowed[last:]

    def check(self, pages, may_fail):
        """Reads pages; returns how many could not be read."""
        failed = 0
        for key in pages:
            page = int(key)
            try:
                data = self.handle.pread(PAGE, page * PAGE)
            except nbd.Error:
                assert may_fail, page
                failed += 1
                continue
            found = serial_of(data, page)
            allowed = self.state["allowed"][key]
            assert found in map(abs, allowed), (page, found, allowed)
        return failed


def main():
    path, uri, what = sys.argv[1:]
    volume = Volume(path, uri)
    draw = random.Random(7)
    pages = draw.sample(range(PAGES), 400)
    if what == "flushed":
        for page in pages:
            assert volume.write(page)
        volume.flush()
        volume.state["snapshot"] = {key: allowed[-1] for key, allowed in volume.state["allowed"].items()}
    elif what == "faulty":
        unread = volume.check(map(str, pages), True)
        refused = sum(not volume.write(page) for page in pages[:100] + draw.sample(range(PAGES), 100))
        try:
            volume.flush()
            flush = "succeeded"
        except nbd.Error as error:
            flush = str(error)
        unread += volume.check(list(volume.state["allowed"]), True)
        print(f"reads that failed: {unread}, writes that failed: {refused}, flush: {flush}")
    elif what == "healed":
        assert volume.check(list(volume.state["allowed"]), False) == 0
    elif what == "snapshot":
        for key, serial in volume.state["snapshot"].items():
            found = serial_of(volume.handle.pread(PAGE, int(key) * PAGE), int(key))
            assert found == serial, (key, found, serial)
    volume.save()
    volume.handle.shutdown()


main()
