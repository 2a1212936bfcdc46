"""The rates as a picture: for each workload a bar for each server, ours in colour. SVG, light and dark."""

from xml.sax.saxutils import escape

from peers import LIMIT, OURS
from workloads import WORKLOADS

WIDTH, COLUMNS, GAP = 1160, 2, 40
LABEL, VALUE, LINE, TITLE = 190, 80, 18, 34
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 } .title { font-weight: 600; font-size: 13px }
.background { fill: #fff } .bar { fill: #9aa5b1 } .ours { fill: #1769c2 } .limit { fill: #d0d6dc }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .background { fill: #16191d } .bar { fill: #66717d } .ours { fill: #4c9aed } .limit { fill: #3a424b }
}
"""


def panel(title, rates, x, y):
    """A title, and a bar for each (server, rate)."""
    width = (WIDTH - GAP * (COLUMNS + 1)) // COLUMNS
    room, most = width - LABEL - VALUE, max(rate for _, rate in rates)
    parts = [f'<text class="title" x="{x}" y="{y + 16}">{escape(title)}, per second</text>']
    for index, (server, rate) in enumerate(rates):
        top = y + TITLE - 8 + index * LINE
        kind = {OURS: "ours", LIMIT: "limit"}.get(server, "bar")
        length = max(rate / most * room, 1)
        parts.append(f'<text x="{x + LABEL - 8}" y="{top + 12}" text-anchor="end">{escape(server)}</text>'
                     f'<rect class="{kind}" x="{x + LABEL}" y="{top + 2}" width="{length:.1f}" height="13" rx="2"/>'
                     f'<text x="{x + LABEL + length + 6:.1f}" y="{top + 12}">{rate:,.0f}</text>')
    return "\n".join(parts)


def svg(results, servers):
    columns, heights = [[] for _ in range(COLUMNS)], [GAP // 2] * COLUMNS
    for workload in WORKLOADS:
        rates = [(server, results.median(workload, server, "rate")) for server in servers]
        rates = [(server, rate) for server, rate in rates if rate]
        if not rates:
            continue
        column = heights.index(min(heights))
        x = GAP + column * (WIDTH - GAP) // COLUMNS
        columns[column].append(panel(workload.name, rates, x, heights[column]))
        heights[column] += TITLE + len(rates) * LINE + 16
    height = max(heights) + 8
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">\n'
            f'<style>{STYLE}</style>\n<rect class="background" width="{WIDTH}" height="{height}"/>\n'
            + "\n".join(part for column in columns for part in column) + "\n</svg>\n")
