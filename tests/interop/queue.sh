#!/bin/bash
# No space, and writes wait for it: as long as they may, in order, through the real server; what cures it; what the
# daemon tells of it; growth by itself; a file system below that is full.
. "$(dirname "$0")/lib.sh"

client() {
    "$PYTHON" "$TESTS/interop/queue.py" "$@"
}

# meanwhile WHAT URI arguments...: a client in the background, as far as its writes wait; sets CLIENT.
meanwhile() {
    local pid marker=$SCRATCH/marker
    rm -f "$marker"
    client "$@" "$marker" &
    pid=$!
    for _ in $(seq 600); do
        if [ -e "$marker" ]; then
            CLIENT=$pid
            return
        fi
        kill -0 $pid 2>/dev/null || fail "the client ended"
        sleep 0.05
    done
    fail "the client's writes do not wait"
}

pool_says() {
    thinctl info "$POOL" --json | jq -r "$1"
}

until_says() {
    for _ in $(seq 200); do
        [ "$(pool_says "$1")" = "$2" ] && return
        sleep 0.05
    done
    fail "$1 is $(pool_says "$1"), expected $2"
}

# event FILTER: whether the pool's events hold one that is so.
event() {
    for _ in $(seq 100); do
        thinctl events "$POOL" | jq -es "any(.[]; $1)" >/dev/null && return
        sleep 0.05
    done
    fail "no event $1 in: $(thinctl events "$POOL")"
}

new_pool pool --size 16M
thinctl create "$POOL/vol" --size 1G
thinctl create "$POOL/other" --size 64M
expect 3 "daemon" thinctl events "$POOL"
# Without a daemon nobody could cure it, so nothing waits.
expect 6 "space" thinctl write "$POOL/other" < <(head -c 20000000 /dev/zero | tr '\0' q)
thinctl rm "$POOL/other"
thinctl create "$POOL/other" --size 64M
serve_nbd "$POOL"
thinctl events "$POOL" --follow >"$SCRATCH/followed" &
FOLLOWER=$!

# Growth: all go on, in the order in which they came.
client fill "$(uri vol)" 0 256
meanwhile queue "$(uri vol)" 1000 40
until_says .queued_writes 40
same "$(pool_says .mode)" out_of_data_space "mode"
thinctl create-snap "$POOL/vol@s"
thinctl status "$POOL" | grep -q ' out_of_data_space .* queue_if_no_space ' || fail "$(thinctl status "$POOL")"
thinctl grow "$POOL" --size 32M
wait $CLIENT
thinctl rm "$POOL/vol@s"
until_says .mode write
# Moves off the block that the snapshot had, so that later writes to it need no other.
client fill "$(uri vol)" 0 1
# Commits, so that the block is free.
thinctl du "$POOL" >"$SCRATCH/du"

# Deletion: the same.
until_says .deleting 0
free=$(pool_says '(.data_total_bytes - .data_used_bytes) / 65536')
client fill "$(uri other)" 0 "$free"
meanwhile queue "$(uri vol)" 2000 5
until_says .queued_writes 5
thinctl rm "$POOL/other"
wait $CLIENT

# A discard on another volume, and a client that is gone: neither its write nor its volume stays busy.
thinctl create "$POOL/gone" --size 64M
thinctl create "$POOL/patient" --size 64M
client fill "$(uri patient)" 0 1
free=$(pool_says '(.data_total_bytes - .data_used_bytes) / 65536')
client fill "$(uri vol)" 3000 $((3000 + free))
client abandon "$(uri gone)" 0
until_says .queued_writes 0
thinctl rm "$POOL/gone"
meanwhile queue "$(uri vol)" 4000 4
client trim "$(uri vol)" 3000 4
wait $CLIENT

# Time out, and the clock begins anew with space. Of the two volumes, one waits for longer.
thinctl set "$POOL" --no-space-timeout 2
thinctl set "$POOL/patient" --no-space-timeout 0
thinctl create "$POOL/eager" --size 64M
thinctl set "$POOL/eager" --error-if-no-space yes
meanwhile refused "$(uri vol)" 5000 3
wait $CLIENT
thinctl status "$POOL" | grep -q ' error_if_no_space ' || fail "$(thinctl status "$POOL")"
meanwhile refused "$(uri eager)" 0 1
wait $CLIENT
meanwhile queue "$(uri patient)" 1 2
thinctl grow "$POOL" --size 33M
wait $CLIENT
until_says .mode write
free=$(pool_says '(.data_total_bytes - .data_used_bytes) / 65536')
client fill "$(uri vol)" 6000 $((6000 + free))
thinctl set "$POOL" --no-space-timeout 3600
meanwhile queue "$(uri vol)" 7000 2
thinctl grow "$POOL" --size 34M
wait $CLIENT

