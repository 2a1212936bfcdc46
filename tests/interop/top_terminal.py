"""Runs `thinctl top` on a terminal: it draws, sorts as it is told, ends by a key, and leaves the terminal as it was.

    top_terminal.py COMMAND...
"""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

PATIENCE_SECONDS = 30
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    def __init__(self, command):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(command[0], command)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
        self.output = b""

    def until(self, pattern):
        """Reads on until the pattern comes; what came before it is forgotten."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (match := re.search(pattern, self.output)):
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                raise SystemExit(f"{pattern} did not come: {self.output}")
            try:
                self.output += os.read(self.fd, 65536)
            except OSError:
                raise SystemExit(f"it ended before {pattern}: {self.output}") from None
        self.output = self.output[match.end():]

    def press(self, key):
        os.write(self.fd, key)

    def status(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def run(end):
    terminal = Terminal(sys.argv[1:])
    terminal.until(re.escape(ENTER))
    before = termios.tcgetattr(terminal.fd)[3] & (termios.ICANON | termios.ECHO)
    terminal.until(rb"data +\[")
    terminal.until(rb"\[r requests\]")
    terminal.press(b"n")
    terminal.until(rb"\[n name\]")
    # Rates come with the second look.
    terminal.until(rb"dev +[1-9][0-9]* ")
    end(terminal)
    terminal.until(re.escape(LEAVE))
    status = terminal.status()
    after = termios.tcgetattr(terminal.fd)[3] & (termios.ICANON | termios.ECHO)
    assert before == 0, "keys were echoed, or waited for the end of a line"
    assert after == termios.ICANON | termios.ECHO, "the terminal is not as it was"
    assert status == 0, status


if __name__ == "__main__":
    run(lambda terminal: terminal.press(b"q"))
    run(lambda terminal: terminal.press(b"\x03"))
    run(lambda terminal: os.kill(terminal.pid, 15))
    print("ok top on a terminal")
