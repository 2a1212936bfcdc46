#!/bin/bash
# Every kind of bad input: one line that says what and where, the documented exit code, and
# not a byte of the pool changed.
. "$(dirname "$0")/lib.sh"

new_pool pool --size 64M --metadata-size 4M
thinctl create "$POOL/vol" --size 16M
head -c 2000000 /dev/urandom | thinctl write "$POOL/vol"
thinctl create-snap "$POOL/vol@s"
BEFORE=$(fingerprint "$POOL")

# refuse CODE WORDS command...: as expect, and the pool is bit-identical afterwards.
refuse() {
    expect "$@"
    same "$(fingerprint "$POOL")" "$BEFORE" "the pool changed by: ${*:3}"
}

# Names.
for name in '' .hidden 'a b' 'a@b@c' "$(printf 'x%.0s' $(seq 300))" 'ü' '-x' 'a/b/../c' '@s' 'vol@'; do
    status=0
    thinctl create --size 1M -- "$POOL/$name" >"$SCRATCH/out" 2>"$SCRATCH/err" || status=$?
    [ $status -ne 0 ] || fail "the name '$name' was taken"
    [ "$(wc -l <"$SCRATCH/err")" -ge 1 ] || fail "nothing said about the name '$name'"
    ! grep -qi panic "$SCRATCH/err" || fail "a panic for the name '$name'"
    same "$(fingerprint "$POOL")" "$BEFORE" "the pool changed by the name '$name'"
done
refuse 2 "snapshot" thinctl create "$POOL/vol@x" --size 1M
refuse 3 "nothing" thinctl info "$POOL/nothing"
refuse 3 "nothing" thinctl rm "$POOL/nothing"
refuse 3 "nope" thinctl clone "$POOL/vol@nope" "$POOL/c"
refuse 3 "nothing" thinctl create-snap "$POOL/nothing@s"
refuse 3 "nothing" thinctl create-snap "$POOL/vol@new" "$POOL/nothing@new"
refuse 4 "exists|already" thinctl create "$POOL/vol" --size 1M
refuse 4 "exists|already" thinctl create-snap "$POOL/vol@s"
refuse 4 "exists|already" thinctl clone "$POOL/vol@s" "$POOL/vol"
refuse 4 "exists|already" thinctl rename "$POOL/vol" "$POOL/vol"
refuse 4 "exists|already" thinctl init "$POOL" --size 64M

# Sizes.
for size in 0 511 1000 1.5G -5 12X 99999999999999999999 1e3 '' 0x10; do
    refuse 2 "size|value" thinctl create "$POOL/new" "--size=$size"
done
refuse 2 "shrink" thinctl resize "$POOL/vol" --size 8M
refuse 2 "multiple|size" thinctl resize "$POOL/vol" --size 16777217
for block in 1 63K 65537 2G 100K 0; do
    expect 2 "block.size|multiple|power|value" thinctl init "$SCRATCH/no" --size 64M --block-size "$block"
    [ ! -e "$SCRATCH/no/pool.toml" ] || fail "a pool with blocks of $block"
done
expect 2 "multiple|block" thinctl init "$SCRATCH/no" --size 1000001
refuse 2 "shrink|small|smaller|less" thinctl grow "$POOL" --size 32M

# Writing where writing is not allowed; reading and writing beyond the end.
refuse 7 "read.only" thinctl write "$POOL/vol@s" <"$POOL/pool.toml"
refuse 2 "inside|beyond|range" thinctl read "$POOL/vol" --offset 16M --length 512
status=0
head -c 20000000 /dev/zero | thinctl write "$POOL/vol@s" 2>/dev/null || status=$?
same $status 7 "status of writing a snapshot"
refuse 2 "snapshot" thinctl resize "$POOL/vol@s" --size 32M

# Directories that are no pools.
mkdir "$SCRATCH/empty" "$SCRATCH/full"
echo mine >"$SCRATCH/full/file"
expect 3 "pool" thinctl ls "$SCRATCH/empty"
expect 3 "pool" thinctl check "$SCRATCH/empty"
expect 3 "pool" thinctl serve "$SCRATCH/empty"
expect 3 "nowhere" thinctl ls "$SCRATCH/nowhere"
must_fail thinctl init "$SCRATCH/full" --size 64M
same "$(ls "$SCRATCH/full")" file "a foreign directory after init"
must_fail thinctl frobnicate
must_fail thinctl ls

