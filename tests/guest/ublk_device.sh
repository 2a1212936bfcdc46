#!/bin/bash
# A volume as a ublk device: its limits as the kernel sees them, fio with verification at depth 1 and
# 32, discards and zeroings, file systems with discards, a snapshot that is read only, links, and
# refusals while it is in use.
# guest: --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
. "$GUEST/shared/devices.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio mkfs.ext4 mkfs.xfs blkdiscard jq
modprobe -a ublk_drv nbd loop xfs

mapped() {
    thinctl info "$POOL/vol" --json | jq .mapped_bytes
}

thinctl doctor >"$SCRATCH/doctor"
grep -Eq '^ublk +works$' "$SCRATCH/doctor" || fail "doctor: $(cat "$SCRATCH/doctor")"

new_memory_pool 1G
thinctl create "$POOL/vol" --size 512M
thinctl create "$POOL/odd" --size 1049088
undo "'$THINCTL' detach '$POOL/vol'"
serve "$POOL"

echo "== limits"
attach_it vol
same "$(jq -r .transport "$SCRATCH/attach.json")" ublk "transport"
same "$(readlink -f "/dev/thin/pool/vol")" "$DEVICE" "the link"
limit queue/logical_block_size 4096
limit queue/physical_block_size 4096
limit queue/minimum_io_size 4096
limit queue/optimal_io_size 65536
limit queue/discard_granularity 65536
limit queue/discard_max_bytes 4294966784
limit queue/write_zeroes_max_bytes 4294966784
limit queue/max_hw_sectors_kb 512
limit queue/write_cache "write back"
limit queue/fua 1
limit queue/nr_requests 64
limit ro 0
same "$(blockdev --getsize64 "$DEVICE")" $((512 * 1048576)) "size"

echo "== fio"
for depth in 1 32; do
    verify_load --rw=randwrite --bs=4k --iodepth=$depth --size=8M
    verify_load --rw=randwrite --bsrange=4k-1M --iodepth=$depth --offset=64M --size=$((depth * 2 + 64))M
done
verify_load --rw=randrw --bs=16k --iodepth=8 --numjobs=4 --offset=256M --offset_increment=64M --size=8M --fsync=32

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
fallocate -z -o 4194304 -l 1048576 "$DEVICE"
cmp -n 1048576 -i 4194304:0 "$DEVICE" /dev/zero || fail "zero-range left bytes"
same "$(mapped)" "$before" "zero-range keeps blocks mapped"
fallocate -p -o 4194304 -l 1048576 "$DEVICE"
same "$(mapped)" $((before - 1048576)) "punching a hole unmaps"

mkdir "$SCRATCH/mnt"
undo umount "$SCRATCH/mnt"

# fstrim_gives_back: what is deleted on the file system there goes back to the pool; a file `kept` stays.
fstrim_gives_back() {
    local full
    cp "$SCRATCH/store/random" "$SCRATCH/mnt/kept"
    dd if=/dev/zero of="$SCRATCH/mnt/gone" bs=1M count=64 status=none
    sync -f "$SCRATCH/mnt"
    full=$(mapped)
    rm "$SCRATCH/mnt/gone"
    sync -f "$SCRATCH/mnt"
    fstrim "$SCRATCH/mnt"
    [ "$(mapped)" -lt $((full - 60 * 1048576)) ] || fail "fstrim gave nothing back: $full, $(mapped)"
}

echo "== xfs"
mkfs.xfs -q "$DEVICE"
mount "$DEVICE" "$SCRATCH/mnt"
fstrim_gives_back
umount "$SCRATCH/mnt"
xfs_repair -n "$DEVICE" >"$SCRATCH/xfs_repair.log" 2>&1 || fail "xfs_repair: $(cat "$SCRATCH/xfs_repair.log")"
mount "$DEVICE" "$SCRATCH/mnt"
cmp "$SCRATCH/mnt/kept" "$SCRATCH/store/random"
umount "$SCRATCH/mnt"
blkdiscard "$DEVICE"

echo "== ext4"
mkfs.ext4 -q -F "$DEVICE"
mount "$DEVICE" "$SCRATCH/mnt"
fstrim_gives_back
thinctl create-snap "$POOL/vol@s"

echo "== in use"
expect 5 "busy|mounted" thinctl detach "$POOL/vol"
expect 5 "busy|mounted" thinctl detach "$DEVICE"
expect 4 "already attached as $DEVICE" thinctl attach "$POOL/vol"
expect 5 "in use" thinctl rm "$POOL/vol"
cmp "$SCRATCH/mnt/kept" "$SCRATCH/store/random"
umount "$SCRATCH/mnt"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck of the volume"
exec 9<"$DEVICE"
expect 5 "open in process" thinctl detach "$POOL/vol"
exec 9<&-

echo "== snapshot"
volume=$DEVICE
attach_it vol@s
same "$(jq -r .read_only "$SCRATCH/attach.json")" true "read_only"
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

echo "== small sectors"
attach_it odd
limit queue/logical_block_size 512
same "$(blockdev --getsize64 "$DEVICE")" 1049088 "size"
thinctl detach "$POOL/odd"
attach_it odd --fuse
same "$(jq -r .transport "$SCRATCH/attach.json")" fuse "transport"
limit queue/logical_block_size 512
thinctl detach "$POOL/odd"

echo "== the page cache is written out"
# The kernel itself writes out what is dirty when the last descriptor of a device is closed. Here that is
# one on its way through a socket: no process has it, so it is no reason to refuse, and nothing but the
# page cache has what was written.
cat >"$SCRATCH/hold.py" <<'END'
import os, signal, socket, sys
device, contents, told = sys.argv[1:]
fd = os.open(device, os.O_RDWR)
with open(contents, "rb") as file:
    assert os.pwrite(fd, file.read(4 << 20), 0) == 4 << 20
ends = socket.socketpair()
socket.send_fds(ends[0], [b"."], [fd])
os.close(fd)
open(told, "w").close()
signal.pause()
END
$PYTHON "$SCRATCH/hold.py" "$volume" "$SCRATCH/store/random" "$SCRATCH/held" &
holder=$!
undo kill $holder
until [ -e "$SCRATCH/held" ]; do
    kill -0 $holder || fail "nobody holds it"
    sleep 0.1
done
thinctl detach "$volume" &
detach=$!
# The driver deletes it only when nobody has it any more.
while [ -e "$volume" ]; do
    kill -0 $detach 2>/dev/null || break
    sleep 0.1
done
kill $holder
wait $detach || fail "detaching failed"
[ ! -e "$volume" ] || fail "$volume is left"
[ ! -e "/dev/thin/pool" ] || fail "links are left"
thinctl read "$POOL/vol" --length 4M | cmp - <(head -c 4194304 "$SCRATCH/store/random") ||
    fail "what was in the page cache is lost"
must_fail ls "$THINPOOL_RUNTIME_DIR"/*/ublk.json

stop_daemon
verify "$POOL"
