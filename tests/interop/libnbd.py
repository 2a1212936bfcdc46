"""libnbd's Python module against our server: asynchronous writes, structured reads,
FAST_ZERO, and a flush on one connection that covers writes answered on others.

    libnbd.py URI
"""

import errno
import sys

import nbd

BLOCK = 65536
MIB = 1 << 20


def connect(uri, contexts=()):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(uri)
    return handle


def wait(handle, cookies):
    while cookies:
        cookies = [cookie for cookie in cookies if not handle.aio_command_completed(cookie)]
        if cookies:
            handle.poll(-1)


def asynchronous_writes(uri):
    handle = connect(uri)
    cookies = []
    for at in range(200):
        data = bytes([at % 251]) * 5000
        cookies.append(handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at * 5000))
    wait(handle, cookies)
    for at in range(200):
        assert handle.pread(5000, at * 5000) == bytes([at % 251]) * 5000, at
    handle.shutdown()


def structured_reads(uri):
    handle = connect(uri)
    handle.pwrite(b"\x31" * BLOCK, 4 * MIB + BLOCK)
    found = []

    def piece(data, offset, status, error):
        assert not error.value, error.value
        found.append((offset - 4 * MIB, len(data), status))

    handle.pread_structured(3 * BLOCK, 4 * MIB, piece)
    expected = [(0, BLOCK, nbd.READ_HOLE), (BLOCK, BLOCK, nbd.READ_DATA),
                (2 * BLOCK, BLOCK, nbd.READ_HOLE)]
    assert sorted(found) == expected, found
    found.clear()
    handle.pread_structured(3 * BLOCK, 4 * MIB, piece, nbd.CMD_FLAG_DF)
    assert found == [(0, 3 * BLOCK, nbd.READ_DATA)], found
    handle.shutdown()


def fast_zero(uri):
    handle = connect(uri, ("base:allocation",))
    handle.pwrite(b"\x41" * (4 * BLOCK), 8 * MIB)
    handle.zero(2 * BLOCK, 8 * MIB + BLOCK, nbd.CMD_FLAG_FAST_ZERO)
    assert handle.pread(4 * BLOCK, 8 * MIB) == (b"\x41" * BLOCK + bytes(2 * BLOCK)
                                                + b"\x41" * BLOCK)
    try:
        handle.zero(BLOCK, 8 * MIB + 100, nbd.CMD_FLAG_FAST_ZERO)
        raise AssertionError("FAST_ZERO of parts of mapped blocks succeeded")
    except nbd.Error as error:
        assert error.errnum == errno.ENOTSUP, error
    assert handle.pread(BLOCK, 8 * MIB) == b"\x41" * BLOCK
    extents = []
    handle.block_status(4 * BLOCK, 8 * MIB,
                        lambda name, offset, entries, error: extents.append(list(entries)))
    assert extents == [[BLOCK, 0, 2 * BLOCK, 3, BLOCK, 0]], extents
    handle.shutdown()


def refusals(uri):
    handle = connect(uri)
    size = handle.get_size()
    for action, number in ((lambda: handle.pread(512, size), errno.EINVAL),
                           (lambda: handle.pwrite(b"x" * 512, size), errno.ENOSPC),
                           (lambda: handle.trim(512, size), errno.EINVAL),
                           (lambda: handle.zero(512, size), errno.ENOSPC)):
        try:
            action()
            raise AssertionError("a request past the end succeeded")
        except nbd.Error as error:
            assert error.errnum == number, (error, number)
    handle.pread(512, 0)
    handle.shutdown()


def coherence(uri):
    """Writes answered on three connections are seen, and made durable, through the fourth."""
    handles = [connect(uri) for _ in range(4)]
    assert all(handle.can_multi_conn() for handle in handles)
    for number in range(60):
        writer = handles[number % 3]
        writer.pwrite(bytes([number + 1]) * 3000, 16 * MIB + number * 3000)
        handles[3].flush()
        reader = handles[(number + 1) % 4]
        assert reader.pread(3000, 16 * MIB + number * 3000) == bytes([number + 1]) * 3000
    for handle in handles:
        handle.shutdown()


def main():
    for step in (asynchronous_writes, structured_reads, fast_zero, refusals, coherence):
        step(sys.argv[1])
        print("ok", step.__name__)


if __name__ == "__main__":
    main()
