#!/bin/bash
# Power cuts below a pool, as dm-log-writes sees them: its files lie on an ext4 whose device logs every write and every
# flush. Then the device is put together again as it was at some point of that log, with some of the writes since
# the last flush missing or torn, and the pool on it must open and hold what had been flushed.
# guest: --disk 192M --disk 192M --disk 2G --timeout 3000 --memory 2G
. "$(dirname "$0")/lib.sh"
requires mkfs.ext4 dmsetup jq
load dm-log-writes dm-snapshot loop

steps=240 points=10
if [ -n "${LONG:-}" ]; then
    steps=2000 points=300
fi
size=$(blockdev --getsz /dev/vda)
dmsetup create logged --table "0 $size log-writes /dev/vda /dev/vdc"
undo dmsetup remove --retry logged
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/logged
mkdir "$SCRATCH/disk"
mount /dev/mapper/logged "$SCRATCH/disk"
undo umount "$SCRATCH/disk"
POOL=$SCRATCH/disk/pool
thinctl init "$POOL" --size 64M --metadata-size 4M
thinctl create "$POOL/vol" --size 24M
sync -f "$POOL"
$PYTHON "$GUEST/log_writes.py" drive "$POOL" "$SCRATCH" --seed "$SEED" --steps $steps
umount "$SCRATCH/disk"
dmsetup remove --retry logged

# The last state, then others.
$PYTHON "$GUEST/log_writes.py" replay "$POOL" "$SCRATCH" --seed "$SEED" --points $points \
    --log /dev/vdc --target /dev/vdb
