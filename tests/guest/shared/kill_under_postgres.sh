# shellcheck shell=bash
# Sourced by ublk_postgres and nbd_postgres, which say what is different: TRANSPORT and KILLS.
#
# kill -9 of the daemon, again and again, under a PostgreSQL with checksums, on ext4 on a device. It may
# notice nothing but a wait: no transaction fails, and what is read back from the device is whole.
# Ends with a line of JSON.

export THINPOOL_LINK_DIR=/dev/thin
. "$GUEST/shared/postgres.sh"
requires mkfs.ext4 e2fsck jq
MOUNT=$SCRATCH/mnt
DATA=$MOUNT/data
PORT=5432

whole_file_system() {
    e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$SCRATCH/e2fsck.log")"
}

mkdir "$MOUNT"
new_memory_pool 768M
thinctl create "$POOL/db" --size 512M
serve "$POOL"
thinctl attach "$POOL/db" "--$TRANSPORT" --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")
mkfs.ext4 -q "$DEVICE"
mount -o discard "$DEVICE" "$MOUNT"
undo umount -l "$MOUNT"

echo "== a database"
new_database "$DATA" $PORT

echo "== kills"
start_load $PORT
for number in $(seq "$KILLS"); do
    until_busy "$DEVICE" "$LOAD" "$LOAD_LOG"
    sleep "$((number % 3)).$((RANDOM % 10))"
    kill_and_serve "$POOL" "$DEVICE"
    if [ $((number % 4)) -eq 1 ]; then
        thinctl create-snap "$POOL/db@$number"
        [ "$number" -eq 1 ] || thinctl rm "$POOL/db@$((number - 4))"
    fi
done
until_busy "$DEVICE" "$LOAD" "$LOAD_LOG"
stop_load "$DATA.log"

echo "== from the device"
stop_postgres "$DATA"
umount "$MOUNT"
whole_file_system
mount "$DEVICE" "$MOUNT"
page_checksums "$DATA"
start_postgres "$DATA" $PORT
amcheck $PORT
balances_agree $PORT
# The longest time in which no transaction began.
query $PORT "select json_build_object('transactions', count(*), 'wait_max_ms', floor(extract(epoch from max(gap)) * 1000))
    from (select mtime - lag(mtime) over (order by mtime) as gap from pgbench_history) as gaps" >"$SCRATCH/load.json"
[ "$(jq .transactions "$SCRATCH/load.json")" -gt 0 ] || fail "there was no load"
stop_postgres "$DATA"
umount "$MOUNT"
whole_file_system

thinctl detach "$DEVICE"
stop_daemon
verify "$POOL"
kernel_is_silent
report_kills --argjson load "$(<"$SCRATCH/load.json")"
