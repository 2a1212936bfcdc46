"""Metadata contexts: listing, selecting, and what clears a selection."""

import struct

from target import EVERYONE, NBDKIT, OURS, QEMU, case, check, equal, one_of
from wire import (EINVAL, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, OPT_LIST_META, OPT_SET_META,
                  REP_ACK, STATUS, meta_payload)

ALLOCATION, DEPTH = "base:allocation", "qemu:allocation-depth"


def negotiating(target):
    client = target.options()
    client.negotiate_structured()
    return client


def selects_nothing(client, export):
    """After GO, block status is refused because no context is selected."""
    client.go(export)
    equal(client.call(STATUS, 0, 65536).error, EINVAL, "block status without a context")


@case(EVERYONE)
def set_before_structured_replies_is_invalid(target):
    with target.options() as client:
        equal(client.meta(target.export, [ALLOCATION])[0], ERR_INVALID, "SET_META_CONTEXT")
        client.go(target.export)


@case((OURS, QEMU))
def every_truncation_is_invalid(target):
    good = meta_payload(target.export, [ALLOCATION, "x:y"])
    with negotiating(target) as client:
        for option in (OPT_LIST_META, OPT_SET_META):
            for length in range(len(good)):
                equal(client.ask(option, good[:length])[0], ERR_INVALID,
                      f"option {option} cut to {length} of {len(good)} bytes")
            if target.ours:
                equal(client.ask(option, good + b"x")[0], ERR_INVALID, "trailing byte")
        client.go(target.export)


@case(EVERYONE)
def huge_counts_and_lengths_are_invalid(target):
    name = struct.pack(">I", len(target.export)) + target.export.encode()
    payloads = (name + struct.pack(">I", 0xFFFFFFFF), name + struct.pack(">I", 1 << 30) + b"abcd",
                name + struct.pack(">II", 1, 0xFFFFFFFF) + b"base",
                name + struct.pack(">II", 1, 1 << 31), struct.pack(">I", 0xFFFFFFFF) + b"abc")
    with negotiating(target) as client:
        for payload in payloads:
            for option in (OPT_LIST_META, OPT_SET_META):
                one_of(client.ask(option, payload)[0], {ERR_INVALID, ERR_TOO_BIG}, payload.hex())
        client.go(target.export)


@case()
def more_than_1024_queries_are_too_many(target):
    with negotiating(target) as client:
        kind, contexts = client.meta(target.export, ["x:y"] * 1023 + [ALLOCATION])
        equal((kind, [name for _, name in contexts]), (REP_ACK, [ALLOCATION]), "1024 queries")
        equal(client.meta(target.export, ["x:y"] * 1025)[0], ERR_TOO_BIG, "1025 queries")
        selects_nothing(client, target.export)


@case()
def listing_without_queries_lists_everything(target):
    with negotiating(target) as client:
        kind, contexts = client.meta(target.export, [], OPT_LIST_META)
        equal(kind, REP_ACK, "LIST_META_CONTEXT")
        names = [name for _, name in contexts]
        check({ALLOCATION, DEPTH} <= set(names), f"listed: {names}")
        equal({number for number, _ in contexts}, {0}, "ids in a listing")


@case()
def listing_takes_wildcards(target):
    expected = {"base:": {ALLOCATION}, "qemu:": {DEPTH}, ALLOCATION: {ALLOCATION}, DEPTH: {DEPTH},
                "nobody:": set(), "base:nothing": set()}
    with negotiating(target) as client:
        for query, names in expected.items():
            _, contexts = client.meta(target.export, [query], OPT_LIST_META)
            found = {name for _, name in contexts if not name.startswith("qemu:dirty-bitmap:")}
            equal(found, names, f"LIST {query}")


@case((OURS, NBDKIT))
def wildcards_select_nothing(target):
    with negotiating(target) as client:
        kind, contexts = client.meta(target.export, ["base:", "qemu:", "qemu:dirty-bitmap:"])
        equal((kind, contexts), (REP_ACK, []), "SET with wildcards")
        selects_nothing(client, target.export)


@case(EVERYONE)
def unknown_contexts_are_ignored(target):
    queries = ["nobody:knows", "base:nothing", "", ":", "base", ALLOCATION, "qemu:dirty-bitmap:no"]
    with negotiating(target) as client:
        kind, contexts = client.meta(target.export, queries)
        equal((kind, [name for _, name in contexts]), (REP_ACK, [ALLOCATION]), "selected")


@case((OURS, QEMU))
def repeated_queries_select_once(target):
    with negotiating(target) as client:
        kind, contexts = client.meta(target.export, [ALLOCATION] * 5)
        equal((kind, [name for _, name in contexts]), (REP_ACK, [ALLOCATION]), "selected")
        client.go(target.export)
        reply = client.call(STATUS, 0, 65536)
        equal((reply.error, len(reply.chunks)), (0, 1), "error and chunks")


@case()
def both_contexts_answer_in_one_reply(target):
    with target.open(contexts=(ALLOCATION, DEPTH)) as client:
        check(len(set(client.contexts.values())) == 2, "two contexts with one id")
        reply = client.call(STATUS, 0, 1 << 20)
        equal(len(reply.chunks), 2, "chunks")


@case((OURS, QEMU))
def set_for_an_unknown_export(target):
    with negotiating(target) as client:
        equal(client.meta("no-such-export", [ALLOCATION])[0], ERR_UNKNOWN, "SET")
        equal(client.meta("no-such-export", [], OPT_LIST_META)[0], ERR_UNKNOWN, "LIST")
        client.go(target.export)


@case((OURS, QEMU))
def a_failed_set_clears_the_selection(target):
    failures = {"unknown export": meta_payload("no-such-export", [ALLOCATION]),
                "malformed": meta_payload(target.export, [ALLOCATION])[:-1]}
    for what, payload in failures.items():
        with negotiating(target) as client:
            equal(client.meta(target.export, [ALLOCATION])[0], REP_ACK, "SET")
            check(client.ask(OPT_SET_META, payload)[0] != REP_ACK, what)
            selects_nothing(client, target.export)


@case(EVERYONE)
def an_empty_set_clears_the_selection(target):
    with negotiating(target) as client:
        client.meta(target.export, [ALLOCATION])
        equal(client.meta(target.export, []), (REP_ACK, []), "empty SET")
        selects_nothing(client, target.export)


@case(needs_snapshot=True)
def going_elsewhere_drops_the_selection(target):
    with negotiating(target) as client:
        client.meta(target.export, [ALLOCATION])
        selects_nothing(client, target.snapshot)


@case(EVERYONE)
def a_listing_keeps_the_selection(target):
    with negotiating(target) as client:
        client.meta(target.export, [ALLOCATION])
        client.meta(target.export, [], OPT_LIST_META)
        client.go(target.export)
        equal(client.call(STATUS, 0, 65536).error, 0, "block status")


@case(EVERYONE)
def block_status_without_structured_replies(target):
    with target.open(structured=False) as client:
        equal(client.call(STATUS, 0, 65536).error, EINVAL, "block status")
        client.read(0, 512)
