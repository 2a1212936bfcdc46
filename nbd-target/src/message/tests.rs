use std::fs::File;

use super::*;

fn record() -> Record {
    Record {
        volume: "uuid".to_owned(),
        device: 3,
        token: 0xabc,
        connections: 2,
        read_only: false,
        mountpoint: None,
    }
}

fn sockets() -> Vec<OwnedFd> {
    let open = || File::open("/dev/null").unwrap().into();
    vec![open(), open()]
}

/// Through bytes and back.
fn sent(message: &Message) -> Message {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    let header = GenlHeader {
        cmd: message.command(),
        version: message.version(),
    };
    Message::parse_with_param(&bytes, header).unwrap()
}

fn attribute_of(message: &Message, wanted: u16) -> Vec<u8> {
    let mut found = message.attributes.iter();
    let found = found.find(|attribute| kind(attribute) == wanted);
    value(found.unwrap_or_else(|| panic!("no attribute {wanted}")))
}

#[test]
fn a_device_is_made_as_it_is_meant() {
    let (sockets, shape) = (
        sockets(),
        Shape {
            size: 1 << 40,
            sector_size: 4096,
            flags: 0x16d,
        },
    );
    let message = sent(&Message::connect(&record(), shape, &sockets));
    assert_eq!(message.command, command::CONNECT);
    assert_eq!(
        parse_u32(&attribute_of(&message, attribute::INDEX)).unwrap(),
        3
    );
    for (wanted, number) in [
        (attribute::SIZE_BYTES, 1 << 40),
        (attribute::BLOCK_SIZE_BYTES, 4096),
        (attribute::SERVER_FLAGS, 0x16d),
        (attribute::DEAD_CONN_TIMEOUT, DEAD_CONNECTION_TIMEOUT),
    ] {
        let found = netlink_packet_core::parse_u64(&attribute_of(&message, wanted)).unwrap();
        assert_eq!(found, number, "{wanted}");
    }
    let backend = attribute_of(&message, attribute::BACKEND_IDENTIFIER);
    assert_eq!(backend, b"thinpool:0000000000000abc\0");
    let items = parse(&attribute_of(&message, attribute::SOCKETS)).unwrap();
    let fds: Vec<_> = items
        .iter()
        .map(|item| {
            let inner = parse(&value(item)).unwrap();
            assert_eq!((kind(item), inner.len(), kind(&inner[0])), (1, 1, 1));
            parse_u32(&value(&inner[0])).unwrap()
        })
        .collect();
    let meant: Vec<_> = sockets
        .iter()
        .map(|socket| socket.as_raw_fd().cast_unsigned())
        .collect();
    assert_eq!(fds, meant);
}

#[test]
fn a_device_is_given_another_size_and_nothing_else() {
    let message = sent(&Message::resize(&record(), 1 << 40));
    assert_eq!(message.command, command::RECONFIGURE);
    let kinds: Vec<_> = message.attributes.iter().map(kind).collect();
    assert_eq!(
        kinds,
        [
            attribute::INDEX,
            attribute::BACKEND_IDENTIFIER,
            attribute::SIZE_BYTES
        ]
    );
    let size = attribute_of(&message, attribute::SIZE_BYTES);
    assert_eq!(netlink_packet_core::parse_u64(&size).unwrap(), 1 << 40);
}

#[test]
fn devices_are_read_from_an_answer() {
    let device = |index, connected: u8| {
        let attributes = [
            number(DEVICE_INDEX, index),
            DefaultNla::new(DEVICE_CONNECTED, vec![connected]),
        ];
        nested(DEVICE_ITEM, &attributes)
    };
    let answer = Message {
        command: command::STATUS,
        attributes: vec![nested(
            attribute::DEVICE_LIST,
            &[device(0, 1), device(16, 0)],
        )],
    };
    let found = sent(&answer).devices().unwrap();
    let meant = [(0, true), (16, false)].map(|(index, connected)| Device { index, connected });
    assert_eq!(found, meant);
    assert!(sent(&Message::status()).devices().unwrap().is_empty());
}

#[test]
fn a_malformed_answer_is_an_error() {
    let header = GenlHeader { cmd: 5, version: 1 };
    for bytes in [&[1, 0][..], &[200, 0, 9, 0], &[3, 0, 9, 0]] {
        assert!(
            Message::parse_with_param(bytes, header).is_err(),
            "{bytes:?}"
        );
    }
    let without_state = nested(DEVICE_ITEM, &[number(DEVICE_INDEX, 1)]);
    let short = nested(DEVICE_ITEM, &[DefaultNla::new(DEVICE_INDEX, vec![1])]);
    for item in [without_state, short] {
        let answer = Message {
            command: command::STATUS,
            attributes: vec![nested(attribute::DEVICE_LIST, &[item])],
        };
        assert!(answer.devices().is_err());
    }
}
