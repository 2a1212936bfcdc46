#!/bin/bash
# What libnbd's nbdinfo says of our exports.
. "$(dirname "$0")/lib.sh"

new_pool pool
thinctl create "$POOL/vol" --size 64M
random_file "$SCRATCH/data" 4
thinctl write "$POOL/vol" <"$SCRATCH/data"
thinctl create-snap "$POOL/vol@s1"
thinctl create "$POOL/odd" --size 1000448
serve_nbd "$POOL"

names=$(nbdinfo --json --list "nbd+unix://?socket=$SOCKET" | jq -r '.exports[]."export-name"' | sort)
same "$names" "$(printf '%s\n' odd vol vol@s1 | sort)" "exports listed"

nbdinfo --json "$(uri vol)" >"$SCRATCH/vol.json"
jq -e '.exports[0] | ."export-size" == 67108864 and ."is_read_only" == false
    and ."can_multi_conn" and ."can_fua" and ."can_flush" and ."can_trim" and ."can_zero"
    and ."can_fast_zero" and ."can_cache" and ."can_df"
    and ."block_size_minimum" == 1 and ."block_size_preferred" == 65536
    and ."block_size_maximum" == 33554432
    and (.contexts | contains(["base:allocation", "qemu:allocation-depth"]))' \
    "$SCRATCH/vol.json" >/dev/null || fail "nbdinfo --json: $(cat "$SCRATCH/vol.json")"
same "$(nbdinfo --size "$(uri odd)")" 1000448 "size of an odd volume"

for ability in multi-conn fua flush trim zero fast-zero cache df "structured reply"; do
    nbdinfo --can "$ability" "$(uri vol)" || fail "cannot $ability"
done
nbdinfo --is read-only "$(uri vol@s1)" || fail "the snapshot is not read-only"
! nbdinfo --is read-only "$(uri vol)" || fail "the volume is read-only"
! nbdinfo --can trim "$(uri vol@s1)" || fail "a snapshot offers trim"

same "$(nbdinfo --map "$(uri vol)" | awk '{print $1, $2, $3}')" "0 4194304 0
4194304 62914560 3" "map"
nbdinfo --map --totals "$(uri vol)" | awk '{print $1, $3}' | sort >"$SCRATCH/totals"
same "$(cat "$SCRATCH/totals")" "4194304 0
62914560 3" "totals"
same "$(nbdinfo --map=qemu:allocation-depth --totals "$(uri vol)" | awk '{print $1, $3}' | sort)" \
    "4194304 2
62914560 0" "depths while shared"
must_fail nbdinfo "$(uri nothing)"
stop_daemon
verify "$POOL"
