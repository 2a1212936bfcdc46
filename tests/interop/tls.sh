#!/bin/bash
# TLS for NBD over TCP, with other people's clients, and against those who want in without it.
. "$(dirname "$0")/lib.sh"

served=$SCRATCH/served hosts=$SCRATCH/hosts stranger=$SCRATCH/stranger
new_authority "$served"
new_certificate "$served" server
new_certificate "$served" client
new_certificate "$served" client-expired -days -1
new_certificate "$served" client-revoked
new_authority "$stranger"
new_certificate "$stranger" client
new_certificate "$stranger" server-stranger

# A list of what is revoked, as an authority would keep it.
cat >"$SCRATCH/ca.conf" <<CONF
[ca]
default_ca = authority
[authority]
database = $SCRATCH/index
default_md = sha256
default_crl_days = 2
crlnumber = $SCRATCH/number
crl_extensions = extensions
[extensions]
authorityKeyIdentifier = keyid
CONF
echo 01 >"$SCRATCH/number"
: >"$SCRATCH/index"
revoke() {
    openssl ca -config "$SCRATCH/ca.conf" -cert "$served/ca-cert.pem" -keyfile "$served/ca-key.pem" "$@" \
        2>>"$SCRATCH/openssl.log"
}
revoke -revoke "$served/client-revoked-cert.pem"
revoke -gencrl -out "$served/ca-crl.pem"

# Server certificates that clients must not believe, and the good one, to be put in their place.
mkdir "$hosts"
cp "$served"/ca-{cert,key}.pem "$hosts"
HOST=DNS:elsewhere.example new_certificate "$hosts" server-elsewhere
new_certificate "$hosts" server-expired -days -1
mv "$stranger"/server-stranger-* "$hosts"
cp "$served"/server-{cert,key}.pem "$hosts"

new_pool pool --size 2G
thinctl create "$POOL/vol" --size 256M
random_file "$SCRATCH/first" 1
thinctl write "$POOL/vol" <"$SCRATCH/first"

# Who may come from elsewhere is said, or nobody may.
export THINPOOL_LOG=error
expect 2 "tls-certificates" thinctl serve "$POOL" --nbd tcp:0.0.0.0:0
expect 2 "no --nbd names a tcp" thinctl serve "$POOL" --nbd "unix:$SCRATCH/s" --tls-certificates "$served"
expect 3 "server-cert.pem: .*no such file" thinctl serve "$POOL" --nbd tcp:127.0.0.1:0 --tls-certificates "$SCRATCH"
cp -r "$served" "$SCRATCH/odd"
chmod 604 "$SCRATCH/odd/server-key.pem"
expect 2 "server-key.pem: everybody may use" \
    thinctl serve "$POOL" --nbd tcp:127.0.0.1:0 --tls-certificates "$SCRATCH/odd"
cp --remove-destination "$served/client-key.pem" "$SCRATCH/odd/server-key.pem"
expect 2 "server-key.pem: .*mismatch" thinctl serve "$POOL" --nbd tcp:127.0.0.1:0 --tls-certificates "$SCRATCH/odd"
unset THINPOOL_LOG

serve_nbd "$POOL" --nbd tcp:127.0.0.1:0 --tls-certificates "$served"
port=$(tcp_port)
vol="nbds://127.0.0.1:$port/vol?tls-certificates=$served"
"$PYTHON" "$TESTS/nbd/tls_attacks.py" "$port" "$SCRATCH" || fail "E12"

random_file "$SCRATCH/image" 64
truncate -s 256M "$SCRATCH/image"
nbdcopy --connections=4 "$SCRATCH/image" "$vol"
nbdcopy "$vol" "$SCRATCH/copy"
cmp "$SCRATCH/image" "$SCRATCH/copy" || fail "nbdcopy through TLS"
cmp "$SCRATCH/image" <(thinctl read "$POOL/vol") || fail "what nbdcopy wrote through TLS"
qemu-img compare --object "tls-creds-x509,id=tls,dir=$served,endpoint=client,verify-peer=yes" --image-opts \
    "driver=raw,file.filename=$SCRATCH/image" \
    "driver=raw,file.driver=nbd,file.host=127.0.0.1,file.port=$port,file.export=vol,file.tls-creds=tls" >/dev/null ||
    fail "qemu-img through TLS"
same "$(nbdinfo --json "$vol" | jq -r .TLS)" true "nbdinfo says it is TLS"
# The Unix socket is protected by its mode, and has none.
nbdinfo "$(uri vol)" >/dev/null

"$PYTHON" "$TESTS/nbd/conformance.py" "nbd://127.0.0.1:$port/vol" --tls "$served" --pid "$DAEMON" \
    --case "$(long request '')"
! grep -q 'PRIVATE KEY\|panicked' "$SCRATCH"/serve.*.log || fail "what must not be in the log is"
stop_daemon
verify "$POOL"
