"""The option phase: what is said before a client has an export."""

import struct
import threading

from target import EVERYONE, NBDKIT, OURS, QEMU, case, check, equal, one_of
from wire import (C_FIXED_NEWSTYLE, C_NO_ZEROES, CACHE, Client, Closed, ERR_INVALID, ERR_POLICY,
                  ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, FLAG_CACHE, FLAG_DF, FLAG_FAST, FLAG_FLUSH,
                  FLAG_FUA, FLAG_HAS, FLAG_MULTI, FLAG_READ_ONLY, FLAG_TRIM, FLAG_ZEROES, FLUSH,
                  IHAVEOPT, INFO_BLOCK_SIZE, INFO_DESCRIPTION, INFO_EXPORT, INFO_NAME, MIB,
                  OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED, OPT_GO, OPT_INFO, OPT_LIST,
                  OPT_STARTTLS, OPT_STRUCTURED_REPLY, READ, REP_ACK, REP_SERVER, Wrong, go_payload,
                  request)


def still_negotiating(target, client):
    """The stream is in step: a GO works and the export can be read."""
    client.go(target.export)
    client.read(0, 512)


@case(EVERYONE)
def greeting_offers_fixed_newstyle_and_no_zeroes(target):
    with target.options() as client:
        equal(client.server_flags, C_FIXED_NEWSTYLE | C_NO_ZEROES, "handshake flags")


@case(EVERYONE)
def unknown_client_flags_end_the_connection(target):
    for flags in (4, 1 << 31, 0xFFFFFFFF):
        with target.options(flags) as client:
            try:
                client.option(OPT_LIST)
            except Closed:
                continue
            client.expect_closed()


@case(EVERYONE)
def unknown_options_are_unsupported_and_skipped(target):
    with target.options() as client:
        for option in (0, 4, 99, 0x7FFFFFFF, 0xFFFFFFFF):
            for payload in (b"", b"x", bytes(4096)):
                kind, _ = client.ask(option, payload)
                equal(kind, ERR_UNSUP, f"option {option} with {len(payload)} bytes")
        still_negotiating(target, client)


@case()
def an_option_of_128_kib_is_taken(target):
    with target.options() as client:
        kind, _ = client.ask(99, bytes(128 * 1024))
        equal(kind, ERR_UNSUP, "unknown option of 128 KiB")
        still_negotiating(target, client)


@case()
def huge_option_lengths_end_the_connection_unread(target):
    for length in (128 * 1024 + 1, 64 * MIB, 1 << 31, (1 << 32) - 1):
        for option in (99, OPT_GO, OPT_EXPORT_NAME, OPT_LIST):
            with target.options() as client:
                client.option(option, b"", length)
                client.expect_closed()


@case(EVERYONE)
def bad_option_magic_ends_the_connection(target):
    with target.options() as client:
        client.send(struct.pack(">QII", IHAVEOPT ^ 1, OPT_LIST, 0))
        client.expect_closed()


@case(EVERYONE)
def abort_is_acknowledged(target):
    with target.options() as client:
        kind, _ = client.ask(OPT_ABORT)
        equal(kind, REP_ACK, "ABORT")
        client.expect_closed()


@case()
def abort_ignores_its_payload(target):
    with target.options() as client:
        kind, _ = client.ask(OPT_ABORT, b"bye")
        equal(kind, REP_ACK, "ABORT with data")
        client.expect_closed()


@case(EVERYONE)
def abort_from_a_client_that_is_gone(target):
    for _ in range(16):
        with target.options() as client:
            client.option(OPT_ABORT)


@case(EVERYONE)
def list_names_the_export(target):
    with target.options() as client:
        kind, before = client.ask(OPT_LIST)
        equal(kind, REP_ACK, "LIST")
        names = []
        for reply, payload in before:
            equal(reply, REP_SERVER, "reply kind")
            length, = struct.unpack(">I", payload[:4])
            names.append(payload[4:4 + length].decode())
        if target.peer != NBDKIT:
            check(target.export in names, f"{target.export} is not in {names}")
        if target.snapshot:
            check(target.snapshot in names, f"{target.snapshot} is not in {names}")
        still_negotiating(target, client)


@case(EVERYONE)
def list_with_data_is_invalid(target):
    with target.options() as client:
        equal(client.ask(OPT_LIST, b"data")[0], ERR_INVALID, "LIST with data")
        still_negotiating(target, client)


@case(EVERYONE)
def structured_reply_with_data_is_invalid(target):
    with target.options() as client:
        equal(client.ask(OPT_STRUCTURED_REPLY, b"x")[0], ERR_INVALID, "with data")
        still_negotiating(target, client)


@case((OURS, NBDKIT))
def structured_reply_may_be_repeated(target):
    with target.options() as client:
        client.negotiate_structured()
        client.negotiate_structured()
        still_negotiating(target, client)


