# shellcheck shell=bash
# Sourced by scripts that look at one attached device: DEVICE, or BLOCK by its name alone.

# attach_it NAME [options]: sets DEVICE and BLOCK, its name.
attach_it() {
    local name=$1
    shift
    thinctl attach "$POOL/$name" --json "$@" >"$SCRATCH/attach.json" 2>"$SCRATCH/attach.err" ||
        fail "attach $name $*: $(cat "$SCRATCH/attach.err")"
    DEVICE=$(jq -r .device "$SCRATCH/attach.json")
    BLOCK=${DEVICE#/dev/}
    [ -b "$DEVICE" ] || fail "no block device: $(cat "$SCRATCH/attach.json")"
}

limit() {
    same "$(cat "/sys/block/$BLOCK/$1")" "$2" "$1"
}

# verify_load [fio's options]: writes and compares.
verify_load() {
    fio --name=verify --filename="$DEVICE" --ioengine=io_uring --direct=1 --verify=crc32c \
        --do_verify=1 --verify_fatal=1 --group_reporting --minimal "$@" >"$SCRATCH/fio.log" 2>&1 ||
        fail "fio $*: $(cat "$SCRATCH/fio.log")"
}
