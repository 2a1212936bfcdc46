"""Requests: bounds, flags, refusals that keep the stream in step, pipelining, endings."""

import socket
import struct

from target import EVERYONE, NBDKIT, OURS, QEMU, case, check, equal, one_of, pattern
from wire import (CACHE, Closed, DF, DISC, EINVAL, ENOSPC, EOVERFLOW, EPERM, FAST_ZERO, FLUSH, FUA,
                  MIB, NO_HOLE, READ, REQ_ONE, STATUS, TRIM, WRITE, ZEROES, request)

PAST_END = {READ: EINVAL, WRITE: ENOSPC, TRIM: EINVAL, CACHE: EINVAL, ZEROES: ENOSPC,
            STATUS: EINVAL}


@case(EVERYONE)
def past_the_end(target):
    with target.open(contexts=("base:allocation",)) as client:
        ranges = ((client.size, 512), (client.size - 512, 1024), (client.size + (1 << 40), 512),
                  (1 << 63, 512), ((1 << 64) - 1, 2), ((1 << 64) - 512, 1024))
        for command, expected in PAST_END.items():
            if command == CACHE and not target.ours:
                continue
            allowed = {expected} if target.ours else {EINVAL, ENOSPC}
            for offset, length in ranges:
                data = bytes(length) if command == WRITE else b""
                reply = client.call(command, offset, length, 0, data)
                one_of(reply.error, allowed, f"command {command} at {offset}+{length}")
        client.read(client.size - 512, 512)


@case()
def ranges_of_4_gib_past_the_end(target):
    with target.open(contexts=("base:allocation",)) as client:
        for command in (READ, TRIM, CACHE, ZEROES, STATUS):
            reply = client.call(command, 4096, (1 << 32) - 1)
            one_of(reply.error, {PAST_END[command], EOVERFLOW}, f"command {command}")
        client.read(0, 512)


@case()
def zero_lengths_succeed_and_do_nothing(target):
    with target.open(contexts=("base:allocation",)) as client:
        for command in (READ, WRITE, TRIM, CACHE, ZEROES, FLUSH):
            client.do(command, 4096, 0)
        equal(client.call(STATUS, 0, 0).error, EINVAL, "block status of nothing")
        client.read(0, 512)


@case(EVERYONE)
def a_refused_write_leaves_the_stream_in_step(target):
    data = b"\x25\x60\x95\x13" * 16384
    with target.open() as client:
        for flags in (0x8000, 0x40):
            reply = client.call(WRITE, 2 * MIB, len(data), flags, data)
            equal(reply.error, EINVAL, f"write with flags {flags:#x}")
        reply = client.call(WRITE, client.size - 512, len(data), 0, data)
        one_of(reply.error, {ENOSPC, EINVAL}, "write past the end")
        equal(len(client.read(2 * MIB, 4096)), 4096, "bytes read")


@case()
def writes_above_the_maximum_are_refused_and_consumed(target):
    with target.open() as client:
        before = client.read(4 * MIB, MIB)
        for size in (32 * MIB + 1, 33 * MIB, 64 * MIB):
            reply = client.call(WRITE, 4 * MIB, size, 0, b"\xee" * size)
            equal(reply.error, EINVAL, f"write of {size} bytes")
        equal(client.read(4 * MIB, MIB), before, "what lay there")


@case(EVERYONE)
def a_write_of_the_maximum_succeeds(target):
    data = pattern(32, 32 * MIB)
    with target.open() as client:
        client.write(64 * MIB, data)
        equal(client.read(64 * MIB, 32 * MIB), data, "what was written")
        client.do(TRIM, 64 * MIB, 32 * MIB)


@case((OURS, QEMU))
def a_write_of_2_gib_ends_the_connection(target):
    with target.open() as client:
        client.request(WRITE, 0, 1 << 31)
        try:
            client.send(bytes(MIB))
            client.recv(16)
        except Closed:
            return
        client.expect_closed()


