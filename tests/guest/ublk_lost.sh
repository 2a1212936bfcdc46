#!/bin/bash
# A daemon that dies with writes that it has acknowledged and not committed: without an intent log they
# are gone. The device they were written to must not go on as if they were there; it ends with errors,
# as a disk that was pulled out. One that nobody could write goes on.
# guest: --timeout 600 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio jq
modprobe ublk_drv

mkdir "$SCRATCH/store"
mount -t tmpfs -o size=1G store "$SCRATCH/store"
undo umount -l "$SCRATCH/store"
new_pool store/pool --size 512M
thinctl create "$POOL/vol" --size 256M
printf 'frozen' | thinctl write "$POOL/vol"
thinctl create-snap "$POOL/vol@s"
serve "$POOL"
thinctl attach "$POOL/vol@s" --ublk --json >"$SCRATCH/attach.json"
SNAPSHOT=$(jq -r .device "$SCRATCH/attach.json")
mark=$(echo "$THINPOOL_RUNTIME_DIR"/*)/uncommitted

# The daemon commits once a second: between a commit and the next write nothing is lost, so that is
# tried again.
for try in 1 2 3 4 5; do
    echo "== try $try"
    thinctl attach "$POOL/vol" --ublk --json >"$SCRATCH/attach.json"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
    fio --name=load --filename="$DEVICE" --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring \
        --iodepth=4 --time_based --runtime=120 --randrepeat=0 >"$SCRATCH/fio.log" 2>&1 &
    load=$!
    sleep 3
    kill -KILL "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    lost=$(cat "$mark")
    kill -0 "$load" || fail "the load noticed the kill: $(cat "$SCRATCH/fio.log")"
    serve "$POOL"
    grep -q "$SNAPSHOT: goes on as vol@s" "$SCRATCH"/serve.*.log || fail "the snapshot does not go on"
    same "$(head -c 6 "$SNAPSHOT")" frozen "the snapshot after the kill"
    [ "$lost" = 0 ] || break
    kill "$load"
    wait "$load" 2>/dev/null || true
    thinctl detach "$DEVICE"
done
same "$lost" 1 "writes were lost"
if wait "$load"; then
    fail "the load noticed nothing: $(cat "$SCRATCH/fio.log")"
fi
grep -q "$DEVICE (vol): ended" "$SCRATCH"/serve.*.log || fail "nothing was said"
[ ! -e "$DEVICE" ] || fail "$DEVICE is left"
[ ! -L /dev/thin/pool/vol ] || fail "its link is left"

echo "== and again"
thinctl attach "$POOL/vol" --ublk --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")
dd if=/dev/zero of="$DEVICE" bs=1M count=8 oflag=direct conv=fsync status=none
# After a clean end nothing is lost, whatever was written.
thinctl detach "$DEVICE"
thinctl detach "$SNAPSHOT"
for _ in $(seq 300); do
    [ -e "$POOL/control.sock" ] || break
    sleep 0.1
done
stop_daemon 2>/dev/null || true
verify "$POOL"
if dmesg | grep -E "invalid error|hung_task|BUG|WARNING"; then
    fail "the kernel complains"
fi
