"""What a thin volume promises beyond the protocol: holes, zeroes, sharing."""

from target import BLOCK, OURS, case, check, equal, pattern, read_chunks, whole_status
from wire import (CHUNK_HOLE, ENOTSUP, FAST_ZERO, FLUSH, FUA, MIB, NO_HOLE, TRIM, ZEROES, pieces)

ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"
UNMAPPED, PRIVATE, SHARED = 0, 1, 2
A_HOLE = 3

NEVER_WRITTEN = 224 * MIB
SHARED_UNTIL = MIB


def thin(target):
    return target.open(contexts=(ALLOCATION, DEPTH))


def depths(client, offset, length):
    return whole_status(client, DEPTH, offset, length)


def is_one_hole(client, offset, length):
    equal(whole_status(client, ALLOCATION, offset, length), [(length, A_HOLE)], "base:allocation")
    equal(depths(client, offset, length), [(length, UNMAPPED)], "qemu:allocation-depth")
    reply = read_chunks(client, offset, length)
    equal(reply.data, bytes(length), "bytes of a hole")
    kinds = [kind for kind, _ in reply.chunks]
    equal(kinds, [CHUNK_HOLE], f"chunks of a hole at {offset}")


@case()
def never_written_ranges_are_one_hole(target):
    with thin(target) as client:
        is_one_hole(client, NEVER_WRITTEN, MIB)
        is_one_hole(client, NEVER_WRITTEN + 5, 8 * MIB)


@case()
def trimmed_ranges_are_one_hole(target):
    with thin(target) as client:
        client.write(30 * MIB, pattern(30, MIB))
        equal(depths(client, 30 * MIB, MIB), [(MIB, PRIVATE)], "after the write")
        client.do(TRIM, 30 * MIB, MIB)
        is_one_hole(client, 30 * MIB, MIB)


@case()
def hole_data_hole(target):
    with thin(target) as client:
        client.do(TRIM, 32 * MIB, MIB)
        client.write(32 * MIB + 4 * BLOCK, pattern(4, BLOCK))
        found = [(at - 32 * MIB, size, data is None)
                 for at, size, data in pieces(read_chunks(client, 32 * MIB, MIB).chunks)]
        equal(found, [(0, 4 * BLOCK, True), (4 * BLOCK, BLOCK, False),
                      (5 * BLOCK, MIB - 5 * BLOCK, True)], "pieces")
        equal(whole_status(client, ALLOCATION, 32 * MIB, MIB),
              [(4 * BLOCK, A_HOLE), (BLOCK, 0), (MIB - 5 * BLOCK, A_HOLE)], "base:allocation")


@case()
def a_partial_write_to_a_hole_is_surrounded_by_zeroes(target):
    with thin(target) as client:
        client.do(TRIM, 34 * MIB, MIB)
        client.write(34 * MIB + 1000, pattern(34, 20))
        expected = bytes(1000) + pattern(34, 20) + bytes(BLOCK - 1020)
        equal(client.read(34 * MIB, BLOCK), expected, "the block")
        equal(depths(client, 34 * MIB, MIB), [(BLOCK, PRIVATE), (MIB - BLOCK, UNMAPPED)], "depth")


@case()
def a_trim_rounds_inwards(target):
    with thin(target) as client:
        data = pattern(36, 4 * BLOCK)
        client.write(36 * MIB, data)
        client.do(TRIM, 36 * MIB + 100, 3 * BLOCK)
        expected = data[:BLOCK] + bytes(2 * BLOCK) + data[3 * BLOCK:]
        found = client.read(36 * MIB, 4 * BLOCK)
        equal(found[:100], data[:100], "before the trim")
        equal(found[100 + 3 * BLOCK:], data[100 + 3 * BLOCK:], "behind the trim")
        equal(found[BLOCK:3 * BLOCK], expected[BLOCK:3 * BLOCK], "whole blocks trimmed")
        equal(depths(client, 36 * MIB, 4 * BLOCK),
              [(BLOCK, PRIVATE), (2 * BLOCK, UNMAPPED), (BLOCK, PRIVATE)], "depth")


@case()
def zeroing_whole_blocks_frees_them(target):
    with thin(target) as client:
        data = pattern(38, 4 * BLOCK)
        client.write(38 * MIB, data)
        client.do(ZEROES, 38 * MIB + 10, 3 * BLOCK)
        expected = data[:10] + bytes(3 * BLOCK) + data[10 + 3 * BLOCK:]
        equal(client.read(38 * MIB, 4 * BLOCK), expected, "exact zeroes")
        equal(depths(client, 38 * MIB, 4 * BLOCK),
              [(BLOCK, PRIVATE), (2 * BLOCK, UNMAPPED), (BLOCK, PRIVATE)], "depth")


@case()
def zeroing_a_hole_allocates_nothing(target):
    with thin(target) as client:
        client.do(TRIM, 40 * MIB, MIB)
        client.do(ZEROES, 40 * MIB + 10, MIB - 20)
        client.do(ZEROES, 40 * MIB, MIB, FUA)
        client.do(ZEROES, 40 * MIB + 5, 6)
        is_one_hole(client, 40 * MIB, MIB)


