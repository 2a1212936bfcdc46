#!/bin/sh
# Makes a Debian package of programs that were built already; `make deb` runs it.
#
#   BIN=target/release OUT=target/debian packaging/deb.sh
#
# Prints the package's path. Needs dpkg-deb, gzip and binutils, and nothing from the network.
set -eu
cd "$(dirname "$0")/.."

: "${BIN:?where the programs were built}" "${OUT:?where the package goes}"
umask 022
export LC_ALL=C

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
architecture=$(dpkg --print-architecture)
# The C library that the programs need.
libc=$(objdump -T "$BIN/thinctl" "$BIN/thinpoold" | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
[ -n "$version" ] && [ -n "$libc" ] || { echo "deb: no version" >&2; exit 1; }

mkdir -p "$OUT"
root=$(mktemp -d "$OUT/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

BIN=$BIN PREFIX=/usr DESTDIR=$root packaging/install.sh
strip --strip-unneeded "$root/usr/bin/thinctl" "$root/usr/bin/thinpoold"
doc=$root/usr/share/doc/thinpool
# As Debian wants them.
install -m 644 packaging/debian/copyright "$doc/copyright"
rm "$doc/LICENSE-APACHE" "$doc/LICENSE-MIT"
mv "$doc/CHANGELOG.md" "$doc/changelog"
gzip -9n "$doc/changelog" "$root"/usr/share/man/man1/*.1
mv "$root/usr/share/zsh/site-functions" "$root/usr/share/zsh/vendor-completions"

install -d "$root/DEBIAN"
size=$(du -ks --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@LIBC@/$libc/" -e "s/@SIZE@/$size/" \
    packaging/debian/control >"$root/DEBIAN/control"
install -m 755 packaging/debian/postinst packaging/debian/prerm packaging/debian/postrm "$root/DEBIAN"
(cd "$root" && find usr -type f -exec md5sum {} + | sort -k 2 >DEBIAN/md5sums)

package=$OUT/thinpool_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$root" "$package" >&2
echo "$package"
