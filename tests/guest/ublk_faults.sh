#!/bin/bash
# ublk where something is wrong: io_uring switched off, no permission, a record that names a device of another
# pool, a device that no record names, a driver that does not answer (LONG=1: it takes half a minute to give that
# up). What is told is one line, nothing hangs, and what others have is left alone.
# guest: --timeout 600
. "$(dirname "$0")/lib.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio strace jq
load ublk_drv nbd

# attach_it POOL NAME: sets DEVICE.
attach_it() {
    thinctl attach "$1/$2" --ublk --json >"$SCRATCH/attach.json"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
}

# no_device: none is left behind.
no_device() {
    [ -z "$(find /dev -maxdepth 1 -name 'ublk[bc]*')" ] || fail "devices are left"
    [ ! -e /dev/thin ] || [ -z "$(find /dev/thin -type l)" ] || fail "links are left"
}

new_pool one --size 128M
ONE=$POOL
new_pool two --size 128M
TWO=$POOL
for pool in "$ONE" "$TWO"; do
    thinctl create "$pool/vol" --size 32M
done

echo "== io_uring is off"
serve "$ONE"
echo 2 >/proc/sys/kernel/io_uring_disabled
expect 1 "no ublk: io_uring is switched off .*sysctl" thinctl attach "$ONE/vol" --ublk
thinctl attach "$ONE/vol" >"$SCRATCH/device" 2>"$SCRATCH/told"
grep -q "^/dev/nbd" "$SCRATCH/device" || fail "attached as $(cat "$SCRATCH/device")"
grep -q "attached through nbd: no ublk: io_uring is switched off" "$SCRATCH/told" || fail "it said: $(cat "$SCRATCH/told")"
thinctl detach "$ONE/vol"
echo 0 >/proc/sys/kernel/io_uring_disabled
stop_daemon

echo "== no permission"
setpriv --bounding-set=-sys_admin "$THINCTL" doctor >"$SCRATCH/doctor"
grep -Eq '^ublk +making ublk devices is not permitted: run as root, with CAP_SYS_ADMIN$' "$SCRATCH/doctor" ||
    fail "doctor: $(cat "$SCRATCH/doctor")"
setpriv --bounding-set=-sys_admin "$THINCTL" serve "$ONE" >"$SCRATCH/weak.out" 2>"$SCRATCH/weak.log" &
DAEMON=$!
DAEMONS+=("$DAEMON")
until grep -q '^ready:' "$SCRATCH/weak.out"; do
    kill -0 "$DAEMON" || fail "the daemon ended: $(cat "$SCRATCH/weak.log")"
    sleep 0.1
done
expect 1 "no ublk: making ublk devices is not permitted .*run as root" thinctl attach "$ONE/vol" --ublk
stop_daemon
no_device

echo "== another pool's device in the table"
serve "$ONE"
thinctl create "$ONE/own" --size 32M
attach_it "$ONE" own
own=$DEVICE
table=$(echo "$THINPOOL_RUNTIME_DIR"/*/ublk.json)
first=$DAEMON
serve "$TWO"
attach_it "$TWO" vol
fio --name=load --filename="$DEVICE" --rw=randwrite --bs=16k --size=8M --direct=1 --ioengine=io_uring --iodepth=8 \
    --verify=crc32c --verify_fatal=1 --do_verify=1 >"$SCRATCH/fio.log" 2>&1 &
load=$!
second=$DAEMON
DAEMON=$first
kill_daemon
cp "$table" "$SCRATCH/table"
sed -i "s/\"device\": ${own#/dev/ublkb},/\"device\": ${DEVICE#/dev/ublkb},/" "$table"
serve "$ONE"
grep -q "$DEVICE: is no more" "$SCRATCH"/serve.*.log || fail "the record was not told of"
[ ! -e "$table" ] || fail "it is in the table still: $(cat "$table")"
wait $load || fail "the other pool's device: $(cat "$SCRATCH/fio.log")"

echo "== a device without a record"
expect 3 "not attached" thinctl detach "$own"
attach_it "$ONE" own
[ "$DEVICE" != "$own" ] || fail "a device without a record was taken over"
cmp -n 1048576 "$DEVICE" /dev/zero
thinctl detach "$ONE/own"
# With its record it is as good as ever.
kill_daemon
cp "$SCRATCH/table" "$table"
serve "$ONE"
cmp -n 1048576 "$own" /dev/zero
thinctl detach "$ONE/own"

if [ -n "${LONG:-}" ]; then
    echo "== a driver that does not answer"
    # A thread for each command, so that the first command of any is held back.
    strace -f -qq -o "$SCRATCH/trace" -p "$DAEMON" -e trace=io_uring_enter -e inject=io_uring_enter:delay_enter=100s:when=1 &
    tracer=$!
    until grep -q "^TracerPid:.*[1-9]" "/proc/$DAEMON/status"; do sleep 0.1; done
    expect 1 "no ublk: the ublk driver has not answered for 30 s.*dmesg" thinctl attach "$ONE/own" --ublk
    thinctl ls "$ONE" >/dev/null
    kill -KILL $tracer
    wait $tracer 2>/dev/null || true
    attach_it "$ONE" own
    thinctl detach "$ONE/own"
fi

stop_daemon
verify "$ONE"
DAEMON=$second
thinctl detach "$TWO/vol"
stop_daemon
verify "$TWO"
no_device
kernel_is_silent
