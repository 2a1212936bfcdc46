#!/bin/bash
# Exports appear, disappear and change with their volumes, without restarting the daemon.
. "$(dirname "$0")/lib.sh"

exports() {
    nbdinfo --json --list "nbd+unix://?socket=$SOCKET" 2>/dev/null |
        jq -r '.exports[]."export-name"' | sort | paste -sd' '
}

new_pool pool
new_pool other
OTHER=$POOL
POOL=$SCRATCH/pool
serve_nbd "$POOL"

same "$(exports)" "" "exports of an empty pool"
thinctl create "$POOL/a" --size 32M
same "$(exports)" "a" "after create"
qemu-io -f raw -c 'write -P 1 0 1M' "$(uri a)" >/dev/null
thinctl create-snap "$POOL/a@s"
thinctl clone "$POOL/a@s" "$POOL/b"
same "$(exports)" "a a@s b" "after create-snap and clone"
qemu-io -r -f raw -c 'read -P 1 0 1M' "$(uri b)" | grep -q '1 MiB' || fail "the clone reads wrong"
thinctl rename "$POOL/b" "$POOL/c"
same "$(exports)" "a a@s c" "after rename"
must_fail nbdinfo "$(uri b)"
thinctl resize "$POOL/c" --size 48M
same "$(nbdinfo --size "$(uri c)")" $((48 * 1048576)) "size after resize"
thinctl freeze "$POOL/c"
nbdinfo --is read-only "$(uri c)" || fail "a frozen volume is writable"
thinctl rm "$POOL/c"
thinctl rm "$POOL/a@s"
same "$(exports)" "a" "after rm"

# A connected export cannot be removed, rolled back or shrunk; nothing changes by trying.
thinctl create-snap "$POOL/a@keep"
coproc HOLD { "$PYTHON" -c '
import nbd, sys
handle = nbd.NBD()
handle.connect_uri(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
assert handle.pread(1 << 20, 0) == b"\1" * (1 << 20)
handle.pwrite(b"\2" * 4096, 0)
handle.shutdown()
print("released", flush=True)
' "$(uri a)"; }
HOLDER=$HOLD_PID
read -r word <&"${HOLD[0]}"
same "$word" held
expect 5 "use|busy|connect" thinctl rm "$POOL/a"
expect 5 "use|busy|connect" thinctl rollback "$POOL/a@keep"
expect 5 "use|busy|connect" thinctl resize "$POOL/a" --size 16M --shrink
same "$(exports)" "a a@keep" "after the refusals"
echo go >&"${HOLD[1]}"
read -r word <&"${HOLD[0]}"
same "$word" released
wait "$HOLDER"
thinctl rollback "$POOL/a@keep"
qemu-io -r -f raw -c 'read -P 1 0 1M' "$(uri a)" | grep -q '1 MiB' || fail "rollback"
! qemu-io -r -f raw -c 'read -P 1 0 1M' "$(uri a)" | grep -q failed || fail "rollback"
stop_daemon
[ ! -e "$SOCKET" ] || fail "the socket is left behind"
verify "$POOL"

# Two pools in one daemon: a name of both needs its pool's name in front.
thinctl create "$OTHER/a" --size 16M
thinctl create "$OTHER/only" --size 16M
serve_nbd "$POOL" "$OTHER"
same "$(nbdinfo --size "$(uri pool/a)")" $((32 * 1048576)) "pool/a"
same "$(nbdinfo --size "$(uri other/a)")" $((16 * 1048576)) "other/a"
same "$(nbdinfo --size "$(uri only)")" $((16 * 1048576)) "only"
must_fail nbdinfo "$(uri a)"
stop_daemon
verify "$POOL"
verify "$OTHER"