@case((OURS,))
def unknown_commands_carry_no_payload(target):
    with target.open() as client:
        for command in (8, 9, 1000, 65535):
            for length in (0, 1, (1 << 32) - 1):
                equal(client.call(command, 0, length).error, EINVAL, f"command {command}")
        client.read(0, 512)


@case()
def unknown_and_misplaced_flags_are_invalid(target):
    misplaced = ((READ, REQ_ONE), (READ, NO_HOLE), (READ, FAST_ZERO), (WRITE, DF), (WRITE, NO_HOLE),
                 (WRITE, FAST_ZERO), (TRIM, NO_HOLE), (TRIM, REQ_ONE), (ZEROES, DF),
                 (ZEROES, REQ_ONE), (FLUSH, DF), (CACHE, DF), (CACHE, REQ_ONE), (STATUS, DF),
                 (STATUS, NO_HOLE))
    unknown = tuple((command, flag) for command in (READ, WRITE, FLUSH, TRIM, CACHE, ZEROES, STATUS)
                    for flag in (0x20, 0x8000))
    with target.open(contexts=("base:allocation",)) as client:
        for command, flags in misplaced + unknown:
            length = 0 if command == FLUSH else 4096
            data = bytes(length) if command == WRITE else b""
            reply = client.call(command, 8 * MIB, length, flags, data)
            equal(reply.error, EINVAL, f"command {command} with flags {flags:#x}")
        client.read(0, 512)


@case()
def df_without_structured_replies_is_refused_or_harmless(target):
    with target.open(structured=False) as client:
        one_of(client.call(READ, 0, 4096, DF).error, {0, EINVAL}, "read with DF")
        client.read(0, 512)


@case()
def fua_is_taken_everywhere(target):
    with target.open(contexts=("base:allocation",)) as client:
        for command in (READ, TRIM, CACHE, ZEROES, STATUS):
            client.do(command, 8 * MIB, 65536, FUA)
        client.do(FLUSH, 0, 0, FUA)
        client.write(8 * MIB, pattern(8, 4096), FUA)
        equal(client.read(8 * MIB, 4096), pattern(8, 4096), "what was written")


@case()
def flush_ignores_offset_and_length(target):
    with target.open() as client:
        client.do(FLUSH, 4096, 0)
        client.do(FLUSH, (1 << 64) - 1, 4096)


@case((OURS, NBDKIT))
def a_bad_request_magic_ends_the_connection(target):
    with target.open() as client:
        client.send(struct.pack(">IHHQQI", 0x25609514, 0, READ, 1, 0, 512))
        client.expect_closed()


@case(EVERYONE)
def five_hundred_pipelined_reads(target):
    with target.open() as client:
        data = pattern(512, 512 * 512)
        client.write(10 * MIB, data)
        taken = client.collect(512)
        expected = {}
        for at in range(512):
            cookie = target.random.getrandbits(64)
            expected[cookie] = data[at * 512:at * 512 + 512]
            client.request(READ, 10 * MIB + at * 512, 512, cookie=cookie)
        replies = taken.result()
        equal(len(replies), len(expected), "replies")
        for cookie, wanted in expected.items():
            equal(replies[cookie].data, wanted, f"read {cookie:#x}")


@case(EVERYONE)
def cookies_may_repeat(target):
    with target.open() as client:
        for _ in range(5):
            client.request(READ, 0, 512, cookie=0)
            equal(client.reply().cookie, 0, "cookie")


@case((OURS, QEMU))
def disc_behind_writes_loses_none(target):
    with target.open() as client:
        for at in range(32):
            client.request(WRITE, 12 * MIB + at * 4096, 4096, 0, pattern(at, 4096))
        client.request(DISC)
        try:
            for _ in range(32):
                equal(client.reply().error, 0, "error")
            client.expect_closed()
        except Closed:
            pass
    with target.open() as client:
        for at in range(32):
            equal(client.read(12 * MIB + at * 4096, 4096), pattern(at, 4096), f"write {at}")


