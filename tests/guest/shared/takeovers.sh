# shellcheck shell=bash
# Sourced by scripts in which one daemon after another serves the pool's `vol`, mounted on $SCRATCH/mnt, and
# `idle`; `table` names the table of its devices.

# taken_over_by_attach ublk|nbd: the first command that needs a daemon has what the last one left served again.
taken_over_by_attach() {
    thinctl attach "$POOL/idle" "--$1" >"$SCRATCH/idle"
    cmp -n 1048576 "$(cat "$SCRATCH/idle")" /dev/zero
    sync -f "$SCRATCH/mnt"
    echo more >"$SCRATCH/mnt/more"
    sync -f "$SCRATCH/mnt"
    expect 5 "mounted" thinctl detach "$POOL/vol"
    thinctl detach "$POOL/idle"
    same "$(jq '.devices | length' "$(table)")" 1 "devices in the table"
}

# told_to_end_while_mounted: requests wait for the next daemon.
told_to_end_while_mounted() {
    local pid writer
    pid=$(thinctl info "$POOL" --json | jq .daemon_pid)
    kill -TERM "$pid"
    for _ in $(seq 300); do
        [ -e "/proc/$pid" ] || break
        sleep 0.1
    done
    [ ! -e "/proc/$pid" ] || fail "the daemon does not end"
    cat "$SCRATCH/mnt/more" >/dev/null
    (sync -f "$SCRATCH/mnt" && echo late >"$SCRATCH/mnt/late" && sync -f "$SCRATCH/mnt") &
    writer=$!
    sleep 1
    kill -0 $writer || fail "a write did not wait for the next daemon"
    serve "$POOL"
    wait $writer || fail "a write that waited failed"
    same "$(cat "$SCRATCH/mnt/late")" late "what was written meanwhile"
}
