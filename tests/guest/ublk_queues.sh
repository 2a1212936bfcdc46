#!/bin/bash
# Queues, depth and buffers of a ublk device as they were asked for, also with the next daemon. The driver makes
# no more queues than there are processors, of which user-mode Linux has one.
# guest: --qemu --timeout 600 --memory 3G
. "$(dirname "$0")/lib.sh"
. "$GUEST/shared/devices.sh"
export THINPOOL_LINK_DIR=/dev/thin
requires fio jq
modprobe -a ublk_drv nbd loop

new_memory_pool 512M
serve "$POOL"

echo "== limits and threads"
# limits_as_asked: those of --queues 2 --depth 16 --buffer 128K.
limits_as_asked() {
    same "$(find "/sys/block/$BLOCK/mq" -mindepth 1 -maxdepth 1 | wc -l)" 2 "queues of $BLOCK"
    limit queue/nr_requests 16
    limit queue/max_hw_sectors_kb 128
}
# queue_threads: how often each thread of the device has been waited for.
queue_threads() {
    local task
    for task in /proc/"$DAEMON"/task/*; do
        if grep -q "^ublk${BLOCK#ublkb}-" "$task/comm"; then
            awk '/^voluntary/ {print $2}' "$task/status"
        fi
    done
}
thinctl create "$POOL/wide" --size 128M
expect 2 "number of queues is 33, expected 1 to 32" thinctl attach "$POOL/wide" --queues 33
expect 2 "queue depth is 0, expected 1 to 1024" thinctl attach "$POOL/wide" --depth 0
expect 2 "buffer size is 69632, expected a multiple of 65536" thinctl attach "$POOL/wide" --buffer 68K
expect 2 "depth x buffer size. is 34359738368" thinctl attach "$POOL/wide" --depth 1024 --buffer 32M
expect 2 "--depth, --buffer: not for .* nbd" thinctl attach "$POOL/wide" --nbd --depth 1 --buffer 64K
expect 2 "--queues: not for .* fuse" thinctl attach "$POOL/wide" --fuse --queues 2
thinctl attach "$POOL/wide" --queues 9 >"$SCRATCH/told.out" 2>"$SCRATCH/told"
same "$(cat "$SCRATCH/told")" "thinctl: ublk has made 2 queues instead of 9: that is its limit here" "what is told"
thinctl detach "$POOL/wide"
attach_it wide --queues 2 --depth 16 --buffer 128K --persist
same "$(jq -c '[.queues, .depth, .buffer_bytes, .notes]' "$SCRATCH/attach.json")" "[2,16,131072,[]]" "what is told"
wide=$DEVICE
limits_as_asked
readarray -t before < <(queue_threads)
same "${#before[@]}" 2 "threads"
verify_load --rw=randrw --bsrange=4k-256k --iodepth=16 --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split \
    --offset_increment=64M --size=16M --fsync=32
readarray -t after < <(queue_threads)
for queue in 0 1; do
    [ $((after[queue] - before[queue])) -gt 20 ] || fail "queue $queue was not used: ${before[*]}, then ${after[*]}"
done

echo "== after a kill under load, and when attached anew"
fio --name=verify --filename="$DEVICE" --rw=randwrite --bs=16k --direct=1 --ioengine=io_uring --iodepth=16 \
    --numjobs=2 --cpus_allowed=0,1 --cpus_allowed_policy=split --offset_increment=64M --size=32M \
    --time_based --runtime=6 --fsync=64 --verify=crc32c --verify_backlog=256 --verify_fatal=1 >"$SCRATCH/fio.log" 2>&1 &
load=$!
sleep 2
kill -0 $load || fail "the load ended before the kill: $(cat "$SCRATCH/fio.log")"
kill_daemon
serve "$POOL"
grep -q "$wide: goes on as wide" "$SCRATCH"/serve.*.log || fail "$wide was not taken over"
wait $load || fail "fio over the kill: $(cat "$SCRATCH/fio.log")"
same "$(queue_threads | wc -l)" 2 "threads of the next daemon"
limits_as_asked
expect 4 "already attached as $wide" thinctl attach "$POOL/wide"
stop_daemon
# Whatever stands in the table, the driver knows what the device has.
sed -i -e "s/\"depth\": 16/\"depth\": 8/" "$THINPOOL_RUNTIME_DIR"/*/ublk.json
serve "$POOL"
expect 4 "already attached as $wide" thinctl attach "$POOL/wide"
limits_as_asked
verify_load --rw=randrw --bs=16k --iodepth=32 --size=8M
thinctl detach "$wide"
thinctl rm "$POOL/wide"

stop_daemon
verify "$POOL"
kernel_is_silent
