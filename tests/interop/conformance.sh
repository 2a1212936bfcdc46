#!/bin/bash
# The raw-socket driver against our server: over a unix socket and over loopback TCP.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 2G
thinctl create "$POOL/vol" --size 256M
random_file "$SCRATCH/first" 1
thinctl write "$POOL/vol" <"$SCRATCH/first"
thinctl create-snap "$POOL/vol@s"
serve_nbd "$POOL" --nbd tcp:127.0.0.1:0

"$PYTHON" "$TESTS/nbd/conformance.py" "$SOCKET" --export vol --snapshot vol@s --pid "$DAEMON"
for seed in $(seq 2 "$(long 2 20)"); do
    "$PYTHON" "$TESTS/nbd/conformance.py" "$SOCKET" --export vol --pid "$DAEMON" --seed "$seed" \
        --case load
done

port=$(sed -n 's/.*tcp:127\.0\.0\.1:\([0-9]*\).*/\1/p' <<<"$READY")
[ -n "$port" ] || fail "no TCP port in: $READY"
"$PYTHON" "$TESTS/nbd/conformance.py" "nbd://127.0.0.1:$port/vol" --case request
thinctl check "$POOL" >/dev/null
stop_daemon
verify "$POOL"
