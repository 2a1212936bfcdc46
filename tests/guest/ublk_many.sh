#!/bin/bash
# 200 ublk devices at once, volumes and snapshots of one pool: each holds what is its own, also after the
# daemon was killed and the next one has taken all of them over. The driver's own limit, ublks_max, is not
# for devices of root; a daemon at its limit of open files or of threads says so, and goes on.
# guest: --timeout 1800 --memory 3G
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires jq prlimit
modprobe ublk_drv
DEVICES=200

many() {
    $PYTHON "$GUEST/many.py" "$POOL" $DEVICES "$1" || fail "many devices: $1"
}

# refused WORDS: one more device is refused with these words, and nothing of it is left.
refused() {
    must_fail thinctl attach "$POOL/more" --ublk
    same "$(wc -l <"$SCRATCH/must_fail.out")" 1 "lines of the refusal"
    grep -Eiq "^thinctl: .*($1)" "$SCRATCH/must_fail.out" ||
        fail "at the limit, attach said: $(cat "$SCRATCH/must_fail.out"), expected: $1"
    [ ! -e /dev/thin/pool/more ] || fail "a link is left"
    same "$(jq '.devices | length' "$THINPOOL_RUNTIME_DIR"/*/ublk.json)" $DEVICES "devices in the table"
}

# accepted: one more device can be attached and detached.
accepted() {
    thinctl attach "$POOL/more" --ublk >/dev/null
    thinctl detach "$POOL/more"
}

new_memory_pool 256M
thinctl create "$POOL/more" --size 8M
serve "$POOL"

echo "== attached"
[ "$(cat /sys/module/ublk_drv/parameters/ublks_max)" -lt $DEVICES ] || fail "ublks_max is not the limit it was"
many attach
many check

echo "== taken over"
kill_and_serve "$POOL" /dev/ublkb$((DEVICES - 1))
echo "the last of $DEVICES devices waited ${STALLS[0]} ms"
many check

echo "== at the limit of open files"
# Enough for the call, and then for more and more of what a device takes.
open=$(find "/proc/$DAEMON/fd" -type l | wc -l)
for spare in 2 4 6 8 9 10; do
    prlimit --pid "$DAEMON" --nofile=$((open + spare)):
    refused "too many open files"
done
prlimit --pid "$DAEMON" --nofile=4096:
accepted

echo "== at the limit of threads"
mkdir /sys/fs/cgroup/few
echo +pids >/sys/fs/cgroup/cgroup.subtree_control
echo "$DAEMON" >/sys/fs/cgroup/few/cgroup.procs
echo 1 >/sys/fs/cgroup/few/pids.max
refused "cannot start a thread|limit of threads"
echo max >/sys/fs/cgroup/few/pids.max
accepted

echo "== detached"
many check
many detach
[ ! -e /dev/thin/pool ] || fail "links are left"
[ -z "$(find /dev -maxdepth 1 -name 'ublk[bc]*')" ] || fail "devices are left"
stop_daemon
verify "$POOL"
kernel_is_silent
