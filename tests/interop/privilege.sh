#!/bin/bash
# Who may do what: modes at umask 0, names, links and files put in the way, other users at the sockets, core dumps,
# logs. Every case is an attempt to get further than one may; the last line counts them.
. "$(dirname "$0")/lib.sh"
export THINPOOL_LOG=error
cases=0 escapes=0

# attempt WHAT command...: fails the case if the command succeeds.
attempt() {
    local what=$1
    shift
    cases=$((cases + 1))
    if "$@" >"$SCRATCH/attempt.out" 2>&1; then
        escapes=$((escapes + 1))
        echo "ESCAPE: $what" >&2
    fi
}

differs() {
    [ "$1" != "$2" ]
}

as_nobody() {
    setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
}

# Connects to a socket and waits for a byte that is sent unasked or for an answer to a request.
talk() {
    "$PYTHON" - "$1" "$2" <<'SCRIPT'
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(60)
sock.connect(sys.argv[1])
sock.sendall(sys.argv[2].encode())
sys.exit(not sock.recv(1))
SCRIPT
}
status_request=$'GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n'

# Whatever is made with a umask of 0 is nobody else's to write, and the pool's files nobody else's to read.
chmod 755 "$SCRATCH"
umask 0
POOL=$SCRATCH/pool
thinctl init "$POOL" --size 64M
chmod 755 "$POOL"
thinctl create "$POOL/vol" --size 16M
head -c 65536 /dev/zero | tr '\0' s | thinctl write "$POOL/vol"
mkdir -m 755 "$SCRATCH/sockets"
ulimit -c unlimited
SOCKET=$SCRATCH/sockets/nbd.sock
serve "$POOL" --nbd "unix:$SOCKET"
thinctl create "$POOL/while" --size 1M
attempt "a file that everybody may write" \
    differs "" "$(find "$POOL" "$SCRATCH/sockets" "$THINPOOL_RUNTIME_DIR" -perm /002 ! -type l ! -path "$THINPOOL_RUNTIME_DIR")"
attempt "a file of the pool that others may read" differs "" "$(find "$POOL" -mindepth 1 -perm /077)"
umask 022
attempt "the mode of the NBD socket" differs 660 "$(stat -c %a "$SOCKET")"
attempt "the mode of the control socket" differs 600 "$(stat -c %a "$POOL/control.sock")"
attempt "core dumps" differs 0 "$(awk '/core file/ {print $5}' "/proc/$DAEMON/limits")"

# Other users get nothing from the sockets, even where somebody has opened their modes.
talk "$POOL/control.sock" "$status_request" || fail "the owner is not answered"
attempt "another user at the control socket" as_nobody bash -c "$(declare -f talk); PYTHON=$PYTHON; talk $POOL/control.sock x"
attempt "another user at the NBD socket" as_nobody bash -c "$(declare -f talk); PYTHON=$PYTHON; talk $SOCKET x"
attempt "another user and the data" as_nobody cat "$POOL/data"
chmod 666 "$POOL/control.sock"
attempt "another user at an open control socket" \
    as_nobody bash -c "$(declare -f talk); PYTHON=$PYTHON; talk $POOL/control.sock '$status_request'"
chmod 600 "$POOL/control.sock"

# Names are names: never a path, an option, or another name in disguise.
long=$(printf 'x%.0s' {1..300})
thinctl create --size 1M -- "$POOL/a.b_c+d-e" && thinctl rm -- "$POOL/a.b_c+d-e"
for name in .. . ../x a/b /etc/passwd -rf --help .hidden +x 'a b' $'a\nb' $'a\tb' 'a%2fb' 'a\b' '$(id)' '*' \
    "${long:0:128}" "${long:0:255}" "$long" $'\u0430dmin' $'a\u200b' $'e\u0301' $'\u202eabc' @ a@ @b a@b@c; do
    attempt "the name $name" thinctl create --size 1M -- "$POOL/$name"
    attempt "the name $name in a rename" thinctl rename -- "$POOL/vol" "$POOL/$name"
    attempt "the export $name" nbdinfo --size "nbd+unix:///$(jq -rn --arg n "$name" '$n | @uri')?socket=$SOCKET"
