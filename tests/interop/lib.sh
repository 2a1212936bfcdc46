# Sourced by every script here: a scratch directory, pools, daemons, and the checks that
# follow each of them. Whatever a script starts, mounts or attaches is gone when it ends.
#
# THINCTL and THINPOOLD name the binaries, TMPDIR where scratch space is taken.

set -Eeuo pipefail
export LC_ALL=C

TESTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${THINCTL:=$TESTS/../target/ci/thinctl}"
: "${THINPOOLD:=$(dirname "$THINCTL")/thinpoold}"
export THINCTL THINPOOLD
PYTHON=/usr/bin/python3

SCRATCH=$(mktemp -d "${TMPDIR:-/tmp}/thinpool-test.XXXXXX")
export THINPOOL_RUNTIME_DIR=$SCRATCH/run
export THINPOOL_LINK_DIR=$SCRATCH/links
mkdir -p "$THINPOOL_RUNTIME_DIR"
DAEMONS=()
UNDO=()

fail() {
    trap - ERR
    echo "FAILED: $*" >&2
    exit 1
}

# Runs when the script ends, in the reverse order of being said.
undo() {
    UNDO=("$*" "${UNDO[@]}")
}

at_end() {
    local status=$? step pid
    trap - EXIT ERR
    set +e
    for step in "${UNDO[@]}"; do
        eval "$step" >/dev/null 2>&1
    done
    for pid in "${DAEMONS[@]}"; do
        kill -TERM "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    if [ $status -ne 0 ]; then
        for log in "$SCRATCH"/*.log; do
            [ -f "$log" ] && { echo "--- ${log##*/}"; tail -n 40 "$log"; } >&2
        done
    fi
    rm -rf "$SCRATCH"
    exit $status
}
trap at_end EXIT
trap 'echo "FAILED: $BASH_COMMAND (${BASH_SOURCE[0]##*/}:$LINENO, called from lines ${BASH_LINENO[*]})" >&2' ERR

thinctl() {
    "$THINCTL" "$@"
}

# new_pool NAME [init options]: sets POOL; 1 GiB of data unless told otherwise.
new_pool() {
    POOL=$SCRATCH/$1
    shift
    case " $* " in
        *" --size "*) thinctl init "$POOL" "$@" ;;
        *) thinctl init "$POOL" --size 1G "$@" ;;
    esac
}