@case()
def no_hole_leaves_the_range_allocated(target):
    with thin(target) as client:
        client.do(TRIM, 42 * MIB, 2 * MIB)
        client.write(42 * MIB + BLOCK, pattern(42, BLOCK))
        client.do(ZEROES, 42 * MIB, MIB, NO_HOLE)
        equal(client.read(42 * MIB, MIB), bytes(MIB), "zeroes")
        equal(depths(client, 42 * MIB, 2 * MIB), [(MIB, PRIVATE), (MIB, UNMAPPED)], "depth")
        for _, flags in whole_status(client, ALLOCATION, 42 * MIB, MIB):
            check(not flags & 1, "HOLE after NO_HOLE")


def fast_zero(client, offset, length, flags=0):
    """Zeroes or changes nothing; returns whether it zeroed."""
    around = (offset - BLOCK, length + 2 * BLOCK)
    before, depth_before = client.read(*around), depths(client, *around)
    error = client.call(ZEROES, offset, length, FAST_ZERO | flags).error
    after = client.read(*around)
    if error:
        equal(error, ENOTSUP, "error of FAST_ZERO")
        equal(after, before, "contents after a refused FAST_ZERO")
        equal(depths(client, *around), depth_before, "depth after a refused FAST_ZERO")
        return False
    equal(after, before[:BLOCK] + bytes(length) + before[BLOCK + length:], "after FAST_ZERO")
    return True


@case()
def fast_zero_does_whole_blocks(target):
    with thin(target) as client:
        client.write(44 * MIB, pattern(44, MIB))
        check(fast_zero(client, 44 * MIB + BLOCK, 4 * BLOCK), "refused for whole private blocks")
        check(fast_zero(client, 44 * MIB + BLOCK, 4 * BLOCK), "refused for unmapped blocks")
        check(fast_zero(client, 44 * MIB + BLOCK + 100, 3 * BLOCK), "refused inside a hole")


@case()
def fast_zero_refuses_before_it_changes_anything(target):
    with thin(target) as client:
        client.do(TRIM, 46 * MIB, MIB)
        client.write(46 * MIB, pattern(46, 6 * BLOCK))
        check(not fast_zero(client, 46 * MIB + BLOCK + 100, 3 * BLOCK), "partial mapped blocks")
        check(not fast_zero(client, 46 * MIB + BLOCK, 3 * BLOCK + 1), "partial mapped last block")
        check(not fast_zero(client, 46 * MIB + 8 * BLOCK, 4 * BLOCK, NO_HOLE),
              "NO_HOLE on unmapped blocks")


@case()
def zeroing_the_whole_export_is_quick_to_ask(target):
    with thin(target) as client:
        length = 100 * MIB
        client.write(100 * MIB, pattern(100, BLOCK))
        client.do(ZEROES, 100 * MIB, length)
        is_one_hole(client, 100 * MIB, 32 * MIB)
        client.do(TRIM, 100 * MIB, length)


@case(needs_snapshot=True)
def sharing_shows_and_breaks(target):
    with thin(target) as client, target.open(target.snapshot) as frozen:
        before = frozen.read(0, SHARED_UNTIL)
        last = SHARED_UNTIL - BLOCK
        equal(depths(client, last, BLOCK), [(BLOCK, SHARED)], "depth of a shared block")
        equal(whole_status(client, ALLOCATION, last, BLOCK), [(BLOCK, 0)], "a shared block")
        client.write(last + 4096, b"\xab" * 512, FUA)
        equal(depths(client, last, BLOCK), [(BLOCK, PRIVATE)], "depth after a write")
        expected = bytearray(before[last:])
        expected[4096:4608] = b"\xab" * 512
        equal(client.read(last, BLOCK), bytes(expected), "the written block")
        client.do(TRIM, 0, 2 * BLOCK)
        client.do(FLUSH)
        equal(depths(client, 0, 3 * BLOCK), [(2 * BLOCK, UNMAPPED), (BLOCK, SHARED)], "after a trim")
        equal(frozen.read(0, SHARED_UNTIL), before, "the snapshot")


@case((OURS,), needs_snapshot=True)
def zeroing_a_shared_block_leaves_the_snapshot(target):
    with thin(target) as client, target.open(target.snapshot) as frozen:
        before = frozen.read(0, SHARED_UNTIL)
        client.do(ZEROES, 4 * BLOCK, BLOCK)
        client.do(ZEROES, 6 * BLOCK + 7, 100)
        client.do(ZEROES, 8 * BLOCK, BLOCK, NO_HOLE)
        expected = bytearray(client.read(4 * BLOCK, 5 * BLOCK))
        equal(bytes(expected[:BLOCK]), bytes(BLOCK), "zeroed block")
        equal(bytes(expected[2 * BLOCK + 7:2 * BLOCK + 107]), bytes(100), "zeroed part")
        equal(depths(client, 8 * BLOCK, BLOCK), [(BLOCK, PRIVATE)], "depth after NO_HOLE")
        equal(frozen.read(0, SHARED_UNTIL), before, "the snapshot")
