#!/bin/bash
# Memory: what the daemon takes for mappings stays within --memory, however many are looked up; a volume that
# nobody uses costs next to nothing.
. "$(dirname "$0")/lib.sh"

# 256 GiB of one volume, all mapped: 32 MiB of mappings.
BLOCKS=4194304
cat >"$SCRATCH/dump" <<DUMP
<superblock uuid="" time="0" transaction="0" version="2" data_block_size="128" nr_data_blocks="$BLOCKS">
<device dev_id="0" mapped_blocks="$BLOCKS" transaction="0" creation_time="0" snap_time="0">
<range_mapping origin_begin="0" data_begin="0" length="$BLOCKS" time="0"/>
</device>
</superblock>
DUMP
thinctl restore "$SCRATCH/dump" --to "$SCRATCH/metadata"
truncate --size $((BLOCKS * 65536)) "$SCRATCH/data"
POOL=$SCRATCH/pool
thinctl adopt "$POOL" --metadata "$SCRATCH/metadata" --data "$SCRATCH/data" --volume "0:big:$((BLOCKS * 65536))"

resident_kib() {
    awk '/^VmRSS:/ { print $2 }' "/proc/$DAEMON/status"
}

# grown_by BUDGET: sets GROWN to what the daemon has grown by, in KiB, when all mappings were looked up.
grown_by() {
    local before
    serve_nbd "$POOL" --memory "$1"
    before=$(resident_kib)
    nbdinfo --map --totals "nbd+unix:///big?socket=$SOCKET" >"$SCRATCH/map"
    grep -q "^$((BLOCKS * 65536)) .*data" "$SCRATCH/map" || fail "the volume is not mapped: $(cat "$SCRATCH/map")"
    GROWN=$(($(resident_kib) - before))
    echo "--memory $1: grown by $GROWN KiB"
    stop_daemon
}

grown_by 256M
[ "$GROWN" -ge 32768 ] || fail "with 256M not all mappings are held: $GROWN KiB"
grown_by 32M
[ "$GROWN" -le $((32768 * 11 / 10)) ] || fail "more than --memory: $GROWN KiB"

# Volumes that nobody uses.
serve_nbd "$POOL"
create_volumes() {
    "$PYTHON" - "$POOL" "$1" "$2" <<'SCRIPT'
import http.client, json, socket, sys
pool, begin, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = http.client.HTTPConnection("daemon")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(f"{pool}/control.sock")
for number in range(begin, end):
    call = {"create": {"name": f"v{number}", "size": 1 << 40, "origin": None}}
    connection.request("POST", "/v1/call", json.dumps(call), {"content-type": "application/json"})
    reply = connection.getresponse().read().decode()
    assert '"reply"' in reply, reply
SCRIPT
}
create_volumes 0 200
stop_daemon
serve_nbd "$POOL"
before=$(resident_kib)
create_volumes 200 1200
stop_daemon
serve_nbd "$POOL"
grown=$(($(resident_kib) - before))
echo "1000 volumes: grown by $grown KiB"
[ "$grown" -le 8000 ] || fail "1000 idle volumes take $grown KiB"
stop_daemon
thinctl check "$POOL"
thin_check "$SCRATCH/metadata"
