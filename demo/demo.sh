#!/bin/bash
# The main job, on real input: a PostgreSQL database on a thin volume, a snapshot of it while
# it runs, two clones, a PostgreSQL on each, and proof that the three do not see each other.
#
#   demo/demo.sh [DIRECTORY]    keeps the pool in a new directory there (/var/tmp unless given)
#
# SCALE=n      pgbench scale; 70 makes a database of a little over 1 GB
# THINCTL=...  the binary, target/release/thinctl unless given
#
# Needs root (mounting), Debian's postgresql-15, jq, e2fsprogs. PostgreSQL runs as the user
# postgres and listens on unix sockets only. Mount points and sockets lie in a directory of
# their own under /run, which has short paths that every user can pass. Everything is taken
# down and deleted at the end, also after a failure.

set -Eeuo pipefail
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
: "${THINCTL:=$here/../target/release/thinctl}"
: "${SCALE:=70}"
: "${PGBIN:=/usr/lib/postgresql/15/bin}"

work=$(mktemp -d "${1:-/var/tmp}/thinpool-demo.XXXXXX")
run=$(mktemp -d /run/thinpool-demo.XXXXXX)
export THINPOOL_RUNTIME_DIR=$run/thinpool THINPOOL_LINK_DIR=$run/links
pool=$work/pool
names=(prod dev1 dev2)

say() {
    printf '\n== %s\n' "$*"
}

die() {
    trap - ERR
    echo "demo: $*" >&2
    exit 1
}

at_end() {
    local status=$? name
    trap - EXIT ERR
    set +e
    for name in "${names[@]}"; do
        stop_postgres "$name"
        mountpoint -q "$run/$name" && umount "$run/$name"
        "$THINCTL" detach "$pool/$name" >/dev/null 2>&1
    done
    wait_for_release
    if [ $status -ne 0 ]; then
        tail -n 20 "$run"/*.log "$run"/sock.*/server.log "$pool/daemon.log" >&2 2>/dev/null
        echo "demo: failed" >&2
    fi
    rm -rf --one-file-system "$work" "$run"
    exit $status
}
trap at_end EXIT
trap 'echo "demo: line $LINENO: $BASH_COMMAND" >&2' ERR

# The daemon that attach started ends itself after the last detach.
wait_for_release() {
    local tries
    for tries in $(seq 600); do
        [ -e "$pool/control.sock" ] || return 0
        sleep 0.1
    done
    echo "demo: the pool's daemon is still running" >&2
    return 1
}

as_postgres() {
    (cd "$run" && runuser -u postgres -- "$@")
}

stop_postgres() {
    [ -f "$run/$1/data/postmaster.pid" ] || return 0
    as_postgres "$PGBIN/pg_ctl" -D "$run/$1/data" -m fast -w stop >/dev/null
}

# A PostgreSQL on what is mounted at $run/NAME; its socket lies in $run/sock.NAME. A clone looks
# like a machine that lost power: recovery_init_sync_method=syncfs spares it one fsync a file.
start_postgres() {
    local name=$1
    install -d -o postgres -m 0700 "$run/sock.$name"
    rm -f "$run/$name/data/postmaster.pid"
    as_postgres "$PGBIN/pg_ctl" -D "$run/$name/data" -l "$run/sock.$name/server.log" -w -s \
        -o "-c listen_addresses='' -c unix_socket_directories='$run/sock.$name' -c shared_buffers=64MB \
            -c recovery_init_sync_method=syncfs" \
        start || { cat "$run/sock.$name/server.log" >&2; die "PostgreSQL on $name does not start"; }
}

query() {
    local name=$1
    shift
    as_postgres psql -X -q -At -v ON_ERROR_STOP=1 -h "$run/sock.$name" -d bank "$@"
}

milliseconds() {
    echo $(($(date +%s%N) / 1000000))
}

attach() {
    mkdir -p "$run/$1"
    "$THINCTL" attach "$pool/$1" --json "${@:2}" | jq -r .device
}

used_bytes() {
    "$THINCTL" du "$pool" --json | jq .pool.data_used_bytes
}

mib() {
    awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'
}

[ "$(id -u)" -eq 0 ] || die "mounting needs root"
[ -x "$THINCTL" ] || die "no $THINCTL: run 'make build' first"
[ -x "$PGBIN/initdb" ] || die "no PostgreSQL 15 in $PGBIN: apt-get install postgresql-15"
needed_mib=$((SCALE * 50 + 1536))
free_mib=$(df --output=avail -BM "$work" | tail -n 1 | tr -dc 0-9)
[ "$free_mib" -ge "$needed_mib" ] || die "$work needs $needed_mib MiB of room, has $free_mib"
chmod 0711 "$run"

say "a pool, and a volume with ext4 on it"
size_mib=$((SCALE * 40 + 1024))
"$THINCTL" init "$pool" --size "$((size_mib * 2))M"
"$THINCTL" create "$pool/prod" --size "${size_mib}M"
device=$(attach prod)
mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=1 "$device"
mount "$device" "$run/prod"
echo "$pool/prod is $device, mounted"

