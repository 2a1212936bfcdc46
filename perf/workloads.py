"""The workloads, and what is to be reached in them."""

from dataclasses import dataclass

from peers import (BTRFS, DURABLE, LIMIT, NBD_SERVER_COW, NBDKIT, OURS, QCOW2, RAW, SUBCLUSTERS, XFS)

KIB = 1024


@dataclass(frozen=True)
class Workload:
    name: str
    kind: str  # of what it runs on, see servers.Server
    pattern: str
    depth: int = 1
    connections: int = 1
    size: int = 4 * KIB
    flush: str = "never"
    # A fixed number instead of a time: where blocks are used up, all do the same work.
    requests: int = 0

    def options(self):
        return {name: getattr(self, name) for name in ("pattern", "depth", "connections", "size", "flush")}


READ_32 = Workload("4k random read, depth 32", "in place", "randread", depth=32)
READ_1 = Workload("4k random read, depth 1", "in place", "randread")
WRITE_32 = Workload("4k random write, depth 32", "in place", "randwrite", depth=32)
WRITE_1 = Workload("4k random write, depth 1", "in place", "randwrite")
SEQUENTIAL_READ = Workload("64k sequential read, depth 8", "in place", "seqread", depth=8, size=64 * KIB)
SEQUENTIAL_WRITE = Workload("64k sequential write, depth 8", "in place", "seqwrite", depth=8, size=64 * KIB)
FLUSH_1 = Workload("4k write + flush, depth 1", "in place", "randwrite", flush="each")
CLONE_32 = Workload("fresh clone, new 64k each, depth 32", "clone", "blockwrite", depth=32, requests=16384)
CLONE_1 = Workload("fresh clone, new 64k each, depth 1", "clone", "blockwrite", requests=8192)
CLONE_FLUSH_1 = Workload("fresh clone, write + flush, depth 1", "clone", "blockwrite", flush="each", requests=1000)
CLONE_FLUSH_32 = Workload("fresh clone, write + flush, 32 writers", "clone", "blockwrite", connections=32, flush="each",
                          requests=4000)
DEEP_32 = Workload("4k random read, depth 32, behind 1,000 snapshots", "deep", "randread", depth=32)
UNMAPPED_32 = Workload("4k random read, depth 32, unmapped", "unmapped", "randread", depth=32)

# Those that are compared with one another directly stand together, so that little lies between them.
WORKLOADS = (READ_32, DEEP_32, UNMAPPED_32, READ_1, WRITE_32, WRITE_1, SEQUENTIAL_READ, SEQUENTIAL_WRITE, FLUSH_1,
             CLONE_32, CLONE_1, CLONE_FLUSH_1, CLONE_FLUSH_32)


@dataclass(frozen=True)
class Bar:
    """A ratio of ours to the best of some peers (or to ours in another workload), and its bound."""

    workload: Workload
    what: str  # "rate" must be at least the bound, "cpu_us" and "p50_ns" at most
    peers: tuple
    against: str
    bound: float
    other: Workload = None

    def reached(self, ratio):
        return ratio >= self.bound if self.what == "rate" else ratio <= self.bound

    def text(self):
        subject = {"rate": "rate", "cpu_us": "CPU per request", "p50_ns": "p50"}[self.what]
        limit = "at least" if self.what == "rate" else "at most"
        return f"{self.workload.name}: {subject} {limit} {self.bound:g} x {self.against}"


BARS = (
    Bar(READ_32, "rate", (NBDKIT,), "nbdkit file", 2.2),
    Bar(READ_32, "rate", RAW, "qemu-nbd raw", 5),
    Bar(READ_32, "cpu_us", (LIMIT,), "limit", 1.25),
    Bar(READ_1, "p50_ns", (LIMIT,), "limit", 1.2),
    Bar(WRITE_32, "rate", (NBDKIT,), "nbdkit file", 1.6),
    Bar(WRITE_32, "cpu_us", (LIMIT,), "limit", 1.25),
    Bar(SEQUENTIAL_READ, "rate", (NBDKIT,), "nbdkit file", 1.6),
    Bar(SEQUENTIAL_WRITE, "rate", (NBDKIT,), "nbdkit file", 1.6),
    Bar(CLONE_32, "rate", (NBD_SERVER_COW,), "nbd-server cow*", 1),
    Bar(CLONE_1, "rate", (NBD_SERVER_COW,), "nbd-server cow*", 1),
    Bar(CLONE_32, "rate", SUBCLUSTERS, "qcow2 sub-clusters", 2),
    Bar(CLONE_1, "rate", SUBCLUSTERS, "qcow2 sub-clusters", 2),
    Bar(CLONE_FLUSH_1, "rate", (QCOW2, *SUBCLUSTERS), "best qcow2", 2),
    Bar(CLONE_FLUSH_32, "rate", DURABLE, "best durable peer", 1.5),
    Bar(DEEP_32, "rate", (OURS,), "ours at depth 0", 0.95, READ_32),
    Bar(UNMAPPED_32, "rate", (OURS,), "a mapped read of ours", 3, READ_32),
)

# Columns of ratios behind the table of rates.
RATIOS = (("best raw", RAW), ("nbdkit file", (NBDKIT,)), ("limit", (LIMIT,)), ("best qcow2", (QCOW2, *SUBCLUSTERS)),
          ("nbd-server cow*", (NBD_SERVER_COW,)), ("best reflink", (XFS, BTRFS)))
