#!/bin/bash
# The superblock is lost, of a closed pool and of one whose daemon was killed; and a pool goes back to earlier commits:
# which are whole, which are refused, and what Debian's thin_check thinks of the result.
. "$(dirname "$0")/lib.sh"

commits() { thinctl rewind "$POOL" --json | jq "$@"; }
present() { commits '.commits[0].number'; }
state() { commits -r --argjson number "$1" '.commits[] | select(.number == $number) | .state'; }
names() { thinctl ls "$POOL" --json | jq -c '[.[].name]'; }
read_back() { thinctl read "$POOL/$1" --length "$(stat -c %s "$SCRATCH/data")"; }

new_pool pool --size 256M --metadata-size 4M
random_file "$SCRATCH/data" 8
thinctl create "$POOL/vol" --size 64M
thinctl write "$POOL/vol" <"$SCRATCH/data"
same "$(commits -r '.commits[0].state')" present "the newest commit"

# Closed, and the superblock zeroed or torn: it can be read, not written, and the newest commit makes it good.
head -c 4096 "$POOL/metadata" >"$SCRATCH/superblock"
for bytes in /dev/zero /dev/urandom; do
    head -c 512 "$bytes" | dd of="$POOL/metadata" conv=notrunc status=none
    must_fail thin_check -q "$POOL/metadata"
    read_back vol 2>"$SCRATCH/warning" | cmp - "$SCRATCH/data"
    grep -q "superblock is damaged" "$SCRATCH/warning" || fail "it was not said: $(cat "$SCRATCH/warning")"
    must_fail thinctl create "$POOL/new" --size 1M
    same "$(commits -r '[.commits[].state] | join(" ")')" whole "what can be gone back to"
    thinctl rewind "$POOL" --to "$(present)" >"$SCRATCH/report"
    head -c 4096 "$POOL/metadata" | cmp - "$SCRATCH/superblock" || fail "it is another superblock"
    verify "$POOL"
done

# Of a daemon that was killed the log knows it: it can be read, with all that was flushed, and is made good without any
# loss.
serve_nbd "$POOL"
qemu-io -f raw -c "write -P 7 60M 1M" -c flush "$(uri vol)" >/dev/null
kill -KILL "$DAEMON"
wait "$DAEMON" 2>/dev/null || true
DAEMONS=()
flushed() {
    thinctl read "$POOL/vol" --offset 60M --length 1M | cmp - <(head -c 1048576 /dev/zero | tr '\0' '\007') ||
        fail "a flushed write is gone $1"
}
head -c 512 /dev/zero | dd of="$POOL/metadata" conv=notrunc status=none
print=$(fingerprint "$POOL")
flushed "without the superblock" 2>"$SCRATCH/warning"
grep -q "as of the last commit in its intent log" "$SCRATCH/warning" ||
    fail "it was not said: $(cat "$SCRATCH/warning")"
must_fail thinctl create "$POOL/new" --size 1M
same "$(commits -r '[.commits[].state] | join(" ")')" whole "what the log goes on from"
same "$(fingerprint "$POOL")" "$print" "the pool, when it was read"
thinctl rewind "$POOL" --to "$(present)" >"$SCRATCH/report"
thinctl ls "$POOL" >/dev/null
flushed "after the superblock was written anew"
verify "$POOL"

# Or with new metadata, which the log goes over to.
serve_nbd "$POOL"
qemu-io -f raw -c "write -P 7 60M 1M" -c "write -P 9 20M 1M" -c flush "$(uri vol)" >/dev/null
kill -KILL "$DAEMON"
wait "$DAEMON" 2>/dev/null || true
DAEMONS=()
head -c 512 /dev/urandom | dd of="$POOL/metadata" conv=notrunc status=none
thinctl repair "$POOL" --replace >"$SCRATCH/report"
thinctl ls "$POOL" >/dev/null
flushed "after a repair"
thinctl read "$POOL/vol" --offset 20M --length 1M | cmp - <(head -c 1048576 /dev/zero | tr '\0' '\011') ||
    fail "a flushed write is gone after a repair"
verify "$POOL"

# A rename, and the removal of a snapshot whose blocks the volume still has, are undone.
before=$(present)
thinctl rename "$POOL/vol" "$POOL/other"
same "$(state "$before")" whole "before a rename"
print=$(fingerprint "$POOL")
commits . >/dev/null
same "$(fingerprint "$POOL")" "$print" "the pool, when it was looked at"
thinctl rewind "$POOL" --to "$before" >"$SCRATCH/report"
same "$(names)" '["vol"]' "names, before the rename"
verify "$POOL"
thinctl create-snap "$POOL/vol@s"
before=$(present)
thinctl rm "$POOL/vol@s"
thinctl rewind "$POOL" --to "$before" --json >"$SCRATCH/report.json"
same "$(jq .rewound_to "$SCRATCH/report.json")" "$before" "where it went"
same "$(names)" '["vol","vol@s"]' "names, before the removal"
read_back vol@s | cmp - "$SCRATCH/data"
verify "$POOL"

# What was written since is not lost unasked.
before=$(present)
head -c 2000000 /dev/urandom | thinctl write "$POOL/vol" --offset 32M
same "$(commits --argjson number "$before" '.commits[] | select(.number == $number) |
    [.state, .devices[0].later, .created]' -c)" '["whole",31,[]]' "before a write"
expect 2 "lose-later-writes" thinctl rewind "$POOL" --to "$before"
thinctl rewind "$POOL" --to "$before" --lose-later-writes >"$SCRATCH/report"
read_back vol | cmp - "$SCRATCH/data"
same "$(thinctl read "$POOL/vol" --offset 32M --length 2M | tr -d '\0' | wc -c)" 0 "bytes of what was written since"
verify "$POOL"

before=$(present)
thinctl create "$POOL/young" --size 1M
expect 2 "lose-later-writes" thinctl rewind "$POOL" --to "$before"
thinctl rewind "$POOL" --to "$before" --lose-later-writes >"$SCRATCH/report"
same "$(names)" '["vol","vol@s"]' "names, before a volume was made"
verify "$POOL"

# Blocks that were given back are nobody's, and may be anybody's; of the metadata some is written over by then.
thinctl create "$POOL/gone" --size 1M
head -c 1000000 /dev/urandom | thinctl write "$POOL/gone"
before=$(present)
thinctl rm "$POOL/gone"
state "$before" | grep -Eqx "incomplete|overwritten" || fail "before a volume was removed: $(commits .)"
print=$(fingerprint "$POOL")
expect 8 "not whole" thinctl rewind "$POOL" --to "$before"
expect 8 "not whole" thinctl rewind "$POOL" --to "$before" --lose-later-writes
expect 3 "no commit" thinctl rewind "$POOL" --to 1000000
expect 2 "what the pool is now" thinctl rewind "$POOL" --to "$(present)"
same "$(fingerprint "$POOL")" "$print" "the pool, after refusals"
serve "$POOL"
expect 5 "in use" thinctl rewind "$POOL"
expect 5 "in use" thinctl rewind "$POOL" --to "$before"
stop_daemon

# Commits of anybody else end the line.
thinctl repair "$POOL" --to "$SCRATCH/other" >/dev/null
cp "$SCRATCH/other" "$POOL/metadata"
same "$(commits '.commits | length')" 0 "commits that lead to somebody else's"
thinctl create "$POOL/more" --size 1M
same "$(commits '.commits | length < 5')" true "the history has begun anew"
verify "$POOL"
