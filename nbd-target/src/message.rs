//! What is said to the driver, and what it answers, in generic netlink. Pure.

use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlasIterator, Parseable,
    ParseableParametrized, parse_u8, parse_u32,
};
use netlink_packet_generic::{GenlFamily, GenlHeader};

use crate::record::Record;

/// How many seconds a device waits for new sockets before its requests fail: a week. Longer than anybody
/// leaves a daemon down, and short enough for the clock of a 32-bit kernel.
pub(crate) const DEAD_CONNECTION_TIMEOUT: u64 = 7 * 24 * 3600;
const _: () = assert!(DEAD_CONNECTION_TIMEOUT * 1000 < 1 << 31);

/// The driver's numbers, from its interface `linux/nbd-netlink.h`.
mod command {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const DISCONNECT: u8 = 2;
    pub(super) const RECONFIGURE: u8 = 3;
    pub(super) const STATUS: u8 = 5;
}

mod attribute {
    pub(super) const INDEX: u16 = 1;
    pub(super) const SIZE_BYTES: u16 = 2;
    pub(super) const BLOCK_SIZE_BYTES: u16 = 3;
    pub(super) const SERVER_FLAGS: u16 = 5;
    pub(super) const SOCKETS: u16 = 7;
    pub(super) const DEAD_CONN_TIMEOUT: u16 = 8;
    pub(super) const DEVICE_LIST: u16 = 9;
    pub(super) const BACKEND_IDENTIFIER: u16 = 10;
}

/// The highest attribute of those above: a driver that knows fewer is too old.
pub(crate) const ATTRIBUTE_MAX: u32 = attribute::BACKEND_IDENTIFIER as u32;

const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

const FAMILY_VERSION: u8 = 1;

/// The name of the driver's family.
pub(crate) const FAMILY: &str = "nbd";

/// A command, or an answer to one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Message {
    command: u8,
    attributes: Vec<DefaultNla>,
}

/// What a device is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Shape {
    /// In bytes.
    pub(crate) size: u64,
    /// In bytes.
    pub(crate) sector_size: u32,
    /// Transmission flags, as in a handshake.
    pub(crate) flags: u16,
}

/// One device of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) connected: bool,
}

impl Message {
    /// Makes a device.
    pub(crate) fn connect(record: &Record, shape: Shape, sockets: &[OwnedFd]) -> Self {
        Message {
            command: command::CONNECT,
            attributes: vec![
                number(attribute::INDEX, record.device),
                long(attribute::SIZE_BYTES, shape.size),
                long(attribute::BLOCK_SIZE_BYTES, shape.sector_size.into()),
                long(attribute::SERVER_FLAGS, shape.flags.into()),
                long(attribute::DEAD_CONN_TIMEOUT, DEAD_CONNECTION_TIMEOUT),
                text(attribute::BACKEND_IDENTIFIER, &record.backend()),
                nested(attribute::SOCKETS, &socket_items(sockets)),
            ],
        }
    }

    /// Replaces dead sockets of a device. The driver refuses when its backend is another.
    pub(crate) fn reconfigure(record: &Record, sockets: &[OwnedFd]) -> Self {
        Message {
            command: command::RECONFIGURE,
            attributes: vec![
                number(attribute::INDEX, record.device),
                text(attribute::BACKEND_IDENTIFIER, &record.backend()),
                nested(attribute::SOCKETS, &socket_items(sockets)),
            ],
        }
    }

    /// Gives a device another size. The driver refuses when its backend is another.
    pub(crate) fn resize(record: &Record, size: u64) -> Self {
        Message {
            command: command::RECONFIGURE,
            attributes: vec![
                number(attribute::INDEX, record.device),
                text(attribute::BACKEND_IDENTIFIER, &record.backend()),
                long(attribute::SIZE_BYTES, size),
            ],
        }
    }

    /// Ends a device: requests that wait fail.
    pub(crate) fn disconnect(device: u32) -> Self {
        Message {
            command: command::DISCONNECT,
            attributes: vec![number(attribute::INDEX, device)],
        }
    }

    /// Asks for all devices.
    pub(crate) fn status() -> Self {
        Message {
            command: command::STATUS,
            attributes: Vec::new(),
        }
    }

    /// The devices in the answer to [`Message::status`].
    pub(crate) fn devices(&self) -> Result<Vec<Device>, DecodeError> {
        let mut devices = Vec::new();
        let lists = self.attributes.iter();
        for list in lists.filter(|list| kind(list) == attribute::DEVICE_LIST) {
            for item in parse(&value(list))? {
                if kind(&item) == DEVICE_ITEM {
                    devices.push(Device::parse(&value(&item))?);
                }
            }
        }
        Ok(devices)
    }
}

impl Device {
    fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut index, mut connected) = (None, None);
        for attribute in parse(bytes)? {
            match kind(&attribute) {
                DEVICE_INDEX => index = Some(parse_u32(&value(&attribute))?),
                DEVICE_CONNECTED => connected = Some(parse_u8(&value(&attribute))? != 0),
                _ => {}
            }
        }
        match (index, connected) {
            (Some(index), Some(connected)) => Ok(Device { index, connected }),
            _ => Err("a device without number or state".into()),
        }
    }
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        FAMILY_VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Message {
            command: header.cmd,
            attributes: parse(bytes)?,
        })
    }
}

fn parse(bytes: &[u8]) -> Result<Vec<DefaultNla>, DecodeError> {
    NlasIterator::new(bytes)
        .map(|attribute| DefaultNla::parse(&attribute?))
        .collect()
}

fn kind(attribute: &DefaultNla) -> u16 {
    attribute.kind() & !NLA_F_NESTED
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

#[expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's")]
fn number(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

#[expect(clippy::host_endian_bytes, reason = "netlink speaks the machine's")]
fn long(kind: u16, value: u64) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

fn text(kind: u16, value: &str) -> DefaultNla {
    DefaultNla::new(kind, [value.as_bytes(), b"\0"].concat())
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn socket_items(sockets: &[OwnedFd]) -> Vec<DefaultNla> {
    let item = |socket: &OwnedFd| {
        let fd = number(SOCKET_FD, socket.as_raw_fd().cast_unsigned());
        nested(SOCKET_ITEM, &[fd])
    };
    sockets.iter().map(item).collect()
}

#[cfg(test)]
mod tests;
