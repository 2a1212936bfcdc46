"""Checks two scrapes of /metrics: the text format, naming, and that the values moved.

    metrics.py BEFORE AFTER
"""

import re
import sys

SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)')

class Scrape:
    """Families with help and type; samples as {(name, labels): value}."""

    def __init__(self, text):
        self.help, self.kind, self.samples = {}, {}, {}
        assert text.endswith("\n"), "the last line is not ended"
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name, _, words = line[7:].partition(" ")
                assert words.strip(), f"no help text: {line}"
                assert name not in self.help, f"HELP twice: {line}"
                self.help[name] = words
            elif line.startswith("# TYPE "):
                name, kind = line[7:].split()
                assert kind in ("counter", "gauge", "histogram", "summary"), line
                assert name not in self.kind, f"TYPE twice: {line}"
                self.kind[name] = kind
            elif line and not line.startswith("#"):
                self.sample(line)

    def sample(self, line):
        match = SAMPLE.match(line)
        assert match, f"not a sample: {line}"
        name, text, value = match.groups()
        labels, at = [], 0
        while text and at < len(text):
            label = LABEL.match(text, at)
            assert label, f"labels: {line}"
            labels.append((label.group(1), label.group(2)))
            at = label.end()
        key = (name, tuple(sorted(labels)))
        assert key not in self.samples, f"twice: {line}"
        self.samples[key] = float(value)

    def family(self, name):
        for suffix in ("_bucket", "_sum", "_count"):
            base = name.removesuffix(suffix)
            if base != name and self.kind.get(base) == "histogram":
                return base
        return name

    def check(self):
        for name, _ in self.samples:
            base = self.family(name)
            assert base in self.help and base in self.kind, f"{name} has no HELP or TYPE"
            if self.kind[base] == "counter":
                assert base.endswith("_total"), f"counter {base} does not end with _total"
        for name, kind in self.kind.items():
            if kind == "histogram":
                self.check_histogram(name)

    def check_histogram(self, name):
        series = {}
        for (sample, labels), value in self.samples.items():
            if sample == name + "_bucket":
                bound = dict(labels)["le"]
                rest = tuple(label for label in labels if label[0] != "le")
                series.setdefault(rest, []).append((float(bound), value))
        for rest, buckets in series.items():
            buckets.sort()
            counts = [count for _, count in buckets]
            assert counts == sorted(counts), f"{name} {rest}: buckets do not add up"
            assert buckets[-1][0] == float("inf"), f"{name} {rest}: no +Inf bucket"
            assert counts[-1] == self.samples[(name + "_count", rest)], f"{name} {rest}: count"
            assert (name + "_sum", rest) in self.samples, f"{name} {rest}: no sum"

    def total(self, pattern, **wanted):
        found = [value for (name, labels), value in self.samples.items() if re.fullmatch(pattern, name)
                 and all(dict(labels).get(key) == content for key, content in wanted.items())]
        assert found, f"no sample {pattern} {wanted} among {sorted({n for n, _ in self.samples})}"
        return sum(found)


def main():
    before, after = (Scrape(open(path).read()) for path in sys.argv[1:])
    for scrape in (before, after):
        scrape.check()
    mib = 1 << 20
    assert after.total("thinpool_data_.*total.*|thinpool_data_.*size.*") >= 256 * mib
    used = after.total("thinpool_data_.*used.*") - before.total("thinpool_data_.*used.*")
    assert used == 8 * mib, f"data used moved by {used}, expected 8 MiB: 8 - 1 discarded + 1 copied"
    assert after.total("thinpool_metadata_.*used.*") > before.total("thinpool_metadata_.*used.*")
    assert after.total(".*transaction_id") > before.total(".*transaction_id")
    assert after.total("thinpool_.*mode.*") == 1, "exactly one mode"
    assert after.total(".*needs_check.*") == 0
    assert after.total("thinpool_.*mapped_bytes", volume="vol") == 7 * mib
    assert after.total("thinpool_.*size_bytes", volume="vol") == 64 * mib
    for name in (".*operations_total", "thinpool_(device_|volume_)?bytes_total"):
        for operation in ("read", "write"):
            moved = (after.total(name, volume="vol", operation=operation)
                     - (before.total(name, volume="vol", operation=operation)
                        if has(before, name, operation) else 0))
            assert moved > 0, f"{name} {operation} did not move"
    assert after.total(".*seconds_count", volume="vol", operation="write") > 0
    assert after.total("thinpool_commits_total") > before.total("thinpool_commits_total")
    assert after.total("thinpool_commit_duration_seconds_count") > 0
    assert after.total("thinpool_provisioned_blocks_total") >= 128
    assert after.total("thinpool_copied_blocks_total") >= 0
    print(f"ok {len(after.samples)} samples in {len(after.kind)} families")


def has(scrape, pattern, operation):
    return any(re.fullmatch(pattern, name) and dict(labels).get("operation") == operation
               for name, labels in scrape.samples)


if __name__ == "__main__":
    main()
