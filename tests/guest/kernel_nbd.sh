#!/bin/bash
# A volume served over NBD to the kernel's own client: ext4 on it, mounted, snapshotted, trimmed,
# checked. What the kernel wrote is what thinctl reads.
# guest: --timeout 600
. "$(dirname "$0")/lib.sh"
requires nbd-client mkfs.ext4 e2fsck fstrim thin_check jq

mapped() {
    thinctl info "$POOL/$1" --json | jq .mapped_bytes
}

new_pool pool
serve_blocks "$POOL"
thinctl create "$POOL/prod" --size 256M
attach prod
prod=$BLOCK
same "$(blockdev --getsize64 "$prod")" $((256 << 20)) "size of $prod"
same "$(blockdev --getro "$prod")" 0 "read only"

mkfs.ext4 -q "$prod"
formatted=$(mapped prod)
mnt=$SCRATCH/mnt
mkdir "$mnt" "$mnt.dev"
mount "$prod" "$mnt"
undo umount "$mnt"
# Something real, and something large enough that its going is seen.
cp -r "$TESTS" "$mnt/tree"
random_file "$mnt/large" 48
sync -f "$mnt"
full=$(mapped prod)
[ $((full - formatted)) -gt $((48 << 20)) ] || fail "mapped $formatted, then $full bytes: too little"

# A snapshot of the mounted file system is one that has lost power; its clone is mounted beside.
thinctl create-snap "$POOL/prod@busy"
thinctl clone "$POOL/prod@busy" "$POOL/dev"
attach prod@busy
same "$(blockdev --getro "$BLOCK")" 1 "a snapshot is read only"
must_fail dd if=/dev/zero of="$BLOCK" bs=4k count=1 oflag=direct
attach dev
dev=$BLOCK
mount "$dev" "$mnt.dev"
undo umount "$mnt.dev"
same "$(findmnt -n -o SOURCE "$mnt.dev")" "$dev" "what is mounted"
diff -r "$mnt" "$mnt.dev" || fail "the clone's files differ"
echo changed >"$mnt.dev/tree/changed"
umount "$mnt.dev"
[ ! -e "$mnt/tree/changed" ] || fail "the clone's change shows in its origin"

# Space comes back when the file system says so: in the volume at once, in the pool when nobody
# else has it.
used() {
    thinctl info "$POOL" --json | jq .data_used_bytes
}
before=$(used)
rm "$mnt/large"
sync -f "$mnt"
fstrim "$mnt"
trimmed=$(mapped prod)
[ $((full - trimmed)) -ge $((47 << 20)) ] || fail "mapped $full, after fstrim $trimmed bytes: too much"
[ $((before - $(used))) -lt $((1 << 20)) ] || fail "the snapshot's blocks went with the volume's"

umount "$mnt"
for block in "$prod" "$dev"; do
    e2fsck -fn "$block" >"$SCRATCH/e2fsck.log" 2>&1 || fail "e2fsck $block: $(cat "$SCRATCH/e2fsck.log")"
done
written=$(sha256sum <"$prod")
end_blocks

same "$(thinctl read "$POOL/prod" | sha256sum)" "$written" "what thinctl reads"
thinctl rm "$POOL/dev" "$POOL/prod@busy"
after=$(used)
[ $((before - after)) -ge $((47 << 20)) ] || fail "used $before, without the snapshot $after bytes: too much"
verify "$POOL"
