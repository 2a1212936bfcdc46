#!/bin/bash
# Runs the scripts of tests/interop (all, or those named) and says `ok` or `FAIL` for each.
#
#   tests/run.sh [name ...]        THINCTL=... names the binary, target/ci/thinctl by default
#
# JOBS scripts run at a time (2). The log of a failure is printed; all logs are kept in
# target/interop-logs. Ends with `N passed, N failed`; status 1 if any failed, or none ran.

set -uo pipefail
cd "$(dirname "$0")/interop" || exit 1

: "${THINCTL:=$(realpath -m ../../target/ci/thinctl)}"
: "${JOBS:=2}"
: "${LOGS:=$(realpath -m ../../target/interop-logs)}"
export THINCTL LOGS
[ -x "$THINCTL" ] || { echo "no $THINCTL: run 'make build', or set THINCTL" >&2; exit 1; }
mkdir -p "$LOGS"
rm -f "$LOGS"/*.log "$LOGS"/*.status

run_one() {
    local name=$1 status=0 began=$SECONDS
    # The longest takes about two minutes; the limit is there to report a hang.
    timeout --kill-after=60 900 bash "$name.sh" >"$LOGS/$name.log" 2>&1 || status=$?
    echo $status >"$LOGS/$name.status"
    if [ $status -eq 0 ]; then
        echo "ok $name ($((SECONDS - began)) s)"
    else
        printf 'FAIL %s (status %s)\n%s\n' "$name" "$status" "$(tail -n 60 "$LOGS/$name.log" | sed 's/^/    /')"
    fi
}
export -f run_one

if [ $# -eq 0 ]; then
    set -- $(ls *.sh | sed 's/\.sh$//' | grep -vx lib)
fi
printf '%s\n' "$@" | xargs -P "$JOBS" -I{} bash -c 'run_one {}'
passed=$(cat "$LOGS"/*.status 2>/dev/null | grep -cx 0)
failed=$(($# - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
