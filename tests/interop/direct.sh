#!/bin/bash
# A pool with io = "direct": kill -9 at any moment, with writes of any alignment, loses nothing that was
# acknowledged; the page cache stays free of its data; and the pool can be changed to "buffered".
. "$(dirname "$0")/lib.sh"

cached() {
    fincore --bytes --noheadings --output RES "$POOL/data" | tr -d ' '
}

new_pool pool --size 512M --io direct
grep -q '^io = "direct"' "$POOL/pool.toml" || fail "not in pool.toml"
thinctl create "$POOL/vol" --size 64M
"$PYTHON" "$TESTS/interop/kill.py" "$POOL" "$SCRATCH" --kills "$(long 5 200)" --seed "${SEED:-$RANDOM}"
verify "$POOL"
random_file "$SCRATCH/image" 32
thinctl write "$POOL/vol" <"$SCRATCH/image"
before=$(thinctl read "$POOL/vol" | sha)
same "$(thinctl read "$POOL/vol" | head -c 33554432 | sha)" "$(sha <"$SCRATCH/image")" "what was written"
same "$(cached)" 0 "bytes of the data store in the page cache"

sed -i 's/^io = "direct"/io = "buffered"/' "$POOL/pool.toml"
same "$(thinctl read "$POOL/vol" | sha)" "$before" "the volume through the page cache"
[ "$(cached)" -gt 0 ] || fail "nothing in the page cache"
verify "$POOL"
