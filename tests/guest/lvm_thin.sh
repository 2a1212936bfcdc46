#!/bin/bash
# A thin pool made by LVM is adopted as its owner would do it, is used, and is given back to LVM.
#
# LVM activates a pool's parts by themselves read only, and refuses to activate the pool as long as
# they are active: just the lock that is needed. What it does not offer is to make them writable;
# device-mapper does, on the devices that LVM made.
#
# LVM compares the pool's transaction id with its own record. It is unchanged as long as we make and
# delete nothing; after that, LVM's record has to be corrected.
# guest: --disk 1G --timeout 600
. "$(dirname "$0")/lib.sh"
requires lvm dmsetup nbd-client thin_check jq

# No udev here, nor daemons; the machine's own configuration is not ours to use. LVM does not know the
# disks of user-mode Linux by itself.
export LVM_SYSTEM_DIR=$SCRATCH/lvm
mkdir "$LVM_SYSTEM_DIR"
cat >"$LVM_SYSTEM_DIR/lvm.conf" <<'END'
devices { use_devicesfile=0 types=["ubd", 16] }
activation { udev_sync=0 udev_rules=0 monitoring=0 }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 }
END
lvm_quietly() {
    lvm "$@" >"$SCRATCH/lvm.log" 2>&1 || fail "lvm $*: $(cat "$SCRATCH/lvm.log")"
}
load dm-thin-pool
undo lvm vgchange -an vg

# A pool with data, a snapshot, shared blocks overwritten.
lvm_quietly vgcreate vg /dev/vda
lvm_quietly lvcreate --yes --type thin-pool --size 512M --chunksize 64k --name pool vg
lvm_quietly lvcreate --yes --virtualsize 24M --thinpool vg/pool --name root
lvm_quietly lvcreate --yes --virtualsize 16M --thinpool vg/pool --name home
scribble /dev/vg/root root
scribble /dev/vg/home home
lvm_quietly lvcreate --yes --setactivationskip n --snapshot --name nightly vg/root
copied root nightly
scribble /dev/vg/root root 30 8
lvm_quietly vgchange -an vg

POOL=$SCRATCH/pool
volumes=()
while read -r name id size; do
    [ -z "$id" ] || volumes+=(--volume "$id:$name:$size")
done < <(lvm lvs --noheadings --nosuffix --units b -o lv_name,thin_id,lv_size vg | awk 'NF == 3 && $1 !~ /^\[/')
same ${#volumes[@]} 6 "thin volumes that LVM lists"

# Looking is possible with what LVM offers.
for part in tmeta tdata; do
    lvm_quietly lvchange --yes -ay vg/pool_$part
done
thinctl adopt "$SCRATCH/look" --metadata /dev/vg/pool_tmeta --data /dev/vg/pool_tdata "${volumes[@]}" --read-only
ours_hold "$SCRATCH/look"
expect 7 "read.only" thinctl create "$SCRATCH/look/new" --size 1M

# Working in it takes writable parts.
writable_parts() {
    local part
    for part in tmeta tdata; do
        lvm_quietly lvchange --yes -ay vg/pool_$part
        dmsetup table vg-pool_$part | dmsetup load vg-pool_$part
        dmsetup resume vg-pool_$part
    done
}
writable_parts
thinctl adopt "$POOL" --metadata /dev/vg/pool_tmeta --data /dev/vg/pool_tdata "${volumes[@]}"
ours_hold "$POOL"
verify "$POOL" /dev/vg/pool_tmeta
serve_blocks "$POOL"
attach root
scribble "$BLOCK" root 30 8
attach nightly
scribble "$BLOCK" nightly 20 4
must_fail lvm vgchange -ay vg
must_fail lvm lvchange -ay vg/root
end_blocks
verify "$POOL" /dev/vg/pool_tmeta
ours_hold "$POOL"

# Contents have changed, devices have not: LVM takes it back as it is.
lvm_quietly lvchange -an vg/pool_tmeta vg/pool_tdata
lvm_quietly vgchange -ay vg
for name in root home nightly; do
    holds /dev/vg/$name $name
done
expect 5 "in use" thinctl ls "$POOL"
scribble /dev/vg/home home 20 4
lvm_quietly vgchange -an vg

# Ours made and deleted a device: LVM refuses, says by how much, and works when its record agrees.
# What it does not know must be deleted first: its next volume would get an id that is taken, and
# with it the contents.
writable_parts
thinctl create-snap "$POOL/home@ours"
thinctl rm "$POOL/home@ours"
ours_hold "$POOL"
verify "$POOL" /dev/vg/pool_tmeta
transaction=$(thinctl info "$POOL" --json | jq .transaction_id)
lvm_quietly lvchange -an vg/pool_tmeta vg/pool_tdata
lvm vgchange -ay vg >"$SCRATCH/refused" 2>&1 || true
grep -q "transaction_id is $transaction, while expected" "$SCRATCH/refused" ||
    fail "LVM said: $(cat "$SCRATCH/refused")"
lvm_quietly vgchange -an vg
lvm_quietly vgcfgbackup --file "$SCRATCH/vg" vg
sed -i "/^\t\tpool {/,/^\t\t}/s/transaction_id = .*/transaction_id = $transaction/" "$SCRATCH/vg"
lvm_quietly vgcfgrestore --yes --force --file "$SCRATCH/vg" vg
lvm_quietly vgchange -ay vg
for name in root home nightly; do
    holds /dev/vg/$name $name
done
lvm_quietly lvcreate --yes --virtualsize 8M --thinpool vg/pool --name new
truncate -s 8M "$IMAGES/new"
holds /dev/vg/new new
lvm_quietly vgchange -an vg
