#!/bin/bash
# SIGKILL at any moment, without a flush: every write, discard and zeroing that was acknowledged over
# NBD is there for the next daemon, nothing else is, and snapshots have not moved. kill.py says what it did.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 512M
thinctl create "$POOL/vol" --size 64M
"$PYTHON" "$TESTS/interop/kill.py" "$POOL" "$SCRATCH" --kills "$(long 15 1000)" --seed "${SEED:-$RANDOM}"
verify "$POOL"
