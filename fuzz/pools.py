#!/usr/bin/env python3
"""Writes pools/*.blocks, small forms of pools that the kernel has made (tests/fixtures), for the fuzz targets."""

import pathlib
import struct
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures" / "kernel-pools"
BLOCK = 4096

for name in ("2-single", "6-grown-held-origin"):
    command = ["zstd", "-dcq", FIXTURES / name / "metadata.bin.zst"]
    image = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    out = [struct.pack("<I", len(image) // BLOCK)]
    for nr in range(len(image) // BLOCK):
        block = image[nr * BLOCK:(nr + 1) * BLOCK].rstrip(b"\0")
        if block:
            out.append(struct.pack("<IH", nr, len(block)) + block)
    (HERE / "pools").mkdir(exist_ok=True)
    (HERE / "pools" / f"{name}.blocks").write_bytes(b"".join(out))
