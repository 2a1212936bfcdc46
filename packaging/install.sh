#!/bin/sh
# Installs the programs and what goes with them; `make install` runs it.
#
#   BIN=target/release PREFIX=/usr/local DESTDIR= packaging/install.sh
#
# BIN is where the programs were built. Man pages and completions come from the programs themselves.
set -eu
cd "$(dirname "$0")/.."

: "${BIN:?where the programs were built}" "${PREFIX:=/usr/local}" "${DESTDIR:=}"
umask 022

for program in thinctl thinpoold; do
    [ -x "$BIN/$program" ] || { echo "install: no $BIN/$program: run 'make build'" >&2; exit 1; }
done
to=$DESTDIR$PREFIX

install -d "$to/bin"
install -m 755 "$BIN/thinctl" "$BIN/thinpoold" "$to/bin"

"$BIN/thinctl" man --out "$to/share/man/man1"
completions() {
    install -d "$(dirname "$2")"
    "$BIN/thinctl" completions "$1" >"$2"
}
completions bash "$to/share/bash-completion/completions/thinctl"
completions zsh "$to/share/zsh/site-functions/_thinctl"
completions fish "$to/share/fish/vendor_completions.d/thinctl.fish"

install -d "$to/lib/systemd/system" "$to/lib/udev/rules.d"
for unit in packaging/systemd/*; do
    sed "s,@BINDIR@,$PREFIX/bin," "$unit" >"$to/lib/systemd/system/${unit##*/}"
done
install -m 644 packaging/udev/*.rules "$to/lib/udev/rules.d"

install -d "$to/share/thinpool/dashboards"
install -m 644 dashboards/README.md dashboards/thinpool.json dashboards/*.yml "$to/share/thinpool/dashboards"

install -d "$to/share/doc/thinpool"
install -m 644 README.md ARCHITECTURE.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$to/share/doc/thinpool"
