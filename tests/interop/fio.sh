#!/bin/bash
# fio verifies every block it wrote, over four connections on disjoint areas: fixed and mixed
# sizes, a volume whose blocks are all shared with a snapshot, then snapshots taken meanwhile.
. "$(dirname "$0")/lib.sh"

job() {
    local name=$1
    shift
    (cd "$SCRATCH" && fio --name="$name" --ioengine=nbd --uri="$(uri vol)" --thread --numjobs=4 \
        --size=48M --offset_increment=48M --iodepth=16 --verify=crc32c --verify_fatal=1 \
        --randrepeat=1 --group_reporting "$@" >"$SCRATCH/fio.$name.log" 2>&1) ||
        fail "fio $name"
    ! grep -Eq 'verify:|err= *[1-9]' "$SCRATCH/fio.$name.log" || fail "fio $name: errors"
}

# Room for every snapshot to end up with all its blocks to itself.
new_pool pool --size 2G
thinctl create "$POOL/vol" --size 192M
serve_nbd "$POOL"
job fresh --rw=randwrite --bs=4k --fsync=256
job mixed --rw=randrw --bsrange=4k-128k
thinctl create-snap "$POOL/vol@before"
before=$(nbdcopy "$(uri vol@before)" - | sha)
job shared --rw=randrw --bsrange=512-64k --blockalign=512

job meanwhile --rw=randwrite --bsrange=4k-64k --time_based --runtime="$(long 6 60)" &
running=$!
for number in 1 2 3 4 5; do
    thinctl create-snap "$POOL/vol@m$number"
    sleep 0.5
done
thinctl rm "$POOL/vol@m2"
thinctl rm "$POOL/vol@m4"
wait $running
same "$(nbdcopy "$(uri vol@before)" - | sha)" "$before" "the snapshot moved"
stop_daemon
verify "$POOL"
same "$(thinctl read "$POOL/vol@before" | sha)" "$before" "the snapshot after reopening"
