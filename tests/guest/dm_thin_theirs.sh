#!/bin/bash
# A pool made by the kernel's dm-thin is adopted: it reads the same, we work in it, and given back
# to the kernel it holds what we wrote.
# guest: --disk 64M --disk 1G --timeout 600
. "$(dirname "$0")/lib.sh"
requires dmsetup nbd-client thin_check jq

# Snapshots of snapshots, sharing broken on both sides, discards, deletes, an odd size, and the
# largest id there is. The transaction id is the operator's: nothing begins it at 0.
volume=$((24 << 20))
odd=$((5121 << 10))
kernel_pool /dev/vda /dev/vdb
message set_transaction_id 0 41
message create_thin 0
message create_thin 7
message create_thin 9
kernel_thin one 0 $volume
kernel_thin odd 7 $odd
kernel_thin empty 9 8388608
truncate -s 8388608 "$IMAGES/empty"
scribble /dev/mapper/one one
scribble /dev/mapper/odd odd 40 6
kernel_snapshot one 1
kernel_snapshot odd 16777215
copied one two
copied odd odd@s
kernel_thin two 1 $volume
scribble /dev/mapper/one one 30 8
scribble /dev/mapper/two two 30 8
kernel_snapshot two 2
copied two three
kernel_thin three 2 $volume
scribble /dev/mapper/two two 30 8
scribble /dev/mapper/three three 20 4
kernel_delete two
rm "$IMAGES/two"
kernel_close
before=$(sha256sum </dev/vda)

POOL=$SCRATCH/pool
thinctl adopt "$POOL" --metadata /dev/vda --data /dev/vdb --volume 0:one:$volume --volume 7:odd:$odd \
    --volume 9:empty:8M --volume 2:three:$volume --volume 16777215:odd@s:$odd
ours_hold "$POOL"
verify "$POOL" /dev/vda
same "$(sha256sum </dev/vda)" "$before" "metadata, which was only read"

serve_blocks "$POOL"
for name in one odd three; do
    attach $name
    scribble "$BLOCK" $name 30 8
done
thinctl create-snap "$POOL/one@ours" "$POOL/three@ours"
copied one one@ours
copied three three@ours
scribble "$BLOCK" three 30 8
thinctl clone "$POOL/odd@s" "$POOL/fresh"
copied odd@s fresh
attach fresh
scribble "$BLOCK" fresh 20 4
thinctl rm "$POOL/one@ours"
rm "$IMAGES/one@ours"
end_blocks
verify "$POOL" /dev/vda
ours_hold "$POOL"

devices=$(thinctl ls "$POOL" --json | jq -r '.[] | "\(.name) \(.id) \(.size)"')
kernel_pool /dev/vda /dev/vdb
while read -r name id size; do
    kernel_thin "$name" "$id" "$size"
    holds "/dev/mapper/$name" "$name"
done <<<"$devices"
same ${#THIN[@]} 7 "devices given back"
# It is writable there, too.
scribble /dev/mapper/one one 20 4
holds /dev/mapper/one one
kernel_close
thin_check -q /dev/vda || fail "thin_check refuses the pool after the kernel"
ours_hold "$POOL"
