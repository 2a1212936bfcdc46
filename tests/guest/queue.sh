#!/bin/bash
# Writes without data space on block devices: they wait; so they do when the daemon is killed, and when it is told to
# end; they go on when the pool has grown, and nobody above has seen an error. Or they fail when time is up.
# guest: --timeout 600 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires jq
load ublk_drv nbd

queued() {
    thinctl info "$POOL" --json | jq .queued_writes
}

until_queued() {
    for _ in $(seq 600); do
        [ "$(queued)" -ge "$1" ] && return
        kill -0 $writer 2>/dev/null || fail "the writer ended: $(cat "$SCRATCH/dd")"
        sleep 0.2
    done
    fail "nothing waits"
}

random_file "$SCRATCH/random" 8
for transport in ublk nbd; do
    echo "== $transport"
    new_memory_pool 32M
    thinctl set "$POOL" --no-space-timeout 0
    thinctl create "$POOL/vol" --size 64M
    serve "$POOL"
    thinctl attach "$POOL/vol" --$transport --json >"$SCRATCH/attach.json"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
    dd if=/dev/urandom of="$DEVICE" bs=1M count=28 oflag=direct status=none
    dd if="$SCRATCH/random" of="$DEVICE" bs=1M seek=40 oflag=direct conv=fsync status=none 2>"$SCRATCH/dd" &
    writer=$!
    until_queued 1
    expect 5 "wait for data space" thinctl detach "$DEVICE"
    dd if="$DEVICE" of="$SCRATCH/read" bs=1M count=1 iflag=direct status=none

    echo "killed"
    kill_daemon
    serve "$POOL"
    until_queued 1

    echo "told to end"
    stop_daemon
    kill -0 $writer || fail "the writer ended: $(cat "$SCRATCH/dd")"
    serve "$POOL"
    until_queued 1

    echo "grown"
    thinctl grow "$POOL" --size 64M
    wait $writer || fail "dd: $(cat "$SCRATCH/dd")"
    cmp -n $((8 << 20)) -i $((40 << 20)):0 "$DEVICE" "$SCRATCH/random" || fail "what had waited"

    echo "time is up"
    dd if=/dev/urandom of="$DEVICE" bs=1M seek=28 count=12 oflag=direct status=none
    dd if=/dev/urandom of="$DEVICE" bs=1M seek=48 count=16 oflag=direct status=none 2>"$SCRATCH/dd" ||
        fail "dd: $(cat "$SCRATCH/dd")"
    thinctl create "$POOL/more" --size 16M
    thinctl set "$POOL" --no-space-timeout 1
    expect 6 "space" thinctl write "$POOL/more" <"$SCRATCH/random"
    thinctl detach "$DEVICE"
    stop_daemon
    verify "$POOL"
    umount "$SCRATCH/store"
    rmdir "$SCRATCH/store"
done
kernel_is_silent
