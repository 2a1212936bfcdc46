//! Damage to the space maps, one kind at a time: each must be found, at the block it is in, and told apart
//! from leaks.
//!
//! Most cases edit `3-snapshots`: data bitmap 147, data index 153, data overflow tree 143; metadata bitmap
//! 148, metadata index 154, metadata overflow tree 125.

#![allow(clippy::unwrap_used, reason = "a panic fails the test, as it should")]

mod support;

use metadata_check::Severity;
use support::cases::{Case, among, only, run};
use support::{Image, SNAPSHOTS};

/// Changes the number of data blocks in use, as index and superblock have it.
fn add_data_allocated(image: &mut Image, change: i64) {
    let free = i64::from(image.u32(153, 1376 + 8)) - change;
    image.put32(153, 1376 + 8, u32::try_from(free).unwrap());
    image.put64(0, 72, image.u64(0, 72).checked_add_signed(change).unwrap());
}

const DATA_SPACE_MAP: &[Case] = &[
    only(
        SNAPSHOTS,
        |i| {
            i.put_count(147, 372, 0);
            add_data_allocated(i, -1);
        },
        &["metadata block 147: data block 372: reference count 0, expected 1"],
    ),
    only(
        SNAPSHOTS,
        |i| {
            assert_eq!(i.count(147, 0), 2);
            i.put_count(147, 0, 1);
        },
        &["metadata block 147: data block 0: reference count 1, expected 2"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put_count(147, 372, 2),
        &["metadata block 147: data block 372: reference count 2, expected 1"],
    ),
    only(
        SNAPSHOTS,
        |i| {
            (4000..4003).for_each(|entry| i.put_count(147, entry, 1));
            add_data_allocated(i, 3);
        },
        &["metadata block 147: data blocks 4000 to 4002: leaked, reference count 1, expected 0"],
    ),
    only(
        SNAPSHOTS,
        |i| {
            i.put_count(147, 4000, 2);
            add_data_allocated(i, 1);
        },
        &["metadata block 147: data block 4000: leaked, reference count 2, expected 0"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(143, 16, 291),
        &[
            "metadata block 147: the data space map has no overflow entry for data block 338: expected 3",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put_count(147, 372, 3),
        &[
            "metadata block 147: the data space map has no overflow entry for data block 372: expected 1",
            "metadata block 147: data block 372: reference count 3, expected 1",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(143, 2720, 4),
        &["metadata block 147: data block 1: reference count 4, expected 3"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(143, 2720, 2),
        &[
            "metadata block 143: the data space map has an overflow entry of 2 for data block 1: expected 3 or more",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| add_overflow(i, 372),
        &[
            "metadata block 143: the data space map has an overflow entry of 3 for data block 372, whose bitmap says 1",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| add_overflow(i, 4000),
        &[
            "metadata block 143: the data space map has an overflow entry of 3 for data block 4000, whose bitmap says 0",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| add_overflow(i, 4096),
        &[
            "metadata block 143: the data space map has an overflow entry for data block 4096: expected a number below 4096",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| add_overflow(i, u64::MAX),
        &[
            "metadata block 143: the data space map has an overflow entry for data block 18446744073709551615: expected a number below 4096",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| {
            i.put_count(147, 5000, 1);
            i.put_count(147, 16319, 2);
            i.put32(153, 1376 + 8, 15923);
        },
        &[
            "metadata block 147: the data space map has a count of 1 for data block 5000, beyond its end at 4096 (2 such counts in this bitmap)",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(153, 1376 + 8, 3701),
        &["metadata block 153: bitmap 0 of the data space map has nr_free 3701: expected 15925"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(153, 1376 + 12, 13),
        &[
            "metadata block 153: bitmap 0 of the data space map has none_free_before 13: expected at most 12",
        ],
    ),
    only(SNAPSHOTS, |i| i.put32(153, 1376 + 12, 11), &[]),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 72, 394),
        &["metadata block 0: the data space map has nr_allocated 394: expected 395"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(153, 16, 0),
        &["metadata block 153: the data space map has no bitmaps 0 to 0"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(153, 32, 1),
        &[
            "metadata block 153: the data space map has no bitmaps 0 to 0",
            "metadata block 153: the data space map has a bitmap 1: expected only 1",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 64, 16321),
        &["metadata block 153: the data space map has no bitmaps 1 to 1"],
    ),
    among(
        "4-deep",
        |i| i.put64(2774, 1376 + 16, 2744),
        &["metadata block 2744: referred to twice as data bitmap"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(153, 1376, 512),
        &[
            "metadata block 153: points to metadata block 512 as data bitmap: expected a number below 512",
        ],
    ),
];

#[test]
fn data_space_map() {
    run(DATA_SPACE_MAP);
}

/// Adds an overflow entry of 3 at the end of the data overflow tree's only leaf.
fn add_overflow(image: &mut Image, data_block: u64) {
    image.put64(143, 32 + 8 * 292, data_block);
    image.put32(143, 2720 + 4 * 292, 3);
    image.put32(143, 16, 293);
}

const METADATA_SPACE_MAP: &[Case] = &[
    only(
        SNAPSHOTS,
        |i| i.put_count(148, 150, 2),
        &["metadata block 148: metadata block 150: reference count 2, expected 1"],
    ),
    only(
        SNAPSHOTS,
        |i| {
            i.put_count(148, 150, 0);
            i.put32(154, 24, 16297);
            i.put64(0, 200, 23);
        },
        &["metadata block 148: metadata block 150: reference count 0, expected 1"],
    ),
    only(
        SNAPSHOTS,
        |i| {
            i.put_count(148, 300, 1);
            i.put32(154, 24, 16295);
            i.put64(0, 200, 25);
        },
        &["metadata block 148: metadata block 300: leaked, reference count 1, expected 0"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(125, 16, 0),
        &[
            "metadata block 148: the metadata space map has no overflow entry for metadata block 108: expected 3",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(125, 2720, 5),
        &["metadata block 148: metadata block 108: reference count 5, expected 3"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(154, 24, 488),
        &["metadata block 154: bitmap 0 of the metadata space map has nr_free 488: expected 16296"],
    ),
    only(
        SNAPSHOTS,
        |i| i.put32(154, 28, 2),
        &[
            "metadata block 154: bitmap 0 of the metadata space map has none_free_before 2: expected at most 1",
        ],
    ),
    only(
        SNAPSHOTS,
        |i| i.put64(0, 200, 25),
        &["metadata block 0: the metadata space map has nr_allocated 25: expected 24"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put_count(148, 512, 1),
        &[
            "metadata block 148: the metadata space map has a count of 1 for metadata block 512, beyond its end at 512 (1 such counts in this bitmap)",
        ],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(154, 32, 300),
        &["metadata block 154: the metadata space map has a bitmap 1: expected only 1"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put32(154, 16 + 16 * 254 + 8, 1),
        &["metadata block 154: the metadata space map has a bitmap 254: expected only 1"],
    ),
    among(
        SNAPSHOTS,
        |i| i.put64(154, 16, 147),
        &["metadata block 147: used both as data bitmap and as metadata bitmap"],
    ),
];

#[test]
fn metadata_space_map() {
    run(METADATA_SPACE_MAP);
}

#[test]
fn damage_and_leaks_are_told_apart() {
    let mut image = Image::of(SNAPSHOTS);
    image.put_count(147, 4000, 1);
    add_data_allocated(&mut image, 1);
    let report = image.check();
    assert_eq!((report.damage_count, report.leak_count), (0, 1));
    assert_eq!(report.findings[0].severity, Severity::Leak);
    assert!(!report.is_sound() && !report.is_damaged());
}

#[test]
fn an_unreadable_leaf_is_not_followed_by_false_leaks() {
    let mut image = Image::of(SNAPSHOTS);
    image.put_raw(151, 100, &[0xFF, 0xFF]);
    let report = image.check();
    let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    assert_eq!(report.leak_count, 0, "{texts:#?}");
    assert_eq!(texts.len(), 2, "{texts:#?}");
    assert!(texts[1].contains("data blocks have a higher reference count than could be verified"));
    let damaged: Vec<u32> = report
        .devices
        .iter()
        .filter(|device| device.damaged)
        .map(|device| device.id)
        .collect();
    assert_eq!(damaged, [1]);
}

#[test]
fn findings_are_bounded() {
    let mut image = Image::of("4-deep");
    // Every second count is wrong, so no two make a run.
    (0..16_000).step_by(2).for_each(|entry| {
        let wrong = if image.count(2744, entry) == 1 { 2 } else { 1 };
        image.put_count(2744, entry, wrong);
    });
    let report = image.check();
    assert_eq!(report.findings.len(), 1000);
    assert!(report.findings_dropped >= 3000);
    let all = u64::try_from(report.findings.len()).unwrap() + report.findings_dropped;
    assert_eq!(report.damage_count + report.leak_count, all);
}
