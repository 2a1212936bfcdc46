#!/bin/bash
# What `make install` and the Debian package bring, of the binaries that the other tests use: every file,
# man pages without a warning, completions that complete, units that systemd accepts, a package that dpkg
# installs, lists and removes.
. "$(dirname "$0")/lib.sh"

SOURCE=$(cd "$TESTS/.." && pwd)
BUILT=$(cd "$(dirname "$THINCTL")" && pwd)
ROOT=$SCRATCH/root

# installed ROOT PREFIX: what is installed there, by name.
installed() {
    (cd "$1$2" && find . -type f | sed 's,^\./,,' | sort)
}

echo "== make install"
make -s -C "$SOURCE" install BIN="$BUILT" PREFIX=/opt/thin DESTDIR="$ROOT"
installed "$ROOT" /opt/thin >"$SCRATCH/installed"
{
    printf '%s\n' bin/thinctl bin/thinpoold share/bash-completion/completions/thinctl \
        share/zsh/site-functions/_thinctl share/fish/vendor_completions.d/thinctl.fish \
        lib/systemd/system/{thinpoold@.service,thinpoold@.socket,thinpool-attach@.service} lib/udev/rules.d/55-thinpool.rules \
        share/doc/thinpool/{README.md,ARCHITECTURE.md,CHANGELOG.md,LICENSE-MIT,LICENSE-APACHE} \
        share/thinpool/dashboards/{README.md,thinpool.json,alerts.yml,alerts_test.yml} \
        share/man/man1/thinpoold.1 share/man/man1/thinctl.1
    # A page for each command that the tool's help lists.
    thinctl help | sed -n '/^Commands:/,/^$/s/^  \([a-z-]*\) .*/\1/p' |
        sed 's,.*,share/man/man1/thinctl-&.1,'
} | sort >"$SCRATCH/expected"
diff "$SCRATCH/expected" "$SCRATCH/installed" || fail "other files are installed than expected"
[ "$(grep -c man1 "$SCRATCH/expected")" -gt 20 ] || fail "the help lists few commands"
same "$(stat -c %a "$ROOT/opt/thin/bin/thinpoold")" 755 "the daemon's mode"
same "$("$ROOT/opt/thin/bin/thinpoold" --version)" "$("$THINPOOLD" --version)" "the daemon"
must_fail make -s -C "$SOURCE" install BIN="$SCRATCH" DESTDIR="$SCRATCH/none"
grep -q "make build" "$SCRATCH/must_fail.out" || fail "it is not said what to do"

echo "== man pages"
for page in "$ROOT"/opt/thin/share/man/man1/*.1; do
    groff -t -man -Tutf8 -P-cbou -ww "$page" >"$SCRATCH/page" 2>"$SCRATCH/page.err"
    [ ! -s "$SCRATCH/page.err" ] || fail "${page##*/}: $(cat "$SCRATCH/page.err")"
    grep -q "^NAME$" "$SCRATCH/page" || fail "${page##*/} is empty"
done
groff -man -Tascii -P-cbou "$ROOT/opt/thin/share/man/man1/thinctl-attach.1" >"$SCRATCH/page"
grep -q -- --persist "$SCRATCH/page" || fail "an option is not in its man page"

echo "== completions"
# completed WORD...: what bash offers for the last word.
completed() {
    bash --norc -c '
        . "$0"
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
        "$(complete -p thinctl | sed "s/.* -F \([^ ]*\) .*/\1/")" thinctl "${COMP_WORDS[COMP_CWORD]}" \
            "${COMP_WORDS[COMP_CWORD - 1]}"
        echo "${COMPREPLY[@]}"' "$ROOT/opt/thin/share/bash-completion/completions/thinctl" "$@"
}
same "$(completed thinctl create-)" create-snap "completion of a command"
same "$(completed thinctl attach --pers)" --persist "completion of an option"

