#!/bin/bash
# Overload: a thousand clients that misbehave in every way, the memory they may take, and the one that is served
# meanwhile. LONG=1 compares its latencies, too.
. "$(dirname "$0")/lib.sh"

ulimit -n 8192
new_pool pool --size 2G
thinctl create "$POOL/vol" --size 256M
random_file "$SCRATCH/first" 64
thinctl write "$POOL/vol" <"$SCRATCH/first"
serve_nbd "$POOL"
"$PYTHON" "$TESTS/nbd/overload.py" "$SOCKET" "$DAEMON" "$SCRATCH/serve.1.log" --rounds "$(long 0 5)"

# The limit is the operator's.
stop_daemon
serve_nbd "$POOL" --nbd-connections 2
"$PYTHON" - "$TESTS/nbd" "$SOCKET" <<'SCRIPT'
import sys
sys.path.insert(0, sys.argv[1])
from overload import refused
from target import Target

target = Target(sys.argv[2], "vol", None, "thinpool", None, 1)
with target.open(), target.open():
    assert refused(target)
SCRIPT
stop_daemon
verify "$POOL"
