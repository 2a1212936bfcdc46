#!/bin/bash
# A volume as a device of the kernel's NBD client: chosen where there is no ublk, its options, its limits as the
# kernel sees them, several sockets in use, fio with verification, discards and zeroings, file systems made
# and mounted, a snapshot that is read only, links, refusals while it is in use, and devices that
# others have.
# guest: --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
. "$GUEST/shared/devices.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio mkfs.ext4 mkfs.xfs fstrim blkdiscard nbd-client jq

attached() {
    jq -r ".$1" "$SCRATCH/attach.json"
}

mapped() {
    thinctl info "$POOL/vol" --json | jq .mapped_bytes
}

mkdir "$SCRATCH/mnt"
new_memory_pool 1536M
thinctl create "$POOL/vol" --size 512M
thinctl create "$POOL/odd" --size 1049088
undo "'$THINCTL' detach '$POOL/vol'"

echo "== what is missing is told"
# Asking for the driver by name loads it.
thinctl doctor >"$SCRATCH/doctor"
grep -Eq '^nbd +works$' "$SCRATCH/doctor" || fail "doctor: $(cat "$SCRATCH/doctor")"
setpriv --bounding-set=-sys_admin "$THINCTL" doctor >"$SCRATCH/doctor"
grep -Eq '^nbd +making NBD devices is not permitted: run as root' "$SCRATCH/doctor" || fail "doctor: $(cat "$SCRATCH/doctor")"

modprobe loop
serve "$POOL"

echo "== it is next to ublk"
thinctl attach "$POOL/vol" >"$SCRATCH/device" 2>"$SCRATCH/told"
same "$(cat "$SCRATCH/device")" /dev/nbd0 "the device"
grep -q "attached through nbd: no ublk: the ublk driver is not loaded" "$SCRATCH/told" || fail "it said: $(cat "$SCRATCH/told")"
thinctl detach "$POOL/vol"
same "$(blockdev --getsize64 /dev/nbd0)" 0 "size after it is detached"

echo "== options of ublk devices, and connections"
thinctl attach "$POOL/vol" --queues 1 --depth 8 >"$SCRATCH/device" 2>"$SCRATCH/told"
grep -qx "thinctl: --depth: not for devices attached through nbd" "$SCRATCH/told" || fail "it said: $(cat "$SCRATCH/told")"
grep -qx "thinctl: nbd has made 2 queues instead of 1: that is its limit here" "$SCRATCH/told" || fail "it said: $(cat "$SCRATCH/told")"
thinctl detach "$POOL/vol"
expect 2 "number of queues is 65, expected 1 to 64" thinctl attach "$POOL/vol" --nbd --queues 65
attach_it vol --nbd --queues 3
same "$(attached queues) $(attached depth)" "3 null" "queues"
same "$(grep -l nbd-direct /proc/"$DAEMON"/task/*/comm | wc -l)" 3 "connections"
thinctl detach "$POOL/vol"

echo "== limits"
# One that is open cannot be made a device, the next can.
exec 9</dev/nbd0
attach_it vol --nbd
exec 9<&-
same "$DEVICE" /dev/nbd1 "the device when /dev/nbd0 is open"
same "$(attached transport)" nbd "transport"
same "$(attached reason)" "it was asked for" "reason"
same "$(readlink -f /dev/thin/pool/vol)" "$DEVICE" "the link"
limit queue/logical_block_size 4096
limit queue/discard_granularity 4096
limit queue/write_cache "write back"
limit queue/fua 1
limit ro 0
[ "$(cat "/sys/block/$BLOCK/queue/write_zeroes_max_bytes")" -gt 0 ] || fail "the kernel zeroes by writing"
same "$(blockdev --getsize64 "$DEVICE")" $((512 * 1048576)) "size"
same "$(find "/sys/block/$BLOCK/mq" -mindepth 1 -maxdepth 1 | wc -l)" "$(nproc)" "queues"