echo "== units"
units=$ROOT/opt/thin/lib/systemd/system
grep -q "^ExecStart=/opt/thin/bin/thinpoold " "$units/thinpoold@.service" || fail "the unit runs another daemon"
! grep -rn '@[A-Z]*@' "$units" || fail "something was not filled in"
if command -v systemd-analyze >/dev/null; then
    # As systemd would find them, the program too.
    mkdir "$SCRATCH/units"
    for unit in "$units"/*; do
        sed "s,/opt/thin,$ROOT/opt/thin," "$unit" >"$SCRATCH/units/${unit##*/}"
    done
    systemd-analyze verify --man=no "$SCRATCH"/units/thinpoold@srv-pool.{service,socket} \
        "$SCRATCH"/units/thinpool-attach@srv-pool-db.service >"$SCRATCH/verify" 2>&1 ||
        fail "systemd-analyze: $(cat "$SCRATCH/verify")"
    [ ! -s "$SCRATCH/verify" ] || fail "systemd-analyze: $(cat "$SCRATCH/verify")"
else
    echo "SKIPPED systemd-analyze: not installed"
fi

echo "== Debian package"
if ! command -v dpkg-deb >/dev/null; then
    echo "SKIPPED: no dpkg-deb"
    exit 0
fi
package=$(BIN=$BUILT OUT=$SCRATCH/deb "$SOURCE/packaging/deb.sh")
same "$(ls "$SCRATCH/deb")" "${package##*/}" "what is left beside the package"
same "$(dpkg-deb -f "$package" Package Version)" "Package: thinpool
Version: $("$THINCTL" --version | cut -d' ' -f2)" "the package"
same "$(dpkg-deb -c "$package" | awk '{ print $2 }' | sort -u)" root/root "who owns the files"
for script in postinst prerm postrm; do
    dpkg-deb --ctrl-tarfile "$package" | tar -xO "./$script" | sh -n || fail "$script"
done

debian=$SCRATCH/debian
mkdir -p "$debian/var/lib/dpkg/"{updates,info,triggers} "$debian/tmp"
touch "$debian/var/lib/dpkg/status"
# dpkg_in ARGUMENTS: in a root of its own, of which it is told that it is one.
dpkg_in() {
    dpkg --root="$debian" --force-depends --force-script-chrootless --log="$SCRATCH/dpkg" "$@"
}
dpkg_in -i "$package" >"$SCRATCH/dpkg.log" 2>&1 || fail "dpkg -i: $(cat "$SCRATCH/dpkg.log")"
same "$(dpkg-query --admindir="$debian/var/lib/dpkg" -W -f='${Status}' thinpool)" "install ok installed" "status"
(cd "$debian" && md5sum --quiet -c var/lib/dpkg/info/thinpool.md5sums) || fail "files differ from their sums"
dpkg-query --admindir="$debian/var/lib/dpkg" -L thinpool >"$SCRATCH/listed"
for file in usr/bin/thinctl usr/bin/thinpoold usr/lib/systemd/system/thinpoold@.{service,socket} \
    usr/lib/systemd/system/thinpool-attach@.service usr/lib/udev/rules.d/55-thinpool.rules usr/share/man/man1/thinpoold.1.gz \
    usr/share/bash-completion/completions/thinctl usr/share/zsh/vendor-completions/_thinctl \
    usr/share/thinpool/dashboards/{README.md,thinpool.json,alerts.yml,alerts_test.yml} \
    usr/share/doc/thinpool/{copyright,changelog.gz,README.md}; do
    grep -qx "/$file" "$SCRATCH/listed" || fail "$file is not listed"
    [ -s "$debian/$file" ] || fail "$file is not there"
done
grep -q "^ExecStart=/usr/bin/thinpoold " "$debian/usr/lib/systemd/system/thinpoold@.service" || fail "ExecStart"
same "$("$debian/usr/bin/thinctl" --version)" "$("$THINCTL" --version)" "the stripped tool"
# It works: a pool, made and served by what was installed.
"$debian/usr/bin/thinctl" init "$SCRATCH/pool" --size 64M
THINCTL=$debian/usr/bin/thinctl serve "$SCRATCH/pool"
"$debian/usr/bin/thinctl" create "$SCRATCH/pool/vol" --size 1M
stop_daemon
dpkg_in --purge thinpool >"$SCRATCH/dpkg.log" 2>&1 || fail "dpkg --purge: $(cat "$SCRATCH/dpkg.log")"
[ ! -e "$debian/usr/bin/thinctl" ] && [ ! -e "$debian/usr/share/doc/thinpool" ] || fail "files are left"
