#!/bin/bash
# A pool of ours, closed, is activated by the kernel's dm-thin: every device reads the same. The
# kernel works in it; then it is ours again, and holds what the kernel wrote.
# guest: --disk 64M --disk 1G --timeout 600
. "$(dirname "$0")/lib.sh"
requires dmsetup nbd-client thin_check jq

POOL=$SCRATCH/pool
thinctl init "$POOL" --metadata /dev/vda --data /dev/vdb

# Snapshots of volumes and clones, shared blocks overwritten on both sides, discards of shared
# and of exclusive blocks, deletes in the middle of the family, a size that is not whole blocks.
serve_blocks "$POOL"
thinctl create "$POOL/prod" --size 24M
thinctl create "$POOL/odd" --size 5121K
thinctl create "$POOL/empty" --size 8M
attach prod
prod=$BLOCK
attach odd
odd=$BLOCK
scribble "$prod" prod
scribble "$odd" odd 40 6
truncate -s 8M "$IMAGES/empty"
thinctl create-snap "$POOL/prod@monday" "$POOL/odd@monday"
copied prod prod@monday
copied odd odd@monday
scribble "$prod" prod 30 8
scribble "$odd" odd 20 6
thinctl clone "$POOL/prod@monday" "$POOL/dev"
copied prod@monday dev
attach dev
scribble "$BLOCK" dev 30 8
thinctl create-snap "$POOL/prod@tuesday" "$POOL/dev@tuesday"
copied prod prod@tuesday
copied dev dev@tuesday
scribble "$prod" prod 30 8
thinctl rm "$POOL/prod@monday"
rm "$IMAGES/prod@monday"
# Nobody else gets the stores meanwhile.
load dm-thin-pool
must_fail dmsetup create pool --table "0 2097152 thin-pool /dev/vda /dev/vdb 128 0"
grep -q 'resource busy' "$SCRATCH/must_fail.out" || fail "the kernel said: $(cat "$SCRATCH/must_fail.out")"
end_blocks
thin_check -q /dev/vda || fail "thin_check refuses our pool"
declare -A ids sizes
while read -r name id size; do
    ids[$name]=$id
    sizes[$name]=$size
done < <(thinctl ls "$POOL" --json | jq -r '.[] | "\(.name) \(.id) \(.size)"')

# The kernel reads, writes, takes a snapshot, deletes.
thinctl status "$POOL" >"$SCRATCH/status"
kernel_pool /dev/vda /dev/vdb
# Activating a pool commits, which moves a few metadata blocks.
dmsetup status pool | sed 's/ $//' >"$SCRATCH/kernel_status"
same "$(cut -d' ' -f1-4,6- "$SCRATCH/status")" "$(cut -d' ' -f1-4,6- "$SCRATCH/kernel_status")" "status"
for name in "${!ids[@]}"; do
    kernel_thin "$name" "${ids[$name]}" "${sizes[$name]}"
    holds "/dev/mapper/$name" "$name"
done
expect 5 "in use" thinctl ls "$POOL"
scribble /dev/mapper/prod prod 30 8
scribble /dev/mapper/odd odd 20 6
kernel_snapshot prod 1000
copied prod thin-1000
scribble /dev/mapper/prod prod 30 8
scribble /dev/mapper/prod@tuesday prod@tuesday 10 4
kernel_delete dev@tuesday
rm "$IMAGES/dev@tuesday"
message create_thin 1001
kernel_thin thin-1001 1001 8388608
scribble /dev/mapper/thin-1001 thin-1001 20 2
kernel_close
thin_check -q /dev/vda || fail "thin_check refuses the pool after the kernel"

# Ours again. It cannot know how large the kernel's new devices are: they end with their last
# mapped block, and what lies beyond holds nothing.
for name in thin-1000 thin-1001; do
    size=$(stat -c %s "$IMAGES/$name")
    found=$(thinctl info "$POOL/$name" --json | jq .size)
    [ "$found" -le "$size" ] || fail "$name has $found bytes, was made with $size"
    [ "$found" -eq "$size" ] || thinctl resize "$POOL/$name" --size "$size"
done
ours_hold "$POOL"
verify "$POOL" /dev/vda

# And works: written once more, once more read by the kernel.
serve_blocks "$POOL"
attach prod
scribble "$BLOCK" prod 30 8
attach thin-1000
scribble "$BLOCK" thin-1000 30 8
thinctl create-snap "$POOL/thin-1000@later"
copied thin-1000 thin-1000@later
end_blocks
verify "$POOL" /dev/vda
ours_hold "$POOL"
kernel_pool /dev/vda /dev/vdb
kernel_thin prod "${ids[prod]}" "${sizes[prod]}"
kernel_thin thin-1000 1000 "${sizes[prod]}"
holds /dev/mapper/prod prod
holds /dev/mapper/thin-1000 thin-1000
kernel_close