say "PostgreSQL with a pgbench database of scale $SCALE"
install -d -o postgres -m 0700 "$run/prod/data"
as_postgres "$PGBIN/initdb" -D "$run/prod/data" -A trust -E UTF8 --no-locale >"$run/initdb.log"
start_postgres prod
as_postgres "$PGBIN/createdb" -h "$run/sock.prod" bank
as_postgres "$PGBIN/pgbench" -h "$run/sock.prod" -i -q -s "$SCALE" bank 2>"$run/pgbench.log"
query prod -c "create table proof (who text primary key)" -c "insert into proof values ('before')"
database_bytes=$(query prod -c "select pg_database_size('bank')")
echo "the database has $(mib "$database_bytes") MiB"

say "a snapshot of it while it runs, and two clones"
query prod -c checkpoint
sync -f "$run/prod"
used_before=$(used_bytes)
begin=$(milliseconds)
"$THINCTL" create-snap "$pool/prod@nightly"
snapshot_ms=$(($(milliseconds) - begin))
query prod -c "insert into proof values ('after the snapshot')"

declare -A clone_ms select_ms
for name in dev1 dev2; do
    begin=$(milliseconds)
    "$THINCTL" clone "$pool/prod@nightly" "$pool/$name"
    clone_ms[$name]=$(($(milliseconds) - begin))
    attach "$name" --mount "$run/$name" >/dev/null
    start_postgres "$name"
    [ "$(query "$name" -c 'select 1')" = 1 ] || die "select 1 on $name"
    select_ms[$name]=$(($(milliseconds) - begin))
    echo "$name: cloned in ${clone_ms[$name]} ms, first SELECT 1 after ${select_ms[$name]} ms"
done
used_cloned=$(used_bytes)

say "different SQL in each of the three"
query prod -c "update pgbench_accounts set abalance = 1 where aid % 100 = 0" \
    -c "insert into proof values ('prod')"
query dev1 -c "update pgbench_accounts set abalance = 11 where aid <= 1000" \
    -c "insert into proof values ('dev1')"
query dev2 -c "delete from pgbench_accounts where aid > 50000" \
    -c "insert into proof values ('dev2')" -c "truncate pgbench_history"
for name in "${names[@]}"; do
    query "$name" -c checkpoint
done

expect_rows() {
    local found
    found=$(query "$1" -c "select string_agg(who, ', ' order by who) from proof")
    echo "$1 sees: $found"
    [ "$found" = "$2" ] || die "$1 should see: $2"
}
expect_rows prod "after the snapshot, before, prod"
expect_rows dev1 "before, dev1"
expect_rows dev2 "before, dev2"
expect_value() {
    local found
    found=$(query "$1" -c "$2")
    [ "$found" = "$3" ] || die "$1: $2 gives $found, expected $3"
}
accounts=$((SCALE * 100000))
expect_value prod "select count(*), sum(abalance) from pgbench_accounts" "$accounts|$((accounts / 100))"
expect_value dev1 "select count(*), sum(abalance) from pgbench_accounts" "$accounts|11000"
expect_value dev2 "select count(*), sum(abalance) from pgbench_accounts" "50000|0"

say "the same after restarting the three"
for name in "${names[@]}"; do
    stop_postgres "$name"
    start_postgres "$name"
done
expect_rows prod "after the snapshot, before, prod"
expect_rows dev1 "before, dev1"
expect_rows dev2 "before, dev2"
for name in "${names[@]}"; do
    stop_postgres "$name"
    sync -f "$run/$name"
done
used_after=$(used_bytes)
"$THINCTL" du "$pool" --json >"$run/du.json"
"$THINCTL" check "$pool" >/dev/null || die "check finds damage"

say "what it cost"
printf '%-44s %10s\n' "database" "$(mib "$database_bytes") MiB"
printf '%-44s %7s ms\n' "create-snap of the running database" "$snapshot_ms"
for name in dev1 dev2; do
    printf '%-44s %7s ms\n' "clone $name" "${clone_ms[$name]}"
    printf '%-44s %7s ms\n' "clone $name to its first SELECT 1" "${select_ms[$name]}"
done
printf '%-44s %10s\n' "pool space used before the snapshot" "$(mib "$used_before") MiB"
printf '%-44s %10s\n' "pool space used with two clones running" "$(mib "$used_cloned") MiB"
printf '%-44s %10s\n' "pool space used after their different SQL" "$(mib "$used_after") MiB"
printf '\n%-16s %14s %14s\n' "" "exclusive MiB" "shared MiB"
jq -r '.devices[] | "\(.name) \(.exclusive_bytes) \(.shared_bytes)"' \
    "$run/du.json" | while read -r name exclusive shared; do
    printf '%-16s %14s %14s\n' "$name" "$(mib "$exclusive")" "$(mib "$shared")"
done

for name in dev1 dev2 prod; do
    mountpoint -q "$run/$name" && { umount "$run/$name" 2>/dev/null || true; }
    "$THINCTL" detach "$pool/$name" >/dev/null
done
wait_for_release
"$THINCTL" check "$pool" >/dev/null || die "check finds damage in the closed pool"
if command -v thin_check >/dev/null; then
    thin_check -q "$pool/metadata" || die "thin_check refuses the metadata"
fi
say "all three were what they should be; the pool is sound and deleted now"
