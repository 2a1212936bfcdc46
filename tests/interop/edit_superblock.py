"""Damages a metadata file on purpose.

    edit_superblock.py FILE version N        another version, checksum made right again
    edit_superblock.py FILE incompat FLAGS   unknown incompatible features, likewise
    edit_superblock.py FILE damage-mapping-root 0   a flipped byte in the mapping tree's root
"""

import struct
import sys

BLOCK = 4096
SUPERBLOCK_MASK = 160774
VERSION_AT, MAPPING_ROOT_AT, INCOMPAT_AT = 40, 320, 360


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc


def main():
    path, what, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path, "r+b") as store:
        block = bytearray(store.read(BLOCK))
        checksum, = struct.unpack("<I", block[:4])
        assert crc32c(block[4:]) ^ SUPERBLOCK_MASK == checksum, "not a sound superblock to begin with"
        if what == "damage-mapping-root":
            root, = struct.unpack_from("<Q", block, MAPPING_ROOT_AT)
            store.seek(root * BLOCK + 100)
            byte = store.read(1)[0]
            store.seek(root * BLOCK + 100)
            store.write(bytes([byte ^ 0x10]))
            return
        struct.pack_into("<I", block, {"version": VERSION_AT, "incompat": INCOMPAT_AT}[what], number)
        struct.pack_into("<I", block, 0, crc32c(block[4:]) ^ SUPERBLOCK_MASK)
        store.seek(0)
        store.write(block)


if __name__ == "__main__":
    main()