@case((OURS, NBDKIT))
def starttls_is_refused_without_tls_and_within_it(target):
    refusals = {ERR_INVALID} if target.tls else {ERR_UNSUP, ERR_POLICY}
    with target.options() as client:
        one_of(client.ask(OPT_STARTTLS)[0], refusals, "STARTTLS")
        one_of(client.ask(OPT_STARTTLS, b"x")[0], {ERR_UNSUP, ERR_POLICY, ERR_INVALID},
               "STARTTLS with data")
        still_negotiating(target, client)


@case()
def extended_headers_are_unsupported(target):
    with target.options() as client:
        equal(client.ask(OPT_EXTENDED)[0], ERR_UNSUP, "EXTENDED_HEADERS")
        still_negotiating(target, client)


def malformed_go_payloads(name):
    good = go_payload(name, [INFO_BLOCK_SIZE])
    length = len(name.encode())
    tail = good[4 + length:]
    return {
        "empty": b"",
        "five bytes": good[:5],
        "name longer than the payload": struct.pack(">I", len(good) - 5) + good[4:],
        "name of 4 GiB": struct.pack(">I", 0xFFFFFFFF) + good[4:],
        "count too large": good[:-4] + struct.pack(">H", 2) + tail[2:],
        "count of 65535": good[:-4] + struct.pack(">H", 65535) + tail[2:],
        "count too small": good[:-4] + struct.pack(">H", 0) + tail[2:],
        "odd tail": good[:-1],
        "trailing byte": good + b"x",
        "trailing info": good + b"\0\3",
    }


@case(EVERYONE)
def malformed_info_and_go_are_invalid(target):
    for option in (OPT_INFO, OPT_GO):
        with target.options() as client:
            for what, payload in malformed_go_payloads(target.export).items():
                equal(client.ask(option, payload)[0], ERR_INVALID, f"option {option}, {what}")
            still_negotiating(target, client)


@case(EVERYONE)
def info_and_go_tell_the_same(target):
    for structured in (False, True):
        for infos in ((), (INFO_BLOCK_SIZE,), (INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE)):
            with target.options() as client:
                if structured:
                    client.negotiate_structured()
                kind, told = client.info(target.export, infos)
                equal(kind, REP_ACK, "INFO")
                equal(client.go(target.export, infos), told, "facts told by GO")


@case()
def block_sizes_are_told_unasked(target):
    with target.options() as client:
        _, facts = client.info(target.export)
        check(INFO_BLOCK_SIZE in facts, "no BLOCK_SIZE")
        equal(struct.unpack(">III", facts[INFO_BLOCK_SIZE]), (1, 65536, 32 * MIB), "block sizes")
        _, facts = client.info(target.export, (INFO_NAME, 0x7777, INFO_NAME))
        equal(facts.get(INFO_NAME), target.export.encode(), "name")


@case()
def a_volume_has_every_flag(target):
    base = (FLAG_HAS | FLAG_FLUSH | FLAG_FUA | FLAG_TRIM | FLAG_ZEROES | FLAG_FAST | FLAG_MULTI
            | FLAG_CACHE)
    for structured, expected in ((False, base), (True, base | FLAG_DF)):
        with target.open(structured=structured) as client:
            equal(bin(client.export_flags), bin(expected), "flags")


@case(needs_snapshot=True)
def a_snapshot_is_read_only(target):
    with target.open(target.snapshot) as client:
        expected = (FLAG_HAS | FLAG_READ_ONLY | FLAG_FLUSH | FLAG_FUA | FLAG_MULTI | FLAG_CACHE
                    | FLAG_DF)
        equal(bin(client.export_flags), bin(expected), "flags")
        client.do(CACHE, 0, 65536)


def by_export_name(target, name, flags, structured=False):
    client = target.options(flags)
    if structured:
        client.negotiate_structured()
    client.option(OPT_EXPORT_NAME, name.encode())
    return client


@case(EVERYONE)
def export_name_with_and_without_zeroes(target):
    for flags in (C_FIXED_NEWSTYLE, C_FIXED_NEWSTYLE | C_NO_ZEROES):
        for structured in (False, True):
            with by_export_name(target, target.export, flags, structured) as client:
                _, export_flags = client.unpack(">QH")
                equal(bool(export_flags & FLAG_DF), structured, "DF offered")
                if not flags & C_NO_ZEROES:
                    equal(client.recv(124), bytes(124), "padding")
                client.read(0, 4096)


@case((OURS, QEMU))
def export_name_of_nothing_ends_the_connection(target):
    for name in ("no-such-export", "x" * 4097):
        with by_export_name(target, name, C_FIXED_NEWSTYLE | C_NO_ZEROES) as client:
            client.expect_closed()


