#!/bin/bash
# The units, as installed, under a systemd of their own: a pool that the first command starts, mounts that
# everybody sees though the daemon is shut in, what outlives a restart, a kill and a hang, a machine that is
# shut down while all is mounted and busy, and one that finds it all again.
# guest: --qemu --timeout 900 --memory 3G
. "$(dirname "$0")/lib.sh"
requires systemctl systemd-run dbus-daemon setpriv unshare nsenter mkfs.ext4 e2fsck jq
SYSTEMD=/lib/systemd/systemd
[ -x $SYSTEMD ] || skip "needs $SYSTEMD (apt-get install systemd)"
modprobe -a ublk_drv loop fuse
# Where they are in the installed system.
unset THINPOOL_RUNTIME_DIR THINPOOL_LINK_DIR

POOL=/srv/pool
UNIT=thinpoold@srv-pool.service
BIN=$(dirname "$(realpath "$THINCTL")") PREFIX=/usr/local "$TESTS/../packaging/install.sh"
THINCTL=/usr/local/bin/thinctl

# Process 1 of a container, with this machine's kernel and devices. Mounts are shared, as systemd makes them
# where it is not in a container.
boot() {
    rm -rf /run/systemd /run/thinpool
    # One empties /tmp, the other reads all man pages: with that, the guest's file server has more files open
    # than it may.
    mkdir -p /run/systemd/system
    for unit in systemd-tmpfiles-setup.service timers.target; do
        ln -s /dev/null /run/systemd/system/$unit
    done
    env -i container=test PATH="$PATH" unshare --fork --pid --mount --mount-proc --kill-child \
        sh -c 'mount --make-rshared / && exec "$@"' sh $SYSTEMD --system --unit=basic.target </dev/null >"$SCRATCH/systemd.out" 2>&1 &
    MACHINE=$!
    undo "kill -KILL $MACHINE"
    undo journal
    until INIT=$(pgrep -P $MACHINE) && inside systemctl is-system-running --quiet 2>/dev/null ||
        [ "$(inside systemctl is-system-running 2>/dev/null)" = degraded ]; do
        kill -0 $MACHINE || fail "systemd ended: $(tail -n 20 "$SCRATCH/systemd.out")"
        sleep 1
    done
}

# inside COMMAND...: as a user of the machine.
inside() {
    nsenter -t "$INIT" -m -p -- "$@"
}

shows() {
    inside systemctl show --value -p "$1" $UNIT
}

# What the machine has to say when a test fails.
journal() {
    [ "$status" -eq 0 ] || inside journalctl --no-pager -n 60 >"$SCRATCH/journal.log"
}

# An attribute of the daemon's process, by the name that it has in /proc.
daemon_proc() {
    inside cat "/proc/$(shows MainPID)/$1"
}

# until_served: the daemon is (again) what answers.
until_served() {
    local tries=0
    until [ "$(shows ActiveState)" = active ]; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || fail "not active: $(inside systemctl status $UNIT)"
        sleep 1
    done
}

device_of() {
    inside readlink "/dev/thin/pool/$1"
}

# what_is_in FILE: read from the file system, not from memory.
what_is_in() {
    inside dd if="$1" iflag=direct bs=4096 status=none | tr -d '\0'
}

mount -t tmpfs -o size=1500M srv /srv
mkdir -p /mnt/vol /mnt/other /mnt/fuse /mnt/by-unit
thinctl init $POOL --size 1G
boot

echo "== the first command starts the daemon"
inside systemctl enable $UNIT 2>"$SCRATCH/enable"
inside systemctl is-enabled thinpoold@srv-pool.socket
inside systemctl start thinpoold@srv-pool.socket
same "$(shows ActiveState)" inactive "before anybody asks"
for volume in vol other idle fuse; do
    inside "$THINCTL" create $POOL/$volume --size 64M
done
same "$(shows ActiveState)" active "afterwards"
same "$(shows StatusText)" "serving $POOL" "status"

echo "== it is shut in"
daemon_proc status >"$SCRATCH/status"
grep -q "^NoNewPrivs:.*1" "$SCRATCH/status" || fail "new privileges"
# SYS_ADMIN 21, SYS_RESOURCE 24, IPC_LOCK 14, SYS_PTRACE 19, DAC_READ_SEARCH 2.
same "$(awk '/^CapBnd/ { print $2 }' "$SCRATCH/status")" 0000000001284004 "capabilities"
daemon_proc mountinfo >"$SCRATCH/mountinfo"
awk '$5 == "/" && $6 ~ /^ro/ { found = 1 } END { exit !found }' "$SCRATCH/mountinfo" || fail "it may write anywhere"

echo "== mounts are everybody's"
for volume in vol other; do
    inside "$THINCTL" attach $POOL/$volume --ublk >"$SCRATCH/device"
    inside mkfs.ext4 -q -F -E nodiscard "$(cat "$SCRATCH/device")"
done
inside "$THINCTL" detach $POOL/vol
inside "$THINCTL" attach $POOL/vol --ublk --mount /mnt/vol --persist >"$SCRATCH/device" 2>"$SCRATCH/err" ||
    fail "attach: $(cat "$SCRATCH/err")"
[ ! -s "$SCRATCH/err" ] || fail "attach said: $(cat "$SCRATCH/err")"
inside mountpoint -q /mnt/vol || fail "only the daemon sees the mount"
expect 5 "busy|use" inside "$THINCTL" rm $POOL/vol
inside mount "$(device_of other)" /mnt/other
until [ "$(cat /sys/block/ublkb*/queue/io_timeout | sort -u)" = 1000 ]; do
    [ "$(shows ActiveState)" = active ] || fail "the daemon ended"
    sleep 0.2
