#!/bin/bash
# qemu-io: odd offsets, zeroing with and without unmapping, discard, FUA.
. "$(dirname "$0")/lib.sh"

io() {
    local target=$1 out
    shift
    out=$(qemu-io -f raw "$@" "$(uri "$target")" 2>&1) || fail "qemu-io $*: $out"
    ! grep -Eq 'Pattern verification failed|[Ee]rror|failed' <<<"$out" || fail "qemu-io $*: $out"
}

new_pool pool
thinctl create "$POOL/vol" --size 64M
serve_nbd "$POOL"

io vol -c 'write -P 0x5a 65530 20' -c 'read -P 0x5a 65530 20' -c 'read -P 0 0 65530' \
    -c 'read -P 0 65550 1000'
io vol -c 'write -P 0x11 1M 1M' -c 'write -z 1100000 100000' -c 'read -P 0 1100000 100000' \
    -c 'read -P 0x11 1M 51424' -c 'read -P 0x11 1200000 100000'
io vol -c 'write -P 0x22 2M 2M' -c 'write -zu 3M 1M' -c 'read -P 0 3M 1M' -c 'read -P 0x22 2M 1M'
io vol -c 'write -P 0x33 5M 1M' -c 'discard 5M 1M' -c 'read -P 0 5M 1M'
io vol -c 'write -f -P 7 6M 64k' -c flush -c 'read -P 7 6M 64k'
io vol -c 'write -P 0x44 7M 3M' -c 'write -P 0x45 7340033 1' -c 'read -P 0x45 7340033 1' \
    -c 'read -P 0x44 7340034 1000'
io vol -c 'aio_write -P 0x66 10M 1M' -c 'aio_write -P 0x67 11M 1M' -c aio_flush \
    -c 'read -P 0x66 10M 1M' -c 'read -P 0x67 11M 1M'
io vol -c 'write -P 0x68 67108863 1' -c 'read -P 0x68 67108863 1'

map=$(nbdinfo --map "$(uri vol)" | awk '$3 == 3 {print $1, $2}')
grep -q '^3145728 3145728$' <<<"$map" || fail "zeroed and discarded ranges should be holes: $map"

thinctl create-snap "$POOL/vol@s"
io vol -c 'write -P 0x99 6M 4k' -c 'read -P 0x99 6M 4k' -c 'read -P 7 6295552 60k'
out=$(qemu-io -r -f raw -c 'read -P 7 6M 64k' "$(uri vol@s)" 2>&1) || fail "$out"
! grep -q failed <<<"$out" || fail "the snapshot moved: $out"
must_fail qemu-io -f raw -c 'write 0 4k' "$(uri vol@s)"
stop_daemon
verify "$POOL"
