#!/bin/bash
# Dashboard, alerts and their documentation, with a Prometheus that scrapes a daemon which has work to do: every
# query of every panel has an answer, every alert rule is understood, and what is documented is what is told.
. "$(dirname "$0")/lib.sh"

DASHBOARDS=$(cd "$TESTS/../dashboards" && pwd)

echo "== rules"
promtool check rules "$DASHBOARDS/alerts.yml" || fail "the alert rules"
promtool test rules "$DASHBOARDS/alerts_test.yml" || fail "an alert fires when it should not, or the other way round"

echo "== a pool with work"
new_pool pool --size 512M
thinctl create "$POOL/own" --size 128M
# More than is counted at a time, so that a count goes on where it stopped: 1221 blocks.
head -c 80000000 /dev/zero | tr '\0' a | thinctl write "$POOL/own"
thinctl create "$POOL/prod" --size 32M
head -c 8000000 /dev/zero | tr '\0' a | thinctl write "$POOL/prod"
thinctl create-snap "$POOL/prod@s"
thinctl clone "$POOL/prod@s" "$POOL/dev"
serve_nbd "$POOL" --metrics 127.0.0.1:0
ADDRESS=$(sed -n 's/.*metrics=\([0-9.]*:[0-9]*\).*/\1/p' <<<"$READY")
"$PYTHON" "$TESTS/interop/dashboards_load.py" "$(uri prod)" "$(uri dev)" &
LOAD=$!
undo kill "$LOAD"

echo "== Prometheus"
cat >"$SCRATCH/prometheus.yml" <<CONFIG
global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}
rule_files: ["$DASHBOARDS/alerts.yml"]
scrape_configs: [{job_name: thinpool, static_configs: [{targets: ["$ADDRESS"]}]}]
CONFIG
# start_prometheus: on a port that is free; sets PROMETHEUS. Somebody else may be quicker.
start_prometheus() {
    local port tries=0
    port=$("$PYTHON" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    PROMETHEUS=http://127.0.0.1:$port
    prometheus --config.file="$SCRATCH/prometheus.yml" --storage.tsdb.path="$SCRATCH/tsdb" --log.level=warn \
        --web.listen-address="127.0.0.1:$port" 2>"$SCRATCH/prometheus.log" &
    local pid=$!
    undo "kill $pid; wait $pid"
    until curl -sf -o /dev/null "$PROMETHEUS/-/ready"; do
        kill -0 "$pid" 2>/dev/null || return 1
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "Prometheus is not ready after a minute"
        sleep 0.1
    done
}
start_prometheus || start_prometheus || start_prometheus || fail "Prometheus does not start"
"$PYTHON" "$TESTS/interop/dashboards.py" "$PROMETHEUS" "http://$ADDRESS/metrics" "$DASHBOARDS"
curl -sSf "http://$ADDRESS/metrics" | promtool check metrics || fail "promtool refuses the metrics"

echo "== top and tree"
thinctl top "$POOL" --once --interval 1 >"$SCRATCH/top"
grep -q "^dev " "$SCRATCH/top" || fail "top: $(cat "$SCRATCH/top")"
# eventually COMMAND...: it succeeds within half a minute, or has its last output shown.
eventually() {
    local tries
    for tries in $(seq 30); do
        "$@" >"$SCRATCH/eventually" 2>&1 && return
        sleep 1
    done
    fail "$*: $(cat "$SCRATCH/eventually")"
}
busy() {
    thinctl top "$POOL" --once --interval 1 --json | jq -e '
        .interval_seconds >= 1 and .pool.mode == "write" and .pool.operations_per_second > 0
        and any(.devices[]; .name == "dev" and .write.bytes_per_second > 0 and .latency_p99_seconds > 0)'
}
eventually busy
# On a terminal: it draws, takes keys, ends, and gives the terminal back.
"$PYTHON" "$TESTS/interop/top_terminal.py" "$THINCTL" top "$POOL" --interval 0.5
thinctl tree "$POOL" --json | jq -e '
    [.[] | [.name, .depth]] == [["own", 0], ["prod", 0], ["prod@s", 1], ["dev", 2]]
    and any(.[]; .name == "own" and .exclusive_bytes == 1221 * 65536 and .shared_bytes == 0)' >/dev/null ||
    fail "tree: $(thinctl tree "$POOL" --json)"

echo "== what was counted in the background, when nothing happens any more"
kill "$LOAD"
# counted_right: it is what a count for all to wait for says.
counted_right() {
    local fields='[.devices[] | [.name, .exclusive_bytes, .shared_bytes]]'
    diff <(thinctl du "$POOL" --json | jq -c "$fields | sort | .[]") \
        <(thinctl top "$POOL" --once --interval 0.1 --json | jq -c "$fields | sort | .[]")
}
eventually counted_right
curl -sSf "http://$ADDRESS/metrics" >"$SCRATCH/page"
grep -qx 'thinpool_device_exclusive_bytes{pool="pool",volume="own"} 80019456' "$SCRATCH/page" ||
    fail "exclusive bytes in the metrics"
stop_daemon
verify "$POOL"
