#!/bin/bash
# One random list of operations on the kernel's dm-thin and on a pool of ours, in one guest: equal
# contents, equal numbers of mapped and of allocated blocks, after every phase.
# guest: --disk 64M --disk 256M --timeout 900
. "$(dirname "$0")/lib.sh"
requires dmsetup nbd-client thin_check

# Devices are attached one after the other, and no number is used twice.
modprobe nbd nbds_max=256
kernel_pool /dev/vda /dev/vdb
new_pool pool --size 256M
serve_blocks "$POOL"
$PYTHON "$GUEST/differential.py" --seed "$SEED" --phases "$(long 3 30)" --steps "$(long 200 400)" \
    --pool "$POOL" --socket "$SOCKET"
stop_daemon
verify "$POOL"
mapfile -t thins < <(dmsetup ls --target thin | cut -f1)
dmsetup remove --retry "${thins[@]}" pool
thin_check -q /dev/vda || fail "thin_check refuses the kernel's pool"
