#!/bin/bash
# One random list of operations (write, discard, create, snapshot, clone, delete, resize) on the kernel's
# dm-thin and on ublk devices of a pool of ours, in one guest: equal contents, equal numbers of mapped and
# of allocated blocks, after every phase.
# guest: --disk 64M --disk 256M --timeout 900
. "$(dirname "$0")/lib.sh"
requires dmsetup thin_check
load ublk_drv

kernel_pool /dev/vda /dev/vdb
new_pool pool --size 256M
serve "$POOL"
$PYTHON "$GUEST/differential.py" --seed "$SEED" --phases "$(long 3 30)" --steps "$(long 200 400)" --pool "$POOL"
stop_daemon
verify "$POOL"
mapfile -t thins < <(dmsetup ls --target thin | cut -f1)
dmsetup remove --retry "${thins[@]}" pool
thin_check -q /dev/vda || fail "thin_check refuses the kernel's pool"
