#!/bin/bash
# Snapshots do not move while their volume is written; everything can be deleted in any
# order; sizes add up; several volumes are caught at one instant.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 1G
thinctl create "$POOL/vol" --size 64M
thinctl create "$POOL/two" --size 64M
random_file "$SCRATCH/one" 16
thinctl write "$POOL/vol" <"$SCRATCH/one"
first=$(thinctl read "$POOL/vol" | sha)
thinctl create-snap "$POOL/vol@s1"
expect 7 "read.only" thinctl write "$POOL/vol@s1" <"$SCRATCH/one"

serve_nbd "$POOL"
qemu-img bench -w -c 3000 -d 16 -s 4k -f raw --pattern=7 "$(uri vol)" >/dev/null &
writer=$!
for number in 1 2 3; do
    same "$(nbdcopy "$(uri vol@s1)" - | sha)" "$first" "vol@s1 while vol is written"
done
wait $writer
thinctl create-snap "$POOL/vol@s2" "$POOL/two@s2"
second=$(nbdcopy "$(uri vol@s2)" - | sha)
[ "$second" != "$first" ] || fail "the writes are not in the second snapshot"
thinctl clone "$POOL/vol@s1" "$POOL/c1"
thinctl clone "$POOL/c1" "$POOL/c2"
qemu-io -f raw -c 'write -P 9 3M 100k' "$(uri c1)" >/dev/null
same "$(nbdcopy "$(uri c2)" - | sha)" "$first" "the clone's clone"
same "$(nbdcopy "$(uri vol@s1)" - | sha)" "$first" "the clone's origin"
thinctl create-snap "$POOL/c1@deep"
deep=$(nbdcopy "$(uri c1@deep)" - | sha)

# du: what deleting a device gives back is what its deletion does give back.
stop_daemon
used() { thinctl info "$POOL" --json | jq .data_used_bytes; }
freed_by() { thinctl du "$POOL" --json | jq --arg name "$1" '.devices[] | select(.name == $name) | .freed_if_deleted_bytes'; }
thinctl du "$POOL" --json >"$SCRATCH/du.json"
jq -e '(.devices | length == 8) and all(.devices[]; .exclusive_bytes + .shared_bytes == .mapped_bytes)' \
    "$SCRATCH/du.json" >/dev/null || fail "du --json: $(cat "$SCRATCH/du.json")"
same "$(jq .pool.data_used_bytes "$SCRATCH/du.json")" "$(used)" "bytes used, by du and by info"
same "$(thinctl ls "$POOL" --json | jq -c '[.[] | [.name, .kind, .read_only]]')" \
    '[["c1","volume",false],["c1@deep","snapshot",true],["c2","volume",false],["two","volume",false],["two@s2","snapshot",true],["vol","volume",false],["vol@s1","snapshot",true],["vol@s2","snapshot",true]]' "ls"
verify "$POOL"

# remove NAME: deletes it; the pool's use shrinks by exactly what du had said.
remove() {
    local before freed
    before=$(used)
    freed=$(freed_by "$1")
    thinctl rm "$POOL/$1"
    same "$(used)" $((before - freed)) "bytes used after deleting $1"
}

# The origin goes first, then its snapshots out of order; the survivors stay what they were.
remove vol@s1
same "$(thinctl read "$POOL/c2" | sha)" "$first" "c2 without its origin"
same "$(thinctl read "$POOL/c1@deep" | sha)" "$deep" "c1@deep without its ancestor"
verify "$POOL"
remove vol@s2
remove vol
same "$(thinctl read "$POOL/c2" | sha)" "$first" "c2 without the volume"
verify "$POOL"
remove c1@deep
remove c1
remove c2
remove two@s2
remove two
verify "$POOL"
same "$(thinctl ls "$POOL" --json | jq length)" 0 "devices left"
! thin_dump "$POOL/metadata" | grep "<device" || fail "devices are left in the metadata"
same "$(used)" 0 "bytes used at the end"
