#!/bin/bash
# A daemon that dies, by kill -9, under a mounted ext4 with a verifying load, twice; one that dies
# at each step of taking over; one that is told to end; commands on the pool while nobody serves it. Nobody
# above may notice anything but a wait.
# guest: --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
. "$GUEST/shared/takeovers.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio mkfs.ext4 e2fsck strace jq
load ublk_drv

table() {
    echo "$THINPOOL_RUNTIME_DIR"/*/ublk.json
}

mkdir "$SCRATCH/mnt"
new_memory_pool 512M
thinctl create "$POOL/vol" --size 128M
thinctl create "$POOL/idle" --size 16M
serve "$POOL"
thinctl attach "$POOL/vol" --ublk --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")
mkfs.ext4 -q "$DEVICE"
mount "$DEVICE" "$SCRATCH/mnt"
undo umount -l "$SCRATCH/mnt"

echo "== kill -9 under load, twice"
fio --name=verify --filename="$SCRATCH/mnt/file" --rw=randwrite --bs=4k --direct=1 \
    --ioengine=io_uring --iodepth=16 --size=48M --io_size=96M --rate_iops=2000 --fsync=64 --verify=crc32c \
    --verify_backlog=512 --verify_fatal=1 >"$SCRATCH/fio.log" 2>&1 &
load=$!
for round in 1 2; do
    sleep 2
    kill -0 "$load" || fail "the load ended before kill $round: $(cat "$SCRATCH/fio.log")"
    kill_daemon
    sleep 1
    kill -0 "$load" || fail "the load noticed kill $round: $(cat "$SCRATCH/fio.log")"
    serve "$POOL"
    grep -q "$DEVICE: goes on as vol" "$SCRATCH"/serve.*.log || fail "not taken over"
done
status=0
wait "$load" || status=$?
[ $status -eq 0 ] || fail "fio: $(cat "$SCRATCH/fio.log")"
same "$(readlink "/dev/thin/pool/vol")" "$DEVICE" "the link after recovery"

# serve_traced OPTION...: a daemon under strace, with these options; what it says is in short.log. With -D the
# daemon is the process that we started.
serve_traced() {
    : >"$SCRATCH/trace"
    strace -D -f -qq -o "$SCRATCH/trace" "$@" "$THINCTL" serve "$POOL" >"$SCRATCH/short.log" 2>&1 &
    DAEMON=$!
}

echo "== killed with every tag in the middle of a request"
idle=$(thinctl attach "$POOL/idle" --ublk --depth 1)
until [ "$(<"/sys/block/${idle#/dev/}/queue/io_timeout")" = 1000 ]; do
    kill -0 "$DAEMON" || fail "the daemon ended: $(cat "$SCRATCH/serve.${#DAEMONS[@]}.log")"
    sleep 0.1
done
: >"$SCRATCH/trace"
strace -f -qq -o "$SCRATCH/trace" -p "$DAEMON" -e trace=fdatasync -e inject=fdatasync:delay_enter=60s 2>"$SCRATCH/strace.log" &
tracer=$!
sleep 1
dd if=/dev/zero of="$idle" bs=4096 count=1 conv=fsync 2>"$SCRATCH/dd.log" &
writer=$!
until grep -q sync "$SCRATCH/trace"; do
    kill -0 $writer || fail "nothing was synced: $(<"$SCRATCH/dd.log")"
    sleep 0.1
done
sleep 1
# Until its tracer has gone too, which sits the delay out, the daemon would be a zombie.
kill -KILL "$DAEMON" "$tracer"
wait "$DAEMON" "$tracer" 2>/dev/null || true
serve "$POOL"
grep -q "$idle: goes on as idle" "$SCRATCH/serve.${#DAEMONS[@]}.log" || fail "$idle was not taken over"
wait $writer || fail "a flush over the kill: $(<"$SCRATCH/dd.log")"
thinctl detach "$idle"

echo "== killed while it takes over"
# not_taken_over: the last daemon died before it had the device.
not_taken_over() {
    ! grep -E "goes on as|ready:" "$SCRATCH/short.log" || fail "it was killed too late, or cannot take it over"
}
kill_daemon
# Once the driver has begun the recovery, before any request is fetched.
serve_traced -P "/dev/ublkc${DEVICE#/dev/ublkb}" -e trace=openat -e inject=openat:signal=KILL:when=1
wait "$DAEMON" 2>/dev/null || true
grep -q "openat.*ublkc" "$SCRATCH/trace" || fail "not killed where it was meant: $(cat "$SCRATCH/short.log")"
not_taken_over
# Once all are fetched, before the driver is told that the recovery is over: the second command of a thread is
# held back for a while, and that is one.
serve_traced -e trace=io_uring_enter -e inject=io_uring_enter:delay_enter=4s:when=2
tries=0
until [[ $(<"$SCRATCH/trace") == *", 64, 0, 0, NULL, 128) = 64"* ]]; do
    tries=$((tries + 1))
    [ $tries -lt 400 ] && kill -0 "$DAEMON" || fail "it fetches nothing: $(cat "$SCRATCH/short.log" "$SCRATCH/trace")"
    sleep 0.1
done
kill_daemon
not_taken_over

echo "== it cannot be taken over"
# Not out of /dev: the kernel would not know its nodes again.
mkdir /dev/aside
mv "$DEVICE" "/dev/ublkc${DEVICE#/dev/ublkb}" /dev/aside
serve "$POOL"
grep -q "$DEVICE waits on: " "$SCRATCH/serve.${#DAEMONS[@]}.log" || fail "taken over without a character device"
expect 9 "$DEVICE waits on: " thinctl attach "$POOL/vol"
expect 9 "$DEVICE waits on: " thinctl detach "$POOL/vol"
expect 5 "in use" thinctl rm "$POOL/vol"
mv /dev/aside/* /dev
rmdir /dev/aside
expect 4 "already attached as $DEVICE" thinctl attach "$POOL/vol"
kill_daemon

echo "== while nobody serves it"
thinctl ls "$POOL" >/dev/null
expect 5 "in use" thinctl rm "$POOL/vol"
expect 2 "shrink" thinctl resize "$POOL/vol" --size 64M
cp "$(table)" "$SCRATCH/table"
sed -i 's/"queues": 1/"queues": 0/' "$(table)"
expect 8 "ublk.json.*queues" thinctl serve "$POOL"
expect 8 "ublk.json.*queues" thinctl rm "$POOL/idle"
thinctl du "$POOL" >/dev/null
cp "$SCRATCH/table" "$(table)"

echo "== taken over by attach"
taken_over_by_attach ublk

echo "== told to end while mounted"
told_to_end_while_mounted

umount "$SCRATCH/mnt"
e2fsck -fn "$DEVICE" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck"

echo "== detach after a kill"
kill_daemon
thinctl detach "$DEVICE"
[ ! -e "$DEVICE" ] || fail "$DEVICE is left"
[ ! -e "/dev/thin/pool" ] || fail "links are left"
for _ in $(seq 300); do
    [ -e "$POOL/control.sock" ] || break
    sleep 0.1
done
verify "$POOL"
kernel_is_silent
modprobe -r ublk_drv || fail "something still holds the driver"
