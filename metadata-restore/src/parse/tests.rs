//! Dumps that must be refused, each for its own reason, and those that must not.

#![allow(clippy::unwrap_used, reason = "a panic fails the test, as it should")]

use std::io::{self, BufReader, Read};

use pool::BlockSize;

use super::*;

const SUPERBLOCK_TAG: &str = r#"<superblock uuid="" time="3" transaction="9" flags="0" version="2" data_block_size="128" nr_data_blocks="1000">"#;
const DEVICE_TAG: &str =
    r#"<device dev_id="5" mapped_blocks="4" transaction="7" creation_time="1" snap_time="2">"#;
const RANGE_TAG: &str = r#"<range_mapping origin_begin="0" data_begin="10" length="3" time="1"/>"#;
const SINGLE_TAG: &str = r#"<single_mapping origin_block="100" data_block="77" time="0"/>"#;

/// A dump of four lines, then the ends.
fn good() -> String {
    format!(
        "{SUPERBLOCK_TAG}\n  {DEVICE_TAG}\n    {RANGE_TAG}\n    {SINGLE_TAG}\n  </device>\n</superblock>\n"
    )
}

fn parse_from(input: impl BufRead) -> Result<Vec<Item>, Error> {
    let mut parser = Parser::new(input);
    let mut items = Vec::new();
    while let Some(item) = parser.next()? {
        items.push(item);
    }
    Ok(items)
}

fn parse(dump: &str) -> Result<Vec<Item>, Error> {
    parse_from(dump.as_bytes())
}

/// The line and the fault for which a dump is refused.
fn refused(dump: &str) -> (u64, Fault) {
    match parse(dump) {
        Err(Error::Dump { line, fault }) => (line, fault),
        other => panic!("{dump}: {other:?}"),
    }
}