# What is set outlives the daemon; a daemon that is told to end lets nobody wait.
free=$(pool_says '(.data_total_bytes - .data_used_bytes) / 65536')
client fill "$(uri vol)" 8000 $((8000 + free))
meanwhile shut "$(uri vol)" 9000
event '.event == "low_water" and .store == "data"'
event '.event == "grown" and .store == "data" and .to_bytes == 33554432'
event '.event == "mode_changed" and .to == "out_of_data_space"'
event '.event == "mode_changed" and .from == "out_of_data_space" and .to == "write"'
event '.event == "no_space_timeout" and .seconds == 2'
thinctl events "$POOL" >"$SCRATCH/events"
stop_daemon
wait $CLIENT
wait $FOLLOWER
head -n "$(wc -l <"$SCRATCH/events")" "$SCRATCH/followed" | cmp - "$SCRATCH/events" || fail "what was followed"
same "$(jq -s '[.[].number] == [range(1; length + 1)]' "$SCRATCH/followed")" true "numbers of events"
same "$(pool_says .space.no_space_timeout)" 3600 "the pool's timeout"
same "$(thinctl info "$POOL/patient" --json | jq .no_space_timeout)" 0 "the volume's timeout"
same "$(thinctl info "$POOL/eager" --json | jq .error_if_no_space)" true "the volume's policy"
verify "$POOL"
thinctl set "$POOL/eager" --error-if-no-space pool
same "$(thinctl info "$POOL/eager" --json | jq .error_if_no_space)" null "the volume's policy, taken back"
expect 2 "pool" thinctl set "$POOL" --error-if-no-space pool
expect 2 "volume" thinctl set "$POOL/eager" --low-water 5
expect 2 "limit" thinctl set "$POOL" --auto-grow-by 1M

# A pool that grows by itself, as far as it may.
new_pool auto --size 16M
thinctl set "$POOL" --auto-grow-max 40M --auto-grow-by 8M --auto-grow-at 75
thinctl create "$POOL/vol" --size 1G
serve_nbd "$POOL"
client fill "$(uri vol)" 0 640
until_says .data_total_bytes 41943040
meanwhile queue "$(uri vol)" 1000 50
until_says .mode out_of_data_space
thinctl set "$POOL" --auto-grow-max 64M
wait $CLIENT
event '.event == "grown" and .store == "data" and .from_bytes == 16777216'
stop_daemon
verify "$POOL"

# A disk below that is full: writes wait until it is not, and nothing is lost.
disk=$SCRATCH/disk
mkdir "$disk"
undo umount "$disk"
mount -t tmpfs -o size=24m tmpfs "$disk"
POOL=$disk/pool
thinctl init "$POOL" --size 256M --metadata-size 4M
thinctl create "$POOL/vol" --size 1G
serve_nbd "$POOL"
client fill "$(uri vol)" 0 32
head -c 1G /dev/zero >"$disk/ballast" 2>"$SCRATCH/head" && fail "the disk is not full"
# Of the space of the next 16 blocks the pool may be sure already.
meanwhile queue_most "$(uri vol)" 1024 100 16
until_says .mode out_of_data_space
expect 6 "space" thinctl grow "$POOL" --metadata-size 64M
rm "$disk/ballast"
wait $CLIENT
until_says .mode write
stop_daemon
verify "$POOL"

# The daemon is killed, and started again, while the disk is full to the last byte: it shows what was acknowledged,
# deletes, and writes wait until there is space.
rm -r "$POOL"
thinctl init "$POOL" --size 256M --metadata-size 4M
for volume in vol other; do
    thinctl create "$POOL/$volume" --size 1G
done
serve_nbd "$POOL"
client fill "$(uri vol)" 0 32
client fill "$(uri other)" 0 128
thinctl create-snap "$POOL/other@s"
# Something takes all space that the pool gives back.
fill_disk() {
    head -c 1G /dev/zero >>"$disk/ballast" 2>"$SCRATCH/head" && fail "the disk is not full"
    same "$(df --output=avail "$disk" | tail -n 1 | tr -d ' ')" 0 "bytes available"
}
for _ in $(seq "$(long 2 50)"); do
    journal=$SCRATCH/journal
    fill_disk
    meanwhile load "$(uri vol)" 1 24 "$journal"
    kill -KILL "$DAEMON"
    wait "$DAEMON" || true
    wait $CLIENT
    fill_disk
    serve_nbd "$POOL"
    event '.event == "opened" and .replayed_records > 0'
    client compare "$(uri vol)" "$journal"
    # What was discarded has come back.
    fill_disk
    client fill "$(uri vol)" 24 32
    meanwhile queue_most "$(uri vol)" 1024 100 16
    until_says .mode out_of_data_space
    thinctl rm "$POOL/other@s"
    thinctl rm "$POOL/other"
    wait $CLIENT
    rm "$disk/ballast"
    until_says .mode write
    client trim "$(uri vol)" 1024 100
    client fill "$(uri vol)" 1 24
    thinctl create "$POOL/other" --size 1G
    client fill "$(uri other)" 0 128
    thinctl create-snap "$POOL/other@s"
done
stop_daemon
verify "$POOL"
