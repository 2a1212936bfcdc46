#!/bin/bash
# A pool whose metadata is damaged is repaired: what Debian's tools think of the result, what is left of the
# volumes, what is refused, and what was flushed before the daemon was killed.
. "$(dirname "$0")/lib.sh"

# corrupt BLOCK: of the metadata.
corrupt() {
    head -c 4096 /dev/urandom | dd of="$POOL/metadata" bs=4096 seek="$1" conv=notrunc status=none
}

# The block of the mapping tree's root of a device, from its place in the only top-level leaf.
root_of() {
    "$PYTHON" - "$POOL/metadata" "$1" <<'PY'
import struct, sys
image = open(sys.argv[1], "rb").read()
block = lambda nr: image[4096 * nr:4096 * nr + 4096]
top = block(struct.unpack_from("<Q", image, 320)[0])
count, = struct.unpack_from("<I", top, 16)
keys = struct.unpack_from(f"<{count}Q", top, 32)
print(struct.unpack_from(f"<{count}Q", top, 32 + 8 * 252)[keys.index(int(sys.argv[2]))])
PY
}

id() { thinctl ls "$POOL" --json | jq --arg name "$1" '.[] | select(.name == $name) | .id'; }

new_pool pool --size 512M --metadata-size 4M
random_file "$SCRATCH/data" 48
thinctl create "$POOL/vol" --size 64M
thinctl write "$POOL/vol" <"$SCRATCH/data"
thinctl create-snap "$POOL/vol@s"
thinctl clone "$POOL/vol@s" "$POOL/c"
head -c 3000000 /dev/urandom | thinctl write "$POOL/c"
thinctl create "$POOL/small" --size 1M
head -c 1000000 "$SCRATCH/data" | thinctl write "$POOL/small"
thinctl dump "$POOL" >"$SCRATCH/before.xml"
c=$(thinctl read "$POOL/c" | sha)

# Of what is intact, everything; beside it, or elsewhere; the pool is not touched.
print=$(fingerprint "$POOL")
thinctl repair "$POOL" --to "$SCRATCH/copy" --json >"$SCRATCH/copy.json"
same "$(fingerprint "$POOL")" "$print" "the pool, when it was read"
same "$(jq -c '[.complete, .in_place, .start]' "$SCRATCH/copy.json")" '[true,false,"superblock"]' "the report"
thin_check -q "$SCRATCH/copy" || fail "thin_check refuses the repaired metadata"
thin_dump "$SCRATCH/copy" | cmp - "$SCRATCH/before.xml" || fail "repaired, it differs"
thinctl repair "$SCRATCH/copy" --to "$SCRATCH/again"
thin_dump "$SCRATCH/again" | cmp - "$SCRATCH/before.xml" || fail "repaired twice, it differs"

# Refusals.
expect 4 "already" thinctl repair "$POOL" --to "$SCRATCH/copy"
expect 3 "no such" thinctl repair "$SCRATCH/none" --to "$SCRATCH/new"
expect 2 "\-\-to" thinctl repair "$SCRATCH/copy"
expect 2 "\-\-replace" thinctl repair "$SCRATCH/copy" --to "$SCRATCH/new" --replace
expect 8 "superblock" thinctl repair "$POOL/data" --to "$SCRATCH/new"
expect 2 "block-size" thinctl repair "$POOL" --to "$SCRATCH/new" --block-size 1000
if [ "$EUID" -eq 0 ]; then
    mkdir "$SCRATCH/full"
    mount -t tmpfs -o size=1M none "$SCRATCH/full"
    undo umount "$SCRATCH/full"
    expect 6 "full/new" thinctl repair "$POOL" --to "$SCRATCH/full/new"
    same "$(ls "$SCRATCH/full")" "" "what is left on a full file system"
else
    echo "SKIPPED a full file system: needs root"
fi
serve "$POOL"
expect 5 "in use" thinctl repair "$POOL" --to "$SCRATCH/new"
expect 5 "in use" thinctl repair "$POOL" --replace
stop_daemon
[ ! -e "$SCRATCH/new" ] || fail "a refusal left something"

