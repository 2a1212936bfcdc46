# shellcheck shell=bash disable=SC2034,SC2154 # vm's variables
# Sourced by vm: user-mode Linux, a kernel that is a process. It writes this machine's files like any
# process of root, so it is given a read-only view of them.

NEEDS=()

start_guest() {
    local disk=() index
    # Its memory is a file in TMPDIR. The kernel is not the first process of its namespace: as that, a
    # panic would make it hang rather than end.
    # shellcheck disable=SC2016 # the inner shell expands
    local inside='mount -t tmpfs -o "size=$1" memory "$2/memory" && mount --bind "$3" "$2/results" || exit
        export TMPDIR="$2/memory"
        shift 3
        "$@"
        exit $?'
    for index in "${!disks[@]}"; do
        disk+=("ubd$index=$work/disk$index")
    done
    mkdir -p "$work/memory" "$work/results"
    with_files --fork --pid --kill-child sh -c "$inside" sh "$memory" "$work" "$results" \
        "$boot/kernel" "mem=$memory" "initrd=$boot/initrd" "hostfs=$work" "${disk[@]}" \
        "uml_dir=$work" umid=uml con=null con0=null,fd:1 con1=null,fd:3 quiet panic=-1 \
        </dev/null >"$results/console.log" 2>&1 3>"$work/output" &
    guest=$!
}
