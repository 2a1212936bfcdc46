# shellcheck shell=bash
# Sourced by ublk_kill and nbd_kill, which say what is different: TRANSPORT and KILLS.
#
# kill -9 of the daemon, again and again, under fio, which writes to unmapped and to shared blocks of a
# device and never flushes, and right behind a write to an unmapped block: only the intent log keeps what
# was acknowledged. Nobody above may notice anything but a wait. Ends with a line of JSON.

export THINPOOL_LINK_DIR=/dev/thin
requires fio blkdiscard jq
AREA=$((32 << 20))

# Until told that it is enough: writes all of fio's area in random order, then reads all of it. On every
# second round nothing is mapped; on the others what is there may be shared with a snapshot. A block
# that shows an earlier round has another seed.
verifying_load() {
    local round=0
    until [ -e "$SCRATCH/enough" ]; do
        [ $((round % 2)) -eq 1 ] || blkdiscard -l $AREA "$DEVICE"
        fio --name=verify --filename="$DEVICE" --size=$AREA --rw=randwrite --bsrange=4k-64k --direct=1 \
            --ioengine=io_uring --iodepth=16 --randseed=$((SEED + round)) --verify=crc32c --do_verify=1 --verify_fatal=1 \
            --output-format=json --output="$SCRATCH/fio.$round.json" >"$SCRATCH/fio.log" 2>&1 || return
        round=$((round + 1))
    done
}

new_memory_pool 512M
thinctl create "$POOL/vol" --size 34M
serve "$POOL"
thinctl attach "$POOL/vol" "--$TRANSPORT" --json >"$SCRATCH/attach.json"
DEVICE=$(jq -r .device "$SCRATCH/attach.json")

verifying_load &
LOAD=$!
for number in $(seq "$KILLS"); do
    until_busy "$DEVICE" $LOAD "$SCRATCH/fio.log"
    sleep "$((number % 3)).$((RANDOM % 10))"
    kill -0 $LOAD || fail "the load ended before kill $number: $(cat "$SCRATCH/fio.log")"
    mark=$((AREA / 4096 + 16 * number))
    echo "before kill $number" >"$SCRATCH/mark"
    truncate -s 4096 "$SCRATCH/mark"
    dd if="$SCRATCH/mark" of="$DEVICE" bs=4096 seek=$mark oflag=direct status=none
    kill_and_serve "$POOL" "$DEVICE"
    dd if="$DEVICE" bs=4096 skip=$mark count=1 iflag=direct status=none | cmp - "$SCRATCH/mark" ||
        fail "the last write before kill $number is lost"
    if [ $((number % 2)) -eq 1 ]; then
        thinctl create-snap "$POOL/vol@$number"
        [ "$number" -eq 1 ] || thinctl rm "$POOL/vol@$((number - 2))"
    fi
done
touch "$SCRATCH/enough"
wait $LOAD || fail "fio: $(cat "$SCRATCH/fio.log")"

thinctl detach "$DEVICE"
stop_daemon
verify "$POOL"
kernel_is_silent
jq -s '{rounds: length, wait_max_ms: ([.[].jobs[] | .read, .write | .lat_ns.max] | max / 1000000 | floor)}' \
    "$SCRATCH"/fio.*.json >"$SCRATCH/load.json"
report_kills --argjson load "$(<"$SCRATCH/load.json")"
