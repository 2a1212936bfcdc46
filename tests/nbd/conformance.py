#!/usr/bin/python3
"""Raw-socket conformance test of an NBD server. Python's standard library is all it needs.

    conformance.py SOCKET|URI --export NAME [--snapshot NAME] [--peer qemu-nbd|nbdkit] [--pid N]

The export must be a volume of 256 MiB or more whose first MiB is mapped, whose snapshot
(if named) was taken after that, and of which nothing else was ever written. Its contents
are destroyed. With --peer only the cases run that hold for that server too: that is how
the driver itself is tested. Prints a line a case and `N passed, N failed`; exit code 1
when a case failed. A server that is dead after a case fails that case.
"""

import argparse
import sys
import traceback

import cases_context
import cases_handshake
import cases_load
import cases_read
import cases_request
import cases_thin
import tls
from target import CASES, NBDKIT, OURS, QEMU, Target, parse_address
import wire
from wire import Closed, Hang, Wrong

MODULES = (cases_handshake, cases_context, cases_request, cases_read, cases_thin, cases_load)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("address", help="unix socket or nbd URI")
    parser.add_argument("--export", default=None)
    parser.add_argument("--snapshot", default=None, help="a read-only export of the same server")
    parser.add_argument("--peer", choices=(OURS, QEMU, NBDKIT), default=OURS)
    parser.add_argument("--pid", type=int, default=None, help="the server, to watch its memory")
    parser.add_argument("--tls", metavar="DIR", default=None, help="through TLS, with these certificates")
    parser.add_argument("--timeout", type=float, default=wire.SOCKET_TIMEOUT,
                        help="seconds of silence that count as a hang")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    return parser.parse_args()


def run(function, target):
    """Empty when the case passed, else what went wrong."""
    try:
        function(target)
        target.alive()
        return ""
    except (Wrong, Closed, Hang, OSError) as error:
        where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
                 if "cases_" in frame.filename]
        return f"{type(error).__name__}: {error} ({' '.join(where) or 'server alive?'})"


def main():
    options = arguments()
    wire.SOCKET_TIMEOUT = options.timeout
    address, named = parse_address(options.address)
    export = options.export or named or ""
    context = tls.context(options.tls) if options.tls else None
    target = Target(address, export, options.snapshot, options.peer, options.pid, options.seed, context)
    passed = failed = 0
    for function, peers, needs_snapshot in CASES:
        if options.case not in f"{function.__module__}.{function.__name__}" or options.peer not in peers:
            continue
        if needs_snapshot and not options.snapshot:
            continue
        name = f"{function.__module__.removeprefix('cases_')}.{function.__name__}"
        if options.list:
            print(name)
            continue
        problem = run(function, target)
        print(f"FAIL {name}: {problem}" if problem else f"ok {name}", flush=True)
        passed, failed = passed + (not problem), failed + bool(problem)
    if not options.list:
        print(f"{passed} passed, {failed} failed (seed {options.seed})")
    sys.exit(1 if failed or not (passed or options.list) else 0)


if __name__ == "__main__":
    main()
