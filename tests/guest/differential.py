"""The same random operations on the kernel's dm-thin, on a pool of ours, and on a model.

    differential.py --seed N --phases N --steps N --pool DIR

After every phase each device must hold the same in all three and map as many blocks, and the
pools must have allocated as many. The kernel's pool is /dev/mapper/pool, ours is served by a daemon
and its devices are those of ublk; the caller made both. A run is repeated by its seed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time

from blocks import BLOCK_SIZE, WRITE_LEN_MAX, Device, random_discard, random_write, whole_blocks

DEVICES_MAX = 8
# Of new devices: the smallest, the largest, and one that does not end with a whole block.
SIZES = [2 << 20, 4 << 20, (3 << 20) + 1536]
# What a step does, and how often. Few of them make devices: the rest has to find them shared.
STEPS = {"write": 160, "discard": 30, "create": 1, "snapshot": 2, "clone": 2, "delete": 2, "resize": 4}
CONTROL = ["create", "snapshot", "clone", "delete", "resize"]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: status {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def block_count(length):
    """How many blocks a length takes."""
    return -(-length // BLOCK_SIZE)


class Kernel:
    """Thin devices of the kernel's. A snapshot is a device like any other."""

    def __init__(self):
        self.ids = {}
        self.next_id = 0

    def _table(self, thin_id, size):
        return f"0 {size // 512} thin /dev/mapper/pool {thin_id}"

    def _activate(self, name, thin_id, size):
        run("dmsetup", "create", name, "--table", self._table(thin_id, size))
        self.ids[name] = thin_id
        return Device(f"/dev/mapper/{name}")

    def _new_id(self):
        self.next_id += 1
        return self.next_id

    def create(self, name, size):
        thin_id = self._new_id()
        run("dmsetup", "message", "pool", "0", f"create_thin {thin_id}")
        return self._activate(name, thin_id, size)

    def clone(self, origin, name, size):
        thin_id = self._new_id()
        run("dmsetup", "suspend", origin)
        run("dmsetup", "message", "pool", "0", f"create_snap {thin_id} {self.ids[origin]}")
        run("dmsetup", "resume", origin)
        return self._activate(name, thin_id, size)

    snapshot = clone

    def _reload(self, name, size):
        run("dmsetup", "reload", name, "--table", self._table(self.ids[name], size))
        run("dmsetup", "resume", name)

    def resize(self, name, device, size):
        """The kernel keeps what lies behind the end. What it is to forget is discarded before, and is
        all that is mapped: it discards no block that is not wholly inside."""
        gone = range(block_count(size) * BLOCK_SIZE, block_count(device.size) * BLOCK_SIZE)
        if gone:
            self._reload(name, gone.stop)
            device.discard(gone.start, len(gone))
        self._reload(name, size)
        device.size = size
        return device

    def delete(self, name):
        run("dmsetup", "remove", "--retry", name)
        run("dmsetup", "message", "pool", "0", f"delete {self.ids.pop(name)}")

    def mapped(self):
        """Blocks mapped by each device, and blocks allocated in the pool."""
        devices = {}
        used = None
        for line in run("dmsetup", "status").splitlines():
            name, words = line.split(": ")
            words = words.split()
            if words[2] == "thin":
                devices[name] = int(words[3]) * 512 // BLOCK_SIZE
            elif name == "pool":
                used = int(words[5].split("/")[0])
        return devices, used


