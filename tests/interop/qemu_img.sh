#!/bin/bash
# qemu-img: info, convert in both directions, compare, map, bench, an overlay on a snapshot.
. "$(dirname "$0")/lib.sh"

random_file "$SCRATCH/part" 2
truncate -s 96M "$SCRATCH/raw"
for at in 1 20 90; do
    dd if="$SCRATCH/part" of="$SCRATCH/raw" bs=1M seek=$at conv=notrunc status=none
done
qemu-img convert -f raw -O qcow2 "$SCRATCH/raw" "$SCRATCH/image.qcow2"

new_pool pool
thinctl create "$POOL/vol" --size 96M
thinctl create "$POOL/bench" --size 64M
serve_nbd "$POOL"

same "$(qemu-img info -f raw --output=json "$(uri vol)" | jq '."virtual-size"')" 100663296 "size"
qemu-img convert -n -f qcow2 -O raw "$SCRATCH/image.qcow2" "$(uri vol)"
qemu-img compare -f raw -F raw "$(uri vol)" "$SCRATCH/raw"
qemu-img convert -f raw -O qcow2 "$(uri vol)" "$SCRATCH/out.qcow2"
qemu-img compare -f qcow2 -F raw "$SCRATCH/out.qcow2" "$SCRATCH/raw"

qemu-img map -f raw --output=json "$(uri vol)" >"$SCRATCH/map.json"
same "$(jq -c '[.[] | select(.data) | [.start, .length]]' "$SCRATCH/map.json")" \
    "[[1048576,2097152],[20971520,2097152],[94371840,2097152]]" "data in the map"
same "$(jq '[.[].length] | add' "$SCRATCH/map.json")" 100663296 "bytes in the map"
jq -e 'all(.[]; .data or .zero)' "$SCRATCH/map.json" >/dev/null || fail "a hole that is not zero"

qemu-img bench -w -c 2000 -d 32 -s 4k -f raw -t none "$(uri bench)" >/dev/null
qemu-img bench -c 2000 -d 32 -s 4k -f raw "$(uri bench)" >/dev/null
qemu-img bench -w -c 500 -d 8 -s 4k -f raw --flush-interval=16 "$(uri bench)" >/dev/null

thinctl create-snap "$POOL/vol@base"
qemu-img create -q -f qcow2 -b "$(uri vol@base)" -F raw "$SCRATCH/overlay.qcow2"
qemu-io -f qcow2 -c 'write -P 0x77 0 1M' "$SCRATCH/overlay.qcow2" >/dev/null
qemu-io -r -f qcow2 -c 'read -P 0x77 0 1M' "$SCRATCH/overlay.qcow2" >/dev/null
qemu-img compare -f raw -F raw "$(uri vol@base)" "$SCRATCH/raw"
stop_daemon
verify "$POOL"
