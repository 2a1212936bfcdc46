# shellcheck shell=bash
# Sourced by tests that have a PostgreSQL.

: "${PGBIN:=/usr/lib/postgresql/15/bin}"
requires "$PGBIN/pg_amcheck" "$PGBIN/pgbench"
# The servers are another user's.
chmod 711 "$SCRATCH"

# pg PROGRAM ...: as its user. The programs of PATH are Debian's wrappers in Perl, which take a second to start.
pg() {
    setpriv --reuid=postgres --regid=postgres --init-groups "$PGBIN/$1" "${@:2}"
}

# start_postgres DATA PORT: its log lies beside DATA.
start_postgres() {
    pg pg_ctl -D "$1" -l "$1.log" -w -s -t 300 -o "-p $2 -c listen_addresses='' -c shared_buffers=1MB \
        -c max_wal_size=64MB -c checkpoint_timeout=30s" start || fail "PostgreSQL: $(cat "$1.log")"
}

# Its file goes, which pg_ctl waits for, while the server itself still has the mount.
stop_postgres() {
    local server
    server=$(head -n 1 "$1/postmaster.pid")
    pg pg_ctl -D "$1" -m fast -w -s -t 300 stop
    while kill -0 "$server" 2>/dev/null; do
        sleep 0.1
    done
}

# new_database DATA PORT: with checksums, the tables of pgbench, and a server.
new_database() {
    chown postgres "$(dirname "$1")"
    pg initdb -D "$1" --data-checksums --locale=C --auth=trust >/dev/null
    start_postgres "$1" "$2"
    undo stop_postgres "$1"
    pg pgbench -i -s 1 -q -p "$2" postgres 2>/dev/null
}

# query PORT SQL
query() {
    pg psql -X -At -v ON_ERROR_STOP=1 -d postgres -p "$1" -c "$2"
}

# transactions PORT: how many of pgbench's are committed.
transactions() {
    query "$1" "select count(*) from pgbench_history"
}

# balances_agree PORT: what each of pgbench's transactions adds to four tables is in all of them or in none.
balances_agree() {
    local accounts branches tellers history
    query "$1" 'select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
        (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history)' >"$SCRATCH/sums"
    IFS='|' read -r accounts branches tellers history <"$SCRATCH/sums"
    same "$branches $tellers $history" "$accounts $accounts $accounts" "sums of branches, tellers and history"
}

# amcheck PORT: tables and indices are whole, and fit together.
amcheck() {
    pg pg_amcheck --install-missing --heapallindexed -d postgres -p "$1" >"$SCRATCH/amcheck.log" 2>&1 ||
        fail "pg_amcheck: $(cat "$SCRATCH/amcheck.log")"
}

# page_checksums DATA: those of a server that was stopped.
page_checksums() {
    pg pg_checksums --check -D "$1" >"$SCRATCH/checksums.log" 2>&1 || fail "pg_checksums: $(cat "$SCRATCH/checksums.log")"
}

# start_load PORT: pgbench, until stop_load; LOAD is its process, LOAD_LOG what it says.
start_load() {
    LOAD_LOG=$SCRATCH/pgbench.log
    # Not by pg: a function in the background would be a shell around it, and LOAD that.
    setpriv --reuid=postgres --regid=postgres --init-groups "$PGBIN/pgbench" -n -c 2 -T 3600 -p "$1" postgres >"$LOAD_LOG" 2>&1 &
    LOAD=$!
}

# stop_load SERVER_LOG...: neither pgbench nor a server has said that anything failed.
stop_load() {
    kill -0 "$LOAD" || fail "pgbench ended: $(cat "$LOAD_LOG")"
    if grep -iE "error|abort|fail|panic" "$LOAD_LOG" "$@"; then
        fail "PostgreSQL or its client has noticed"
    fi
    kill -TERM "$LOAD"
    wait "$LOAD" || true
}
