#!/bin/bash
# Debian's tools read what we write: thin_restore takes our dump, and the pool made of it
# adopts with the same contents; a pool made by thin_restore alone opens as well.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 512M --metadata-size 8M
thinctl create "$POOL/vol" --size 64M
random_file "$SCRATCH/data" 20
thinctl write "$POOL/vol" <"$SCRATCH/data"
thinctl create-snap "$POOL/vol@s"
thinctl clone "$POOL/vol@s" "$POOL/c"
head -c 300000 /dev/urandom | thinctl write "$POOL/c"
verify "$POOL"
thinctl dump "$POOL" >"$SCRATCH/pool.xml"
truncate -s 8M "$SCRATCH/restored"
thin_restore -q -i "$SCRATCH/pool.xml" -o "$SCRATCH/restored" || fail "thin_restore"
thin_dump "$SCRATCH/restored" | cmp - "$SCRATCH/pool.xml" || fail "restored metadata differs"

id() { thinctl ls "$POOL" --json | jq --arg name "$1" '.[] | select(.name == $name) | .id'; }
adopted=$SCRATCH/adopted
thinctl adopt "$adopted" --metadata "$SCRATCH/restored" --data "$POOL/data" \
    --volume "$(id vol):vol:64M" --volume "$(id c):c:64M"
same "$(thinctl read "$adopted/vol" | sha)" "$(thinctl read "$POOL/vol" | sha)" "vol"
same "$(thinctl read "$adopted/c" | sha)" "$(thinctl read "$POOL/c" | sha)" "c"
thinctl create-snap "$adopted/c@new"
head -c 100000 /dev/urandom | thinctl write "$adopted/c"
verify "$adopted" "$SCRATCH/restored"

cat >"$SCRATCH/hand.xml" <<'XML'
<superblock uuid="" time="3" transaction="9" version="2" data_block_size="128" nr_data_blocks="1024">
  <device dev_id="5" mapped_blocks="4" transaction="7" creation_time="1" snap_time="2">
    <range_mapping origin_begin="0" data_begin="10" length="3" time="1"/>
    <single_mapping origin_block="100" data_block="77" time="0"/>
  </device>
  <device dev_id="9" mapped_blocks="0" transaction="9" creation_time="3" snap_time="3">
  </device>
</superblock>
XML
truncate -s 4M "$SCRATCH/hand.metadata"
truncate -s 64M "$SCRATCH/hand.data"
printf 'seventy-seven' |
    dd of="$SCRATCH/hand.data" bs=65536 seek=77 conv=notrunc status=none
thin_restore -q -i "$SCRATCH/hand.xml" -o "$SCRATCH/hand.metadata"
hand=$SCRATCH/hand
thinctl adopt "$hand" --metadata "$SCRATCH/hand.metadata" --data "$SCRATCH/hand.data"
same "$(thinctl ls "$hand" --json | jq -c '[.[] | [.name, .id]]')" '[["thin-5",5],["thin-9",9]]' names
same "$(thinctl info "$hand/thin-5" --json | jq .size)" $((101 * 65536)) "size up to the last block"
same "$(thinctl read "$hand/thin-5" --offset $((100 * 65536)) --length 13)" seventy-seven "a mapping"

# thin_restore 0.9.0 cuts the free counts of the last bitmap off at the size of the store. The kernel
# trusts them, so check must tell; all else is right. Growing and filling the pool finds every block
# all the same, and leaves the counts right.
thin_check -q "$SCRATCH/hand.metadata" || fail "thin_check refuses what thin_restore made"
status=0
thinctl check "$hand" --json >"$SCRATCH/hand.json" || status=$?
same "$status" 1 "check of wrong free counts"
same "$(jq -c '[.findings[].message | test("has nr_free")] | unique' "$SCRATCH/hand.json")" \
    '[true]' "only the free counts are wrong"
thinctl grow "$hand" --size 128M
thinctl create "$hand/filler" --size 127M
head -c 133169152 /dev/urandom >"$SCRATCH/filling"
thinctl write "$hand/filler" <"$SCRATCH/filling"
thinctl read "$hand/filler" | cmp - "$SCRATCH/filling"
same "$(thinctl read "$hand/thin-5" --offset $((100 * 65536)) --length 13)" seventy-seven "afterwards"
verify "$hand" "$SCRATCH/hand.metadata"
