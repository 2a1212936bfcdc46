# shellcheck shell=bash
# Sourced by every script here, in the guest: all of tests/interop/lib.sh, and the kernel's side.
# A process costs 30 ms in there, 40 times what it does outside: few of them, and no busy loops.

GUEST=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
: "${THINCTL:=${CARGO_TARGET_DIR:-$GUEST/../../target}/ci/thinctl}"
. "$GUEST/../interop/lib.sh"

# skip WORDS...: this cannot be tested here.
skip() {
    trap - ERR
    echo "$*"
    exit 77
}

# requires PROGRAM...: skips when one is missing.
requires() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || skip "needs $program (make install-deps)"
    done
}

IMAGES=$SCRATCH/images
: "${SEED:=$((RANDOM * 32768 + RANDOM))}"
mkdir "$IMAGES"
echo "SEED=$SEED"

# load MODULE...: the kernel's drivers.
load() {
    local module
    for module in "$@"; do
        modprobe "$module" || fail "no driver $module"
    done
}

# --- Ours. `attach` is what stands between a pool and the guest's block layer: a test that uses
# it says nothing of how it is done.

# serve_blocks POOL: starts a daemon whose devices can be attached.
serve_blocks() {
    load nbd
    serve_nbd "$1"
    ATTACHED=()
}

# attach DEVICE: sets BLOCK to its block device.
attach() {
    BLOCK=/dev/nbd${#ATTACHED[@]}
    nbd-client -unix "$SOCKET" "$BLOCK" -name "$1" >"$SCRATCH/nbd-client.log" 2>&1 ||
        fail "nbd-client: $(cat "$SCRATCH/nbd-client.log")"
    ATTACHED+=("$BLOCK")
    undo "nbd-client -d $BLOCK"
}

# Detaches everything, and ends the daemon as an operator would.
end_blocks() {
    local block
    for block in "${ATTACHED[@]}"; do
        nbd-client -d "$block" >"$SCRATCH/nbd-client.log"
    done
    stop_daemon
}

# new_memory_pool SIZE: sets POOL, in memory: the guest's disk has the real time of the machine.
new_memory_pool() {
    mkdir "$SCRATCH/store"
    mount -t tmpfs -o size=2G store "$SCRATCH/store"
    undo umount -l "$SCRATCH/store"
    new_pool store/pool --size "$1"
}

# --- Kills.

STALLS=()

# kill_daemon: kill -9. When this returns the process is gone.
kill_daemon() {
    kill -KILL "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
}

# kill_and_serve POOL DEVICE: kills the daemon, and starts the next one, which must take the device over.
# Adds to STALLS the milliseconds from the kill until a read of the device is answered.
kill_and_serve() {
    local began=${EPOCHREALTIME/./} reader
    kill_daemon
    {
        dd if="$2" of=/dev/null bs=4096 count=1 iflag=direct status=none
        echo "${EPOCHREALTIME/./}" >"$SCRATCH/answered"
    } &
    reader=$!
    serve "$1"
    wait $reader || fail "a read of $2 that waited for the next daemon failed"
    grep -q "$2: goes on as" "$SCRATCH/serve.${#DAEMONS[@]}.log" || fail "$2 was not taken over"
    STALLS+=($((($(<"$SCRATCH/answered") - began) / 1000)))
}

# requests DEVICE: sets REQUESTS to how many reads and writes it has done.
requests() {
    local words
    read -r -a words <"/sys/block/${1#/dev/}/stat"
    REQUESTS=$((words[0] + words[4]))
}

# until_busy DEVICE PID LOG: waits until the device has done some more for its load, that process: it no
# longer waits for what was under way when a daemon died.
until_busy() {
    local before
    requests "$1"
    before=$REQUESTS
    for _ in $(seq 900); do
        kill -0 "$2" 2>/dev/null || fail "the load ended: $(cat "$3")"
        requests "$1"
        [ $((REQUESTS - before)) -lt 50 ] || return 0
        sleep 0.1
    done
    fail "the load does not go on: $before requests done, then $REQUESTS"
}

# report_kills [jq options]: prints a line of JSON; with `--argjson rounds 4`, that too.
report_kills() {
    local replayed
    replayed=$(sed -n 's/.*; \([0-9]*\) changes were replayed.*/\1/p' "$SCRATCH"/serve.*.log | jq -s 'add // 0')
    printf '%s\n' "${STALLS[@]}" | jq -sc --arg test "$(basename "$0" .sh)" --argjson replayed "$replayed" "$@" \
        '$ARGS.named + (sort | {kills: length, stall_median_ms: .[length / 2 | floor], stall_max_ms: .[-1]})'
}

# kernel_is_silent: no driver and no file system complains.
kernel_is_silent() {
    if dmesg | grep -E "I/O error|(EXT4-fs|XFS).*(error|warning|corrupt)|invalid error|hung_task|BUG|WARNING"; then
        fail "the kernel complains"
    fi
}

# --- The kernel's. Its pool is /dev/mapper/pool, a device of it /dev/mapper/NAME.

declare -A THIN=()

# kernel_pool METADATA DATA: activates a pool, all of the data device. Formats it when the
# metadata device begins with zeros.
kernel_pool() {
    load dm-thin-pool
    dmsetup create pool --table "0 $(blockdev --getsz "$2") thin-pool $1 $2 128 0"
    undo dmsetup remove --retry pool
}

# message WORDS...: tells the kernel's pool to do something.
message() {
    dmsetup message pool 0 "$*"
}

# kernel_thin NAME ID BYTES: activates a thin device.
kernel_thin() {
    dmsetup create "$1" --table "0 $(($3 / 512)) thin /dev/mapper/pool $2"
    THIN[$1]=$2
    undo dmsetup remove --retry "$1"
}

# kernel_snapshot ORIGIN ID: a snapshot of an active device, as the kernel wants it taken.
kernel_snapshot() {
    dmsetup suspend "$1"
    message create_snap "$2" "${THIN[$1]}"
    dmsetup resume "$1"
}

# kernel_delete NAME: deactivates and deletes a thin device.
kernel_delete() {
    dmsetup remove --retry "$1"
    message delete "${THIN[$1]}"
    unset "THIN[$1]"
}

# Deactivates the devices and the pool, which commits.
kernel_close() {
    dmsetup remove --retry "${!THIN[@]}" pool
    THIN=()
}

# --- What devices must hold: an image for each.

# scribble BLOCK NAME [WRITES DISCARDS]: random writes and discards on a device and on its image.
scribble() {
    SEED=$((SEED + 1))
    $PYTHON "$GUEST/blocks.py" $SEED "${3:-60}" "${4:-12}" "$1" "$IMAGES/$2"
}

# copied FROM TO: the image of a snapshot or clone.
copied() {
    cp --sparse=always "$IMAGES/$1" "$IMAGES/$2"
}

# holds BLOCK NAME: a device holds what its image says.
holds() {
    cmp "$1" "$IMAGES/$2" || fail "$1 differs from what was written to $2"
}

# ours_hold POOL: a pool holds the devices that there are images of, and no others.
ours_hold() {
    local name size images names=()
    while read -r name size; do
        same "$size" "$(stat -c %s "$IMAGES/$name")" "size of $name"
        thinctl read "$1/$name" | cmp - "$IMAGES/$name" || fail "$name differs from what was written"
        names+=("$name")
    done < <(thinctl ls "$1" --json | jq -r '.[] | "\(.name) \(.size)"')
    images=("$IMAGES"/*)
    same "$(printf '%s\n' "${names[@]}" | sort)" "$(printf '%s\n' "${images[@]##*/}" | sort)" "devices of $1"
}
