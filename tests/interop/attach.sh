#!/bin/bash
# attach over FUSE and a loop device: ext4, a snapshot and a clone of it mounted beside it,
# refusals while something is in use, detaching, and the daemon that ends itself.
. "$(dirname "$0")/lib.sh"

if [ ! -e /dev/fuse ] || [ ! -e /dev/loop-control ] || [ "$(id -u)" -ne 0 ]; then
    fail "needs root, /dev/fuse and loop devices"
fi

# attach_it NAME [options]: sets DEVICE, and undoes the attachment when the script ends.
attach_it() {
    local name=$1
    shift
    undo "'$THINCTL' detach '$POOL/$name'"
    thinctl attach "$POOL/$name" --fuse --json "$@" >"$SCRATCH/attach.json"
    jq -e '.transport == "fuse"' "$SCRATCH/attach.json" >/dev/null || cat "$SCRATCH/attach.json"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
    [ -b "$DEVICE" ] || fail "no block device: $(cat "$SCRATCH/attach.json")"
}

new_pool pool --size 2G
thinctl create "$POOL/vol" --size 512M
attach_it vol
vol_device=$DEVICE
same "$(blockdev --getsize64 "$vol_device")" $((512 * 1048576)) "size of the device"
mkfs.ext4 -q -F "$vol_device"
mkdir "$SCRATCH/vol" "$SCRATCH/clone" "$SCRATCH/snap"
undo umount "$SCRATCH/vol"
mount "$vol_device" "$SCRATCH/vol"

mkdir "$SCRATCH/vol/files"
for number in $(seq 40); do
    head -c $((number * 7919)) /dev/urandom >"$SCRATCH/vol/files/$number"
done
(cd "$SCRATCH/vol" && find files -type f -print0 | sort -z | xargs -0 sha256sum) >"$SCRATCH/sums"
sync -f "$SCRATCH/vol"
thinctl create-snap "$POOL/vol@s1"
echo later >"$SCRATCH/vol/later"
rm "$SCRATCH/vol/files/7"
sync -f "$SCRATCH/vol"

thinctl clone "$POOL/vol@s1" "$POOL/clone"
attach_it clone --mount "$SCRATCH/clone"
clone_device=$DEVICE
(cd "$SCRATCH/clone" && sha256sum --quiet -c "$SCRATCH/sums") || fail "files differ in the clone"
[ ! -e "$SCRATCH/clone/later" ] || fail "the clone sees what came after the snapshot"
echo mine >"$SCRATCH/clone/mine"
sync -f "$SCRATCH/clone"
[ ! -e "$SCRATCH/vol/mine" ] || fail "the volume sees the clone's file"

attach_it vol@s1
same "$(blockdev --getro "$DEVICE")" 1 "the snapshot's device is read-only"
must_fail dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct
undo umount "$SCRATCH/snap"
mount -o ro,noload "$DEVICE" "$SCRATCH/snap"
(cd "$SCRATCH/snap" && sha256sum --quiet -c "$SCRATCH/sums") || fail "files differ in the snapshot"
umount "$SCRATCH/snap"
thinctl detach "$DEVICE"

expect 5 "attached|use|busy" thinctl rm "$POOL/vol"
expect 5 "attached|use|busy" thinctl rm "$POOL/clone"
expect 5 "mount|use|busy" thinctl detach "$POOL/vol"
echo still >"$SCRATCH/vol/still"
(cd "$SCRATCH/vol" && sync -f . && cat still >/dev/null)
same "$(thinctl ls "$POOL" --json | jq length)" 3 "devices after the refusals"
thinctl check "$POOL" >/dev/null || fail "check while attached"

umount "$SCRATCH/vol"
e2fsck -fn "$vol_device" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck of the volume"
exec 9<"$vol_device"
expect 5 "open|use|busy|held" thinctl detach "$POOL/vol"
exec 9<&-
thinctl detach "$vol_device"
thinctl detach "$POOL/clone"
mountpoint -q "$SCRATCH/clone" && fail "still mounted after detach"
! losetup -a | grep -q "$SCRATCH" || fail "a loop device is left: $(losetup -a)"

# The daemon attach had started ends with the last attachment; the pool is free again.
for _ in $(seq 600); do
    [ ! -e "$POOL/control.sock" ] && break
    sleep 0.1
done
[ ! -e "$POOL/control.sock" ] || fail "the daemon is still there"
! grep -q "$SCRATCH" /proc/mounts || fail "mounts left: $(grep "$SCRATCH" /proc/mounts)"
verify "$POOL"
thinctl rm "$POOL/clone"
verify "$POOL"
