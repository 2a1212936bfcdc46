#!/bin/bash
# Runs the scripts of tests/guest (all, or those named), each in a guest of its own, and says `ok`,
# `FAIL` or `SKIP` for each.
#
#   tests/guest/run.sh [name ...]  THINCTL=... names the binary, target/ci/thinctl by default
#
# A script says in its head what its guest needs: `# guest: --disk 1G --timeout 120`, options of
# tests/guest/vm. GUEST=uml runs them in user-mode Linux, which `make uml` builds, but those whose head
# says --qemu. A script is skipped when it ends with status 77, and all are when this machine cannot
# run a guest; with GUEST_REQUIRED=1 that is a failure. JOBS guests run at a time (2). The log of a
# failure is printed; all logs and the guests' consoles are kept in target/guest-logs/NAME. Ends with
# `N passed, N failed, N skipped`; status 1 if any failed, or there was none.

set -uo pipefail
cd "$(dirname "$0")" || exit 1

: "${CARGO_TARGET_DIR:=$(realpath -m ../../target)}"
: "${THINCTL:=$CARGO_TARGET_DIR/ci/thinctl}"
: "${JOBS:=2}"
: "${LOGS:=$CARGO_TARGET_DIR/guest-logs}"
export CARGO_TARGET_DIR THINCTL LOGS
[ -x "$THINCTL" ] || { echo "no $THINCTL: run 'make build', or set THINCTL" >&2; exit 1; }
THINCTL=$(realpath "$THINCTL")

if [ $# -eq 0 ]; then
    for script in *.sh; do
        case $script in
            lib.sh | run.sh) ;;
            *) set -- "$@" "${script%.sh}" ;;
        esac
    done
fi
mkdir -p "$LOGS"
rm -f "$LOGS"/*/{status,vehicle}

skip() {
    local name=$1 reason=$2 status=77 word=SKIP
    if [ -n "${GUEST_REQUIRED:-}" ]; then
        status=1 word=FAIL
    fi
    echo "$word $name: $reason"
    echo $status >"$LOGS/$name/status"
}

run_one() {
    local name=$1 log=$LOGS/$1/output.log began=$SECONDS status=0 options vehicle
    mkdir -p "$LOGS/$name"
    if [ ! -f "$name.sh" ]; then
        echo "FAIL $name: no such script"
        return
    fi
    if [ -n "$CANNOT" ]; then
        skip "$name" "$CANNOT"
        return
    fi
    read -r -a options < <(sed -n 's/^# guest: //p' "$name.sh")
    setpriv --pdeathsig SIGKILL ./vm --results "$LOGS/$name" "${options[@]}" -- bash "$name.sh" >"$log" 2>&1 || status=$?
    if [ $status -eq 77 ]; then
        skip "$name" "$(tail -n 1 "$log")"
        return
    fi
    echo $status >"$LOGS/$name/status"
    vehicle=$(cat "$LOGS/$name/vehicle" 2>/dev/null)
    if [ $status -eq 0 ]; then
        echo "ok $name ($vehicle, $((SECONDS - began)) s)"
    else
        printf 'FAIL %s (%s, status %s)\n%s\n' "$name" "$vehicle" "$status" "$(tail -n 60 "$log" | sed 's/^/    /')"
    fi
}
export -f run_one skip

CANNOT=
if ! told=$(./vm --check 2>&1); then
    CANNOT=${told##*$'\n'}
    echo "NO GUEST TEST RUNS HERE: $CANNOT"
elif [ -n "$told" ]; then
    echo "$told"
fi
export CANNOT
# Nothing outlives this script, however it ends; each guest sees to its own.
printf '%s\n' "$@" | setpriv --pdeathsig SIGKILL xargs -P "$JOBS" -I{} setpriv --pdeathsig SIGKILL bash -c 'run_one {}'
passed=$(cat "$LOGS"/*/status 2>/dev/null | grep -cx 0)
skipped=$(cat "$LOGS"/*/status 2>/dev/null | grep -cx 77)
failed=$(($# - passed - skipped))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $# -gt 0 ]
