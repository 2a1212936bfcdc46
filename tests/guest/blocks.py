"""Random writes and discards on a block device, and the same on an image that says what it must hold.

    blocks.py SEED WRITES DISCARDS DEVICE IMAGE

The image is a file, as long as the device or (when it is new) made so. It knows the rule of thin
devices: a discard empties the 64 KiB blocks that lie wholly inside it, and leaves the rest alone.

Whether a discard up to the end empties a last block that is shorter is left to the device: the
kernel leaves it, we empty it. So discards here end before it.
"""

import fcntl
import mmap
import os
import random
import struct
import sys

BLOCK_SIZE = 65536
WRITE_LEN_MAX = 4 * BLOCK_SIZE
DISCARD_LEN_MAX = 12 * BLOCK_SIZE

BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKGETSIZE64 = 0x80081272


class Device:
    """A block device, written around the page cache, so that it sees each request as it was made."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_EXCL)
        self.size = struct.unpack("Q", fcntl.ioctl(self.fd, BLKGETSIZE64, bytes(8)))[0]
        self.sector = struct.unpack("I", fcntl.ioctl(self.fd, BLKSSZGET, bytes(4)))[0]
        # Direct I/O wants aligned memory.
        self.buffer = mmap.mmap(-1, WRITE_LEN_MAX)

    def write(self, offset, data):
        self.buffer[: len(data)] = data
        view = memoryview(self.buffer)[: len(data)]
        while view:
            done = os.pwritev(self.fd, [view], offset)
            offset += done
            view = view[done:]

    def discard(self, offset, length):
        fcntl.ioctl(self.fd, BLKDISCARD, struct.pack("QQ", offset, length))

    def read(self, offset, length):
        """At most WRITE_LEN_MAX bytes."""
        view = memoryview(self.buffer)[:length]
        while view:
            done = os.preadv(self.fd, [view], offset)
            if not done:
                raise EOFError(f"{self.path}: ends at {offset}")
            offset += done
            view = view[done:]
        return self.buffer[:length]

    def flush(self):
        os.fsync(self.fd)

    def close(self):
        os.close(self.fd)


def whole_blocks(offset, length):
    """The blocks that lie wholly inside a range."""
    return range(-(-offset // BLOCK_SIZE), (offset + length) // BLOCK_SIZE)


class Image:
    """What a device must hold."""

    def __init__(self, path, size):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, size)

    def write(self, offset, data):
        os.pwrite(self.fd, data, offset)

    def discard(self, offset, length):
        for block in whole_blocks(offset, length):
            os.pwrite(self.fd, bytes(BLOCK_SIZE), block * BLOCK_SIZE)

    def close(self):
        os.close(self.fd)


def random_range(rng, size, sector, length_max):
    """Some whole and aligned blocks, some runs of them, and much that is neither."""
    kind = rng.random()
    if kind < 0.3:
        offset = rng.randrange(size // BLOCK_SIZE) * BLOCK_SIZE
        length = rng.randint(1, length_max // BLOCK_SIZE) * BLOCK_SIZE
    elif kind < 0.7:
        offset = rng.randrange(size // sector) * sector
        length = rng.randint(1, BLOCK_SIZE // 4 // sector) * sector
    else:
        offset = rng.randrange(size // sector) * sector
        length = rng.randint(1, length_max // sector) * sector
    return offset, min(length, size - offset)


def random_write(rng, targets, size, sector):
    """The same write on every target; says where."""
    offset, length = random_range(rng, size, sector, WRITE_LEN_MAX)
    data = rng.randbytes(length)
    for target in targets:
        target.write(offset, data)
    return offset, length


def random_discard(rng, targets, size, sector):
    """The same discard on every target; says where."""
    offset, length = random_range(rng, size - size % BLOCK_SIZE, sector, DISCARD_LEN_MAX)
    for target in targets:
        target.discard(offset, length)
    return offset, length


def main():
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    seed, writes, discards = (int(number) for number in sys.argv[1:4])
    device = Device(sys.argv[4])
    image = Image(sys.argv[5], device.size)
    rng = random.Random(seed)
    steps = [random_write] * writes + [random_discard] * discards
    rng.shuffle(steps)
    for step in steps:
        step(rng, [device, image], device.size, device.sector)
    device.flush()
    image.close()
    device.close()


if __name__ == "__main__":
    main()
