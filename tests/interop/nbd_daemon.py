"""thinctl serve, for tests that kill it: on an NBD socket of its own each time."""

import os
import signal
import subprocess
import time

import nbd


class DaemonEnded(SystemExit):
    """It did not become ready; ends a program that knows no better."""


class Daemon:
    """Number NUMBER of a pool's daemons; its log goes to SCRATCH/NAME.log."""

    def __init__(self, pool, scratch, name, number):
        self.socket = os.path.join(scratch, f"{name}.{number}.sock")
        self.log = os.path.join(scratch, f"{name}.log")
        command = [os.environ["THINCTL"], "serve", pool, "--nbd", "unix:" + self.socket]
        self.began = time.monotonic()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)

    def wait_ready(self):
        """Raises DaemonEnded when it does not become ready."""
        for line in self.process.stdout:
            if line.startswith("ready:"):
                break
        else:
            with open(self.log, encoding="utf-8", errors="replace") as log:
                raise DaemonEnded(f"the daemon ended: {log.read()[-1000:]}")
        self.start_ms = (time.monotonic() - self.began) * 1000

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        assert self.process.wait() == 0, "the daemon did not end well"

    def connect(self, export):
        handle = nbd.NBD()
        handle.connect_uri(f"nbd+unix:///{export.replace('@', '%40')}?socket={self.socket}")
        return handle