class Ours:
    """Thin devices of a pool of ours, as devices of ublk."""

    def __init__(self, pool):
        self.pool = pool

    def _thinctl(self, *arguments):
        return run(os.environ["THINCTL"], *arguments)

    def _attach(self, name):
        # The kernel's devices have the sectors of its disk.
        return Device(self._thinctl("attach", f"{self.pool}/{name}", "--ublk", "--sector-size", "512").strip())

    def detach(self, name):
        self._thinctl("detach", f"{self.pool}/{name}")

    def create(self, name, size):
        self._thinctl("create", f"{self.pool}/{name}", "--size", str(size))
        return self._attach(name)

    def clone(self, origin, name, _size):
        self._thinctl("clone", f"{self.pool}/{origin}", f"{self.pool}/{name}")
        return self._attach(name)

    def snapshot(self, _origin, name, _size):
        self._thinctl("create-snap", f"{self.pool}/{name}")
        return self._attach(name)

    def resize(self, name, device, size):
        """The 6.12 driver cannot change the size of a device that is attached."""
        device.close()
        self.detach(name)
        self._thinctl("resize", f"{self.pool}/{name}", "--size", str(size), "--shrink")
        return self._attach(name)

    def delete(self, name):
        self.detach(name)
        self._thinctl("rm", f"{self.pool}/{name}")

    def mapped(self):
        devices = json.loads(self._thinctl("ls", self.pool, "--json"))
        pool = json.loads(self._thinctl("info", self.pool, "--json"))
        return (
            {device["name"]: device["mapped_bytes"] // BLOCK_SIZE for device in devices},
            pool["data_used_bytes"] // BLOCK_SIZE,
        )


class ModelDevice:
    """Contents, and for each mapped block a number that says which data block it has."""

    def __init__(self, model, contents, blocks):
        self.model = model
        self.contents = contents
        self.blocks = blocks

    def write(self, offset, data):
        end = offset + len(data)
        self.contents[offset:end] = data
        for block in range(offset // BLOCK_SIZE, block_count(end)):
            if block not in self.blocks or self.model.is_shared(self.blocks[block]):
                self.blocks[block] = self.model.new_block()

    def discard(self, offset, length):
        for block in whole_blocks(offset, length):
            self.contents[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE] = bytes(BLOCK_SIZE)
            self.blocks.pop(block, None)

    def resize(self, size):
        del self.contents[size:]
        self.contents.extend(bytes(size - len(self.contents)))
        for block in [block for block in self.blocks if block >= block_count(size)]:
            del self.blocks[block]

    def read(self, offset, length):
        return bytes(self.contents[offset : offset + length])

    def flush(self):
        """Nothing is volatile, or everything."""

    def close(self):
        """Nothing to let go."""


class Model:
    """What all of it means, in memory."""

    def __init__(self):
        self.devices = {}
        self.count = 0

    def new_block(self):
        self.count += 1
        return self.count

    def is_shared(self, block):
        return sum(block in device.blocks.values() for device in self.devices.values()) > 1

    def create(self, name, size):
        self.devices[name] = ModelDevice(self, bytearray(size), {})
        return self.devices[name]

    def clone(self, origin, name, _size):
        origin = self.devices[origin]
        self.devices[name] = ModelDevice(self, bytearray(origin.contents), dict(origin.blocks))
        return self.devices[name]

    snapshot = clone

    def resize(self, _name, device, size):
        device.resize(size)
        return device

    def delete(self, name):
        del self.devices[name]

    def mapped(self):
        used = set()
        for device in self.devices.values():
            used.update(device.blocks.values())
        return {name: len(device.blocks) for name, device in self.devices.items()}, len(used)


class Run:
    """One list of operations on all sides."""

    def __init__(self, seed, sides):
        self.rng = random.Random(seed)
        self.sides = sides
        # By name: size, and the opened device of each side.
        self.devices = {}
        self.names = 0
        self.history = []

    def _add(self, name, size, opened):
        self.devices[name] = (size, dict(zip(self.sides, opened)))

    def _new_name(self, prefix):
        self.names += 1
        return f"{prefix}{self.names}"

    def create(self):
        name, size = self._new_name("v"), self.rng.choice(SIZES)
        self._add(name, size, [side.create(name, size) for side in self.sides.values()])
        return name

    def _share(self, origin, name, operation):
        size, _ = self.devices[origin]
        self._add(name, size, [getattr(side, operation)(origin, name, size) for side in self.sides.values()])
        return f"{origin} as {name}"

    def clone(self):
        return self._share(self.rng.choice(list(self.devices)), self._new_name("v"), "clone")

    def snapshot(self):
        origin = self.rng.choice([name for name in self.devices if "@" not in name])
        return self._share(origin, self._new_name(f"{origin}@s"), "snapshot")

    def delete(self):
        # A snapshot of ours belongs to its volume, which stays as long as it has one.
        parents = {name.split("@")[0] for name in self.devices if "@" in name}
        name = self.rng.choice([name for name in self.devices if name not in parents])
        _, opened = self.devices.pop(name)
        for device in opened.values():
            device.close()
        for side in self.sides.values():
            side.delete(name)
        return name

    def resize(self):
        name = self.rng.choice([name for name in self.devices if "@" not in name])
        before, opened = self.devices[name]
        size = self.rng.randint(SIZES[0] // 512, SIZES[1] // 512) * 512
        opened = {side: self.sides[side].resize(name, opened[side], size) for side in self.sides}
        self.devices[name] = (size, opened)
        self._clear_hidden_tail(before, size, opened)
        return f"{name} from {before} to {size}"

    def _clear_hidden_tail(self, before, size, opened):
        """A block that was cut may come back whole. We zero what was cut off; the kernel's has to be told,
        and the model does the same, because that block is shared no more."""
        tail = range(before, min(size, block_count(before) * BLOCK_SIZE))
        if tail and before // BLOCK_SIZE in opened["model"].blocks:
            for side in ("kernel", "model"):
                opened[side].write(tail.start, bytes(len(tail)))

    def _transfer(self, operation):
        name = self.rng.choice([name for name in self.devices if "@" not in name])
        size, opened = self.devices[name]
        offset, length = operation(self.rng, opened.values(), size, 512)
        return f"{name} {offset} {length}"

    def step(self, kind):
        volumes = [name for name in self.devices if "@" not in name]
        if kind == "write":
            what = self._transfer(random_write)
        elif kind == "discard":
            what = self._transfer(random_discard)
        elif kind == "delete":
            if len(volumes) < 2:
                return
            what = self.delete()
        else:
            if len(self.devices) >= DEVICES_MAX:
                self.step("delete")
            what = getattr(self, kind)()
        self.history.append(f"{kind} {what}")

    def compare(self):
        """True if all sides agree; otherwise it is told how they do not."""
        for _, opened in self.devices.values():
            for device in opened.values():
                device.flush()
        faults = []
        expected = self.sides["model"].mapped()
        for side in ("kernel", "ours"):
            found = self._settled(side, expected[1])
            if found != expected:
                faults.append(f"{side}: mapped, used {found}, expected {expected}")
        for name, (size, opened) in self.devices.items():
            for side in ("kernel", "ours"):
                faults += self._differences(name, size, side, opened[side], opened["model"])
        for fault in faults:
            print(fault)
        return not faults

    def _settled(self, side, used):
        """What a side maps and has allocated. Ours gives a block back when its last reader is gone,
        on a timer, and no flush waits for that: its count may be late."""
        for _ in range(100):
            found = self.sides[side].mapped()
            if found[1] <= used:
                break
            time.sleep(0.1)
        return found

    def _differences(self, name, size, side, found, expected):
        for offset in range(0, size, WRITE_LEN_MAX):
            length = min(WRITE_LEN_MAX, size - offset)
            found_bytes, expected_bytes = found.read(offset, length), expected.read(offset, length)
            if found_bytes != expected_bytes:
                at = offset + next(i for i in range(length) if found_bytes[i] != expected_bytes[i])
                return [f"{side}: {name} differs at byte {at}"]
        return []

    def phase(self, steps):
        kinds = self.rng.choices(list(STEPS), list(STEPS.values()), k=steps)
        # None goes without any of those.
        kinds += CONTROL
        self.rng.shuffle(kinds)
        for kind in kinds:
            self.step(kind)


def main():
    parser = argparse.ArgumentParser()
    for option in ("seed", "phases", "steps"):
        parser.add_argument(f"--{option}", type=int, required=True)
    parser.add_argument("--pool", required=True)
    arguments = parser.parse_args()

    ours = Ours(arguments.pool)
    run_ = Run(arguments.seed, {"kernel": Kernel(), "ours": ours, "model": Model()})
    run_.create()
    for phase in range(arguments.phases):
        run_.phase(arguments.steps)
        if not run_.compare():
            print("\n".join(run_.history), file=sys.stderr)
            sys.exit(f"seed {arguments.seed}: different after phase {phase}; the operations are above")
    mapped, used = run_.sides["model"].mapped()
    print(f"{len(run_.history)} operations; in the end {len(mapped)} devices, {sum(mapped.values())} mappings, {used} blocks")
    for name, (_, opened) in run_.devices.items():
        for device in opened.values():
            device.close()
        ours.detach(name)


if __name__ == "__main__":
    main()