done
attempt "a name in a call with a NUL" curl -sf --unix-socket "$POOL/control.sock" "http://x/v1/read?device=a%00b"
attempt "a path in a call" curl -sf --unix-socket "$POOL/control.sock" "http://x/v1/read?device=..%2f..%2fetc"
attempt "names that came to be" differs "vol while" "$(thinctl ls --json "$POOL" | jq -r '.[].name' | sort | xargs)"

# What is in the place of a socket and not ours stays, whatever it is.
cp -a "$POOL" "$SCRATCH/second"
sed -i 's/^uuid = .*/uuid = "second"/' "$SCRATCH/second/pool.toml"
in_the_way() {
    attempt "a socket in the place of $1" \
        timeout 60 "$THINCTL" serve "$SCRATCH/second" --nbd "unix:$SCRATCH/sockets/taken"
}
rm -f "$SCRATCH/second/control.sock"
echo precious >"$SCRATCH/precious"
cp "$SCRATCH/precious" "$SCRATCH/sockets/taken"
in_the_way "a file"
attempt "the file" differs precious "$(cat "$SCRATCH/sockets/taken")"
rm "$SCRATCH/sockets/taken"
ln -s "$SCRATCH/precious" "$SCRATCH/sockets/taken"
in_the_way "a link"
attempt "what the link leads to" differs precious "$(cat "$SCRATCH/precious")"
rm "$SCRATCH/sockets/taken"
ln "$SCRATCH/precious" "$SCRATCH/sockets/taken"
in_the_way "a hard link"
attempt "the other name" differs precious "$(cat "$SCRATCH/precious")"
rm "$SCRATCH/sockets/taken"
mkdir "$SCRATCH/sockets/taken"
in_the_way "a directory"
rmdir "$SCRATCH/sockets/taken"
"$PYTHON" -c "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])" "$SCRATCH/sockets/taken"
chown 65534 "$SCRATCH/sockets/taken"
in_the_way "another user's socket"
attempt "another user's socket" differs 65534 "$(stat -c %u "$SCRATCH/sockets/taken" 2>&1)"
rm "$SCRATCH/sockets/taken"
attempt "a socket in use" timeout 60 "$THINCTL" serve "$SCRATCH/second" --nbd "unix:$SOCKET"
nbdinfo --size "$(uri vol)" >/dev/null || fail "the first server lost its socket"
attempt "what was left in the folder" differs nbd.sock "$(ls -A "$SCRATCH/sockets")"
rm -f "$SCRATCH/second/control.sock"
echo precious >"$SCRATCH/second/control.sock"
attempt "a file in the place of the control socket" timeout 60 "$THINCTL" serve "$SCRATCH/second"
attempt "that file" differs precious "$(cat "$SCRATCH/second/control.sock")"
rm "$SCRATCH/second/control.sock"

# A socket that was replaced while we served is the new owner's.
mv "$SOCKET" "$SCRATCH/aside"
echo other >"$SOCKET"
stop_daemon
attempt "what replaced our socket" differs other "$(cat "$SOCKET")"

# Directories that strangers may change are not used: there, a link could be put in the place of a file at any time.
for mode in 777 757 1777; do
    chmod "$mode" "$POOL"
    attempt "a directory of mode $mode" thinctl info "$POOL"
done
chmod 700 "$POOL"
chown 65534 "$POOL"
attempt "a directory of another user" thinctl info "$POOL"
chown 0 "$POOL"
before=$(stat -c '%a %s' /etc/passwd)
ln -sf /etc/passwd "$POOL/pool.toml.new"
thinctl info "$POOL" >/dev/null
attempt "a link in the pool" differs "$before" "$(stat -c '%a %s' /etc/passwd)"
rm "$POOL/pool.toml.new"

# Logs have no contents of volumes.
attempt "contents in the log" grep -q sssss "$SCRATCH"/serve.*.log

verify "$POOL"
echo "{\"name\": \"E11 privilege\", \"cases\": $cases, \"escapes\": $escapes}"
[ "$escapes" -eq 0 ]
