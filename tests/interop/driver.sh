#!/bin/bash
# The conformance driver itself: it agrees with qemu-nbd and nbdkit where they keep the same
# rules, and notices every lie of a server that breaks one.
. "$(dirname "$0")/lib.sh"

# against PEER command...: starts the server, runs the driver against it.
against() {
    local peer=$1 tries=0
    shift
    "$@" >"$SCRATCH/$peer.log" 2>&1 &
    DAEMONS+=($!)
    until [ -S "$SCRATCH/$peer.sock" ]; do
        tries=$((tries + 1))
        [ $tries -lt 600 ] || fail "$peer does not listen"
        sleep 0.05
    done
    "$PYTHON" "$TESTS/nbd/conformance.py" "$SCRATCH/$peer.sock" --export vol --peer "$peer"
}

truncate -s 256M "$SCRATCH/qemu.raw" "$SCRATCH/nbdkit.raw"
random_file "$SCRATCH/first" 1
dd if="$SCRATCH/first" of="$SCRATCH/qemu.raw" conv=notrunc status=none
dd if="$SCRATCH/first" of="$SCRATCH/nbdkit.raw" conv=notrunc status=none
against qemu-nbd qemu-nbd -f raw -x vol -A -e 0 -t -k "$SCRATCH/qemu-nbd.sock" "$SCRATCH/qemu.raw"
against nbdkit nbdkit -f -t 1 -U "$SCRATCH/nbdkit.sock" file "$SCRATCH/nbdkit.raw"
"$PYTHON" "$TESTS/nbd/liar.py"
