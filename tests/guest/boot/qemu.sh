# shellcheck shell=bash disable=SC2034,SC2154 # vm's variables
# Sourced by vm: a machine emulated by QEMU, which has this machine's files from virtiofsd.

VIRTIOFSD=/usr/lib/qemu/virtiofsd
NEEDS=(qemu-system-x86_64:qemu-system-x86 $VIRTIOFSD:qemu-system-common xz:xz-utils apt-get:apt)

# Without cmpxchg16b: with it, a 6.12.95 kernel crashed in most runs, with garbage in the flags right
# behind that instruction. Presumably a fault of QEMU 7.2.
CPU=max,-cx16

# The files read only (virtiofsd has no switch for that), and the results writable.
start_servers() {
    local options=cache=always,sandbox=chroot,no_posix_lock,log_level=err tries=0
    with_files $VIRTIOFSD --socket-path="$work/root.sock" -o "source=$work/root,$options" >"$work/root.log" 2>&1 &
    servers+=($!)
    bound $VIRTIOFSD --socket-path="$work/results.sock" \
        -o "source=$results,${options/always/auto}" >"$work/results.log" 2>&1 &
    servers+=($!)
    until [ -S "$work/root.sock" ] && [ -S "$work/results.sock" ]; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ] || ! kill -0 "${servers[@]}" 2>/dev/null; then
            die 125 "virtiofsd did not start: $(cat "$work"/*.log)"
        fi
        sleep 0.1
    done
}

start_guest() {
    local arguments=() index
    # On a busy machine a guest once found its TSC a fifth as fast as it was, and all its clocks
    # went five times too fast. The HPET's rate is given.
    local accel=(-accel "${GUEST_ACCEL:-tcg,thread=single}") clock=unstable cpu=$CPU
    if [ -n "$icount" ]; then
        # sleep=off would let the guest's clock jump ahead whenever it waits for a disk.
        accel=(-accel "tcg,thread=single" -icount "shift=2,sleep=on")
        clock=reliable
        # Each byte of a `rep movsb` would count as an instruction, and make copies to and from user
        # space, which use it, six times as dear as the kernel's own.
        cpu=$CPU,-erms
    fi
    for index in "${!disks[@]}"; do
        arguments+=(-drive "file=$work/disk$index,format=raw,if=none,id=disk$index,cache=writeback,discard=unmap,aio=threads"
            -device "virtio-blk-pci,drive=disk$index,num-queues=2")
    done
    start_servers
    bound qemu-system-x86_64 -machine q35,memory-backend=memory \
        -object "memory-backend-memfd,id=memory,size=$memory,share=on" -m "$memory" \
        "${accel[@]}" -cpu "$cpu" -smp 2 \
        -nodefaults -no-user-config -display none -no-reboot -nic none -monitor none \
        -chardev "file,id=console,path=$results/console.log" -serial chardev:console \
        -device virtio-serial-pci -chardev "file,id=output,path=$work/output" \
        -device virtserialport,chardev=output,name=output \
        -chardev "socket,id=root,path=$work/root.sock" \
        -device vhost-user-fs-pci,chardev=root,tag=root,queue-size=512 \
        -chardev "socket,id=results,path=$work/results.sock" \
        -device vhost-user-fs-pci,chardev=results,tag=results \
        "${arguments[@]}" -kernel "$boot/kernel" -initrd "$boot/initrd" \
        -append "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=$clock no_timer_check" \
        </dev/null >"$work/qemu.log" 2>&1 &
    guest=$!
}
