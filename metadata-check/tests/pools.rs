//! Pools made by the kernel are sound, and are dumped exactly as `thin_dump` does.

mod support;

use std::fs::File;
use std::io::Write;

use metadata_check::{CheckOptions, DumpError, DumpOptions, check, dump};
use support::{Image, POOLS, unpack};

#[test]
fn kernel_pools_are_sound() {
    for pool in POOLS {
        let image = Image::of(pool);
        let report = image.check();
        let texts: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert_eq!(texts, Vec::<String>::new(), "{pool}");
        assert!(report.is_sound() && !report.is_damaged(), "{pool}");
        assert_eq!(report.needs_check, pool == "8-needs-check", "{pool}");
        let summary = report.superblock.expect("a summary");
        let root = |offset| image.u64(0, offset);
        assert_eq!(summary.data_blocks, root(64), "{pool}");
        assert_eq!(summary.data_blocks_used, root(72), "{pool}");
        assert_eq!(summary.metadata_blocks, root(192), "{pool}");
        assert_eq!(summary.metadata_blocks_used, root(200), "{pool}");
        assert!(
            report.devices.iter().all(|device| !device.damaged),
            "{pool}"
        );
        let reads = image.take_reads();
        assert!(
            reads.values().all(|count| *count == 1),
            "{pool}: blocks are read once"
        );
        // All that is in use has been looked at.
        assert_eq!(
            u64::try_from(reads.len()).unwrap(),
            summary.metadata_blocks_used,
            "{pool}"
        );
    }
}

#[test]
fn devices_are_as_recorded() {
    for pool in POOLS {
        let report = Image::of(pool).check();
        let xml = String::from_utf8(unpack(pool, "thin_dump.xml.zst")).unwrap();
        let mut recorded = Vec::new();
        for line in xml.lines().filter(|line| line.contains("<device ")) {
            let mut numbers = line
                .split('"')
                .skip(1)
                .step_by(2)
                .map(|n| n.parse::<u64>().unwrap());
            recorded.push([(); 5].map(|()| numbers.next().unwrap()));
        }
        let found: Vec<[u64; 5]> = report
            .devices
            .iter()
            .map(|d| {
                let times = (u64::from(d.creation_time), u64::from(d.snapshotted_time));
                [
                    u64::from(d.id),
                    d.mapped_blocks,
                    d.transaction_id,
                    times.0,
                    times.1,
                ]
            })
            .collect();
        assert_eq!(found, recorded, "{pool}");
        for device in &report.devices {
            assert_eq!(
                device.highest_mapped.is_none(),
                device.mapped_blocks == 0,
                "{pool}"
            );
        }
    }
}

#[test]
fn highest_mapped_block_is_as_the_kernel_says() {
    // Its status line gives the last sector of block 640.
    let report = Image::of("2-single").check();
    assert_eq!(report.devices[0].highest_mapped, Some(82_047 / 128));
}

#[test]
fn dumps_are_as_recorded() {
    for pool in POOLS {
        let mut xml = Vec::new();
        dump(&Image::of(pool), &DumpOptions::default(), &mut xml).unwrap();
        assert!(xml == unpack(pool, "thin_dump.xml.zst"), "{pool}");
    }
    let (pool, options) = (
        "6-grown-held-origin",
        DumpOptions {
            held: true,
            ..DumpOptions::default()
        },
    );
    let mut xml = Vec::new();
    dump(&Image::of(pool), &options, &mut xml).unwrap();
    assert!(xml == unpack(pool, "thin_dump_held.xml.zst"));
}

#[test]
fn a_range_ends_where_the_time_changes() {
    let mut image = Image::of("8-needs-check");
    // The top-level tree is one leaf with one device, whose tree is one leaf with one run of 20.
    let leaf = image.u64(image.u64(0, 320), 2048);
    image.put64(leaf, 2048 + 8 * 10, 10 << 24 | 1);
    let mut xml = Vec::new();
    dump(&image, &DumpOptions::default(), &mut xml).unwrap();
    let xml = String::from_utf8(xml).unwrap();
    let mappings: Vec<&str> = xml
        .lines()
        .filter(|line| line.contains("mapping "))
        .map(str::trim)
        .collect();
    let expected = [
        r#"<range_mapping origin_begin="0" data_begin="0" length="10" time="0"/>"#,
        r#"<single_mapping origin_block="10" data_block="10" time="1"/>"#,
        r#"<range_mapping origin_begin="11" data_begin="11" length="9" time="0"/>"#,
    ];
    assert_eq!(mappings, expected);
}

#[test]
fn dumping_an_absent_snapshot_is_refused() {
    let options = DumpOptions {
        held: true,
        ..DumpOptions::default()
    };
    let result = dump(&Image::of("1-empty"), &options, &mut Vec::new());
    assert!(
        matches!(result, Err(DumpError::NoMetadataSnapshot)),
        "{result:?}"
    );
}

#[test]
fn a_damaged_pool_is_not_dumped() {
    let mut image = Image::of("3-snapshots");
    image.put_raw(108, 2048, &[0xFF]);
    let Err(DumpError::Damaged(finding)) = dump(&image, &DumpOptions::default(), &mut Vec::new())
    else {
        panic!("dumped although a node is damaged")
    };
    assert_eq!(finding.block, Some(108));
}

#[test]
fn a_pinned_superblock_replaces_block_0() {
    let mut image = Image::of("3-snapshots");
    let pinned = image.block(0);
    image.put_raw(0, 0, &[0; 4096]);
    let options = CheckOptions {
        superblock: Some(&pinned),
        ..CheckOptions::default()
    };
    assert!(check(&image, &options).is_sound());
    assert!(!image.take_reads().contains_key(&0));
    let mut xml = Vec::new();
    dump(
        &image,
        &DumpOptions {
            superblock: Some(&pinned),
            ..DumpOptions::default()
        },
        &mut xml,
    )
    .unwrap();
    assert!(xml == unpack("3-snapshots", "thin_dump.xml.zst"));
}

#[test]
fn a_file_is_a_source() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&unpack("2-single", "metadata.bin.zst"))
        .unwrap();
    assert!(check(&file, &CheckOptions::default()).is_sound());
    file.set_len(4096).unwrap();
    assert!(check(&file, &CheckOptions::default()).is_damaged());
    let closed = File::open("/dev/null").unwrap();
    assert!(
        check(&closed, &CheckOptions::default())
            .superblock
            .is_none()
    );
}

#[test]
fn progress_ends_with_everything_read() {
    let last = std::cell::Cell::new((0, 0));
    let image = Image::of("4-deep");
    let progress = |p: metadata_check::Progress| last.set((p.blocks_read, p.blocks_expected));
    let options = CheckOptions {
        progress: &progress,
        ..CheckOptions::default()
    };
    assert!(check(&image, &options).is_sound());
    // The superblock is read before there is anything to count.
    assert_eq!(last.get().0 + 1, last.get().1);
}
