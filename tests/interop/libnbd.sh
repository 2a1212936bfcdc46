#!/bin/bash
# libnbd: its Python module does what libnbd.py says; nbdsh runs from the shell.
. "$(dirname "$0")/lib.sh"

new_pool pool
thinctl create "$POOL/vol" --size 64M
serve_nbd "$POOL"
"$PYTHON" "$TESTS/interop/libnbd.py" "$(uri vol)"
same "$(PATH=/usr/bin:/bin nbdsh -u "$(uri vol)" -c 'print(h.get_size())')" 67108864 "nbdsh"
stop_daemon
verify "$POOL"
