//! Damage to superblock, trees and devices, one kind at a time: each must be found, at the block it is
//! in.
//!
//! Most cases edit `3-snapshots`: top level 149, details 152; device 1 has root 150 with leaves 56 (shared
//! with device 6) and 151; devices 77, 79 and 80 share the leaf 108.

mod support;

use metadata_check::{CheckOptions, check};
use support::cases::{Case, among, only, run};
use support::{HELD, Image, Kind, SNAPSHOTS};

const BLOCKS: &[Case] = &[
    among(
        SNAPSHOTS,
        |i| i.put_raw(56, 0, &[0; 4]),
        &[
            "metadata block 56: bad checksum (btree node): expected 0xa797e866, found 0x00000000 (affects thin devices 1, 6)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(56, 8, 57),
        &[
            "metadata block 56: wrong own block number (btree node): found 57 (affects thin devices 1, 6)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.seal(108, Kind::Bitmap),
        &[
            "metadata block 108: wrong kind of block: expected a btree node, found a bitmap (affects thin devices 77, 79, 80)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.seal(147, Kind::Node),
        &["metadata block 147: wrong kind of block: expected a bitmap, found a btree node"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(148, 8, 147),
        &["metadata block 148: wrong own block number (bitmap): found 147"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(154, 8, 1),
        &["metadata block 154: wrong own block number (metadata index): found 1"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 8, 1),
        &["metadata block 0: wrong own block number (superblock): found 1"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put_raw(0, 0, &[0; 4096]),
        &["metadata block 0: not formatted: the superblock is all zero"],
    ),
];

#[test]
fn blocks() {
    run(BLOCKS);
}

const SUPERBLOCK_FIELDS: &[Case] = &[
    only(
        SNAPSHOTS,
        |i| i.put64(0, 32, 7),
        &["metadata block 0: bad magic: expected 27022010, found 7"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 40, 1),
        &["metadata block 0: unsupported version: expected 2, found 1"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 340, 16),
        &["metadata block 0: bad metadata block size: expected 8 sectors, found 16"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 336, 64),
        &[
            "metadata block 0: bad data block size: expected a multiple of 128 from 128 to 2097152 sectors, found 64",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 336, 192),
        &[
            "metadata block 0: bad data block size: expected a multiple of 128 from 128 to 2097152 sectors, found 192",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 336, 2_097_280),
        &[
            "metadata block 0: bad data block size: expected a multiple of 128 from 128 to 2097152 sectors, found 2097280",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put(0, 364, &[1]),
        &["metadata block 0: byte 364 of the superblock is 0x01 but must be zero"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put(0, 4095, &[9]),
        &["metadata block 0: byte 4095 of the superblock is 0x09 but must be zero"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 4, 2),
        &["metadata block 0: unknown bits in flags: 0x2"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 352, 1),
        &["metadata block 0: unknown bits in compat_flags: 0x1"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 356, 1),
        &["metadata block 0: unknown bits in compat_ro_flags: 0x1"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 360, 4),
        &["metadata block 0: unknown bits in incompat_flags: 0x4"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 344, 513),
        &[
            "metadata block 0: metadata_nr_blocks is 513: expected 1 to 512, the size of the metadata space map",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 344, 0),
        &[
            "metadata block 0: metadata_nr_blocks is 0: expected 1 to 512, the size of the metadata space map",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 192, 513),
        &["metadata block 0: the metadata space map covers 513 blocks: expected 1 to 512"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 192, 0),
        &["metadata block 0: the metadata space map covers 0 blocks: expected 1 to 512"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 64, 1 << 41),
        &[
            "metadata block 0: the data space map covers 2199023255552 blocks: expected 0 to 1099511627776",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(0, 44, 1 << 24),
        &["metadata block 0: the pool's time is 16777216: expected at most 16777215"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 320, 512),
        &[
            "metadata block 0: points to metadata block 512 as top-level mapping tree: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 328, u64::MAX),
        &[
            "metadata block 0: points to metadata block 18446744073709551615 as device details tree: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 80, 600),
        &[
            "metadata block 0: points to metadata block 600 as data bitmap index: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 88, 600),
        &[
            "metadata block 0: points to metadata block 600 as data overflow tree: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 208, 600),
        &[
            "metadata block 0: points to metadata block 600 as metadata index: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 216, 600),
        &[
            "metadata block 0: points to metadata block 600 as metadata overflow tree: expected a number below 512",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(0, 56, 600),
        &[
            "metadata block 0: points to metadata block 600 as metadata snapshot: expected a number below 512",
        ],
    ),
];

#[test]
fn superblock_fields() {
    run(SUPERBLOCK_FIELDS);
}

const NODES: &[Case] = &[
    among(
        SNAPSHOTS,
        |i| i.put32(151, 4, 3),
        &[
            "metadata block 151: bad node flags (mapping tree): expected 1 or 2, found 3 (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(152, 4, 0),
        &["metadata block 152: bad node flags (device details tree): expected 1 or 2, found 0"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(151, 20, 249),
        &[
            "metadata block 151: bad max_entries (mapping tree): expected 252, found 249 (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(143, 20, 338),
        &["metadata block 143: bad max_entries (data overflow tree): expected 336, found 338"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(153, 24, 8),
        &["metadata block 153: bad value size (data bitmap index): expected 16, found 8"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(149, 16, 253),
        &[
            "metadata block 149: bad nr_entries (top-level mapping tree): expected at most 252, found 253",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(150, 16, 0),
        &[
            "metadata block 150: internal node without entries (mapping tree) (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(56, 72, 4),
        &[
            "metadata block 56: keys out of order (mapping tree): key 5 is 4, the one before it 4 (affects thin devices 1, 6)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(151, 16, 83),
        &[
            "metadata block 151: under-full node (mapping tree): 83 entries, expected at least 84 (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(150, 40, 127),
        &[
            "metadata block 150: key 1 is 127 but its child, metadata block 151, begins at 126 (mapping tree) (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(150, 40, 125),
        &[
            "metadata block 150: key 1 is 125 but the child before it, metadata block 56, reaches 125 (mapping tree) (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(150, 32, 1),
        &[
            "metadata block 150: key 0 is 1 but its child, metadata block 56, begins at 0 (mapping tree) (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(150, 2048, 512),
        &[
            "metadata block 150: points to metadata block 512 as mapping tree: expected a number below 512 (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(150, 2048, 150),
        &["metadata block 150: part of a cycle (mapping tree) (affects thin device 1)"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(150, 2048, 152),
        &[
            "metadata block 152: used both as device details tree and as mapping tree (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(149, 2048, 0),
        &["metadata block 0: used both as superblock and as mapping tree (affects thin device 1)"],
    ),
    // Leaf 108 may be under-full as the root it is elsewhere, but not as a child.
    among(
        SNAPSHOTS,
        |i| i.put64(150, 2048, 108),
        &[
            "metadata block 108: under-full node (mapping tree): 16 entries, expected at least 84 (affects thin devices 1, 77, 79, 80)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(150, 2056, 55),
        &[
            "metadata block 150: unequal depth (mapping tree): child metadata block 55 has 1 levels below it, expected 0 (affects thin device 1)",
        ],
    ),
    among(
        "5-many-devices",
        |i| i.put64(279, 40, 2696),
        &[
            "metadata block 279: key 1 is 2696 but the child before it, metadata block 282, reaches 2696 (device details tree)",
        ],
    ),
    among(
        "5-many-devices",
        |i| i.put32(283, 16, 41),
        &[
            "metadata block 283: under-full node (device details tree): 41 entries, expected at least 42",
        ],
    ),
    only(
        "4-deep",
        |i| i.put64(2745, 40, 341),
        &[
            "metadata block 2745: key 1 is 341 but its child, metadata block 2754, begins at 340 (data overflow tree)",
        ],
    ),
    among(
        SNAPSHOTS,
        chain,
        &["metadata block 315: tree deeper than 16 levels (mapping tree) (affects thin device 1)"],
    ),
];

#[test]
fn nodes() {
    run(NODES);
}

/// Puts twenty internal nodes with one child each above device 1's root.
fn chain(image: &mut Image) {
    for nr in 300..320 {
        let mut block = image.block(150);
        let child: u64 = if nr == 319 { 150 } else { nr + 1 };
        block[8..16].copy_from_slice(&nr.to_le_bytes());
        block[16] = 1;
        block[2048..2056].copy_from_slice(&child.to_le_bytes());
        image.write(nr, block, Kind::Node);
    }
    image.put64(149, 2048, 300);
}

const DEVICES: &[Case] = &[
    only(
        SNAPSHOTS,
        |i| i.put64(152, 1040, 311),
        &[
            "metadata block 152: thin device 1 says 311 mapped blocks: expected 310, the mappings it has (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(152, 16, 7),
        &[
            "metadata block 149: thin device 16777215 has a mapping tree but no details (affects thin device 16777215)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(149, 16, 7),
        &[
            "metadata block 152: thin device 16777215 has details but no mapping tree (affects thin device 16777215)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(149, 88, 1 << 24),
        &[
            "metadata block 149: device id 16777216 does not fit in 24 bits (top-level mapping tree)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(152, 88, 1 << 24),
        &["metadata block 152: device id 16777216 does not fit in 24 bits (device details tree)"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(108, 2048, 4096 << 24),
        &[
            "metadata block 108: virtual block 0 is mapped to data block 4096: expected a number below 4096 (1 such mappings in this node) (affects thin devices 77, 79, 80)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(108, 2048, 372 << 24 | 9),
        &[
            "metadata block 108: the mapping of virtual block 0 has time 9, later than the pool's 8 (1 such mappings in this node) (affects thin devices 77, 79, 80)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(152, 1040 + 16, 9),
        &[
            "metadata block 152: thin device 1 has creation_time 9, later than the time 8 (affects thin device 1)",
            "metadata block 152: thin device 1 has snapshotted_time 8, before its creation at 9 (affects thin device 1)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(152, 1040 + 20, 9),
        &[
            "metadata block 152: thin device 1 has snapshotted_time 9, later than the time 8 (affects thin device 1)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(0, 44, 3),
        &[
            "metadata block 108: the mapping of virtual block 0 has time 4, later than the pool's 3 (16 such mappings in this node) (affects thin devices 77, 79, 80)",
        ],
    ),
];

#[test]
fn devices() {
    run(DEVICES);
}

const METADATA_SNAPSHOT: &[Case] = &[
    only(
        HELD,
        |i| i.put64(1066, 56, 3),
        &["metadata block 1066: the metadata snapshot names metadata snapshot 3 itself"],
    ),
    only(
        HELD,
        |i| i.put64(1066, 64, 3072),
        &["metadata block 1066: the metadata snapshot's data space map root is not zero"],
    ),
    only(
        HELD,
        |i| i.put(1066, 319, &[1]),
        &["metadata block 1066: the metadata snapshot's metadata space map root is not zero"],
    ),
    among(
        HELD,
        |i| i.put32(1066, 44, 3),
        &["metadata block 1066: the metadata snapshot has time 3, later than the pool's 2"],
    ),
    among(
        HELD,
        |i| i.put32(1066, 44, 0),
        &[
            "metadata block 1060: the mapping tree of thin device 2 in the metadata snapshot has a mapping of time 1, later than the snapshot's 0 (affects thin device 2)",
        ],
    ),
    only(
        HELD,
        |i| i.put32(1066, 336, 256),
        &[
            "metadata block 1066: data_block_size of the metadata snapshot is 256: expected 128, as in the pool",
        ],
    ),
    only(
        HELD,
        |i| i.put64(1066, 344, 7),
        &[
            "metadata block 1066: metadata_nr_blocks of the metadata snapshot is 7: expected 1024, as in the pool",
        ],
    ),
    only(
        HELD,
        |i| i.put32(1066, 40, 3),
        &["metadata block 1066: unsupported version: expected 2, found 3"],
    ),
    among(
        HELD,
        |i| i.put64(1066, 32, 1),
        &["metadata block 1066: bad magic: expected 27022010, found 1"],
    ),
    among(
        HELD,
        |i| i.put64(1066, 320, 2048),
        &[
            "metadata block 1066: points to metadata block 2048 as top-level mapping tree: expected a number below 2048",
        ],
    ),
    among(
        HELD,
        |i| i.put64(0, 56, 0),
        &["metadata block 1087: data block 50: leaked, reference count 1, expected 0"],
    ),
    among(
        HELD,
        |i| i.put64(0, 56, 1096),
        &["metadata block 1096: used both as top-level mapping tree and as metadata snapshot"],
    ),
];

#[test]
fn metadata_snapshot() {
    run(METADATA_SNAPSHOT);
}

#[test]
fn options_widen_and_narrow() {
    let mut image = Image::of(SNAPSHOTS);
    image.put32(0, 360, 4);
    let allowed = CheckOptions {
        allowed_incompat: 4,
        ..CheckOptions::default()
    };
    assert!(check(&image, &allowed).is_sound());
    for (available, sound) in [(4096, true), (5000, true), (4095, false)] {
        let options = CheckOptions {
            data_blocks_available: Some(available),
            ..allowed
        };
        assert_eq!(check(&image, &options).is_sound(), sound, "{available}");
    }
}