done
inside "$THINCTL" attach $POOL/idle --ublk --persist >"$SCRATCH/device"
inside sh -c "echo first >/mnt/vol/first"
inside "$THINCTL" attach $POOL/fuse --fuse >"$SCRATCH/device"
inside mkfs.ext4 -q "$(cat "$SCRATCH/device")"
inside "$THINCTL" detach $POOL/fuse
inside "$THINCTL" attach $POOL/fuse --fuse --mount /mnt/fuse >"$SCRATCH/device"
inside sh -c "echo loop >/mnt/fuse/file"
same "$(inside cat /mnt/fuse/file)" loop "a file through FUSE"
inside "$THINCTL" detach $POOL/fuse
! inside mountpoint -q /mnt/fuse || fail "still mounted"

echo "== who merely has a device open is seen"
idle=$(device_of idle)
{ inside setpriv --reuid=65534 --clear-groups sleep 1000 9<"$idle" || true; } &
holder=$!
until inside pgrep -u 65534 -x sleep >"$SCRATCH/holder"; do sleep 0.2; done
expect 5 "open in" inside "$THINCTL" detach $POOL/idle
inside kill "$(cat "$SCRATCH/holder")"
wait $holder || true

echo "== restart"
before="$(device_of vol) $(device_of idle)"
inside systemctl restart $UNIT
until_served
same "$(device_of vol) $(device_of idle)" "$before" "devices after a restart"
same "$(what_is_in /mnt/vol/first)" first "the file after a restart"

echo "== kill"
inside sync -f /mnt/vol
inside sync -f /mnt/other
restarts=$(shows NRestarts)
inside systemctl kill --kill-whom=main --signal=KILL $UNIT
same "$(what_is_in /mnt/vol/first)" first "the file after a kill"
until_served
[ "$(shows NRestarts)" -gt "$restarts" ] || fail "it was not restarted"
same "$(device_of vol) $(device_of idle)" "$before" "devices after a kill"

echo "== hang"
mkdir -p "/run/systemd/system/$UNIT.d"
inside mkdir -p "/run/systemd/system/$UNIT.d"
printf '[Service]\nWatchdogSec=8\n' | inside tee "/run/systemd/system/$UNIT.d/watchdog.conf" >"$SCRATCH/tee"
inside systemctl daemon-reload
inside systemctl restart $UNIT
until_served
inside sync -f /mnt/vol
inside sync -f /mnt/other
restarts=$(shows NRestarts)
inside systemctl kill --kill-whom=main --signal=STOP $UNIT
same "$(what_is_in /mnt/vol/first)" first "the file after a hang"
until_served
[ "$(shows NRestarts)" -gt "$restarts" ] || fail "it was not restarted"

echo "== shut down while all is mounted"
inside sh -c "head -c 4M /dev/urandom >/mnt/vol/last; head -c 4M /dev/urandom >/mnt/other/last"
sums=$(inside sha256sum /mnt/vol/last /mnt/other/last)
inside systemctl poweroff
wait $MACHINE || true
for block in /sys/block/ublkb*; do
    [ ! -e "$block" ] || fail "$block is left"
done
verify $POOL

echo "== started again"
boot
inside systemctl start $UNIT
inside mountpoint -q /mnt/vol || fail "what is persistent is not mounted"
[ -b "$(device_of idle)" ] || fail "what is persistent is not attached"
[ -z "$(device_of other)" ] || fail "what is not persistent is attached"
inside "$THINCTL" attach $POOL/other --ublk --mount /mnt/other >"$SCRATCH/device"
same "$(inside sha256sum /mnt/vol/last /mnt/other/last)" "$sums" "the files"
! dmesg | grep -E "EXT4-fs .*(recovery|orphan|error|warning)|I/O error" || fail "a file system was not unmounted"
for volume in vol other idle; do
    inside "$THINCTL" detach $POOL/$volume
done
[ ! -e $POOL/attachments.toml ] || fail "something is persistent still"

echo "== a unit that attaches and mounts"
attach_unit=thinpool-attach@srv-pool-by\\x2dunit.service
same "$(inside systemd-escape --path --template thinpool-attach@.service $POOL/by-unit)" "$attach_unit" "the unit"
inside mkdir -p "/run/systemd/system/$attach_unit.d"
printf '[Service]\nEnvironment="ATTACH_OPTIONS=--ublk --mount /mnt/by-unit --mkfs ext4"\n' |
    inside tee "/run/systemd/system/$attach_unit.d/options.conf" >"$SCRATCH/tee"
inside systemctl daemon-reload
inside "$THINCTL" create $POOL/by-unit --size 64M
inside systemctl stop thinpoold@srv-pool.socket $UNIT
inside systemctl start "$attach_unit"
until_served
inside mountpoint -q /mnt/by-unit || fail "not mounted"
inside sh -c "echo kept >/mnt/by-unit/file"
inside systemctl restart $UNIT
until_served
same "$(what_is_in /mnt/by-unit/file)" kept "the file after a restart of the daemon"
inside systemctl stop "$attach_unit"
! inside mountpoint -q /mnt/by-unit || fail "still mounted"
[ -z "$(device_of by-unit)" ] || fail "still attached"
[ ! -e $POOL/attachments.toml ] || fail "something is persistent still"
# What is attached already stays as it is.
inside "$THINCTL" attach $POOL/by-unit --ublk --mount /mnt/by-unit >"$SCRATCH/device"
inside systemctl start "$attach_unit"
same "$(inside cat /mnt/by-unit/file)" kept "the file"
inside systemctl stop "$attach_unit"
inside systemctl stop thinpoold@srv-pool.socket $UNIT
verify $POOL
