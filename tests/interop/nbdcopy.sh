#!/bin/bash
# nbdcopy in both directions, sparse, over several connections, volume to volume.
. "$(dirname "$0")/lib.sh"

random_file "$SCRATCH/part" 3
truncate -s 128M "$SCRATCH/source"
for at in 0 10 41 125; do
    dd if="$SCRATCH/part" of="$SCRATCH/source" bs=1M seek=$at conv=notrunc status=none
done
printf 'unaligned' | dd of="$SCRATCH/source" bs=1 seek=$((80 * 1048576 + 777)) conv=notrunc status=none

new_pool pool
thinctl create "$POOL/a" --size 128M
thinctl create "$POOL/b" --size 128M
thinctl create "$POOL/c" --size 128M
serve_nbd "$POOL"

nbdcopy "$SCRATCH/source" "$(uri a)"
nbdcopy "$(uri a)" "$SCRATCH/back"
cmp "$SCRATCH/source" "$SCRATCH/back"
[ "$(stat -c %b "$SCRATCH/back")" -lt $((20 * 2048)) ] || fail "the copy is not sparse"

nbdcopy --connections=4 --requests=32 --flush "$SCRATCH/source" "$(uri b)"
nbdcopy --connections=4 --requests=32 "$(uri b)" "$SCRATCH/back4"
cmp "$SCRATCH/source" "$SCRATCH/back4"
nbdcopy --synchronous "$(uri b)" "$SCRATCH/back1"
cmp "$SCRATCH/source" "$SCRATCH/back1"

nbdcopy --destination-is-zero "$(uri a)" "$(uri c)"
nbdcopy "$(uri c)" - | cmp - "$SCRATCH/source"
mapped=$(thinctl ls "$POOL" --json | jq '.[] | select(.name == "c") | .mapped_bytes')
[ "$mapped" -lt $((16 * 1048576)) ] || fail "the copy mapped $mapped bytes of holes"

# A zeroing copy over old data reads back as zeroes.
truncate -s 128M "$SCRATCH/empty"
nbdcopy --allocated "$SCRATCH/empty" "$(uri b)"
nbdcopy "$(uri b)" - | cmp - "$SCRATCH/empty"
stop_daemon
verify "$POOL"
thinctl read "$POOL/a" | cmp - "$SCRATCH/source"