# A pool in use: a second daemon, and tools beside the lock.
serve_nbd "$POOL"
expect 5 "in use|already" thinctl serve "$POOL" --nbd "unix:$SCRATCH/second.sock"
expect 5 "in use|already" "$THINPOOLD" "$POOL"
[ ! -e "$SCRATCH/second.sock" ] || fail "the second daemon left a socket"
nbdinfo "$(uri vol)" >/dev/null || fail "the first daemon was disturbed"
mkdir "$SCRATCH/alias"
expect 5 "in use|exists" thinctl adopt "$SCRATCH/alias/pool" --metadata "$POOL/metadata" --data "$POOL/data"
stop_daemon
same "$(fingerprint "$POOL")" "$BEFORE" "the pool after being served and refused"

# Damage. damaged NAME CODE WORDS edit...: a copy is edited, every opening is refused. (With its history, a pool can be
# read without a superblock: rewind.sh.)
damaged() {
    local copy=$SCRATCH/damaged.$1 code=$2 words=$3 now
    shift 3
    cp -r --sparse=always "$POOL" "$copy"
    rm "$copy/superblocks"
    (cd "$copy" && "$@")
    now=$(fingerprint "$copy")
    expect "$code" "$words" thinctl ls "$copy"
    expect "$code" "$words" thinctl create "$copy/new" --size 1M
    expect "$code" "$words" thinctl serve "$copy"
    same "$(fingerprint "$copy")" "$now" "a damaged pool changed ($copy)"
    rm -rf "$copy"
}

poke() {
    printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

damaged checksum 8 "superblock|checksum" poke metadata 0 '\x99'
damaged magic 8 "superblock|magic|checksum|format" poke metadata 32 '\x00'
damaged zeroed 8 "superblock|format|magic" dd if=/dev/zero of=metadata bs=4096 count=1 conv=notrunc status=none
damaged short_data 8 "data.*(short|small)|short.*data|expected" truncate -s 32M data
damaged short_metadata 8 "metadata.*(short|small)|short.*metadata|expected" truncate -s 1M metadata
damaged toml 8 "pool.toml" poke pool.toml 0 '\x00\x01['
damaged newer 8 "superblock|version|newer" "$PYTHON" "$TESTS/interop/edit_superblock.py" metadata version 3
damaged feature 8 "feature|incompat" "$PYTHON" "$TESTS/interop/edit_superblock.py" metadata incompat 1024

# Deeper damage: check finds it and says the block, the tools do not fall over.
copy=$SCRATCH/deep
cp -r --sparse=always "$POOL" "$copy"
"$PYTHON" "$TESTS/interop/edit_superblock.py" "$copy/metadata" damage-mapping-root 0
status=0
thinctl check "$copy" >"$SCRATCH/out" 2>&1 || status=$?
same $status 1 "status of check on a damaged mapping tree"
grep -Eqi 'checksum' "$SCRATCH/out" || fail "check said: $(cat "$SCRATCH/out")"
(thinctl check "$copy" --json || true) 2>/dev/null | jq -e . >/dev/null || fail "check --json is no JSON"
must_fail thinctl read "$copy/vol"
! grep -qi panic "$SCRATCH/must_fail.out" || fail "a panic on damaged metadata"

# What names a missing store.
rm -rf "$copy"
cp -r --sparse=always "$POOL" "$copy"
rm "$copy/data"
must_fail thinctl ls "$copy"
grep -q "data" "$SCRATCH/must_fail.out" || fail "the missing store is not named"
[ ! -e "$copy/data" ] || fail "the missing store was created"

# A foreign file as a store is not overwritten.
head -c 1048576 /dev/urandom >"$SCRATCH/precious"
precious=$(sha <"$SCRATCH/precious")
must_fail thinctl init "$SCRATCH/greedy" --size 1M --metadata "$SCRATCH/precious"
must_fail thinctl init "$SCRATCH/greedy2" --size 1M --data "$SCRATCH/precious"
must_fail thinctl adopt "$SCRATCH/greedy3" --metadata "$SCRATCH/precious" --data "$SCRATCH/precious"
same "$(sha <"$SCRATCH/precious")" "$precious" "a foreign file"
for greedy in "$SCRATCH"/greedy*; do
    [ ! -e "$greedy/pool.toml" ] || fail "a pool in $greedy"
done

# Interrupted and terminated, a daemon closes cleanly.
for signal in INT TERM; do
    serve_nbd "$POOL"
    qemu-io -f raw -c 'write -P 3 0 64k' "$(uri vol)" >/dev/null
    kill -$signal "$DAEMON"
    status=0
    wait "$DAEMON" || status=$?
    DAEMONS=()
    same $status 0 "status after SIG$signal"
    [ ! -e "$SOCKET" ] && [ ! -e "$POOL/control.sock" ] || fail "sockets left after SIG$signal"
    verify "$POOL"
done