echo "== fio, over several sockets"
# switches: how often each thread of a connection has been waited for.
switches() {
    local task
    for task in /proc/"$DAEMON"/task/*; do
        grep -q nbd-direct "$task/comm" && awk '/^voluntary/ {print $2}' "$task/status"
    done
}
readarray -t before < <(switches)
same "${#before[@]}" 2 "connections on $(nproc) processors"
for depth in 1 32; do
    verify_load --rw=randwrite --bs=4k --iodepth=$depth --size=8M
    verify_load --rw=randwrite --bsrange=4k-1M --iodepth=$depth --offset=64M --size=$((depth * 2 + 64))M
done
verify_load --rw=randrw --bs=16k --iodepth=8 --numjobs=2 --cpus_allowed="0-$(($(nproc) - 1))" --cpus_allowed_policy=split \
    --offset=256M --offset_increment=64M --size=16M --fsync=32
readarray -t after < <(switches)
# The driver has a queue, and with it a connection in use, for each processor.
for connection in $(seq 0 $(($(nproc) - 1))); do
    [ $((after[connection] - before[connection])) -gt 100 ] ||
        fail "connection $connection was not used: ${before[*]}, then ${after[*]}"
done

echo "== discard and zeroes"
blkdiscard "$DEVICE"
same "$(mapped)" 0 "mapped after discarding everything"
random_file "$SCRATCH/store/random" 8
dd if="$SCRATCH/store/random" of="$DEVICE" bs=1M oflag=direct status=none
same "$(mapped)" $((8 * 1048576)) "mapped after writing 8 MiB"
blkdiscard -o 69632 -l 200704 "$DEVICE"
same "$(mapped)" $((8 * 1048576 - 2 * 65536)) "whole blocks of an unaligned discard"
blkdiscard -z -o 1052672 -l 1048576 "$DEVICE"
cmp -n 1048576 -i 1052672:0 "$DEVICE" /dev/zero || fail "zeroed bytes are not zero"
cmp -n 4096 -i 1048576:1048576 "$DEVICE" "$SCRATCH/store/random" || fail "zeroed too much in front"
cmp -n 61440 -i 2101248:2101248 "$DEVICE" "$SCRATCH/store/random" || fail "zeroed too much behind"
before=$(mapped)
fallocate -p -o 4194304 -l 1048576 "$DEVICE"
same "$(mapped)" $((before - 1048576)) "punching a hole unmaps"
thinctl detach "$POOL/vol"

echo "== no file system is made over anything"
expect 4 "written to.*blkdiscard" thinctl attach "$POOL/vol" --nbd --mkfs ext4 --mount "$SCRATCH/mnt"
attach_it vol --nbd
mkswap "$DEVICE" >"$SCRATCH/mkswap.log"
thinctl detach "$DEVICE"
expect 4 "swap" thinctl attach "$POOL/vol" --nbd --mkfs ext4 --mount "$SCRATCH/mnt"
same "$(blockdev --getsize64 /dev/nbd0)" 0 "size of what is not attached"
expect 2 "mount" thinctl attach "$POOL/vol" --nbd --mkfs ext4
attach_it vol --nbd
blkdiscard "$DEVICE"
thinctl detach "$DEVICE"

echo "== file systems, made once"
undo umount "$SCRATCH/mnt"
for transport in --nbd --fuse; do
    for kind in ext4 xfs; do
        name=fs-$kind${transport#-}
        thinctl create "$POOL/$name" --size 400M
        attach_it "$name" $transport --mkfs $kind --mount "$SCRATCH/mnt"
        same "$(attached made) $(attached mountpoint)" "$kind $SCRATCH/mnt" "what was made"
        same "$(findmnt -n -o SOURCE,FSTYPE "$SCRATCH/mnt" | tr -s ' ')" "$DEVICE $kind" "what is mounted"
        echo kept >"$SCRATCH/mnt/kept"
        thinctl detach "$POOL/$name"
        attach_it "$name" $transport --mkfs ext4 --mount "$SCRATCH/mnt"
        same "$(attached made)" null "what was made over a file system"
        same "$(cat "$SCRATCH/mnt/kept")" kept "the file"
        thinctl detach "$POOL/$name"
        thinctl rm "$POOL/$name"
    done
done
attach_it vol --nbd --mkfs ext4 --mount "$SCRATCH/mnt"
cp "$SCRATCH/store/random" "$SCRATCH/mnt/kept"
dd if=/dev/zero of="$SCRATCH/mnt/gone" bs=1M count=64 status=none
sync -f "$SCRATCH/mnt"
full=$(mapped)
rm "$SCRATCH/mnt/gone"
sync -f "$SCRATCH/mnt"
fstrim "$SCRATCH/mnt"
[ "$(mapped)" -lt $((full - 60 * 1048576)) ] || fail "fstrim gave nothing back: $full, $(mapped)"
thinctl create-snap "$POOL/vol@s"

echo "== in use"
exec 9<"$SCRATCH/mnt/kept"
expect 5 "busy" thinctl detach "$POOL/vol"
expect 5 "busy" thinctl detach "$DEVICE"
exec 9<&-
expect 4 "already attached as $DEVICE" thinctl attach "$POOL/vol"
expect 5 "in use" thinctl rm "$POOL/vol"
cmp "$SCRATCH/mnt/kept" "$SCRATCH/store/random"
umount "$SCRATCH/mnt"
mkdir "$SCRATCH/other"
mount "$DEVICE" "$SCRATCH/other"
undo umount "$SCRATCH/other"
expect 5 "mounted" thinctl detach "$POOL/vol"
umount "$SCRATCH/other"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck of the volume"
exec 9<"$DEVICE"
expect 5 "open in process" thinctl detach "$POOL/vol"
exec 9<&-

echo "== snapshot"
volume=$DEVICE
attach_it vol@s --nbd
same "$(attached read_only)" true "read_only"
limit ro 1
same "$(blockdev --getro "$DEVICE")" 1 "getro"
must_fail dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct
must_fail blkdiscard "$DEVICE"
blockdev --setrw "$DEVICE" 2>/dev/null || true
must_fail dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct
mount -o ro,noload "$DEVICE" "$SCRATCH/mnt"
cmp "$SCRATCH/mnt/kept" "$SCRATCH/store/random" || fail "the snapshot has other contents"
umount "$SCRATCH/mnt"
thinctl detach "/dev/thin/pool/vol@s"
[ ! -e "/dev/thin/pool/vol@s" ] || fail "its link is left"
thinctl create "$POOL/empty" --size 16M
thinctl create-snap "$POOL/empty@s"
expect 7 "read only" thinctl attach "$POOL/empty@s" --nbd --mkfs ext4 --mount "$SCRATCH/mnt"

echo "== small sectors"
expect 2 "multiple of sectors" thinctl attach "$POOL/odd" --nbd --sector-size 4096
attach_it odd --nbd
limit queue/logical_block_size 512
same "$(blockdev --getsize64 "$DEVICE")" 1049088 "size"
thinctl detach "$POOL/odd"

echo "== taken away by somebody else"
attach_it odd --nbd
nbd-client -d "$DEVICE" >"$SCRATCH/nbd-client.log"
attach_it odd --nbd
same "$(blockdev --getsize64 "$DEVICE")" 1049088 "size"
thinctl detach "$POOL/odd"

echo "== the page cache is written out"
dd if="$SCRATCH/store/random" of="$volume" bs=1M count=4 conv=notrunc status=none
thinctl detach "$volume"
same "$(blockdev --getsize64 "$volume")" 0 "size of what is detached"
[ ! -e "/dev/thin/pool" ] || fail "links are left"
thinctl read "$POOL/vol" --length 4M | cmp - <(head -c 4194304 "$SCRATCH/store/random") ||
    fail "what was in the page cache is lost"
must_fail ls "$THINPOOL_RUNTIME_DIR"/*/nbd.json

stop_daemon
verify "$POOL"