@case()
def half_closed_clients_get_their_answers(target):
    if target.tls:
        # Python can say that it sends no more only together with a look for the other side's word of the same, which
        # fails, or not, by what has come until then.
        return
    with target.open() as client:
        for at in range(16):
            client.request(READ, at * 4096, 4096)
        client.sock.shutdown(socket.SHUT_WR)
        equal(len(client.collect(16).result()), 16, "replies")
        client.expect_closed()


@case(EVERYONE)
def a_write_cut_short_changes_nothing(target):
    before = pattern(14, 65536)
    with target.open() as client:
        client.write(14 * MIB, before)
    for sent in (0, 1, 512, 4096, 65535):
        with target.open() as client:
            client.send(request(WRITE, 14 * MIB, 65536, 0, 1) + b"\xee" * sent)
    with target.open() as client:
        equal(client.read(14 * MIB, 65536), before, "what lay there")


@case(EVERYONE)
def a_request_header_cut_short(target):
    for sent in (1, 4, 27):
        with target.open() as client:
            client.send(request(READ, 0, 512, 0, 1)[:sent])


@case(needs_snapshot=True)
def read_only_exports_refuse_changes(target):
    with target.open(target.snapshot) as client:
        before = client.read(0, MIB)
        for command in (WRITE, TRIM, ZEROES):
            for length in (1, 4096, MIB):
                data = b"\xee" * length if command == WRITE else b""
                equal(client.call(command, 0, length, 0, data).error, EPERM, f"command {command}")
        client.do(FLUSH)
        equal(client.read(0, MIB), before, "what lies there")


@case()
def reads_above_the_maximum_do_not_disconnect(target):
    with target.open() as client:
        reply = client.call(READ, 0, 33 * MIB)
        one_of(reply.error, {0, EINVAL, EOVERFLOW}, "read of 33 MiB")
        client.read(0, 512)
    with target.open(structured=False) as client:
        reply = client.call(READ, 0, 33 * MIB)
        one_of(reply.error, {0, EINVAL, EOVERFLOW}, "simple read of 33 MiB")
        client.read(0, 512)


@case(EVERYONE)
def writes_of_any_alignment(target):
    base, span = 16 * MIB, 3 * 65536
    with target.open() as client:
        expected = bytearray(pattern(16, span))
        client.write(base, bytes(expected))
        for number in range(60):
            length = target.random.choice((1, 2, 20, 511, 513, 4095, 65535, 65537))
            at = target.random.randrange(span - length)
            data = target.random.randbytes(length)
            expected[at:at + length] = data
            client.write(base + at, data, FUA if number % 16 == 0 else 0)
        equal(client.read(base, span), bytes(expected), "after unaligned writes")
        at = target.random.randrange(1000)
        equal(client.read(base + at, 70001), bytes(expected[at:at + 70001]), "unaligned read")


@case(EVERYONE)
def writes_are_seen_by_other_connections(target):
    with target.open() as one, target.open() as other:
        for number in range(20):
            one.write(18 * MIB, pattern(number, 4096))
            equal(other.read(18 * MIB, 4096), pattern(number, 4096), "through the other")
            other.do(FLUSH)


@case((OURS, QEMU))
def sixty_four_connections(target):
    clients = [target.open() for _ in range(64)]
    try:
        for number, client in enumerate(clients):
            client.request(WRITE, 20 * MIB + number * 4096, 4096, 0, pattern(number, 4096))
        for client in clients:
            equal(client.reply().error, 0, "write")
        for number, client in enumerate(clients):
            peer = (number + 17) % 64
            equal(client.read(20 * MIB + peer * 4096, 4096), pattern(peer, 4096), "read")
    finally:
        for client in clients:
            client.close()


@case(EVERYONE)
def simple_replies_when_nothing_was_negotiated(target):
    with target.open(structured=False) as client:
        client.write(22 * MIB, pattern(22, 65536))
        reply = client.call(READ, 22 * MIB, 65536)
        check(reply.simple, "a structured reply")
        equal(reply.data, pattern(22, 65536), "data")
