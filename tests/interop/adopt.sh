#!/bin/bash
# Pools made by the kernel, adopted in place: every device reads as the kernel read it, the
# dump is the recorded one, and neither opening nor reading changes a byte of metadata.
. "$(dirname "$0")/lib.sh"

POOLS=$TESTS/fixtures/kernel-pools

# The --volume arguments of a pool's expected.json, one a line.
volumes() {
    jq -r --arg dir "$1" '.devices[] | "\(.id):thin-\(.id):\(.sectors * 512)"
        + (if .external_origin then ":\($dir)/\(.external_origin)" else "" end)' "$2"
}

dump_of() {
    zstd -dqc "$1"
}

one_pool() {
    local name=$1 from=$POOLS/$1 here=$SCRATCH/$1 image
    mkdir "$here"
    for image in "$from"/*.bin.zst; do
        zstd -dq --sparse --long=27 "$image" -o "$here/$(basename "${image%.zst}")"
    done
    local arguments=() volume
    while read -r volume; do
        arguments+=(--volume "$volume")
    done < <(volumes "$here" "$from/expected.json")
    local before before_data
    before=$(sha <"$here/metadata.bin")
    before_data=$(sha <"$here/data.bin")
    thinctl adopt "$here/pool" --metadata "$here/metadata.bin" --data "$here/data.bin" "${arguments[@]}"

    local id sectors expected
    while read -r id sectors expected; do
        same "$(thinctl read "$here/pool/thin-$id" | sha)" "$expected" "$name device $id"
        same "$(thinctl info "$here/pool/thin-$id" --json | jq '.size')" $((sectors * 512)) \
            "$name size of device $id"
    done < <(jq -r '.devices[] | "\(.id) \(.sectors) \(.sha256)"' "$from/expected.json")
    same "$(thinctl ls "$here/pool" --json | jq length)" \
        "$(jq '.devices | length' "$from/expected.json")" "$name devices"

    thinctl dump "$here/pool" >"$here/ours.xml"
    cmp "$here/ours.xml" <(dump_of "$from/thin_dump.xml.zst") || fail "$name: dump differs"
    check_one "$name" "$here/pool"
    same "$(sha <"$here/metadata.bin")" "$before" "$name: metadata changed by reading"
    same "$(sha <"$here/data.bin")" "$before_data" "$name: data changed by reading"
    rm -f "$here"/data.bin "$here"/ours.xml
}

check_one() {
    local name=$1 pool=$2 status=0
    thinctl check "$pool" >"$SCRATCH/check.$name" 2>&1 || status=$?
    if [ "$name" = 8-needs-check ]; then
        grep -qi 'needs.check' "$SCRATCH/check.$name" || fail "check is silent about needs_check"
        expect 7 "read.only|needs.check" thinctl create "$pool/new" --size 1M
        expect 7 "read.only|needs.check" thinctl write "$pool/thin-0" </dev/zero
        thinctl info "$pool" --json | jq -e '[.. | .needs_check? // empty] | any' >/dev/null ||
            fail "info is silent about needs_check"
    else
        same "$status" 0 "check of $name: $(cat "$SCRATCH/check.$name")"
    fi
}

count=0
for from in "$POOLS"/[0-9]*; do
    one_pool "$(basename "$from")"
    count=$((count + 1))
done
[ $count -eq 8 ] || fail "expected 8 pools, found $count in $POOLS"

# An adopted pool works on: its devices are written and snapshotted, and stay well-formed.
here=$SCRATCH/work
mkdir "$here"
for image in metadata data; do
    zstd -dq --sparse --long=27 "$POOLS/3-snapshots/$image.bin.zst" -o "$here/$image.bin"
done
thinctl adopt "$here/pool" --metadata "$here/metadata.bin" --data "$here/data.bin" \
    --volume 1:one:64M --volume 2:two:64M
two=$(thinctl read "$here/pool/two" | sha)
thinctl create-snap "$here/pool/one@s"
one=$(thinctl read "$here/pool/one" | sha)
head -c 5000000 /dev/urandom | thinctl write "$here/pool/one"
thinctl clone "$here/pool/two" "$here/pool/three"
thinctl rm "$here/pool/thin-3"
same "$(thinctl read "$here/pool/one@s" | sha)" "$one" "the new snapshot"
same "$(thinctl read "$here/pool/two" | sha)" "$two" "the other device"
same "$(thinctl read "$here/pool/three" | sha)" "$two" "the clone"
verify "$here/pool" "$here/metadata.bin"

# Read-only adoption changes nothing whatever is asked.
ro=$SCRATCH/ro
mkdir "$ro"
for image in metadata data; do
    zstd -dq --sparse --long=27 "$POOLS/2-single/$image.bin.zst" -o "$ro/$image.bin"
done
before=$(sha <"$ro/metadata.bin")
thinctl adopt "$ro/pool" --metadata "$ro/metadata.bin" --data "$ro/data.bin" --read-only
expect 7 "read.only" thinctl create "$ro/pool/new" --size 1M
same "$(sha <"$ro/metadata.bin")" "$before" "metadata of a read-only pool"
