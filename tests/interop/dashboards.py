"""Asks a Prometheus that scrapes a busy daemon everything that the dashboard asks, and compares the documentation
with what the daemon tells.

    dashboards.py PROMETHEUS METRICS DIRECTORY
"""

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request

# How long series may take to come: two scrapes, and the daemon's first count of who uses how much.
PATIENCE_SECONDS = 60
BUILT_IN = {"$__rate_interval": "30s", "${datasource}": "prometheus"}
NAME = re.compile(r"\b(?:thinpool|process)_[a-z_]+")


def get(url, **parameters):
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(f"{url}?{query}", timeout=20) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{url} {parameters}: {error}: {error.read().decode()}") from error


class Prometheus:
    def __init__(self, url):
        self.url = url

    def ask(self, what, **parameters):
        answer = json.loads(get(f"{self.url}/api/v1/{what}", **parameters))
        assert answer["status"] == "success", answer
        return answer["data"]

    def values(self, query):
        """The values of `label_values(selector, label)`."""
        match = re.fullmatch(r"label_values\((.*), ([a-z_]+)\)", query)
        assert match, f"not a query for labels: {query}"
        selector, label = match.groups()
        return self.ask(f"label/{label}/values", **{"match[]": selector})

    def has_data(self, expression):
        result = self.ask("query", query=expression)["result"]
        return any(not math.isnan(float(sample["value"][1])) for sample in result)


def until(what, found):
    """Waits until `found()` is true; what was missing is told."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not found():
        if time.monotonic() > deadline:
            raise SystemExit(f"no data: {what}")
        time.sleep(0.2)


def variables(prometheus, dashboard):
    """One value for each variable of the dashboard, in their order; everything where that is offered."""
    chosen = dict(BUILT_IN)
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        query = substitute(variable["query"]["query"], chosen)
        until(f"variable {variable['name']}: {query}", lambda: prometheus.values(query))
        value = variable["allValue"] if variable["includeAll"] else prometheus.values(query)[0]
        chosen[f"${variable['name']}"] = value
    return chosen


def substitute(text, chosen):
    for name, value in chosen.items():
        text = text.replace(name, value)
    assert "$" not in text, f"an unknown variable: {text}"
    return text


def check_queries(prometheus, dashboard):
    chosen = variables(prometheus, dashboard)
    queries = [(panel["title"], target["expr"])
               for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(queries) > 50, queries
    for title, query in queries:
        query = substitute(query, chosen)
        until(f"{title}: {query}", lambda: prometheus.has_data(query))
    return len(queries)


def check_panels(dashboard):
    """What Grafana needs: distinct ids, no panel over another, a row for each subject."""
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not taken & cells, f"{panel['title']} lies over another panel"
        taken |= cells


def check_rules(prometheus):
    def healthy():
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        bad = [rule for rule in rules if rule["health"] == "err"]
        assert not bad, bad
        return rules and all(rule["health"] == "ok" for rule in rules)

    until("the alert rules", healthy)


def documented(directory):
    """The table: {name: (type, labels)}."""
    rows = {}
    for line in open(f"{directory}/README.md"):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        name = cells[0].strip("`")
        if line.startswith("| `") and NAME.fullmatch(name):
            assert len(cells) == 5 and all(cells), line
            assert name not in rows, f"{name} is documented twice"
            check_unit(name, cells[2])
            rows[name] = (cells[1], tuple(re.findall(r"`([a-z]+)`", cells[3])))
    return rows


def check_unit(name, unit):
    for known in ("bytes", "seconds", "ratio"):
        assert (unit == known) == (f"_{known}" in name), f"{name}: {unit}"


def told(page):
    """What the daemon tells: {name: (type, labels)}."""
    kinds, labels = {}, {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            kinds[name] = kind
        elif not line.startswith("#"):
            name = re.match("[a-z_]+", line).group()
            base = re.sub("_(bucket|sum|count)$", "", name)
            base = base if kinds.get(base) == "histogram" else name
            keys = set(re.findall(r'([a-z]+)="', line)) - {"le"}
            assert labels.setdefault(base, keys) == keys, f"{base} has other labels here: {line}"
    return {name: (kind, tuple(sorted(labels[name]))) for name, kind in kinds.items()}


def main():
    prometheus, metrics, directory = Prometheus(sys.argv[1]), sys.argv[2], sys.argv[3]
    dashboard = json.load(open(f"{directory}/thinpool.json"))
    check_panels(dashboard)
    queries = check_queries(prometheus, dashboard)
    check_rules(prometheus)
    # Who uses how much is told when it has been counted.
    until("thinpool_usage_age_seconds", lambda: "\nthinpool_usage_age_seconds{" in get(metrics))
    rows, live = documented(directory), told(get(metrics))
    for name in sorted(rows.keys() | live.keys()):
        assert rows.get(name) == live.get(name), f"{name}: documented {rows.get(name)}, told {live.get(name)}"
    for name in NAME.findall(re.sub("(?m)#.*", "", open(f"{directory}/alerts.yml").read())):
        assert name in live, f"alerts.yml names {name}, which no daemon tells"
    print(f"ok {queries} queries, {len(live)} metrics")


if __name__ == "__main__":
    main()
