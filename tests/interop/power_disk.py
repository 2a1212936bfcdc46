"""The machine of power.py: a disk that loses what was not synced, and what tells one boot from another.

Needs a mount namespace of its own: what the kernel says of boots and disks is covered by files that change
when this machine's do.
"""

import json
import os
import socket
import subprocess
import sys
import uuid

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BLOCK_DEVICES = "/sys/dev/block"


class Disk:
    """The file system `volatile-fs`, mounted at `mountpoint`."""

    def __init__(self, scratch, seed):
        self.mountpoint = os.path.join(scratch, "disk")
        os.mkdir(self.mountpoint)
        control = os.path.join(scratch, "disk.sock")
        program = os.path.join(os.path.dirname(os.environ["THINCTL"]), "volatile-fs")
        command = [program, self.mountpoint, control, "--seed", str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            sys.exit(f"{program} did not start")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(control)
        self.answers = self.socket.makefile("r")

    def tell(self, command):
        self.socket.sendall(json.dumps(command).encode() + b"\n")
        answer = json.loads(self.answers.readline())
        assert "error" not in answer, answer
        return answer

    def end(self):
        self.answers.close()
        self.socket.close()
        subprocess.run(["umount", self.mountpoint], check=True)
        assert self.process.wait() == 0, "the file system did not end well"


class Machine:
    """The boot id, and the disk sequence number of a disk, as programs see them."""

    def __init__(self, scratch, mountpoint):
        self.boot_id = os.path.join(scratch, "boot_id")
        self.reboot()
        subprocess.run(["mount", "--bind", self.boot_id, BOOT_ID], check=True)
        number = os.stat(mountpoint).st_dev
        disks = os.path.join(scratch, "disks")
        device = os.path.join(disks, f"{os.major(number)}:{os.minor(number)}")
        os.makedirs(device)
        self.disk_sequence = os.path.join(device, "diskseq")
        self.pulled = 0
        self.pull()
        subprocess.run(["mount", "--bind", disks, BLOCK_DEVICES], check=True)

    def reboot(self):
        with open(self.boot_id, "w") as file:
            file.write(f"{uuid.uuid4()}\n")

    def pull(self):
        """The disk is taken out and put back."""
        self.pulled += 1
        with open(self.disk_sequence, "w") as file:
            file.write(f"{self.pulled}\n")
