#!/bin/bash
# Power cuts on any host: the pool lies on a file system that loses what was not synced. What was flushed is there
# afterwards, snapshots have not moved, and the pool needs no repair. power.py says what it did.
. "$(dirname "$0")/lib.sh"

[ -x "${THINCTL%/*}/volatile-fs" ] || fail "no volatile-fs beside $THINCTL: cargo build -p tests --profile ci --bins"
# Whatever it starts or mounts ends with it.
unshare --mount --pid --fork --kill-child --mount-proc "$PYTHON" "$TESTS/interop/power.py" "$SCRATCH" \
    --cuts "$(long 15 500)" --seed "${SEED:-$RANDOM}" "$@"
