#!/bin/bash
# kill -9 while clients write: what was flushed is there, the pool is well-formed, a new
# daemon takes over what the dead one left behind.
. "$(dirname "$0")/lib.sh"

new_pool pool
thinctl create "$POOL/vol" --size 128M
thinctl create "$POOL/busy" --size 128M
random_file "$SCRATCH/data" 24

incompat_flags() {
    od -A n -t x1 -j 360 -N 4 "$POOL/metadata" | tr -d ' '
}

for round in $(seq "$(long 3 30)"); do
    serve_nbd "$POOL"
    nbdcopy --flush "$SCRATCH/data" "$(uri vol)"
    thinctl create-snap "$POOL/vol@r$round"
    qemu-io -f raw -c "write -P $round 64M 1M" -c flush "$(uri vol)" >/dev/null
    (fio --name=busy --directory="$SCRATCH" --ioengine=nbd --uri="$(uri busy)" --thread \
        --rw=randwrite --bs=4k --iodepth=16 --size=128M --time_based --runtime=60 \
        >/dev/null 2>&1 || true) &
    load=$!
    sleep 0.7
    kill -KILL "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    wait $load
    DAEMONS=()

    same "$(incompat_flags)" 00000080 "the flag that keeps the kernel out"
    for command in check dump; do
        thinctl $command "$POOL" 2>&1 >/dev/null | grep -q "intent log" ||
            fail "thinctl $command says nothing of the log"
    done
    verify "$POOL"
    thinctl read "$POOL/vol" --offset 0 --length "$(stat -c %s "$SCRATCH/data")" |
        cmp - "$SCRATCH/data" || fail "flushed data is gone in round $round"
    thinctl read "$POOL/vol" --offset $((64 * 1048576)) --length 1048576 |
        cmp - <(head -c 1048576 /dev/zero | tr '\0' "\\$(printf %03o "$round")") ||
        fail "the last flushed write is gone in round $round"
    same "$(thinctl ls "$POOL" --json | jq "[.[] | select(.kind == \"snapshot\")] | length")" \
        "$round" "snapshots"
    verify "$POOL"
done

serve_nbd "$POOL"
nbdcopy "$(uri vol@r1)" "$SCRATCH/copy"
cmp -n "$(stat -c %s "$SCRATCH/data")" "$SCRATCH/copy" "$SCRATCH/data"
stop_daemon
same "$(incompat_flags)" 00000000 "the flag of a pool that was closed"
verify "$POOL"
