#!/bin/bash
# The page of --http, in a real browser: it says what thinctl says, while the pool is written and afterwards, asks
# nobody else, and survives its daemon. Its pictures are kept beside the logs: http-*.png.
. "$(dirname "$0")/lib.sh"

: "${LOGS:=$SCRATCH}"

# answer PATH [curl option...]: the status of an answer.
answer() {
    local path=$1
    shift
    curl -s -o /dev/null -w '%{http_code}' "$@" "http://$ADDRESS$path"
}

# Writes a volume again and again.
write_on() {
    while true; do
        qemu-io -f raw -c 'write -P 5 0 1M' -c 'read 0 1M' "$(uri prod)" >>"$SCRATCH/writer.log" 2>&1 || return
    done
}

new_pool pool --size 64M
thinctl create "$POOL/prod" --size 64M
serve_nbd "$POOL" --http 127.0.0.1:0
ADDRESS=$(sed -n 's/.*http=\([0-9.]*:[0-9]*\).*/\1/p' <<<"$READY")
[ -n "$ADDRESS" ] || fail "no http address in: $READY"
qemu-io -f raw -c 'write -P 1 0 8M' -c flush "$(uri prod)" >/dev/null
thinctl create-snap "$POOL/prod@monday"
thinctl clone "$POOL/prod@monday" "$POOL/dev"
thinctl create "$POOL/other" --size 64M

same "$(answer /)" 200 "the page"
same "$(answer / -H 'Host: example.org')" 421 "the page by another name"
same "$(answer /api/status -H 'Host: localhost:8080')" 200 "through a tunnel"
same "$(answer /api/status -X POST)" 405 "a change"
same "$(answer '/api/history?pool=none')" 404 "a pool that is not served"
same "$(answer /assets/../Cargo.toml --path-as-is)" 404 "a file that is no asset"

mkfifo "$SCRATCH/orders"
exec 3<>"$SCRATCH/orders"
"$PYTHON" "$TESTS/interop/http_page.py" "$ADDRESS" "$POOL" "$LOGS" <&3 >"$SCRATCH/browser.out" 2>"$SCRATCH/browser.log" &
BROWSER=$!
undo "kill $BROWSER"

# said WORDS: waits until the browser has said so.
said() {
    local tries=0
    until grep -q "$1" "$SCRATCH/browser.out"; do
        kill -0 "$BROWSER" 2>/dev/null || fail "the browser's part ended: $(tail -n 5 "$SCRATCH/browser.log")"
        tries=$((tries + 1))
        [ $tries -lt 1200 ] || fail "the browser's part did not come to: $1"
        sleep 0.05
    done
}

write_on &
WRITER=$!
undo "kill $WRITER"
said busy
kill "$WRITER"
wait "$WRITER" || true
# Less than a tenth of the pool is free then.
qemu-io -f raw -c 'write -P 2 0 51M' -c flush "$(uri other)" >/dev/null
echo >&3
said "end it"
stop_daemon
said "start it"
serve_nbd "$POOL" --http "$ADDRESS"
wait "$BROWSER" || fail "the browser's part: $(tail -n 5 "$SCRATCH/browser.log")"
cat "$SCRATCH/browser.out"
stop_daemon
verify "$POOL"
