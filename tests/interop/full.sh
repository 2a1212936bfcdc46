#!/bin/bash
# No space, where writes are not to wait (those that are: queue.sh): the pool is out of data blocks, or the disk
# below it is full. Writers are told, everything else goes on, more space cures it.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 16M
thinctl set "$POOL" --error-if-no-space yes
thinctl create "$POOL/vol" --size 64M
thinctl create "$POOL/other" --size 64M
head -c 1048576 /dev/urandom >"$SCRATCH/mib"
thinctl write "$POOL/other" <"$SCRATCH/mib"
serve_nbd "$POOL"
"$PYTHON" - "$(uri vol)" <<'SCRIPT'
import errno
import sys
import nbd

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
written = 0
try:
    while written < 64 << 20:
        handle.pwrite(b"\x51" * 65536, written)
        written += 65536
    raise SystemExit("64 MiB fit into a pool of 16 MiB")
except nbd.Error as error:
    assert error.errnum == errno.ENOSPC, error
assert written == 15 << 20, written
handle.pwrite(b"\x52" * 4096, 0)
handle.flush()
assert handle.pread(4096, 0) == b"\x52" * 4096
assert handle.pread(65536, 14 << 20) == b"\x51" * 65536
assert handle.pread(65536, 40 << 20) == bytes(65536)
handle.shutdown()
SCRIPT
nbdcopy "$(uri other)" "$SCRATCH/copy"
cmp -n 1048576 "$SCRATCH/copy" "$SCRATCH/mib" || fail "reads of a full pool"
expect 6 "space" thinctl write "$POOL/other" < <(head -c 4000000 /dev/urandom)
thinctl grow "$POOL" --size 48M
qemu-io -f raw -c 'write -P 0x61 20M 8M' -c flush "$(uri vol)" >/dev/null || fail "after grow"
thinctl rm "$POOL/other"
stop_daemon
verify "$POOL"
thinctl read "$POOL/vol" --offset $((20 * 1048576)) --length 8388608 |
    cmp - <(head -c 8388608 /dev/zero | tr '\0' a) || fail "contents after grow"

# Deleting is a cure as well.
new_pool small --size 8M
thinctl create "$POOL/a" --size 8M
thinctl create "$POOL/b" --size 8M
head -c 8388608 /dev/urandom | thinctl write "$POOL/a"
expect 6 "space" thinctl write "$POOL/b" <"$SCRATCH/mib"
thinctl rm "$POOL/a"
thinctl write "$POOL/b" <"$SCRATCH/mib"
thinctl read "$POOL/b" --length 1048576 --offset 0 | cmp - "$SCRATCH/mib"
verify "$POOL"

# A full disk under the pool: the store's file is sparse and cannot be filled in.
disk=$SCRATCH/disk
mkdir "$disk"
undo umount "$disk"
mount -t tmpfs -o size=24m tmpfs "$disk"
POOL=$disk/pool
thinctl init "$POOL" --size 64M --metadata-size 4M
thinctl set "$POOL" --error-if-no-space yes
thinctl create "$POOL/vol" --size 64M
thinctl write "$POOL/vol" <"$SCRATCH/mib"
serve_nbd "$POOL"
"$PYTHON" - "$(uri vol)" <<'SCRIPT'
import errno
import sys
import nbd

handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
try:
    for at in range(1 << 20, 64 << 20, 65536):
        handle.pwrite(b"\x71" * 65536, at)
    raise SystemExit("64 MiB fit on a disk of 24 MiB")
except nbd.Error as error:
    assert error.errnum in (errno.ENOSPC, errno.EIO), error
handle.pread(1 << 20, 0)
handle.shutdown()
SCRIPT
nbdcopy "$(uri vol)" "$SCRATCH/copy"
cmp -n 1048576 "$SCRATCH/copy" "$SCRATCH/mib" || fail "reads of a full disk"
stop_daemon
verify "$POOL"
mount -o remount,size=128m "$disk"
head -c 41943040 /dev/zero | tr '\0' z | thinctl write "$POOL/vol"
same "$(thinctl read "$POOL/vol" --offset 0 --length 41943040 | sha)" \
    "$(head -c 41943040 /dev/zero | tr '\0' z | sha)" "after the disk grew"
verify "$POOL"

# A disk too small to hold a new pool: init says so and leaves nothing.
mount -o remount,size=48m "$disk"
expect 6 "space" thinctl init "$disk/new" --size 64M --metadata-size 64M
[ ! -e "$disk/new/pool.toml" ] || fail "a half-made pool"
