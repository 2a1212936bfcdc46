#!/bin/bash
# A clone of a database under load, all of it on ublk devices: a second PostgreSQL answers on the clone, has
# a whole database, and changes it, while the first goes on and notices nothing.
# Ends with a line of JSON: the time from `clone` until the clone has answered.
# guest: --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
. "$GUEST/shared/postgres.sh"
requires mkfs.ext4 e2fsck jq
load ublk_drv
PROD=$SCRATCH/prod/data
TEST=$SCRATCH/test/data

# goes_on: the load has committed transactions since COMMITTED were counted.
goes_on() {
    local before=$COMMITTED
    for _ in $(seq 1500); do
        kill -0 "$LOAD" || fail "pgbench ended: $(cat "$LOAD_LOG")"
        COMMITTED=$(transactions 5432)
        [ "$COMMITTED" -le "$before" ] || return 0
        sleep 0.2
    done
    fail "the first database commits nothing more"
}

mkdir "$SCRATCH/prod" "$SCRATCH/test"
new_memory_pool 768M
thinctl create "$POOL/prod" --size 512M
serve "$POOL"
undo umount -l "$SCRATCH/prod" "$SCRATCH/test"
thinctl attach "$POOL/prod" --ublk --mkfs ext4 --mount "$SCRATCH/prod" >"$SCRATCH/prod.device"

echo "== a database under load"
new_database "$PROD" 5432
start_load 5432
COMMITTED=0
goes_on

echo "== its clone"
thinctl create-snap "$POOL/prod@now"
began=${EPOCHREALTIME/./}
thinctl clone "$POOL/prod@now" "$POOL/test"
thinctl attach "$POOL/test" --ublk --mount "$SCRATCH/test" >"$SCRATCH/test.device"
# The first server still runs: the second takes its process for another that has the same data.
rm "$TEST/postmaster.pid"
start_postgres "$TEST" 5433
undo stop_postgres "$TEST"
same "$(query 5433 'select 1')" 1 "select 1"
answered=$(((${EPOCHREALTIME/./} - began) / 1000))
same "$(findmnt -n -o SOURCE "$SCRATCH/test")" "$(cat "$SCRATCH/test.device")" "what is mounted"
goes_on

echo "== it is whole, and its own"
at_clone=$(transactions 5433)
[ "$at_clone" -gt 0 ] || fail "there was no load before the clone"
[ "$at_clone" -lt "$COMMITTED" ] || fail "the clone has $at_clone transactions, its origin $COMMITTED"
balances_agree 5433
amcheck 5433
query 5433 "update pgbench_accounts set abalance = 1000000" >"$SCRATCH/update"
goes_on
same "$(query 5432 "select count(*) from pgbench_accounts where abalance = 1000000")" 0 "accounts that the clone changed"
same "$(query 5433 "select count(*) from pgbench_history")" "$at_clone" "transactions of the clone"

echo "== the load goes on to its end"
goes_on
stop_load "$PROD.log" "$TEST.log"
balances_agree 5432
amcheck 5432
total=$(transactions 5432)
for side in prod test; do
    stop_postgres "$SCRATCH/$side/data"
    page_checksums "$SCRATCH/$side/data"
done
for side in prod test; do
    umount "$SCRATCH/$side"
    e2fsck -fn "$(cat "$SCRATCH/$side.device")" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$SCRATCH/e2fsck.log")"
    thinctl detach "$POOL/$side"
done
stop_daemon
verify "$POOL"
kernel_is_silent
jq -nc --argjson clone_to_answer_ms $answered --argjson transactions_at_clone "$at_clone" \
    --argjson transactions "$total" '{test: "ublk_clone"} + $ARGS.named'
