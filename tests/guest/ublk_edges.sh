#!/bin/bash
# ublk devices at the edges: a pool without space, detaching under load and a daemon that ends under it on a raw
# device, records of devices that are no more, a slow store.
# guest: --disk 256M --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio mkfs.ext4 dmsetup jq
load ublk_drv dm-delay

attach_it() {
    thinctl attach "$POOL/$1" --ublk --json >"$SCRATCH/attach.json"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
}

new_memory_pool 64M
thinctl set "$POOL" --error-if-no-space yes
thinctl create "$POOL/vol" --size 256M
serve "$POOL"

echo "== a full pool"
attach_it vol
random_file "$SCRATCH/store/random" 48
dd if="$SCRATCH/store/random" of="$DEVICE" bs=1M oflag=direct status=none
if dd if="$SCRATCH/store/random" of="$DEVICE" bs=1M seek=64 oflag=direct status=none 2>"$SCRATCH/dd"; then
    fail "48 MiB found room in 16"
fi
grep -q "No space left on device" "$SCRATCH/dd" || fail "dd said: $(cat "$SCRATCH/dd")"
cmp -n $((48 << 20)) "$DEVICE" "$SCRATCH/store/random" || fail "reading a full pool"
thinctl grow "$POOL" --size 256M
dd if="$SCRATCH/store/random" of="$DEVICE" bs=1M seek=64 oflag=direct conv=fsync status=none
cmp -n $((48 << 20)) -i $((64 << 20)):0 "$DEVICE" "$SCRATCH/store/random" || fail "after growing"

echo "== told to end under load"
fio --name=load --filename="$DEVICE" --rw=randwrite --bs=16k --direct=1 --ioengine=io_uring \
    --iodepth=32 --offset=112M --size=96M --rate_iops=500 --verify=crc32c --verify_fatal=1 --do_verify=1 \
    --allow_mounted_write=1 >"$SCRATCH/fio.log" 2>&1 &
load=$!
sleep 2
kill -0 $load || fail "the load ended early: $(cat "$SCRATCH/fio.log")"
expect 5 "open in process" thinctl detach "$DEVICE"
stop_daemon
grep -q "is left to the next daemon" "$SCRATCH"/serve.*.log || fail "the device was not left"
serve "$POOL"
status=0
wait $load || status=$?
[ $status -eq 0 ] || fail "fio: $(cat "$SCRATCH/fio.log")"
cmp -n $((48 << 20)) "$DEVICE" "$SCRATCH/store/random" || fail "after the load"
thinctl detach "$DEVICE"

echo "== records of what is no more"
thinctl create "$POOL/other" --size 8M
thinctl create "$POOL/v1" --size 8M
attach_it other
table=$(echo "$THINPOOL_RUNTIME_DIR"/*/ublk.json)
kill_daemon
# One that was never there, and one whose volume is gone.
jq '.devices += [(.devices[0] | .device = 77 | .volume = "v" | .token = 5)]' "$table" >"$SCRATCH/table"
cp "$SCRATCH/table" "$table"
uuid=$(thinctl info "$POOL/v1" --json | jq -r .uuid)
sed -i "s/\"v\"/\"$uuid\"/" "$table"
serve "$POOL"
grep -q "/dev/ublkb77: is no more" "$SCRATCH"/serve.*.log || fail "the stale record was not told of"
same "$(jq -c '[.devices[].device]' "$table")" "[${DEVICE#/dev/ublkb}]" "the table"
thinctl rm "$POOL/v1"
thinctl detach "$POOL/other"
stop_daemon
verify "$POOL"

echo "== a slow store"
# Every write below takes 2 ms, and every flush of the device waits for some. Were the thread that serves it not
# woken then, but at its next turn, 256 of them would take longer than this guest has.
dmsetup create slow --table "0 $(blockdev --getsz /dev/vda) delay /dev/vda 0 0 /dev/vda 0 2"
undo dmsetup remove slow
mkfs.ext4 -q /dev/mapper/slow
mkdir "$SCRATCH/slow"
mount /dev/mapper/slow "$SCRATCH/slow"
undo umount "$SCRATCH/slow"
new_pool slow/pool --size 64M
thinctl create "$POOL/vol" --size 32M
serve "$POOL"
attach_it vol
fio --name=slow --filename="$DEVICE" --rw=write --bs=64k --size=16M --direct=1 --iodepth=1 --fsync=1 \
    --output-format=json --output="$SCRATCH/slow.json" >"$SCRATCH/fio.log" 2>&1 || fail "fio: $(cat "$SCRATCH/fio.log")"
jq -r '.jobs[0] | "flushes of a first write: median \(.sync.lat_ns.percentile["50.000000"] / 1000 | floor) us, " +
    "slowest \(.sync.lat_ns.max / 1000 | floor) us"' "$SCRATCH/slow.json"
thinctl detach "$DEVICE"
stop_daemon
verify "$POOL"
kernel_is_silent
