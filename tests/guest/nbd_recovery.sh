#!/bin/bash
# A daemon that dies, by kill -9, under an ext4 on a device of the kernel's NBD client with a verifying load;
# one that stands still for longer than the driver waits; one that is told to end; one that dies while it
# takes over; commands on the pool while nobody serves it. Nobody above may notice anything but a wait.
#
# What the driver had sent to a daemon that died, it sends again after half a minute, and to one that lives
# too, over another of its connections.
# guest: --timeout 1200 --memory 3G
. "$(dirname "$0")/lib.sh"
. "$GUEST/shared/takeovers.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio mkfs.ext4 e2fsck jq
load nbd

table() {
    echo "$THINPOOL_RUNTIME_DIR"/*/nbd.json
}

mkdir "$SCRATCH/mnt"
new_memory_pool 512M
thinctl create "$POOL/vol" --size 128M
thinctl create "$POOL/idle" --size 16M
serve "$POOL"
thinctl attach "$POOL/vol" --nbd --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")
mkfs.ext4 -q "$DEVICE"
mount "$DEVICE" "$SCRATCH/mnt"
undo umount -l "$SCRATCH/mnt"

echo "== kill -9 under load"
fio --name=verify --filename="$SCRATCH/mnt/file" --rw=randwrite --bs=4k --direct=1 \
    --ioengine=io_uring --iodepth=16 --size=48M --io_size=96M --fsync=64 --verify=crc32c \
    --verify_backlog=512 --verify_fatal=1 >"$SCRATCH/fio.log" 2>&1 &
load=$!
until_busy "$DEVICE" $load "$SCRATCH/fio.log"
kill_and_serve "$POOL" "$DEVICE"

echo "== it stands still under load"
until_busy "$DEVICE" $load "$SCRATCH/fio.log"
kill -STOP "$DAEMON"
sleep 40
kill -CONT "$DAEMON"
until_busy "$DEVICE" $load "$SCRATCH/fio.log"
dmesg >"$SCRATCH/dmesg"
grep -q "${DEVICE#/dev/}: Connection timed out, retrying" "$SCRATCH/dmesg" || fail "the driver did not repeat a request"

echo "== told to end under load"
stop_daemon
kill -0 "$load" || fail "the load noticed: $(cat "$SCRATCH/fio.log")"
serve "$POOL"
status=0
wait "$load" || status=$?
[ $status -eq 0 ] || fail "fio: $(cat "$SCRATCH/fio.log")"
same "$(readlink "/dev/thin/pool/vol")" "$DEVICE" "the link after recovery"

echo "== killed while it takes over"
kill_daemon
for delay in 0.1 0.2 0.3 0.4 0.5 0.7; do
    "$THINCTL" serve "$POOL" >/dev/null 2>>"$SCRATCH/short.log" &
    DAEMON=$!
    sleep $delay
    kill_daemon
done

echo "== while nobody serves it"
thinctl ls "$POOL" >/dev/null
expect 5 "in use" thinctl rm "$POOL/vol"
cp "$(table)" "$SCRATCH/table"
sed -i 's/"connections": 2/"connections": 0/' "$(table)"
expect 8 "nbd.json.*connections" thinctl serve "$POOL"
expect 8 "nbd.json.*connections" thinctl rm "$POOL/idle"
cp "$SCRATCH/table" "$(table)"

echo "== taken over by attach"
taken_over_by_attach nbd

echo "== told to end while mounted"
told_to_end_while_mounted

umount "$SCRATCH/mnt"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck"
kernel_is_silent

echo "== detach after a kill"
kill_daemon
thinctl detach "$DEVICE"
same "$(blockdev --getsize64 "$DEVICE")" 0 "size after detaching"
[ ! -e "/dev/thin/pool" ] || fail "links are left"
for _ in $(seq 300); do
    [ -e "$POOL/control.sock" ] || break
    sleep 0.1
done
verify "$POOL"
modprobe -r nbd || fail "something still holds the driver"
