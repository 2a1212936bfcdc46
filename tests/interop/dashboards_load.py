"""Works on two NBD exports until it is ended: every kind of request, and some that fail.

    dashboards_load.py URI URI
"""

import random
import sys
import nbd

def main():
    handles = []
    for uri in sys.argv[1:]:
        handle = nbd.NBD()
        handle.set_strict_mode(0)
        handle.connect_uri(uri)
        handles.append(handle)
    rng = random.Random(1)
    turn = 0
    while True:
        for handle in handles:
            size = handle.get_size()
            at = rng.randrange(size // 4096) * 4096
            handle.pread(4096, at)
            handle.pwrite(b"w" * 4096, at)
            turn += 1
            if turn % 16 == 0:
                handle.flush()
                handle.trim(65536, at - at % 65536)
                handle.zero(4096, at)
                try:
                    handle.pread(4096, size)
                except nbd.Error:
                    pass


if __name__ == "__main__":
    main()
