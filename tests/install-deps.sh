#!/bin/sh
# Installs, by apt, what the build and the tests need and this machine lacks. Says nothing when all is there.
# PostgreSQL comes without a cluster of its own: the demo makes a private one. Services that come along are not
# started, Prometheus and nbd-server not at boot either: the tests run their own.
set -eu

packages="thin-provisioning-tools libnbd-bin python3-libnbd fio fuse3 postgresql-15 qemu-utils nbdkit
    prometheus zstd openssl groff-base binutils pkg-config e2fsprogs xfsprogs jq curl gcc g++ libc6-dev python3 util-linux mount procps"

# ublk-target is built with libublk, which reads the kernel's header with it.
packages="$packages libclang-dev"

# For the guard of the hot path, and the peers that `make bench` compares with.
packages="$packages valgrind nbd-server btrfs-progs"

# A browser (100 MB to download), for the page of --http.
packages="$packages chromium-headless-shell fonts-dejavu-core"

# For the tests in a guest (tests/guest), which are skipped elsewhere. Its kernel is not
# installed: tests/guest/boot/prepare downloads it.
if [ "$(uname -m)" = x86_64 ]; then
    packages="$packages qemu-system-x86 qemu-system-common busybox-static cpio kmod xz-utils
        dmsetup lvm2 nbd-client strace xfsprogs"
fi

installed() {
    dpkg-query -W -f='${Status}' "$1" 2>/dev/null | grep -q '^install ok installed$'
}

missing=
for package in $packages; do
    installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

command -v apt-get >/dev/null || { echo "missing, and no apt-get here:$missing" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || { echo "missing:$missing (run as root: apt-get install$missing)" >&2; exit 1; }

echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
case "$missing" in
    *postgresql*)
        if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
            mkdir -p /etc/postgresql-common
            echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
        fi
        ;;
esac
# Programs to run in tests, not services: Debian would start them with every boot.
for service in prometheus nbd-server; do
    case "$missing" in
        *"$service"*)
            unit=/etc/systemd/system/$service.service
            [ -e "$unit" ] || { mkdir -p "${unit%/*}" && ln -s /dev/null "$unit"; }
            ;;
    esac
done
# Asked before a service is started; 101 is no.
if [ ! -e /usr/sbin/policy-rc.d ]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
fi
apt-get update -q
# All of them, not only the missing: packages built from one source want one version, and apt would rather
# remove the one that is there than upgrade it unasked.
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends --no-remove -o Dpkg::Options::=--force-confold $packages
