"""What was measured, as Markdown."""

import statistics

from peers import LIMIT, OURS
from workloads import BARS, RATIOS, WORKLOADS

SNAPSHOT_MS = 2
SNAPSHOT_TEXTS = {
    "snapshot": "snapshot, durable",
    "clone": "clone, durable",
    "stall": "longest wait of a writer while snapshots are made",
}


class Results:
    """Measurements by workload and server, one of each round."""

    def __init__(self):
        self.made = {}

    def add(self, workload, server, figure):
        self.made.setdefault((workload.name, server), []).append(figure)

    def median(self, workload, server, what):
        figures = [figure[what] for figure in self.made.get((workload.name, server), ()) if figure[what]]
        return statistics.median(figures) if figures else None

    def ratio(self, bar):
        """Ours to the best of the peers: the median over the rounds of the ratio within a round."""
        other = bar.other or bar.workload
        best = max if bar.what == "rate" else min
        medians = {peer: self.median(other, peer, bar.what) for peer in bar.peers}
        medians = {peer: median for peer, median in medians.items() if median}
        if not medians:
            return None
        peer = best(medians, key=medians.get)
        pairs = zip(self.made.get((bar.workload.name, OURS), ()), self.made[other.name, peer])
        ratios = [ours[bar.what] / theirs[bar.what] for ours, theirs in pairs if ours[bar.what] and theirs[bar.what]]
        return statistics.median(ratios) if ratios else None


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def table(head, rows, align="--:"):
    lines = ["| " + " | ".join(head) + " |", "|---|" + (align + "|") * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def in_microseconds(results, workload, server):
    pair = [results.median(workload, server, what) for what in ("p50_ns", "p99_ns")]
    return "" if pair[0] is None else f"{pair[0] / 1000:.0f} / {pair[1] / 1000:.0f}"


def rates(results, servers):
    """One table of each: rates, CPU, latency, ratios."""
    measured = [workload for workload in WORKLOADS if any((workload.name, server) in results.made for server in servers)]
    cells = lambda cell: [[workload.name, *(cell(workload, server) for server in servers)] for workload in measured]
    head = ["workload", *servers]
    ratios = []
    for workload in measured:
        row = [workload.name]
        for _, peers in RATIOS:
            medians = [results.median(workload, peer, "rate") for peer in peers]
            best = max((median for median in medians if median), default=None)
            ours = results.median(workload, OURS, "rate")
            row.append(number(ours / best, 2) if best and ours else "")
        ratios.append(row)
    return "\n".join((
        "## Requests per second, median\n",
        table(head, cells(lambda workload, server: number(results.median(workload, server, "rate")))),
        "## Server CPU, microseconds per request, median\n",
        table(head, cells(lambda workload, server: number(results.median(workload, server, "cpu_us"), 2))),
        "## Latency, microseconds, median of p50 / p99\n",
        table(head, cells(lambda workload, server: in_microseconds(results, workload, server))),
        "## Rate of ours to that of\n",
        table(["workload", *(name for name, _ in RATIOS)], ratios),
    ))


def reached(results):
    """[bar, ratio measured, whether it is reached], for those that were measured."""
    found = []
    for bar in BARS:
        ratio = results.ratio(bar)
        if ratio is not None:
            found.append((bar.text(), f"{ratio:.2f}", bar.reached(ratio)))
    return found


def snapshots_reached(snapshots):
    """Of ours, which are those with stalls."""
    found = []
    for at, times in snapshots.items():
        for what, text in SNAPSHOT_TEXTS.items():
            if "stall" in times:
                median = statistics.median(times[what])
                found.append((f"{text}, {at}: at most {SNAPSHOT_MS} ms", f"{median:.2f} ms", median <= SNAPSHOT_MS))
    return found


def snapshots_table(snapshots):
    columns = list(dict.fromkeys(what for times in snapshots.values() for what in times))
    rows = []
    for at, times in snapshots.items():
        cells = (f"{statistics.median(times[what]):.2f} ({min(times[what]):.2f}, {max(times[what]):.2f})"
                 if what in times else "" for what in columns)
        rows.append([at, *cells])
    return "## Snapshots and clones, milliseconds, median (smallest, largest)\n\n" + table(["", *columns], rows)


def bars_table(bars):
    rows = [[text, measured, "yes" if ok else "**no**"] for text, measured, ok in bars]
    return "## What is to be reached\n\n" + table(["bar", "measured", "reached"], rows)


def order(servers):
    """Ours, the limit, then the peers."""
    return sorted(servers, key=lambda name: (name != OURS, name != LIMIT))
