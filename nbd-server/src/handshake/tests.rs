use super::*;
use crate::wire::OPTION_REPLY_MAGIC;

/// A directory of fixed names; opening gives the name back.
struct Names {
    names: Vec<&'static str>,
    stopping: bool,
}

impl Directory for Names {
    type Device = String;

    fn names(&self) -> Vec<String> {
        self.names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn open(&self, name: &str) -> Result<Option<(Facts, String)>, String> {
        if name == "busy" {
            return Err("busy is in use".to_owned());
        }
        let read_only = name.contains('@');
        let facts = Facts {
            size: 1 << 30,
            read_only,
            block_size: 65536,
        };
        Ok(self.names.contains(&name).then(|| (facts, name.to_owned())))
    }

    fn is_stopping(&self) -> bool {
        self.stopping
    }
}

fn handshake() -> Handshake<Names> {
    protected(Protection::None)
}

fn protected(protection: Protection) -> Handshake<Names> {
    let names = Names {
        names: vec!["prod", "prod@nightly", "busy"],
        stopping: false,
    };
    let mut handshake = Handshake::new(names, protection);
    let (consumed, step) = handshake.advance(&[0, 0, 0, 3], &mut Vec::new());
    assert!(consumed == 4 && matches!(step, Step::Again));
    handshake
}

fn encode(option: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    [
        &OPTION_MAGIC.to_be_bytes()[..],
        &option.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// Types and payloads of the replies in some output.
fn replies(mut out: &[u8], option: u32) -> Vec<(u32, Vec<u8>)> {
    let mut replies = Vec::new();
    while !out.is_empty() {
        let mut reader = Reader::new(out);
        assert_eq!(reader.u64(), Some(OPTION_REPLY_MAGIC));
        assert_eq!(reader.u32(), Some(option));
        let kind = reader.u32().unwrap();
        let payload = reader.counted().unwrap();
        replies.push((kind, payload.to_vec()));
        out = &out[20 + payload.len()..];
    }
    replies
}

/// Sends one option; the replies without the texts of errors, and whether the handshake goes on.
fn send(handshake: &mut Handshake<Names>, option: u32, payload: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let input = encode(option, payload);
    let mut out = Vec::new();
    let (consumed, step) = handshake.advance(&input, &mut out);
    assert_eq!(consumed, input.len());
    assert!(
        matches!(step, Step::Again),
        "option {option} ended the handshake"
    );
    let mut replies = replies(&out, option);
    for (kind, payload) in &mut replies {
        if *kind >= 1 << 31 {
            payload.clear();
        }
    }
    replies
}

fn info_payload(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut payload = [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name].concat();
    payload.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| payload.extend(kind.to_be_bytes()));
    payload
}

fn query_payload(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut payload = [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name].concat();
    payload.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        payload.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        payload.extend_from_slice(query);
    }
    payload
}

fn go(handshake: &mut Handshake<Names>, name: &str) -> Agreement<String> {
    let input = encode(option::GO, &info_payload(name.as_bytes(), &[]));
    let (_, step) = handshake.advance(&input, &mut Vec::new());
    let Step::Ready(agreement) = step else {
        panic!("GO was refused")
    };
    agreement
}

const ACK: (u32, Vec<u8>) = (option_reply::ACK, Vec::new());

fn error(kind: u32) -> [(u32, Vec<u8>); 1] {
    [(kind, Vec::new())]
}

#[test]
fn the_greeting_has_the_bytes_of_the_protocol() {
    assert_eq!(greeting(), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn unknown_client_flags_end_it() {
    for flags in [4u32, 1 << 31, 0xffff_ffff] {
        let mut handshake = Handshake::new(
            Names {
                names: vec![],
                stopping: false,
            },
            Protection::None,
        );
        let (_, step) = handshake.advance(&flags.to_be_bytes(), &mut Vec::new());
        assert!(matches!(step, Step::Close(_)), "{flags:#x}");
    }
}

#[test]
fn unknown_options_are_refused_and_it_goes_on() {
    let mut handshake = handshake();
    for option in [0, 4, 11, 12, 99, u32::MAX] {
        assert_eq!(
            send(&mut handshake, option, b""),
            error(option_reply::ERR_UNSUP)
        );
        assert_eq!(
            send(&mut handshake, option, &[7; 5000]),
            error(option_reply::ERR_UNSUP)
        );
    }
    assert_eq!(
        send(&mut handshake, option::STARTTLS, b""),
        error(option_reply::ERR_UNSUP)
    );
    assert_eq!(
        send(&mut handshake, option::STARTTLS, b"x"),
        error(option_reply::ERR_INVALID)
    );
}

#[test]
fn options_without_data_refuse_data() {
    let mut handshake = handshake();
    assert_eq!(
        send(&mut handshake, option::LIST, b"x"),
        error(option_reply::ERR_INVALID)
    );
    assert_eq!(
        send(&mut handshake, option::STRUCTURED_REPLY, b"x"),
        error(option_reply::ERR_INVALID)
    );
    assert!(!handshake.structured);
    assert_eq!(send(&mut handshake, option::STRUCTURED_REPLY, b""), [ACK]);
    assert_eq!(send(&mut handshake, option::STRUCTURED_REPLY, b""), [ACK]);
}

#[test]
fn exports_are_listed() {
    let listed = send(&mut handshake(), option::LIST, b"");
    let server = |name: &[u8]| {
        let len = u32::try_from(name.len()).unwrap().to_be_bytes();
        (option_reply::SERVER, [&len[..], name].concat())
    };
    assert_eq!(
        listed,
        [
            server(b"prod"),
            server(b"prod@nightly"),
            server(b"busy"),
            ACK
        ]
    );
}

#[test]
fn info_and_go_tell_the_same() {
    let mut handshake = handshake();
    send(&mut handshake, option::STRUCTURED_REPLY, b"");
    for name in ["prod", "prod@nightly"] {
        let payload = info_payload(name.as_bytes(), &[info::NAME, 77, info::DESCRIPTION]);
        let told = send(&mut handshake, option::INFO, &payload);
        let mut out = Vec::new();
        let (_, step) = handshake.advance(&encode(option::GO, &payload), &mut out);
        assert!(matches!(step, Step::Ready(_)));
        assert_eq!(replies(&out, option::GO), told);
        let flags: u16 = if name == "prod" { 0xded } else { 0x58f };
        let expected = [
            &[0, 0][..],
            &(1u64 << 30).to_be_bytes(),
            &flags.to_be_bytes(),
        ]
        .concat();
        assert_eq!(told[0], (option_reply::INFO, expected));
        let sizes = [0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 2, 0, 0, 0].to_vec();
        assert_eq!(told[1], (option_reply::INFO, sizes));
        assert_eq!(
            told[2],
            (option_reply::INFO, [&[0, 1], name.as_bytes()].concat())
        );
        assert_eq!(told.len(), 5);
    }
}

#[test]
fn malformed_info_is_refused_and_it_goes_on() {
    let mut handshake = handshake();
    let good = info_payload(b"prod", &[1, 3]);
    for option in [option::INFO, option::GO] {
        for len in 0..good.len() {
            assert_eq!(
                send(&mut handshake, option, &good[..len]),
                error(option_reply::ERR_INVALID)
            );
        }
        let long = [&good[..], &[0]].concat();
        assert_eq!(
            send(&mut handshake, option, &long),
            error(option_reply::ERR_INVALID)
        );
        let name_beyond = [&[0xff, 0xff, 0xff, 0xff][..], b"prod\0\0"].concat();
        assert_eq!(
            send(&mut handshake, option, &name_beyond),
            error(option_reply::ERR_INVALID)
        );
        for name in [&[b'x'; 4097][..], &[b'x'; 70_000], b"a\0b", b"\xff\xfe"] {
            let payload = info_payload(name, &[]);
            assert_eq!(
                send(&mut handshake, option, &payload),
                error(option_reply::ERR_INVALID)
            );
        }
        for name in [
            &[b'x'; 4096][..],
            b"../etc/passwd",
            b"%n",
            b"prod/",
            b"Prod",
            b"",
        ] {
            let payload = info_payload(name, &[]);
            assert_eq!(
                send(&mut handshake, option, &payload),
                error(option_reply::ERR_UNKNOWN)
            );
        }
        let busy = info_payload(b"busy", &[]);
        assert_eq!(
            send(&mut handshake, option, &busy),
            error(option_reply::ERR_POLICY)
        );
    }
    assert_eq!(go(&mut handshake, "prod").device, "prod");
}

#[test]
fn the_empty_name_is_the_only_export() {
    let mut handshake = Handshake::new(
        Names {
            names: vec!["one"],
            stopping: false,
        },
        Protection::None,
    );
    handshake.advance(&[0; 4], &mut Vec::new());
    assert_eq!(go(&mut handshake, "").device, "one");
}

#[test]
fn export_name_answers_or_closes() {
    for (no_zeroes, len) in [(true, 10), (false, 134)] {
        let mut handshake = handshake();
        handshake.no_zeroes = Some(no_zeroes);
        let mut out = Vec::new();
        let (_, step) = handshake.advance(&encode(option::EXPORT_NAME, b"prod"), &mut out);
        assert!(matches!(step, Step::Ready(_)));
        assert_eq!(out.len(), len);
        assert_eq!(
            out[8..10],
            0xd6du16.to_be_bytes(),
            "no DF without structured replies"
        );
    }
    for name in [&b"nobody"[..], b"busy", b"", b"\xff", &[b'x'; 5000]] {
        let mut out = Vec::new();
        let (_, step) = handshake().advance(&encode(option::EXPORT_NAME, name), &mut out);
        assert!(matches!(step, Step::Close(_)) && out.is_empty());
    }
}

#[test]
fn abort_is_acknowledged() {
    for payload in [&b""[..], b"whatever"] {
        let mut out = Vec::new();
        let (_, step) = handshake().advance(&encode(option::ABORT, payload), &mut out);
        assert!(matches!(step, Step::Close(_)));
        assert_eq!(replies(&out, option::ABORT), [ACK]);
    }
}

#[test]
fn too_much_ends_it() {
    for len in [OPTION_LEN_MAX + 1, 64 << 20, 2 << 30, (4 << 30) - 1] {
        let mut header = encode(99, b"");
        header[12..].copy_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
        let (_, step) = handshake().advance(&header, &mut Vec::new());
        assert!(matches!(step, Step::Close(_)), "{len}");
    }
    let mut handshake = handshake();
    for _ in 0..OPTIONS_MAX {
        send(&mut handshake, 99, b"");
    }
    let (_, step) = handshake.advance(&encode(99, b""), &mut Vec::new());
    assert!(matches!(step, Step::Close(_)));
    let mut bad = encode(option::LIST, b"");
    bad[3] ^= 1;
    let (_, step) = self::handshake().advance(&bad, &mut Vec::new());
    assert!(matches!(step, Step::Close(_)));
}

fn meta(id: u32, context: Context) -> (u32, Vec<u8>) {
    (
        option_reply::META_CONTEXT,
        [&id.to_be_bytes()[..], context.name().as_bytes()].concat(),
    )
}

#[test]
fn contexts_are_listed_by_query() {
    let mut handshake = handshake();
    let (base, depth) = (meta(0, Context::Allocation), meta(0, Context::Depth));
    for (queries, expected) in [
        (&[][..], vec![base.clone(), depth.clone(), ACK]),
        (&[&b"base:"[..]], vec![base.clone(), ACK]),
        (
            &[b"qemu:", b"base:allocation"],
            vec![base, depth.clone(), ACK],
        ),
        (&[b"qemu:allocation-depth"], vec![depth, ACK]),
        (&[b"qemu:dirty-bitmap:", b"x-other:y", b"base"], vec![ACK]),
    ] {
        let payload = query_payload(b"prod", queries);
        assert_eq!(
            send(&mut handshake, option::LIST_META_CONTEXT, &payload),
            expected
        );
    }
    let unknown = query_payload(b"nobody", &[]);
    let refused = send(&mut handshake, option::LIST_META_CONTEXT, &unknown);
    assert_eq!(refused, error(option_reply::ERR_UNKNOWN));
}

#[test]
fn selections_need_structured_replies() {
    let mut handshake = handshake();
    let payload = query_payload(b"prod", &[b"base:allocation"]);
    let refused = send(&mut handshake, option::SET_META_CONTEXT, &payload);
    assert_eq!(refused, error(option_reply::ERR_INVALID));
    send(&mut handshake, option::STRUCTURED_REPLY, b"");
    let twice = query_payload(
        b"prod",
        &[b"base:allocation", b"base:allocation", b"qemu:", b"z:"],
    );
    let selected = send(&mut handshake, option::SET_META_CONTEXT, &twice);
    assert_eq!(selected, [meta(1, Context::Allocation), ACK]);
    let contexts = go(&mut handshake, "prod").contexts;
    assert_eq!(contexts.iter().collect::<Vec<_>>(), [Context::Allocation]);
    let other = go(&mut handshake, "prod@nightly").contexts;
    assert_eq!(other, Selection::default(), "a selection is for one export");
}

#[test]
fn a_failed_or_empty_selection_drops_the_earlier_one() {
    let good = query_payload(b"prod", &[b"qemu:allocation-depth", b"base:allocation"]);
    let queries = vec![&b""[..]; 1025];
    for (bad, expected) in [
        (query_payload(b"prod", &[]), ACK),
        (query_payload(b"prod", &[b"base:"]), ACK),
        (
            query_payload(b"nobody", &[]),
            (option_reply::ERR_UNKNOWN, vec![]),
        ),
        (
            good[..good.len() - 1].to_vec(),
            (option_reply::ERR_INVALID, vec![]),
        ),
        (
            query_payload(b"prod", &queries),
            (option_reply::ERR_TOO_BIG, vec![]),
        ),
        (
            query_payload(b"prod", &[&[b'x'; 4097]]),
            (option_reply::ERR_INVALID, vec![]),
        ),
    ] {
        let mut handshake = handshake();
        send(&mut handshake, option::STRUCTURED_REPLY, b"");
        let selected = send(&mut handshake, option::SET_META_CONTEXT, &good);
        assert_eq!(
            selected,
            [meta(1, Context::Allocation), meta(2, Context::Depth), ACK]
        );
        assert_eq!(
            send(&mut handshake, option::SET_META_CONTEXT, &bad),
            [expected]
        );
        assert_eq!(go(&mut handshake, "prod").contexts, Selection::default());
    }
}

#[test]
fn every_truncation_of_queries_is_refused() {
    let mut handshake = handshake();
    send(&mut handshake, option::STRUCTURED_REPLY, b"");
    let good = query_payload(b"prod", &[b"base:allocation", b"qemu:"]);
    for option in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        for len in 0..good.len() {
            assert_eq!(
                send(&mut handshake, option, &good[..len]),
                error(option_reply::ERR_INVALID)
            );
        }
        let long = [&good[..], &[0]].concat();
        assert_eq!(
            send(&mut handshake, option, &long),
            error(option_reply::ERR_INVALID)
        );
        let mut huge = good.clone();
        huge[8..12].copy_from_slice(&[0xff; 4]);
        assert_eq!(
            send(&mut handshake, option, &huge),
            error(option_reply::ERR_INVALID)
        );
    }
}

#[test]
fn a_stopping_server_says_so() {
    let mut handshake = handshake();
    handshake.directory.stopping = true;
    assert_eq!(
        send(&mut handshake, option::LIST, b""),
        error(option_reply::ERR_SHUTDOWN)
    );
    let (_, step) = handshake.advance(&encode(option::EXPORT_NAME, b"prod"), &mut Vec::new());
    assert!(matches!(step, Step::Close(_)));
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let stream = [
        vec![0, 0, 0, 1],
        encode(option::STRUCTURED_REPLY, b""),
        encode(99, b"xyz"),
        encode(option::GO, &info_payload(b"prod", &[])),
    ]
    .concat();
    let mut handshake = Handshake::new(
        Names {
            names: vec!["prod"],
            stopping: false,
        },
        Protection::None,
    );
    let (mut begin, mut out) = (0, Vec::new());
    for end in 0..=stream.len() {
        loop {
            let (consumed, step) = handshake.advance(&stream[begin..end], &mut out);
            begin += consumed;
            match step {
                Step::Again => {}
                Step::NeedsMore => break,
                Step::Ready(agreement) => {
                    assert!(agreement.structured);
                    assert_eq!((begin, end), (stream.len(), stream.len()));
                    return;
                }
                Step::BeginTls => panic!("nobody asked for TLS"),
                Step::Close(reason) => panic!("{reason}"),
            }
        }
    }
    panic!("the handshake did not finish");
}

/// Random bytes, most of them behind headers that are right: no panic, and little memory.
#[test]
fn garbage_is_survived() {
    let mut seed = 42u64;
    let mut random = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut handshake = handshake();
    for _ in 0..100_000 {
        let len = usize::try_from(random() % 64).unwrap();
        let mut payload: Vec<u8> = (0..len).map(|_| random().to_be_bytes()[7]).collect();
        if random() % 2 == 0 && len >= 12 {
            payload[..3].fill(0);
            payload[3] %= 8;
            payload[8..11].fill(0);
        }
        let option = u32::try_from(random() % 13).unwrap();
        let mut input = encode(option, &payload);
        if random() % 8 == 0 {
            let at = usize::try_from(random()).unwrap() % input.len();
            input[at] ^= random().to_be_bytes()[7];
        }
        let mut out = Vec::new();
        let (consumed, step) = handshake.advance(&input, &mut out);
        assert!(consumed <= input.len() && out.len() < 4096);
        if !matches!(step, Step::Again) || handshake.options > OPTIONS_MAX / 2 {
            handshake = self::handshake();
        }
    }
}

#[test]
fn without_tls_nothing_is_told_where_it_is_required() {
    let mut handshake = protected(Protection::TlsRequired);
    for option in [
        option::LIST,
        option::INFO,
        option::GO,
        option::STRUCTURED_REPLY,
        option::LIST_META_CONTEXT,
        option::SET_META_CONTEXT,
        99,
    ] {
        for payload in [&b""[..], &info_payload(b"prod", &[])] {
            let refused = send(&mut handshake, option, payload);
            assert_eq!(refused, error(option_reply::ERR_TLS_REQD), "{option}");
        }
    }
    let (_, step) = handshake.advance(&encode(option::EXPORT_NAME, b"prod"), &mut Vec::new());
    assert!(matches!(step, Step::Close(_)));
}

#[test]
fn tls_begins_once_and_forgets_what_was_before() {
    let mut handshake = protected(Protection::TlsRequired);
    let refused = send(&mut handshake, option::STARTTLS, b"x");
    assert_eq!(refused, error(option_reply::ERR_INVALID));
    // Nobody can say this before TLS; were it otherwise, it would not count.
    handshake.structured = true;
    handshake.selected = Some(("prod".to_owned(), Selection::default()));
    let mut out = Vec::new();
    let (_, step) = handshake.advance(&encode(option::STARTTLS, b""), &mut out);
    assert!(matches!(step, Step::BeginTls));
    assert_eq!(replies(&out, option::STARTTLS), [ACK]);
    assert!(!handshake.structured && handshake.selected.is_none());
    let refused = send(&mut handshake, option::STARTTLS, b"");
    assert_eq!(refused, error(option_reply::ERR_INVALID));
    assert_eq!(go(&mut handshake, "prod").device, "prod");
}