@case((OURS, QEMU))
def unknown_exports_leave_the_client_negotiating(target):
    with target.options() as client:
        for name in ("no-such-export", "../" + target.export, target.export + "/", "%n%s", "/"):
            for option in (OPT_INFO, OPT_GO):
                equal(client.info(name, (), option)[0], ERR_UNKNOWN, f"export {name}")
        still_negotiating(target, client)


@case(needs_snapshot=True)
def the_empty_name_is_unknown_among_several_exports(target):
    with target.options() as client:
        equal(client.info("", ())[0], ERR_UNKNOWN, "default export")
        still_negotiating(target, client)


@case()
def odd_names_are_refused(target):
    cases = ((b"x" * 4096, ERR_UNKNOWN), (b"x" * 4097, ERR_INVALID), (b"x" * 70000, ERR_INVALID),
             (b"vol\0ume", ERR_INVALID), (target.export.encode() + b"\0", ERR_INVALID),
             (b"\xff\xfe", ERR_INVALID), (b"\xc3", ERR_INVALID))
    with target.options() as client:
        for name, expected in cases:
            found = client.info(name, ())[0]
            allowed = {expected, ERR_TOO_BIG} if len(name) > 4096 else {expected}
            one_of(found, allowed, f"name of {len(name)} bytes {name[:8]!r}")
        still_negotiating(target, client)


@case(EVERYONE)
def bytes_sent_one_at_a_time(target):
    with Client(target, greet=False) as client:
        client.greeting()
        payload = go_payload(target.export)
        stream = struct.pack(">I", C_FIXED_NEWSTYLE | C_NO_ZEROES)
        stream += struct.pack(">QII", IHAVEOPT, OPT_GO, len(payload)) + payload
        for at in range(len(stream)):
            client.send(stream[at:at + 1])
        equal(client.answers(OPT_GO)[0], REP_ACK, "GO")
        client.reads[9] = (0, 512)
        for byte in request(READ, 0, 512, 0, 9):
            client.send(bytes([byte]))
        equal(len(client.reply().data), 512, "bytes read")


@case(EVERYONE)
def go_and_the_first_request_in_one_segment(target):
    with target.options() as client:
        payload = go_payload(target.export)
        client.reads[7] = (0, 4096)
        client.send(struct.pack(">QII", IHAVEOPT, OPT_GO, len(payload)) + payload
                    + request(READ, 0, 4096, 0, 7) + request(FLUSH, 0, 0, 0, 8))
        equal(client.answers(OPT_GO)[0], REP_ACK, "GO")
        equal(sorted(client.reply().cookie for _ in range(2)), [7, 8], "cookies")


def burst_of_options(client, count):
    """Sends `count` unknown options while their answers are taken."""
    failure = []

    def send():
        try:
            for _ in range(count):
                client.option(99)
        except Closed as error:
            failure.append(error)
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    answered = 0
    try:
        for _ in range(count):
            equal(client.answers(99)[0], ERR_UNSUP, "unknown option")
            answered += 1
    except Closed as error:
        failure.append(error)
    sender.join()
    return answered, bool(failure)


@case((OURS, QEMU))
def three_thousand_options_in_a_row(target):
    with target.options() as client:
        equal(burst_of_options(client, 3000), (3000, False), "answered, closed")
        still_negotiating(target, client)


@case()
def five_thousand_options_are_too_many(target):
    with target.options() as client:
        answered, closed = burst_of_options(client, 5000)
        check(closed, f"{answered} options answered and no end")
        check(answered >= 3000, f"only {answered} options answered")


@case(EVERYONE)
def clients_that_leave_half_way(target):
    payload = go_payload(target.export)
    stream = struct.pack(">I", 3) + struct.pack(">QII", IHAVEOPT, OPT_GO, len(payload)) + payload
    for length in range(0, len(stream) + 1, 3):
        with Client(target, greet=False) as client:
            client.greeting()
            client.send(stream[:length])


@case()
def silent_connections_disturb_nobody_and_are_closed(target):
    silent = [Client(target, greet=False) for _ in range(20)]
    try:
        target.alive()
        for client in silent:
            client.greeting()
        target.alive()
        for client in silent:
            client.expect_closed()
    finally:
        for client in silent:
            client.close()


@case(EVERYONE)
def garbage_in_the_option_phase(target):
    for _ in range(50):
        with Client(target, greet=False) as client:
            try:
                client.greeting()
                if target.random.random() < 0.7:
                    client.send(struct.pack(">I", 3))
                    if target.random.random() < 0.7:
                        length = target.random.choice((0, 1, 5, 6, 7, 40))
                        client.send(struct.pack(">QII", IHAVEOPT, target.random.randrange(12),
                                                length))
                client.send(target.random.randbytes(target.random.randrange(1, 300)))
            except (Closed, Wrong):
                pass
