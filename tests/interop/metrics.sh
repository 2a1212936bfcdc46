#!/bin/bash
# /metrics is well-formed Prometheus text, names what operators watch, and moves.
. "$(dirname "$0")/lib.sh"

scrape() {
    curl -sS --fail "http://$ADDRESS/metrics"
}

new_pool pool --size 256M
thinctl create "$POOL/vol" --size 64M
serve_nbd "$POOL" --metrics 127.0.0.1:0
ADDRESS=$(sed -n 's/.*metrics=\([0-9.]*:[0-9]*\).*/\1/p' <<<"$READY")
[ -n "$ADDRESS" ] || fail "no metrics address in: $READY"

used() {
    thinctl info "$POOL" --json | jq ".$1_used_bytes"
}

scrape >"$SCRATCH/before"
metadata_before=$(used metadata)
qemu-io -f raw -c 'write -P 1 0 8M' -c flush -c 'read 0 8M' -c 'discard 1M 1M' "$(uri vol)" >/dev/null
thinctl create-snap "$POOL/vol@s"
qemu-io -f raw -c 'write -P 2 0 1M' -c flush "$(uri vol)" >/dev/null
# What was discarded is given back, and what was written takes metadata, by a later commit; one comes each second.
for _ in $(seq 600); do
    [ "$(used data)" -eq 8388608 ] && [ "$(used metadata)" -gt "$metadata_before" ] && break
    sleep 0.1
done
scrape >"$SCRATCH/after"
"$PYTHON" "$TESTS/interop/metrics.py" "$SCRATCH/before" "$SCRATCH/after"
promtool check metrics <"$SCRATCH/after" || fail "promtool refuses the metrics"
status=$(curl -s -o /dev/null -w '%{http_code}' "http://$ADDRESS/nothing")
same "$status" 404 "status of a path that does not exist"
thinctl rm "$POOL/vol@s"
! scrape | grep -q "vol@s" || fail "series of a removed snapshot"
stop_daemon
verify "$POOL"
