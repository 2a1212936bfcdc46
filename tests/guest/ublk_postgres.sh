#!/bin/bash
# kill -9 of the daemon, again and again, under a PostgreSQL with checksums, on ext4 on a ublk device. It
# may notice nothing but a wait: no transaction fails, and what is read back from the device is whole.
# Ends with a line of JSON.
# guest: --timeout 1200 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
: "${PGBIN:=/usr/lib/postgresql/15/bin}"
requires mkfs.ext4 e2fsck jq "$PGBIN/pg_amcheck" "$PGBIN/pgbench"
modprobe ublk_drv
KILLS=$(long 5 20)
MOUNT=$SCRATCH/mnt
DATA=$MOUNT/data

# The programs of PATH are Debian's wrappers in Perl, which take a second to start.
pg() {
    setpriv --reuid=postgres --regid=postgres --init-groups "$PGBIN/$1" "${@:2}"
}

query() {
    pg psql -X -At -v ON_ERROR_STOP=1 -d postgres -c "$1"
}

start_postgres() {
    pg pg_ctl -D "$DATA" -l "$MOUNT/server.log" -w -s -t 300 -o "-c listen_addresses='' -c shared_buffers=1MB \
        -c max_wal_size=64MB -c checkpoint_timeout=30s" start || fail "PostgreSQL: $(cat "$MOUNT/server.log")"
}

stop_postgres() {
    pg pg_ctl -D "$DATA" -m fast -w -s -t 300 stop
}

mkdir "$SCRATCH/store" "$MOUNT"
chmod 711 "$SCRATCH"
mount -t tmpfs -o size=1G store "$SCRATCH/store"
undo umount -l "$SCRATCH/store"
new_pool store/pool --size 768M
thinctl create "$POOL/db" --size 512M
serve "$POOL"
thinctl attach "$POOL/db" --ublk --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")
mkfs.ext4 -q "$DEVICE"
mount -o discard "$DEVICE" "$MOUNT"
undo umount -l "$MOUNT"
chown postgres "$MOUNT"

echo "== a database"
pg initdb -D "$DATA" --data-checksums --no-sync --locale=C --auth=trust >/dev/null
start_postgres
undo stop_postgres
pg pgbench -i -s 1 -q postgres 2>/dev/null

echo "== kills"
pg pgbench -n -c 2 -T 3600 postgres >"$SCRATCH/pgbench.log" 2>&1 &
LOAD=$!
for number in $(seq "$KILLS"); do
    sleep "$((number % 3)).$((RANDOM % 10))"
    kill -0 $LOAD || fail "pgbench ended before kill $number: $(cat "$SCRATCH/pgbench.log")"
    kill_and_serve "$POOL" "$DEVICE"
    if [ $((number % 4)) -eq 0 ]; then
        thinctl create-snap "$POOL/db@$number"
        [ "$number" -eq 4 ] || thinctl rm "$POOL/db@$((number - 4))"
    fi
done
kill -TERM $LOAD
wait $LOAD || true
if grep -iE "error|abort|fail" "$SCRATCH/pgbench.log" "$MOUNT/server.log"; then
    fail "PostgreSQL or its client has noticed"
fi

echo "== from the device"
stop_postgres
umount "$MOUNT"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$SCRATCH/e2fsck.log")"
mount "$DEVICE" "$MOUNT"
pg pg_checksums --check -D "$DATA" >"$SCRATCH/checksums.log" 2>&1 || fail "pg_checksums: $(cat "$SCRATCH/checksums.log")"
start_postgres
pg pg_amcheck --install-missing --heapallindexed -d postgres >"$SCRATCH/amcheck.log" 2>&1 ||
    fail "pg_amcheck: $(cat "$SCRATCH/amcheck.log")"
query 'select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
    (select sum(tbalance) from pgbench_tellers), sum(delta), count(*) from pgbench_history' >"$SCRATCH/sums"
IFS='|' read -r accounts branches tellers history transactions <"$SCRATCH/sums"
same "$branches $tellers $history" "$accounts $accounts $accounts" "sums of branches, tellers and history"
[ "$transactions" -gt 0 ] || fail "there was no load"
stop_postgres
umount "$MOUNT"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$SCRATCH/e2fsck.log")"

thinctl detach "$DEVICE"
stop_daemon
verify "$POOL"
kernel_is_silent
report_kills --argjson transactions "$transactions"