/// What is replaced in the good dump, and by what; the line and the words of the refusal.
type Change = (&'static str, &'static str, u64, &'static str);

/// Fails unless the good dump with a change is refused on that line with words like these.
fn expect_refused(from: &str, to: &str, line: u64, words: &str) {
    let dump = good();
    assert!(dump.contains(from), "{from}");
    let (found, fault) = refused(&dump.replacen(from, to, 1));
    let text = fault.to_string();
    assert!(text.contains(words), "{to}: {text}, expected {words}");
    assert_eq!(found, line, "{to}: {text}");
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
}

#[test]
fn a_dump_is_taken_apart() {
    let items = parse(&good()).unwrap();
    let expected = [
        Item::Pool(DumpedPool {
            record: PoolRecord {
                time: 3,
                transaction_id: 9,
                block_size: BlockSize::DEFAULT,
                data_blocks: 1000,
            },
            needs_check: false,
        }),
        Item::Device(DeviceRecord {
            id: ThinId::new(5).unwrap(),
            transaction_id: 7,
            creation_time: 1,
            snapshotted_time: 2,
        }),
        Item::Run(Run {
            virtual_begin: 0,
            data_begin: 10,
            length: 3,
            time: 1,
        }),
        Item::Run(Run {
            virtual_begin: 100,
            data_begin: 77,
            length: 1,
            time: 0,
        }),
        Item::DeviceEnd,
    ];
    assert_eq!(items, expected);
}

#[test]
fn what_means_the_same_is_the_same() {
    let items = parse(&good()).unwrap();
    for (from, to) in [
        (
            SUPERBLOCK_TAG,
            &*format!("<?xml version=\"1.0\"?>\n<!-- by hand -->{SUPERBLOCK_TAG}"),
        ),
        (" flags=\"0\" version=\"2\"", ""),
        ("uuid=\"\" ", ""),
        ("uuid=\"\" ", "uuid=\"anything\" "),
        ("time=\"1\"/>", "time=\"1\"></range_mapping>"),
        ("time=\"1\"/>", "\n time = '1'\n/>"),
        ("length=\"3\" time=\"1\"", "time=\"1\" length=\"3\""),
        ("length=\"3\"", "length=\"0003\""),
        ("</superblock>\n", "</superblock>"),
        ("</superblock>\n", "</superblock><!-- the end -->\r\n"),
    ] {
        let dump = good();
        assert!(dump.contains(from), "{from}");
        assert_eq!(parse(&dump.replacen(from, to, 1)).unwrap(), items, "{to}");
    }
    let empty = "<superblock time='0' transaction='0' data_block_size='128' nr_data_blocks='0'/>";
    assert!(matches!(parse(empty).unwrap()[..], [Item::Pool(_)]));
    let flagged = good().replace("flags=\"0\"", "flags=\"1\"");
    assert!(matches!(parse(&flagged).unwrap()[0], Item::Pool(pool) if pool.needs_check));
}

/// Numbers that do not fit.
const NUMBERS: &[Change] = &[
    (
        "time=\"3\"",
        "time=\"16777216\"",
        1,
        "time is \"16777216\", expected at most 16777215",
    ),
    ("time=\"3\"", "time=\"-1\"", 1, "time is \"-1\""),
    ("time=\"3\"", "time=\"+1\"", 1, "time is \"+1\""),
    ("time=\"3\"", "time=\"\"", 1, "time is \"\""),
    ("time=\"3\"", "time=\"&#51;\"", 1, "time is \"&#51;\""),
    ("\"9\"", "\"18446744073709551616\"", 1, "transaction is"),
    ("\"9\"", "\"9 \"", 1, "transaction is \"9 \""),
    ("flags=\"0\"", "flags=\"2\"", 1, "flags is \"2\""),
    (
        "version=\"2\"",
        "version=\"1\"",
        1,
        "version is \"1\", expected 2",
    ),
    ("\"128\"", "\"64\"", 1, "data_block_size is \"64\""),
    ("\"128\"", "\"129\"", 1, "multiple of 128"),
    ("\"128\"", "\"2097280\"", 1, "multiple of 128"),
    ("\"128\"", "\"36028797018963968\"", 1, "multiple of 128"),
    ("\"1000\"", "\"67917312001\"", 1, "nr_data_blocks is"),
    (
        "dev_id=\"5\"",
        "dev_id=\"16777216\"",
        2,
        "dev_id is \"16777216\"",
    ),
    (
        "creation_time=\"1\"",
        "creation_time=\"4\"",
        2,
        "creation_time is \"4\", expected at most 3",
    ),
    (
        "snap_time=\"2\"",
        "snap_time=\"4\"",
        2,
        "snap_time is \"4\"",
    ),
    (
        "mapped_blocks=\"4\"",
        "mapped_blocks=\"144115188075855873\"",
        2,
        "mapped_blocks is",
    ),
    ("time=\"1\"/>", "time=\"4\"/>", 3, "time is \"4\""),
    ("time=\"0\"/>", "time=\"4\"/>", 4, "time is \"4\""),
    ("length=\"3\"", "length=\"0\"", 3, "length is \"0\""),
    (
        "origin_begin=\"0\"",
        "origin_begin=\"0x0\"",
        3,
        "origin_begin is \"0x0\"",
    ),
];

#[test]
fn numbers_must_fit_their_fields() {
    for (from, to, line, words) in NUMBERS {
        expect_refused(from, to, *line, words);
    }
}

/// Mappings that cannot be.
const MAPPINGS: &[Change] = &[
    (
        "origin_block=\"100\"",
        "origin_block=\"2\"",
        4,
        "block 2 is mapped out of order, expected 3",
    ),
    (
        "origin_begin=\"0\"",
        "origin_begin=\"100\"",
        4,
        "block 100 is mapped out of order, expected 103",
    ),
    (
        "origin_begin=\"0\"",
        "origin_begin=\"18446744073709551615\"",
        3,
        "virtual blocks from",
    ),
    (
        "origin_block=\"100\"",
        "origin_block=\"144115188075855872\"",
        4,
        "virtual blocks from",
    ),
    (
        "length=\"3\"",
        "length=\"18446744073709551615\"",
        3,
        "virtual blocks from 0 on",
    ),
    (
        "data_begin=\"10\"",
        "data_begin=\"998\"",
        3,
        "data blocks from 998 on, 3 long, expected to end at 1000",
    ),
    (
        "data_begin=\"10\"",
        "data_begin=\"18446744073709551615\"",
        3,
        "data blocks from",
    ),
    (
        "data_block=\"77\"",
        "data_block=\"1000\"",
        4,
        "data blocks from 1000 on",
    ),
    ("\"1000\"", "\"77\"", 4, "data blocks from 77 on"),
    (
        "mapped_blocks=\"4\"",
        "mapped_blocks=\"5\"",
        5,
        "4 blocks are mapped, expected 5",
    ),
    (
        "mapped_blocks=\"4\"",
        "mapped_blocks=\"3\"",
        4,
        "4 blocks are mapped, expected 3",
    ),
    (
        "length=\"3\"",
        "length=\"4\"",
        4,
        "5 blocks are mapped, expected 4",
    ),
];

#[test]
fn mappings_must_be_possible() {
    for (from, to, line, words) in MAPPINGS {
        expect_refused(from, to, *line, words);
    }
    let twice = good().replace(
        "</superblock>",
        &format!("{DEVICE_TAG}</device></superblock>"),
    );
    assert_eq!(refused(&twice), (6, Fault::DeviceTwice { id: 5 }));
}

/// Elements and attributes that are unknown, misplaced or missing.
const NAMES: &[Change] = &[
    (
        "superblock uuid",
        "pool uuid",
        1,
        "<pool>, expected <superblock>",
    ),
    (
        "<device ",
        "<single_mapping ",
        2,
        "<single_mapping>, expected <device>",
    ),
    (
        "<range_mapping",
        "<device",
        3,
        "<device>, expected <single_mapping>",
    ),
    (
        "<range_mapping",
        "<mapping",
        3,
        "unexpected element <mapping>",
    ),
    (
        "<range_mapping",
        "<def",
        3,
        "<def>: parts that devices share",
    ),
    (
        "<range_mapping",
        "<ref",
        3,
        "<ref>: parts that devices share",
    ),
    ("<device ", "<def ", 2, "<def>: parts that devices share"),
    (
        "time=\"1\"/>",
        "time=\"1\"><a/></range_mapping>",
        3,
        "<a>, expected the end of the mapping",
    ),
    (
        "</superblock>\n",
        "</superblock>\n<superblock/>",
        7,
        "<superblock>, expected nothing more",
    ),
    ("uuid", "uid", 1, "<superblock>: unknown attribute \"uid\""),
    ("dev_id", "id", 2, "<device>: unknown attribute \"id\""),
    (
        "data_begin",
        "data_start",
        3,
        "<range_mapping>: unknown attribute \"data_start\"",
    ),
    (
        "data_block=\"77\"",
        "length=\"1\"",
        4,
        "<single_mapping>: unknown attribute \"length\"",
    ),
    (
        " nr_data_blocks=\"1000\"",
        "",
        1,
        "<superblock>: nr_data_blocks is missing",
    ),
    (
        " mapped_blocks=\"4\"",
        "",
        2,
        "<device>: mapped_blocks is missing",
    ),
    (" length=\"3\"", "", 3, "<range_mapping>: length is missing"),
    (
        " data_block=\"77\"",
        "",
        4,
        "<single_mapping>: data_block is missing",
    ),
];

#[test]
fn what_is_unknown_is_refused_by_name() {
    for (from, to, line, words) in NAMES {
        expect_refused(from, to, *line, words);
    }
    let long = "x".repeat(5000);
    expect_refused("uuid", &long, 1, "xxx...");
    expect_refused("<device", &format!("<{long}"), 2, "xxx...");
}

/// What is no element.
const KINDS: &[Change] = &[
    ("<superblock", "hello <superblock", 1, "unexpected text"),
    (
        "</superblock>\n",
        "</superblock>\nhello",
        6,
        "unexpected text",
    ),
    (
        "<superblock",
        "<!DOCTYPE a [<!ENTITY b \"c\">]><superblock",
        1,
        "unexpected document type",
    ),
    ("<range", "&lt;<range", 3, "unexpected text"),
    ("<range", "<![CDATA[x]]><range", 3, "unexpected CDATA"),
    (
        "<range",
        "<?php x?><range",
        3,
        "unexpected processing instruction",
    ),
    ("<range", "<!x><range", 3, "no well-formed XML"),
    ("</device>", "</devise>", 5, "no well-formed XML"),
    (
        "<superblock",
        "</device><superblock",
        1,
        "no well-formed XML",
    ),
    (
        "time=\"3\"",
        "time=\"3\" time=\"3\"",
        1,
        "no well-formed XML",
    ),
    ("time=\"3\"", "time=3", 1, "no well-formed XML"),
];

#[test]
fn other_kinds_of_text_are_refused() {
    for (from, to, line, words) in KINDS {
        expect_refused(from, to, *line, words);
    }
    for bytes in [
        &b"<superblock \xff=''>"[..],
        b"\xff",
        b"\0\0\0\0",
        b"PK\x03\x04",
    ] {
        assert!(
            matches!(parse_from(bytes), Err(Error::Dump { .. })),
            "{bytes:?}"
        );
    }
}

#[test]
fn every_dump_that_was_cut_off_is_refused() {
    let dump = good();
    let whole = dump.trim_end().len();
    for length in 0..whole {
        let (_, fault) = refused(&dump[..length]);
        // An entity or a comment may be what was begun; all else is known to be cut off.
        assert!(
            matches!(fault, Fault::CutOff | Fault::Syntax(_)),
            "{length}: {fault:?}"
        );
    }
    assert_eq!(refused("").1, Fault::CutOff);
}

#[test]
fn changed_bytes_are_no_panic() {
    let dump = good();
    for at in 0..dump.len() {
        for byte in [0, b'<', b'>', b'"', b'&', b'9', b'/', b' ', b'!', 0xff] {
            let mut changed = dump.clone().into_bytes();
            changed[at] = byte;
            // Some are good dumps, of other pools.
            let _may_be_good = parse_from(&changed[..]);
        }
    }
}

#[test]
fn endless_pieces_end() {
    let too_long = Fault::TooLong {
        limit: PIECE_LEN_MAX,
    };
    for (begin, repeated) in [
        ("", " "),
        ("", "x"),
        ("<", "x"),
        ("<superblock ", "a='' "),
        ("<superblock time='", "1"),
        ("<!--", "-"),
        ("<!DOCTYPE ", "<"),
        ("<?", "x"),
        ("&", "x"),
    ] {
        let endless = io::repeat(repeated.as_bytes()[0]);
        let input = BufReader::new(begin.as_bytes().chain(endless));
        match parse_from(input) {
            Err(Error::Dump { line: 1, fault }) => assert_eq!(fault, too_long, "{begin}"),
            other => panic!("{begin}: {other:?}"),
        }
    }
    // Elements within elements end where the first may not be.
    let deep = "<superblock>".repeat(100_000);
    assert!(matches!(refused(&deep).1, Fault::Missing { .. }));
}

#[test]
fn pieces_may_come_in_pieces() {
    let dump = good();
    let expected = parse(&dump).unwrap();
    for capacity in [1, 2, 7, 100] {
        let input = BufReader::with_capacity(capacity, dump.as_bytes());
        assert_eq!(parse_from(input).unwrap(), expected, "{capacity}");
    }
}

#[test]
fn a_failed_read_is_no_fault_of_the_dump() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let input = BufReader::new(SUPERBLOCK_TAG.as_bytes().chain(Failing));
    let Err(Error::Read(cause)) = parse_from(input) else {
        panic!("the failure is lost")
    };
    assert_eq!(cause.kind(), io::Error::from_raw_os_error(5).kind());
}