# A root that is lost takes its leaves with it, but these are found; one that is a leaf is gone.
corrupt "$(root_of "$(id vol)")"
must_fail thinctl check "$POOL"
thinctl repair "$POOL" --replace >"$SCRATCH/report"
grep -q "nothing is missing" "$SCRATCH/report" || fail "$(cat "$SCRATCH/report")"
verify "$POOL"
cmp "$SCRATCH/theirs.xml" "$SCRATCH/before.xml" || fail "something was lost below an inner node"
must_fail thin_check -q "$POOL/metadata.damaged"
corrupt "$(root_of "$(id small)")"
status=0
thinctl repair "$POOL" --replace >"$SCRATCH/report" || status=$?
same "$status" 1 "the exit code when something is missing"
grep -Eq "^missing: small: 16 mappings are missing, of blocks 0 to the end" "$SCRATCH/report" ||
    fail "$(cat "$SCRATCH/report")"
[ -e "$POOL/metadata.damaged-2" ] || fail "the second damaged store was not kept"
verify "$POOL"
same "$(thinctl read "$POOL/c" | sha)" "$c" "c"
thinctl read "$POOL/vol@s" --length "$(stat -c %s "$SCRATCH/data")" | cmp - "$SCRATCH/data"
same "$(thinctl read "$POOL/small" | tr -d '\0' | wc -c)" 0 "bytes of a volume that lost its mappings"
head -c 1000000 "$SCRATCH/data" | thinctl write "$POOL/small"
verify "$POOL"

# What was flushed when the daemon died is in the log, and goes along.
small=$(id small)
serve_nbd "$POOL"
qemu-io -f raw -c "write -P 7 60M 1M" -c flush "$(uri vol)" >/dev/null
kill -STOP "$DAEMON"
kill -KILL "$DAEMON"
wait "$DAEMON" 2>/dev/null || true
DAEMONS=()
corrupt "$(root_of "$small")"
status=0
thinctl repair "$POOL" --replace --json >"$SCRATCH/report.json" || status=$?
same "$status" 1 "the exit code when something is missing"
same "$(jq '.log_records >= 16' "$SCRATCH/report.json")" true "changes in the log"
thinctl read "$POOL/vol" --offset $((60 * 1048576)) --length 1048576 |
    cmp - <(head -c 1048576 /dev/zero | tr '\0' '\007') || fail "a flushed write is gone"
verify "$POOL"

# To another place, which pool.toml names from then on.
thinctl repair "$POOL" --to "$SCRATCH/moved" --replace
verify "$POOL" "$SCRATCH/moved"
grep -q "$SCRATCH/moved" "$POOL/pool.toml" || fail "pool.toml does not name it"
same "$(thinctl read "$POOL/c" | sha)" "$c" "c, with its metadata elsewhere"

# The log of a pool that was not closed has a copy of the superblock, and so has the history. Without any, nothing is
# guessed.
lose_superblock() {
    head -c 4096 /dev/zero | dd of="$SCRATCH/moved" conv=notrunc status=none
}
lose_superblock
thinctl repair "$POOL" --replace --json >"$SCRATCH/report.json"
same "$(jq -r .start "$SCRATCH/report.json")" copy "where the superblock was found"
thinctl read "$POOL/vol" --offset $((60 * 1048576)) --length 1048576 |
    cmp - <(head -c 1048576 /dev/zero | tr '\0' '\007') || fail "a flushed write is gone"
thinctl create "$POOL/new" --size 1M
[ ! -e "$POOL/log" ] || fail "the pool was not closed"
verify "$POOL" "$SCRATCH/moved"
same "$(thinctl read "$POOL/c" | sha)" "$c" "c, after the superblock was lost"
lose_superblock
thinctl repair "$POOL" --to "$SCRATCH/found" >/dev/null
thin_dump "$SCRATCH/found" | cmp - "$SCRATCH/theirs.xml" || fail "by the history, it differs"
rm "$POOL/superblocks"
expect 8 "superblock" thinctl repair "$POOL" --to "$SCRATCH/new"
