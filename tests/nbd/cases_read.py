"""Structured reads and block status."""

from target import (BLOCK, EVERYONE, OURS, QEMU, case, check, equal, one_of, pattern, read_chunks,
                    status, whole_status)
from wire import (CHUNK_DATA, DF, EINVAL, EOVERFLOW, MIB, READ, REQ_ONE, STATUS, TRIM, pieces)

ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"
HOLE, ZERO = 1, 2

BASE, SPAN = 24 * MIB, 2 * MIB


def chequered(target, client):
    """Every third block of the area holds data; returns what must be read."""
    client.do(TRIM, BASE, SPAN)
    expected = bytearray(SPAN) if target.ours else bytearray(client.read(BASE, SPAN))
    for at in range(0, SPAN, 3 * BLOCK):
        data = pattern(at, BLOCK)
        client.write(BASE + at, data)
        expected[at:at + BLOCK] = data
    return bytes(expected)


@case(EVERYONE)
def reads_are_covered_exactly(target):
    with target.open() as client:
        expected = chequered(target, client)
        for _ in range(100):
            length = target.random.randrange(1, 5 * BLOCK)
            at = target.random.randrange(SPAN - length)
            equal(client.read(BASE + at, length), expected[at:at + length], f"read {at}+{length}")


@case(EVERYONE)
def failed_reads_are_error_chunks(target):
    with target.open() as client:
        reply = client.call(READ, client.size, 4096)
        equal(reply.error, EINVAL, "read past the end")
        check(not reply.simple, "a simple error reply to READ")
        client.read(0, 512)


@case((OURS, QEMU))
def df_gives_one_chunk(target):
    with target.open() as client:
        expected = chequered(target, client)
        for at, length in ((0, BLOCK), (0, 1), (BLOCK - 7, 4096), (BLOCK // 2, BLOCK)):
            reply = read_chunks(client, BASE + at, length, DF)
            equal(reply.data, expected[at:at + length], "data")
            equal(len(pieces(reply.chunks)), 1, f"content chunks of {at}+{length}")
        reply = client.call(READ, BASE, SPAN, DF)
        one_of(reply.error, {0, EOVERFLOW}, "large read with DF")
        if not reply.error:
            equal(len(pieces(reply.chunks)), 1, "content chunks of a large read")


@case()
def df_above_the_maximum_overflows(target):
    with target.open() as client:
        one_of(client.call(READ, 0, 33 * MIB, DF).error, {EOVERFLOW, EINVAL}, "DF read of 33 MiB")
        client.read(0, 512)


@case()
def small_holes_are_sent_as_data(target):
    with target.open() as client:
        expected = chequered(target, client)
        reply = read_chunks(client, BASE + BLOCK - 4096, 4096 + 512)
        equal(reply.data, expected[BLOCK - 4096:BLOCK + 512], "data")
        kinds = [kind for kind, _ in reply.chunks]
        equal(set(kinds), {CHUNK_DATA}, "chunks of a read that ends 512 bytes into a hole")


@case((OURS, QEMU))
def block_status_keeps_its_bounds(target):
    with target.open(contexts=(ALLOCATION, DEPTH)) as client:
        chequered(target, client)
        for _ in range(60):
            length = target.random.choice((1, 511, 512, 4096, BLOCK, SPAN, 7 * BLOCK + 5))
            at = target.random.randrange(SPAN - length + 1)
            for context in (ALLOCATION, DEPTH):
                status(client, context, BASE + at, length)
                one = status(client, context, BASE + at, length, REQ_ONE)
                equal(len(one), 1, "extents with REQ_ONE")
                check(one[0][0] <= length, "a REQ_ONE extent beyond the request")


@case((OURS, QEMU))
def block_status_does_not_depend_on_how_it_is_asked(target):
    with target.open(contexts=(ALLOCATION, DEPTH)) as client:
        chequered(target, client)
        for context in (ALLOCATION, DEPTH):
            whole = whole_status(client, context, BASE, SPAN)
            at = BASE
            for size, flags in whole:
                for start in (at, at + 1, at + size // 2):
                    one, = status(client, context, start, SPAN // 2, REQ_ONE)
                    equal(one[1], flags, f"{context} at {start}")
                at += size


@case(EVERYONE)
def zero_extents_are_zero(target):
    with target.open(contexts=(ALLOCATION,)) as client:
        chequered(target, client)
        at = BASE
        for size, flags in whole_status(client, ALLOCATION, BASE, SPAN):
            if flags & ZERO:
                equal(client.read(at, size), bytes(size), f"ZERO extent at {at}")
            at += size


@case()
def block_status_of_the_whole_export(target):
    with target.open(contexts=(ALLOCATION, DEPTH)) as client:
        for context in (ALLOCATION, DEPTH):
            runs = whole_status(client, context, 0, client.size)
            equal(sum(size for size, _ in runs), client.size, "bytes described")
        one_of(client.call(STATUS, 1, client.size).error, {EINVAL}, "one byte too far")


@case()
def the_two_contexts_agree(target):
    with target.open(contexts=(ALLOCATION, DEPTH)) as client:
        chequered(target, client)
        allocated = [(size, not flags & HOLE)
                     for size, flags in whole_status(client, ALLOCATION, BASE, SPAN)]
        by_depth = []
        for size, depth in whole_status(client, DEPTH, BASE, SPAN):
            if by_depth and by_depth[-1][1] == bool(depth):
                by_depth[-1] = (by_depth[-1][0] + size, bool(depth))
            else:
                by_depth.append((size, bool(depth)))
        equal(allocated, by_depth, "allocated runs")
