"""Who takes part: ours, the two servers that measure the machine, and every peer that is to be had here."""

import os
import shutil

from servers import (NbdkitCow, NbdServer, Qcow2, Reflink, Thinpool, limit_server, nbdkit_file, null_server, qemu_raw,
                     run)

OURS, LIMIT = "thinpool", "limit"
RAW = ("qemu-nbd raw, threads", "qemu-nbd raw, io_uring")
NBDKIT, NBDKIT_COW = "nbdkit file", "nbdkit cow*"
NBD_SERVER, NBD_SERVER_COW = "nbd-server file", "nbd-server cow*"
QCOW2 = "qcow2"
SUBCLUSTERS = ("qcow2 sub-clusters, threads", "qcow2 sub-clusters, io_uring")
XFS, BTRFS = "xfs reflink", "btrfs reflink"
# Clones whose flush means what it says.
DURABLE = (QCOW2, *SUBCLUSTERS, XFS, BTRFS)


def reflink(name, directory, size, kind, *mkfs):
    if os.geteuid() != 0:
        raise RuntimeError("mounting takes root")
    with open("/proc/filesystems") as known:
        if kind not in known.read().split():
            raise RuntimeError(f"the kernel has no {kind}")
    return Reflink(name, directory, size, *mkfs)


# name, the program it takes, how it is made
MADE = (
    (OURS, None, lambda name, *place: Thinpool(*place)),
    (LIMIT, None, limit_server),
    *((name, "qemu-nbd", lambda *place, aio=aio: qemu_raw(*place, aio)) for name, aio in zip(RAW, ("threads", "io_uring"))),
    (NBDKIT, "nbdkit", nbdkit_file),
    (NBD_SERVER, "nbd-server", lambda *place: NbdServer(*place, copy_on_write=False)),
    (QCOW2, "qemu-nbd", lambda *place: Qcow2(*place, "io_uring", "cluster_size=64k")),
    # Their size is a thirty-second of a cluster's: 4 KiB, as ours.
    *((name, "qemu-nbd", lambda *place, aio=aio: Qcow2(*place, aio, "extended_l2=on,cluster_size=128k"))
      for name, aio in zip(SUBCLUSTERS, ("threads", "io_uring"))),
    (NBDKIT_COW, "nbdkit", NbdkitCow),
    (NBD_SERVER_COW, "nbd-server", lambda *place: NbdServer(*place, copy_on_write=True)),
    (XFS, "mkfs.xfs", lambda *place: reflink(*place, "xfs", "mkfs.xfs", "-q", "-m", "reflink=1")),
    (BTRFS, "mkfs.btrfs", lambda *place: reflink(*place, "btrfs", "mkfs.btrfs", "-q")),
)


def assemble(directory, size, servers, say, wanted=None):
    """Adds to `servers` all that can be had, or those wanted; those that cannot are left out with a word."""
    for name, program, make in MADE:
        if wanted and name not in wanted:
            continue
        if program and not shutil.which(program):
            say(f"left out: {name}: there is no {program} here (make install-deps)")
            continue
        try:
            server = make(name, directory, size)
            servers.append(server)
            server.renew(server.kinds[0])
        except (OSError, RuntimeError) as cause:
            if name in (OURS, LIMIT):
                raise
            say(f"left out: {name}: {cause}")
            if servers[-1].name == name:
                servers.pop().close()
            continue
        if name != OURS:
            server.stop()


def generator_rate(directory, size):
    """Requests a second against the null server, which must be out of everybody's reach."""
    null = null_server("null", directory, size)
    null.renew("in place")
    try:
        return null.measure(seconds=1, pattern="randread", size=4096, depth=32)["rate"]
    finally:
        null.stop()


def versions():
    told = [run("qemu-nbd", "--version").split("\n", 1)[0]] if shutil.which("qemu-nbd") else []
    told += [run("nbdkit", "--version").strip()] if shutil.which("nbdkit") else []
    return told
