#!/bin/bash
# No metadata left: writes that need a mapping are refused, everything else goes on, nothing is
# damaged; growing the metadata cures it, and so does deleting.
. "$(dirname "$0")/lib.sh"

mode() {
    thinctl info "$POOL" --json | jq -r '[.. | .mode? // empty] | first'
}

new_pool pool --size 16G --metadata-size 512K
thinctl create "$POOL/vol" --size 12G
thinctl create "$POOL/victim" --size 1G
head -c 1048576 /dev/urandom | thinctl write "$POOL/victim"
serve_nbd "$POOL"
cat >"$SCRATCH/fill.py" <<'SCRIPT'
import errno
import random
import sys
import nbd

# Scattered, so that mappings share as few nodes as can be.
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
blocks = random.Random(7).sample(range(12 << 14), 20000)
written = []
try:
    for block in blocks:
        handle.pwrite(block.to_bytes(8, "little") * 64, block << 16)
        written.append(block)
    raise SystemExit("20000 scattered mappings fit into 512 KiB")
except nbd.Error as error:
    assert error.errnum == errno.ENOSPC, error
assert len(written) > 50, len(written)
handle.pwrite(b"\x52" * 512, (written[0] << 16) + 4096)
handle.flush()
for block in written:
    assert handle.pread(512, block << 16) == block.to_bytes(8, "little") * 64, block
print(blocks[len(written)])
handle.shutdown()
SCRIPT
refused=$("$PYTHON" "$SCRATCH/fill.py" "$(uri vol)") || fail "filling"
same "$(mode)" out_of_metadata_space "mode"
expect 6 "metadata" thinctl create-snap "$POOL/vol@s"
thinctl grow "$POOL" --metadata-size 2M
same "$(mode)" write "mode after growing"
qemu-io -f raw -c "write -P 0x61 $((refused * 65536)) 4k" -c flush "$(uri vol)" >/dev/null ||
    fail "the refused write, after growing"
thinctl create-snap "$POOL/vol@s"
stop_daemon
verify "$POOL"

# The other cure.
new_pool small --size 16G --metadata-size 512K
thinctl create "$POOL/vol" --size 12G
serve_nbd "$POOL"
"$PYTHON" "$SCRATCH/fill.py" "$(uri vol)" >/dev/null || fail "filling again"
same "$(mode)" out_of_metadata_space "mode again"
thinctl create "$POOL/other" --size 1M 2>/dev/null && fail "a volume was created without metadata"
thinctl rm "$POOL/vol"
for _ in $(seq 100); do
    [ "$(mode)" = write ] && break
    sleep 0.1
done
same "$(mode)" write "mode after deleting"
thinctl create "$POOL/other" --size 1M
stop_daemon
verify "$POOL"
