#!/usr/bin/env python3
"""Writes first inputs for the fuzz targets, from real pools and real sessions: seeds.py DIRECTORY

The stored corpus is what fuzzing has made of these (`run.py --minimise`)."""

import json
import pathlib
import struct
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures" / "kernel-pools"
OUT = pathlib.Path(sys.argv[1])
UUID = "11111111-2222-3333-4444-555555555555"


def put(target, *inputs):
    directory = OUT / target
    directory.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(inputs):
        content = content if isinstance(content, bytes) else content.encode()
        (directory / f"seed-{number}").write_bytes(content)


def unpacked(pool, name):
    command = ["zstd", "-dcq", FIXTURES / pool / name]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def blocks():
    """Each block of a small pool, in the place of each block of the pool that it is put into."""
    image = unpacked("2-single", "metadata.bin.zst")
    for nr in range(len(image) // 4096):
        content = image[nr * 4096:(nr + 1) * 4096].rstrip(b"\0")
        if content:
            yield bytes([nr]) + content


def option(number, payload=b""):
    return b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload


def text(string):
    return struct.pack(">I", len(string)) + string


def handshakes():
    flags = struct.pack(">I", 3)
    contexts = text(b"prod") + struct.pack(">I", 2) + text(b"base:allocation") + text(b"qemu:")
    go = option(7, text(b"prod") + struct.pack(">HHH", 2, 1, 2))
    yield flags + option(8) + option(9, contexts) + option(10, contexts) + go
    yield flags + option(3) + option(6, text(b"broken") + b"\0\0") + option(5) + option(2)
    yield struct.pack(">I", 1) + option(1, b"prod")


def transmissions():
    """A byte for the mode, ten for each request, then raw bytes."""
    request = lambda command, flags, offset, length: struct.pack("<BB", command, flags) + \
        struct.pack("<I", offset)[:3] + struct.pack("<I", length)[:3] + b"\0\x61"
    some = b"".join(request(command, 0, 4096 * command, 70000) for command in (1, 0, 5, 3, 0, 7, 2, 4))
    raw = struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512)
    yield bytes([16 << 1]) + some
    yield bytes([16 << 1 | 1]) + some
    yield b"\0" + raw * 3 + struct.pack(">IHHQQI", 0x25609513, 0, 2, 1, 0, 0)


def control():
    attach = {"name": "prod", "mount": "/mnt", "mkfs": "ext4", "transport": "nbd", "sector_size": "4096",
              "queues": 2, "depth": 64, "buffer_bytes": 65536, "persist": True}
    for call in ("status", "list", "usage", "check", "reclaim", {"info": {"name": "prod@nightly"}},
                 {"create": {"name": "prod", "size": 65536, "origin": "/dev/sda"}},
                 {"create_snapshots": {"names": ["prod@a", "dev@a"]}},
                 {"clone": {"source": "prod@a", "name": "dev"}}, {"rename": {"from": "a", "to": "b"}},
                 {"resize": {"name": "prod", "size": 1048576, "shrink": False}},
                 {"grow": {"data_size": 1048576, "metadata_size": None}},
                 {"attach": attach}, {"detach": {"target": {"device": "/dev/loop0"}}}):
        yield b"\0" + json.dumps(call).encode()
    for event in ({"progress": {"done": 1, "total": 2, "unit": "blocks"}}, {"reply": "done"},
                  {"error": {"kind": "no_space", "message": "full"}}):
        yield b"\1" + json.dumps(event).encode()
    error = b'{"kind":"other","message":"no"}'
    yield b"\2D" + struct.pack(">I", 5) + b"hello" + b"Z" + struct.pack(">IQ", 8, 65536) + b".\0\0\0\0"
    yield b"\2E" + struct.pack(">I", len(error)) + error
    yield b"\3prod@nightly-1.2_3"


def configs():
    yield f"\0version = 1\nuuid = '{UUID}'\nmetadata = 'metadata'\ndata = '/dev/sdb'\n" \
        "read_only = true\nzero_new_blocks = false\ndiscard_passdown = false\n"
    yield "\1version = 1\n[[attachment]]\nname = 'prod@s'\nmount = '/srv'\ntransport = 'ublk'\n" \
        "sector_size = '4096'\nqueues = 2\ndepth = 64\nbuffer_bytes = 524288\n"
    device = {"volume": UUID, "device": 3, "token": 77, "connections": 2, "read_only": False, "mountpoint": "/m"}
    yield "\2" + json.dumps({"version": 1, "devices": [device, {**device, "volume": "other", "device": 4}]})


def catalogs():
    entry = {"size": 65536 * 16, "uuid": UUID, "created": "", "read_only": False}
    line = lambda transaction, **fields: json.dumps({"transaction_id": transaction, **fields}) + "\n"
    add = lambda transaction, id, name, **fields: \
        line(transaction, op="add", id=id, name=name, **entry, **fields)
    yield add(1, 0, "a") + add(2, 1, "b", external_origin="/o") + add(3, 2, "a@1", parent=UUID)
    yield add(1, 0, "a") + line(2, op="rename", **{"from": "a", "to": "c"}) + \
        line(3, op="resize", name="c", size=1 << 20) + line(3, op="freeze", name="c") + \
        line(4, op="rollback", name="c", id=3, uuid="u", parent=UUID, size=512) + \
        line(4, op="remove", name="c") + line(5, op="reclaimed", id=3) + add(99, 7, "later") + '{"trans'


put("block", *blocks())
put("image", *(bytes([pool]) for pool in range(6)))
put("log", b"\0")
put("catalog", *catalogs())
put("handshake", *handshakes())
put("transmission", *transmissions())
put("control", *control())
put("config", *configs())
put("restore", *(unpacked(pool, "thin_dump.xml.zst") for pool in ("1-empty", "2-single", "8-needs-check")))
