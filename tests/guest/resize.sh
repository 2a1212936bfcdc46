#!/bin/bash
# Volumes that are enlarged while they are attached, in each way: the block device follows at once, with a
# file system mounted on it, and after the daemon was killed by the next one. ublk cannot do that before
# Linux 6.16, and says so.
# guest: --timeout 600 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires mkfs.ext4 resize2fs jq
load ublk_drv nbd loop

MIB=1048576
can_follow() {
    [ "$1" != ublk ] || [[ $(uname -r) != 6.12.* ]]
}

# attach_it TRANSPORT [options]: sets DEVICE.
attach_it() {
    local transport=$1
    shift
    DEVICE=$(thinctl attach "$POOL/vol" "--$transport" "$@")
}

# size_is MIB: without opening the device, which may wait for a daemon.
size_is() {
    same $(($(<"/sys/block/${DEVICE#/dev/}/size") * 512)) $(($1 * MIB)) "size of $DEVICE"
}

# resize_to MIB: sets NOTE.
resize_to() {
    NOTE=$(thinctl resize "$POOL/vol" --size "$1M" --json | jq -r '.notes | join(" ")')
    same "$(thinctl info "$POOL/vol" --json | jq .size)" $(($1 * MIB)) "size of the volume"
}

mkdir "$SCRATCH/mnt"
new_memory_pool 512M
undo umount "$SCRATCH/mnt"
undo "'$THINCTL' detach '$POOL/vol'"
serve "$POOL"

for transport in ublk nbd fuse; do
    echo "== $transport"
    thinctl create "$POOL/vol" --size 64M
    attach_it $transport --mkfs ext4 --mount "$SCRATCH/mnt"
    size_is 64
    expect 2 "shrink" thinctl resize "$POOL/vol" --size 32M
    expect 5 "in use" thinctl resize "$POOL/vol" --size 32M --shrink
    size_is 64
    resize_to 128
    if can_follow $transport; then
        same "$NOTE" "" "what is told"
    else
        [[ $NOTE == "$DEVICE keeps its size until it is detached and attached again: "*UPDATE_SIZE* ]] || fail "it said: $NOTE"
        size_is 64
        thinctl resize "$POOL/vol" --size 128M 2>"$SCRATCH/told"
        same "$(cat "$SCRATCH/told")" "thinctl: $NOTE" "what is told"
        thinctl detach "$POOL/vol"
        attach_it $transport --mount "$SCRATCH/mnt"
    fi
    size_is 128
    resize2fs "$DEVICE" >"$SCRATCH/resize2fs.log" 2>&1 || fail "resize2fs: $(cat "$SCRATCH/resize2fs.log")"
    random_file "$SCRATCH/mnt/large" 90
    sum=$(sha <"$SCRATCH/mnt/large")
    thinctl detach "$POOL/vol"
    attach_it $transport --mount "$SCRATCH/mnt"
    same "$(sha <"$SCRATCH/mnt/large")" "$sum" "the file"
    thinctl detach "$POOL/vol"
    thinctl rm "$POOL/vol"
done

for transport in ublk nbd; do
    echo "== $transport: enlarged while nobody serves it"
    thinctl create "$POOL/vol" --size 16M
    attach_it $transport
    kill_daemon
    resize_to 32
    [[ $NOTE == *"waits for the pool's daemon"* ]] || fail "it said: $NOTE"
    size_is 16
    serve "$POOL"
    if can_follow $transport; then
        size_is 32
        dd if=/dev/zero of="$DEVICE" bs=1M seek=16 count=16 oflag=direct status=none
        NOTE=$(thinctl resize "$POOL/vol" --size $((32 * MIB + 512)) 2>&1)
        [[ $NOTE == *"multiple of"*sectors* ]] || fail "it said: $NOTE"
        size_is 32
    else
        size_is 16
        log=$SCRATCH/serve.${#DAEMONS[@]}.log
        grep -q "WARN $DEVICE keeps its size" "$log" || fail "the daemon does not say that it keeps its size"
    fi
    thinctl detach "$POOL/vol"
    thinctl rm "$POOL/vol"
done

stop_daemon
verify "$POOL"
kernel_is_silent
