#!/usr/bin/env python3
"""Compares what our check says of damaged metadata with what thin_check says: compare.py [INPUT...]

The images are those that inputs of the target `image` make, all that are stored or were found unless given.
Nothing fails: the two differ in what they look for. Each kind of disagreement is counted and shown once."""

import collections
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
BUILT = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")).resolve()
# libFuzzer takes a while for each directory, none for each input; images are small, but many.
BATCH = 200


def inputs():
    if sys.argv[1:]:
        return [pathlib.Path(name).resolve() for name in sys.argv[1:]]
    directories = (HERE / "corpus" / "image", BUILT / "fuzz" / "corpus" / "image")
    return sorted(path for directory in directories if directory.is_dir() for path in directory.iterdir())


def theirs(image):
    """What thin_check says: a verdict, and its first words."""
    try:
        done = subprocess.run(["thin_check", image], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              errors="replace", timeout=60)
    except subprocess.TimeoutExpired:
        return "hangs", ""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    said = next((line for line in lines if not line.startswith(("examining", "TRANSACTION", "METADATA"))), "")
    if done.returncode < 0:
        return f"dies of signal {-done.returncode}", said
    return ("sound" if done.returncode == 0 else "not sound"), re.sub(r"\d+", "N", said)


def compared(paths, directory):
    environment = os.environ | {"FUZZ_TARGET": "export", "FUZZ_EXPORT": directory}
    subprocess.run([BUILT / "ci" / "fuzz", *paths], check=True, env=environment,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # libFuzzer runs what it is given in this order.
    for number, path in enumerate(paths):
        verdict, *findings = (pathlib.Path(directory) / f"{number}.verdict").read_text().splitlines()
        yield path, verdict, (findings or [""])[0], *theirs(f"{directory}/{number}.image")


def main():
    if not shutil.which("thin_check"):
        sys.exit("thin_check is not installed: make install-deps")
    paths, counts, kinds = inputs(), collections.Counter(), {}
    for first in range(0, len(paths), BATCH):
        with tempfile.TemporaryDirectory() as directory:
            for path, ours, found, verdict, said in compared(paths[first:first + BATCH], directory):
                counts[(ours, verdict)] += 1
                if (ours == "sound") != (verdict == "sound"):
                    kind = (ours, verdict, re.sub(r"\d+", "N", found), said)
                    kinds.setdefault(kind, []).append(path)
    for (ours, verdict, found, said), where in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(where)} times: ours {ours} ({found}), thin_check {verdict} ({said}), as {where[0]}")
    print(json.dumps({"name": "compare", "images": len(paths),
                      "verdicts": {f"ours {ours}, thin_check {verdict}": count
                                   for (ours, verdict), count in sorted(counts.items())}}))


if __name__ == "__main__":
    main()