# serve DIR... [options]: starts a daemon, waits for its ready line; sets DAEMON and READY.
serve() {
    local out=$SCRATCH/serve.$((${#DAEMONS[@]} + 1)).out
    : >"$out"
    "$THINCTL" serve "$@" >"$out" 2>"${out%.out}.log" &
    DAEMON=$!
    DAEMONS+=("$DAEMON")
    local tries=0
    until grep -q '^ready:' "$out"; do
        kill -0 "$DAEMON" 2>/dev/null || fail "the daemon ended: $(tail -n 3 "${out%.out}.log")"
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || fail "no ready line after a minute"
        sleep 0.05
    done
    READY=$(grep '^ready:' "$out")
}

# serve_nbd POOL [options]: as serve, on a unix socket of its own; sets SOCKET.
serve_nbd() {
    SOCKET=$SCRATCH/nbd.$((${#DAEMONS[@]} + 1)).sock
    local pool=$1
    shift
    serve "$pool" --nbd "unix:$SOCKET" "$@"
}

uri() {
    echo "nbd+unix:///${1//@/%40}?socket=$SOCKET"
}

# Ends the last daemon as an operator would; it must close cleanly.
stop_daemon() {
    kill -TERM "$DAEMON"
    local status=0
    wait "$DAEMON" || status=$?
    [ $status -eq 0 ] || fail "the daemon ended with status $status after SIGTERM"
    local left=()
    local pid
    for pid in "${DAEMONS[@]}"; do
        [ "$pid" = "$DAEMON" ] || left+=("$pid")
    done
    DAEMONS=("${left[@]}")
}

# The pool, closed, is true by three opinions: our check, thin_check, and equal dumps.
verify() {
    local pool=$1 metadata=${2:-$1/metadata}
    thinctl check "$pool" >"$SCRATCH/check.log" 2>&1 || fail "check: $(cat "$SCRATCH/check.log")"
    thin_check -q "$metadata" || fail "thin_check refuses $metadata"
    thinctl dump "$pool" >"$SCRATCH/ours.xml"
    thin_dump "$metadata" >"$SCRATCH/theirs.xml"
    cmp "$SCRATCH/ours.xml" "$SCRATCH/theirs.xml" || fail "dump differs from thin_dump"
}

# expect CODE WORDS command...: the command must fail with this exit code and one line on
# stderr that contains WORDS (a regular expression) behind the program's name.
expect() {
    local code=$1 words=$2 status=0
    shift 2
    "$@" >"$SCRATCH/expect.out" 2>"$SCRATCH/expect.err" || status=$?
    [ $status -eq "$code" ] ||
        fail "$* ended with $status, expected $code: $(cat "$SCRATCH/expect.err")"
    [ "$(wc -l <"$SCRATCH/expect.err")" -eq 1 ] ||
        fail "$* should say one line: $(cat "$SCRATCH/expect.err")"
    grep -Eiq "^thin(ctl|poold): .*($words)" "$SCRATCH/expect.err" ||
        fail "$* said: $(cat "$SCRATCH/expect.err"), expected: $words"
}

# must_fail command...: any failure will do.
must_fail() {
    if "$@" >"$SCRATCH/must_fail.out" 2>&1; then
        fail "$* should have failed"
    fi
}

sha() {
    openssl dgst -sha256 -r | cut -d' ' -f1
}

# What lies in a pool directory (control socket and daemon log aside), as one checksum.
fingerprint() {
    (cd "$1" && find . -type f ! -name 'daemon.log' -print0 | sort -z | xargs -0 sha256sum) | sha
}

# random_file PATH MIB: bytes nobody else writes.
random_file() {
    head -c "$(($2 * 1048576))" /dev/urandom >"$1"
}

# long SHORT LONG: a number for every day, or the one for the long form (LONG=1).
long() {
    if [ -n "${LONG:-}" ]; then echo "$2"; else echo "$1"; fi
}

same() {
    [ "$1" = "$2" ] || fail "${3:-values differ}: $1, expected $2"
}

# new_authority DIR: a certificate authority there, as ca-cert.pem, with its key.
new_authority() {
    mkdir -p "$1"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=${1##*/}" \
        -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem" 2>>"$SCRATCH/openssl.log"
}

# new_certificate DIR NAME [option...]: NAME-cert.pem and NAME-key.pem, signed by the authority there. NAME
# begins with `server` or `client`, which says what it is for. Options go to `openssl x509`; HOST is whom a
# server's is for.
new_certificate() {
    local directory=$1 name=$2 use=clientAuth names=
    shift 2
    case $name in
        server*) use=serverAuth names="subjectAltName=${HOST:-IP:127.0.0.1,DNS:localhost}" ;;
    esac
    printf '%s\n' "basicConstraints=CA:FALSE" "extendedKeyUsage=$use" "$names" >"$SCRATCH/extensions"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$directory/$name-key.pem" -out "$SCRATCH/request" 2>>"$SCRATCH/openssl.log"
    openssl x509 -req -in "$SCRATCH/request" -CA "$directory/ca-cert.pem" -CAkey "$directory/ca-key.pem" \
        -CAcreateserial -days 2 "$@" -extfile "$SCRATCH/extensions" \
        -out "$directory/$name-cert.pem" 2>>"$SCRATCH/openssl.log"
}

# The port of the daemon's first TCP address.
tcp_port() {
    sed -n 's/.*tcp:[0-9.]*:\([0-9]*\).*/\1/p' <<<"$READY"
}
