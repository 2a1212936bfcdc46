#!/bin/bash
# Stores that fail, by dm-flakey: each store, its reads, its writes, or what it reads back. Under each fault the pool
# takes the mode that it should, and never gives back wrong data; when the store works again, a daemon finds all that
# had been flushed.
# guest: --disk 32M --disk 192M --timeout 1500 --memory 2G
. "$(dirname "$0")/lib.sh"
requires dmsetup jq
load dm-flakey

declare -A DISK=([metadata]=/dev/vda [data]=/dev/vdb)

# table STORE [feature...]: what its device is to be; without features it works.
table() {
    local disk=${DISK[$1]} sectors
    sectors=$(blockdev --getsz "$disk")
    shift
    if [ $# -eq 0 ]; then
        echo "0 $sectors linear $disk 0"
    else
        # Down all the time.
        echo "0 $sectors flakey $disk 0 0 3600 $# $*"
    fi
}

# becomes STORE [feature...]
becomes() {
    table "$@" | dmsetup load "$1"
    dmsetup suspend --noflush --nolockfs "$1"
    dmsetup resume "$1"
}

mode() {
    thinctl info "$POOL" --json | jq -r .mode
}

client() {
    "$PYTHON" "$GUEST/flakey.py" "$SCRATCH/written.json" "$@"
}

for store in metadata data; do
    table $store | dmsetup create $store
    undo dmsetup remove --retry $store
done

# faulty STORE MODE feature...: with what is flushed before, under the fault, and after it.
rounds=0
faulty() {
    local store=$1 expected=$2
    shift 2
    echo "== $store: $*"
    local other
    for other in metadata data; do
        dd if=/dev/zero of=/dev/mapper/$other bs=1M count=1 oflag=direct status=none
    done
    rm -rf "$SCRATCH/pool" "$SCRATCH/written.json"
    POOL=$SCRATCH/pool
    thinctl init "$POOL" --metadata /dev/mapper/metadata --data /dev/mapper/data
    thinctl create "$POOL/vol" --size 96M
    serve_nbd "$POOL"
    client "$(uri vol)" flushed
    thinctl create-snap "$POOL/vol@s"
    # So that what is read, mappings too, is read from the store.
    stop_daemon
    serve_nbd "$POOL"
    echo 3 >/proc/sys/vm/drop_caches
    becomes "$store" "$@"
    client "$(uri vol)" faulty
    # A commit comes within a second.
    for _ in $(seq 50); do
        [ "$(mode)" = "$expected" ] && break
        sleep 0.1
    done
    same "$(mode)" "$expected" "mode"
    if [ "$expected" = read_only ]; then
        thinctl events "$POOL" | jq -es 'any(.[]; .event == "mode_changed" and .to == "read_only")' >"$SCRATCH/told" ||
            fail "no event: $(thinctl events "$POOL")"
        expect 7 "read only" thinctl create "$POOL/more" --size 1M
    fi
    becomes "$store"
    kill_daemon
    serve_nbd "$POOL"
    client "$(uri vol)" healed
    client "$(uri vol@s)" snapshot
    same "$(mode)" write "mode afterwards"
    stop_daemon
    verify "$POOL" /dev/mapper/metadata
    rounds=$((rounds + 1))
}

# A commit that fails stops changes; a failed write is that request's alone, a failed sync is everybody's.
faulty metadata read_only error_writes
faulty metadata write error_reads
faulty data write error_reads
faulty data read_only error_writes
# A byte of each sector read is another: found in metadata, by its checksum.
faulty metadata write corrupt_bio_byte 100 r 171 0
jq -nc --argjson faults $rounds '{test: "flakey", faults: $faults, modes_as_expected: $faults, wrong: 0}'
